"""What a run needs, estimated from sizes."""

import tomllib
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from bidsapp.cli import main
from bidsapp.config import RunConfig, load_recipe
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.holdout import holdout_operator
from bidsapp.decoding.model_writer import FittedModel, FittedTarget, VoxelScaling, write_model
from bidsapp.decoding.regions import part_similarity, similarity_weights
from bidsapp.decoding.streaming import predict_blocks
from bidsapp.models import costs
from bidsapp.models.costs import image_cost, image_sides, target_sizes
from bidsapp.models.suite import EMBEDDED, Models
from bidsapp.planning.estimate import RATES, Sizes, estimate_resources, images_made
from bidsapp.planning.footprint import BASE_MEMORY, model_file_bytes, option_moments
from bidsapp.records import Mask
from bidsapp.system.resources import as_duration, as_text


def test_sizes_from_configurations_are_those_of_computed_targets():
    recipe = load_recipe("embedded")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    targets = Models(recipe, None, "cpu").targets(images, [("a red car",), ("a blue house", "a house")])
    assert target_sizes(recipe, EMBEDDED) == {name: values.shape[1] for name, values in targets.items()}


def test_unreadable_configurations_are_left_out(tmp_path):
    assert target_sizes(load_recipe("embedded"), tmp_path) == {}


def test_the_published_vdvae_comes_without_a_configuration(tmp_path):
    recipe = load_recipe("brain-diffuser")
    (tmp_path / recipe.models.vdvae).mkdir()
    assert target_sizes(recipe, tmp_path) == {"vdvae": 91168}  # the paper's number
    assert image_sides(recipe, tmp_path) == (64, 0)


def test_too_little_memory_is_refused_before_anything_is_computed(tiny_dataset, tmp_path, capsys):
    bids, out = tiny_dataset(), tmp_path / "out"
    args = [str(bids), str(out), "participant", "--recipe", "embedded", "--skip-bids-validation"]
    assert main([*args, "--mem", "900MB"]) == 75
    assert "--mem 900.0 MB is too little" in capsys.readouterr().err
    assert not out.exists()


def test_a_machine_with_too_little_memory_is_reported_first(tiny_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bidsapp.planning.check.available_memory", lambda: 10**9)
    args = [str(tiny_dataset(n_subjects=1)), str(tmp_path / "out"), "participant", "--recipe", "embedded"]
    args += ["--skip-bids-validation", "--dry-run"]
    assert main(args) == 0
    assert "of memory, but 1.0 GB is available: the system may end this run" in capsys.readouterr().err
    assert main([*args, "--mem", "8GB"]) == 0
    assert "is available" not in capsys.readouterr().err


def test_the_plan_names_memory_and_disk(tiny_dataset, tmp_path, capsys):
    bids, out = tiny_dataset(), tmp_path / "out"
    args = [str(bids), str(out), "participant", "--recipe", "embedded", "--skip-bids-validation"]
    assert main([*args, "--dry-run", "--mem", "8GB"]) == 0
    assert f"about {as_text(BASE_MEMORY)} of memory" in capsys.readouterr().out


def _config(tmp_path, recipe="embedded", **options):
    return RunConfig(tmp_path, tmp_path, tmp_path, load_recipe(recipe), device="cpu", **options)


def _nsd():
    """Subject 1 of NSD in the paper's recipe: 37 sessions of 750 trials, volumes of 83 x 104 x 81."""
    targets = {"vdvae": 91168, "clip_vision": 257 * 768, "clip_text": 77 * 768}
    return Sizes(37, 27750, 8859, 982, 15724, 27750 * 83 * 104 * 81 * 2, targets, (64, 512))


def test_a_subject_of_the_published_size(tmp_path):
    found = estimate_resources(_config(tmp_path, "brain-diffuser", n_cpus=2), _nsd())
    weights = 4 * 1763e6
    gram = 2 * 8859**2 * 4
    assert found.memory > weights + gram + 8859 * 15724 * 4
    assert found.memory < 20e9
    assert found.output == pytest.approx(found.model_file + 982 * 3 * (64**2 + 512**2), rel=0.01)
    assert found.disk > 27750 * 15724 * 4 + 8859 * 347680 * 2
    images = 982 + 4 * 50 + 1  # the ladder: four rungs, and one picture of the mean
    assert found.seconds["stage 2"] == pytest.approx(images * (31 + 37 * 27))
    assert as_duration(sum(found.seconds.values())).endswith("days")
    assert found.vram == 0


def test_more_cpus_take_less_time_and_not_less_memory(tmp_path):
    two, eight = (estimate_resources(_config(tmp_path, "brain-diffuser", n_cpus=n), _nsd()) for n in (2, 8))
    assert sum(eight.seconds.values()) == pytest.approx(sum(two.seconds.values()) / 4, rel=0.2)
    assert eight.memory == two.memory


def test_times_that_were_not_measured_are_not_known(tmp_path):
    config = replace(_config(tmp_path, "brain-diffuser"), device="cuda")
    found = estimate_resources(config, _nsd())
    assert found.seconds["stage 2"] is None
    assert as_duration(found.seconds["stage 2"]) == "not known"
    assert found.vram == 2 * 1763e6
    assert estimate_resources(replace(config, dtype="float32"), _nsd()).vram == 4 * 1763e6


def test_every_rate_has_its_source():
    rates = tomllib.loads(RATES.read_text())
    assert rates["cpu"]["machine"]
    for models in rates["models"].values():
        for of_device in (v for v in models.values() if isinstance(v, dict)):
            assert of_device["source"]
            assert {"target", "stage1", "fixed", "step", "score"} <= set(of_device)


def test_a_batch_of_images_counts_on_its_device(tmp_path):
    sizes = replace(_nsd(), image_cost=10**10)
    cpu = _config(tmp_path, "brain-diffuser")
    batch = cpu.recipe.diffusion.batch * 10**10
    assert estimate_resources(cpu, sizes).memory == pytest.approx(batch, rel=0.5)
    assert (
        estimate_resources(replace(cpu, device="cuda"), sizes).memory < estimate_resources(cpu, _nsd()).memory
    )


def test_a_batch_is_halved_until_it_fits_or_has_one_image(tmp_path):
    sizes = replace(_nsd(), image_cost=10**11)
    config = _config(tmp_path, "embedded")
    most, least = (estimate_resources(replace(config, memory=m), sizes).memory for m in (None, 10**9))
    assert config.recipe.diffusion.batch == 50
    assert most == BASE_MEMORY + 50 * 10**11
    assert least == BASE_MEMORY + 10**11
    for at_once in (25, 12, 6, 3):
        assert estimate_resources(replace(config, memory=BASE_MEMORY + at_once * 10**11), sizes).memory <= (
            BASE_MEMORY + at_once * 10**11
        )


def test_all_test_stimuli_are_in_memory_together(tmp_path):
    sizes = replace(_nsd(), n_test=20_000, stimulus_bytes=3 * 1000**2)
    for device in ("cpu", "cuda"):
        config = replace(_config(tmp_path, "brain-diffuser"), device=device)
        assert (
            estimate_resources(config, sizes).memory
            > 60e9
            > estimate_resources(config, replace(sizes, stimulus_bytes=0)).memory
        )


def test_what_an_image_costs_is_what_batches_are_planned_with():
    recipe = load_recipe("embedded")
    model = Models(recipe, None, "cpu").generator.model
    assert (
        image_cost(recipe, EMBEDDED, 4) == costs.latent_diffusion(model.unet.config, model.vae.config, 4) > 0
    )
    assert image_cost(recipe, EMBEDDED / "nowhere", 4) == 0


def test_image_sides_are_those_of_the_models():
    recipe = load_recipe("embedded")
    models = Models(recipe, None, "cpu")
    assert image_sides(recipe, EMBEDDED) == (
        models.vdvae.config.image_size,
        models.generator.model.image_size,
    )
    assert image_sides(recipe, EMBEDDED / "nowhere") == (0, 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "under 1 s"),
        (20, "20 s"),
        (100, "2 min"),
        (7200, "2.0 h"),
        (90_000, "25 h"),
        (864_000, "10 days"),
    ],
)
def test_durations_in_words(seconds, text):
    assert as_duration(seconds) == text


@pytest.mark.parametrize(("n", "text"), [(1.5e9, "1.5 GB"), (2e6, "2.0 MB"), (7000, "7 kB")])
def test_bytes_in_words(n, text):
    assert as_text(n) == text


@pytest.mark.parametrize("save_weights", [False, True])
@pytest.mark.parametrize(("n", "p"), [(60, 300), (300, 60)])
def test_size_of_a_model_file(n, p, save_weights, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n, p)).astype(np.float32), rng.standard_normal((n, 2000)).astype(np.float32)
    decoder = RidgeDecoder(x)
    targets = {
        name: FittedTarget(alpha, y[:, dims], predict_blocks(decoder.operator(x[:5], alpha), y[:, dims]))
        for name, alpha, dims in (("a", 10.0, slice(0, 700)), ("b", 20.0, slice(700, 2000)))
    }
    voxels = VoxelScaling(Mask(np.ones((p, 1, 1), bool), np.eye(4)), np.zeros(p), np.ones(p))
    model = FittedModel(decoder, voxels, targets, x[:5])
    write_model(tmp_path / "m.h5", model, save_weights=save_weights)
    expected = model_file_bytes(n, p, 2000, 2, save_weights=save_weights)
    assert (tmp_path / "m.h5").stat().st_size == pytest.approx(expected, rel=0.06)


def test_the_model_file_at_the_size_of_the_natural_scenes_dataset():
    dims = 91168 + (257 + 77) * 768
    assert as_text(model_file_bytes(8859, 15724, dims, 3)) == "7.8 GB"
    assert as_text(model_file_bytes(8859, 15724, dims, 3, save_weights=True)) == "29.7 GB"


def test_options_cost_images_memory_and_time(tmp_path):
    plain = _config(tmp_path, "brain-diffuser", n_cpus=2)
    sizes = replace(_nsd(), region_voxels=(1000, 3000, 500))
    asked = {"generator_seeds": 3, "cluster_holdout": True, "roi_analysis": True}
    full = replace(plain, **asked)
    assert images_made(full, 982, 3) - images_made(plain, 982) == 2 * 50 + 3
    before, after = estimate_resources(plain, _nsd()), estimate_resources(full, sizes)
    assert "options" not in before.seconds
    assert after.seconds["options"] > before.seconds["ridge"]
    assert after.seconds["stage 2"] - before.seconds["stage 2"] == pytest.approx(103 * (31 + 37 * 27))
    assert after.seconds["scores"] / before.seconds["scores"] == pytest.approx((1183 + 100) / 1183)
    assert after.disk > before.disk
    assert after.memory >= before.memory
    # Without a ladder there is nothing to make under further seeds; one region more is one image more.
    assert images_made(replace(plain, generator_seeds=9, ladder_images=0), 982) == 982
    assert images_made(full, 982, 4) - images_made(full, 982, 3) == 1


def test_memory_of_options_is_that_of_what_they_hold(tmp_path):
    n, m, p, d = 800, 60, 900, 2000
    rng = np.random.default_rng(0)
    x, new = (rng.standard_normal((k, p)).astype(np.float32) for k in (n, m))
    y, true = (rng.standard_normal((k, d)).astype(np.float32) for k in (n, m))
    cluster = np.arange(n) % 6
    rows = [np.flatnonzero(cluster == c) for c in range(6)]
    gram = 2 * n * n * 8

    def hold_out():
        decoder = RidgeDecoder(x)
        for _ in range(2):
            holdout_operator(decoder, new, 500.0, rows, np.arange(m) % 6)

    def regions():
        weights = similarity_weights(RidgeDecoder(x), y, true, 500.0).astype(np.float32)
        part_similarity(new, weights, np.arange(p) < 300)

    for option, work in (("cluster_holdout", hold_out), ("roi_analysis", regions)):
        config = replace(_config(tmp_path), **{option: True})
        (foreseen,) = option_moments(config, Sizes(0, 0, n, m, p), gram, n * d * 4)
        work()  # what is imported at first use does not count
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 0.3 * foreseen < peak < 1.2 * foreseen, option
