"""What a run needs, foreseen from sizes."""

import numpy as np
import pytest

from bidsapp.cli import main
from bidsapp.config import load_recipe
from bidsapp.estimate import BASE_MEMORY, as_text
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
