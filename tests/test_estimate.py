"""What a run needs, foreseen from sizes."""

import numpy as np
import pytest

from bidsapp.cli import main
from bidsapp.config import load_recipe
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.model_writer import FittedTarget, Voxels, write_model
from bidsapp.decoding.streaming import predict_blocks
from bidsapp.estimate import BASE_MEMORY, as_text, model_file_bytes
from bidsapp.models.sizes import target_sizes
from bidsapp.models.suite import EMBEDDED, Models


def test_sizes_from_configurations_are_those_of_computed_targets():
    recipe = load_recipe("embedded")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    targets = Models(recipe, None, "cpu").targets(images, [("a red car",), ("a blue house", "a house")])
    assert target_sizes(recipe, EMBEDDED) == {name: values.shape[1] for name, values in targets.items()}


def test_unreadable_configurations_are_left_out(tmp_path):
    assert target_sizes(load_recipe("embedded"), tmp_path) == {}


def test_too_little_memory_is_refused_before_anything_is_computed(tiny_dataset, tmp_path, capsys):
    bids, out = tiny_dataset(), tmp_path / "out"
    args = [str(bids), str(out), "participant", "--recipe", "embedded", "--skip-bids-validation"]
    assert main([*args, "--mem", "900MB"]) == 75
    assert "--mem 900.0 MB is too little" in capsys.readouterr().err
    assert not out.exists()


def test_the_plan_names_memory_and_disk(tiny_dataset, tmp_path, capsys):
    bids, out = tiny_dataset(), tmp_path / "out"
    args = [str(bids), str(out), "participant", "--recipe", "embedded", "--skip-bids-validation"]
    assert main([*args, "--dry-run", "--mem", "8GB"]) == 0
    assert f"about {as_text(BASE_MEMORY)} of memory" in capsys.readouterr().out


@pytest.mark.parametrize(("n", "text"), [(1.5e9, "1.5 GB"), (2e6, "2.0 MB"), (7000, "7 kB")])
def test_bytes_for_people(n, text):
    assert as_text(n) == text


@pytest.mark.parametrize("save_weights", [False, True])
@pytest.mark.parametrize(("n", "p"), [(60, 300), (300, 60)])
def test_the_size_of_a_model_file_is_foreseen(n, p, save_weights, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n, p)).astype(np.float32), rng.standard_normal((n, 2000)).astype(np.float32)
    decoder = RidgeDecoder(x)
    targets = {
        name: FittedTarget(alpha, y[:, dims], predict_blocks(decoder.operator(x[:5], alpha), y[:, dims]))
        for name, alpha, dims in (("a", 10.0, slice(0, 700)), ("b", 20.0, slice(700, 2000)))
    }
    voxels = Voxels(np.arange(p), (p, 1, 1), np.zeros(p), np.ones(p))
    write_model(tmp_path / "m.h5", decoder, voxels, targets, x[:5], save_weights=save_weights)
    expected = model_file_bytes(n, p, 2000, 2, save_weights=save_weights)
    assert (tmp_path / "m.h5").stat().st_size == pytest.approx(expected, rel=0.06)


def test_the_model_file_at_the_size_of_the_natural_scenes_dataset():
    dims = 91168 + (257 + 77) * 768
    assert as_text(model_file_bytes(8859, 15724, dims, 3)) == "7.8 GB"
    assert as_text(model_file_bytes(8859, 15724, dims, 3, save_weights=True)) == "29.7 GB"
