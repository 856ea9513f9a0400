"""How many images go at once, and what happens where memory runs out: half as many, same random numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_ip_adapter
from helpers.published_models import write_models, write_recipe
from hypothesis import given
from hypothesis import strategies as st

from bidsapp.config import load_recipe
from bidsapp.errors import AppError, ExitCode
from bidsapp.models import batching, devices
from bidsapp.models.batching import Batches, Workload
from bidsapp.models.suite import Models

N = 5
OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB)"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "numpy": MemoryError("Unable to allocate 3.00 TiB"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_models(tmp_path_factory.mktemp("batching") / "models")
    tiny_ip_adapter.write_models(root / "sd15-ip-adapter")
    return root


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Say how much memory is free."""

    def make(free: int | None) -> None:
        monkeypatch.setattr(batching, "free_memory", lambda _device, _limit=None: free)

    return make


# ------------------------------------------------- the size


@given(st.integers(1, 10**9), st.integers(1, 300), st.integers(0, 10**11))
def test_a_batch_fits_and_twice_as_many_would_not(cost, most, free):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "free_memory", lambda *_: free)
        size = Batches("cpu").size(Workload("", cost, most))
        halves = {most >> k for k in range(10)} - {0}
        assert size in halves
        assert size == 1 or size * cost <= 0.7 * free
        larger = [h for h in halves if h > size]
        assert not larger or min(larger) * cost > 0.7 * free


def test_without_an_account_the_callers_number_holds(room):
    room(None)
    assert Batches("cpu").size(Workload("", 10**12, 50)) == 50
    assert Batches("mps").size(Workload("", 10**12, 50)) == 50


def test_on_cuda_memory_decides_and_not_the_recipe(room):
    room(20 * 10**9)
    batches = Batches("cuda:0")
    assert batches.size(Workload("", 10**9, 2)) == 8
    assert batches.size(Workload("", 10**6, 2)) == 64
    assert batches.size(Workload("", 10**11, 2)) == 1
    assert Batches("mps").size(Workload("", 10**6, 2)) == 2


def test_cuda_memory_that_torch_keeps_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * 10**9, 16 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 5 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 4 * 10**9)
    assert devices.free_memory("cuda", limit=1) == 4 * 10**9


def test_the_memory_asked_for_holds_on_the_cpu(monkeypatch):
    monkeypatch.setattr(devices, "available_memory", lambda: 10 * 10**9)
    monkeypatch.setattr(devices, "resident_memory", lambda: 2 * 10**9)
    assert devices.free_memory("cpu") == 10 * 10**9
    assert devices.free_memory("cpu", 5 * 10**9) == 3 * 10**9
    assert devices.free_memory("cpu", 50 * 10**9) == 10 * 10**9
    assert devices.free_memory("cpu", 10**9) == 0
    monkeypatch.setattr(devices, "available_memory", lambda: None)
    monkeypatch.setattr(devices, "resident_memory", lambda: None)
    assert devices.free_memory("cpu", 5 * 10**9) is None


def test_the_suite_hands_on_the_memory_asked_for(models, tmp_path, monkeypatch):
    asked: list[int | None] = []
    monkeypatch.setattr(batching, "free_memory", lambda _, limit=None: asked.append(limit))
    recipe = load_recipe(str(write_recipe(tmp_path)))
    suite = Models(recipe, models, "cpu", None, "auto", 7 * 10**9)
    suite.targets(np.zeros((2, 8, 8, 3), np.uint8), [["a"], ["b"]])
    assert set(asked) == {7 * 10**9}
    assert len(asked) == 3


# ------------------------------------------------- running out of memory


def rows_of(sizes: list[int], most: int, error: Exception) -> Callable[[slice], np.ndarray]:
    """Something that fits at most so many images, and says what it was asked for."""

    def call(rows: slice) -> np.ndarray:
        sizes.append(rows.stop - rows.start)
        if sizes[-1] > most:
            raise error
        return np.arange(rows.start, rows.stop)[:, None] * 2.0

    return call


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_half_as_many_are_tried_and_said_once(error, caplog, room):
    room(None)
    batches, sizes = Batches("cpu"), []
    with caplog.at_level(logging.WARNING, "bidsapp"):
        found = batches.run(Workload("things", 1, 16), 20, rows_of(sizes, 4, error))
    np.testing.assert_array_equal(found, np.arange(20)[:, None] * 2.0)
    assert sizes == [16, 8, 4, 4, 4, 4, 4]
    said = [m for m in caplog.messages if "things" in m]
    assert len(said) == 2
    assert "8 images at once do not fit into the memory of cpu; continuing with 4" in said[-1]
    # what was found out is not found out again, by this; something else starts from its own number
    for what, expected in (("things", [4, 4, 2]), ("others", [10])):
        sizes.clear()
        caplog.clear()
        batches.run(Workload(what, 1, 16), 10, rows_of(sizes, 4 if what == "things" else 16, error))
        assert sizes == expected
        assert not caplog.messages


def test_an_allocation_that_fails_on_the_cpu_is_known(room):
    room(None)
    sizes: list[int] = []

    def call(rows: slice) -> np.ndarray:
        sizes.append(rows.stop - rows.start)
        torch.empty(1 << 50 if sizes[-1] > 1 else 1, dtype=torch.uint8)
        return np.zeros(sizes[-1])

    assert len(Batches("cpu").run(Workload("things", 1, 2), 3, call)) == 3
    assert sizes == [2, 1, 1, 1]


@pytest.mark.parametrize(("device", "advice"), [("cuda", "--dtype float16"), ("cpu", "Give more memory")])
def test_where_one_does_not_fit_the_message_says_what_to_do(device, advice, room, monkeypatch):
    room(123 * 10**6)
    monkeypatch.setattr(batching, "empty_cache", lambda _: None)
    with pytest.raises(
        AppError, match=rf"things: not even one image fits.*{device} \(123.0 MB.*{advice}"
    ) as caught:
        Batches(device).run(Workload("things", 1, 2), 3, rows_of([], 0, OUT_OF_MEMORY["cuda"]))
    assert caught.value.exit_code == ExitCode.TRY_AGAIN


@pytest.mark.parametrize(
    "error", [RuntimeError("size mismatch"), ValueError("out of memory"), AppError("no")]
)
def test_other_errors_pass(error, room):
    room(None)
    with pytest.raises(type(error), match=str(error)):
        Batches("cpu").run(Workload("things", 1, 3), 3, rows_of([], 1, error))


def test_tensors_of_the_batch_that_failed_are_gone_before_the_next(room):
    """The error's traceback holds them; kept, half a batch would not fit either."""
    import weakref

    room(None)
    alive: list[Any] = []

    def call(rows: slice) -> np.ndarray:
        assert all(ref() is None for ref in alive)
        work = torch.zeros(1000)
        alive.append(weakref.ref(work))
        if rows.stop - rows.start > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return np.zeros(1)

    Batches("cpu").run(Workload("things", 1, 2), 2, call)
    assert len(alive) == 3


# ------------------------------------------------- with real models


class Trip:
    """Raise out-of-memory at one call of a function, after the function has run (and drawn)."""

    def __init__(self, function: Callable[..., Any], at: int = 0) -> None:
        self.function, self.at, self.calls = function, at, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.function(*args, **kwargs)
        self.calls += 1
        if self.calls == self.at + 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return result


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(N)]


def suite_of(kind: str, models: Path, folder: Path, batch: int) -> Models:
    folder.mkdir(exist_ok=True)
    sizes = {"vdvae": {"batch": batch, "sample_latents": True, "sample_pixels": True}}
    recipe = write_recipe(folder, kind, **sizes, diffusion={"batch": batch})
    return Models(load_recipe(str(recipe)), models, "cpu")


def everything(suite: Models) -> dict[str, np.ndarray]:
    """All that the models of a recipe make, with chance wherever there can be any."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, 20, 20, 3), dtype=np.uint8)
    found = suite.targets(images, [["one two", "three"], ["four"], ["five"], ["six", "seven"], ["eight"]])
    found["stage1"] = suite.first_stage(found["vdvae"], generators())
    conditions = {name: rows for name, rows in found.items() if name.startswith("clip")}
    found["stage2"] = suite.second_stage(found["stage1"], conditions, generators())
    return found


def trip(suite: Models, monkeypatch: pytest.MonkeyPatch) -> list[Trip]:
    """Let each model run out of memory once, late: at the third of its calls of something inner."""
    places: list[tuple[Any, str, int]] = [
        (suite.vdvae, "_finite", 0),  # after the latents, or the pixels, were drawn
        (suite.vdvae.decoder, "finish", 0),
    ]
    generator = suite.generator
    if suite.recipe.diffusion.kind == "versatile-diffusion":
        places += [(generator.encoder, "_vision_tokens", 0), (generator.encoder, "_text_tokens", 0)]
    else:
        places += [(generator.encoder, "image_embeddings", 0)]
    places += [(generator.model, "decode", 0), (generator.model.unet, "forward", 7)]
    trips = []
    for owner, name, at in places:
        trips.append(Trip(getattr(owner, name), at))
        monkeypatch.setattr(owner, name, trips[-1])
    return trips


@pytest.mark.parametrize("kind", ["brain-diffuser", "sd15-ip-adapter"])
def test_real_models_that_run_out_of_memory_give_the_same_bytes(kind, models, tmp_path, monkeypatch, caplog):
    """4 at once do not fit anywhere; what 2 at once give is what they give undisturbed.

    Random numbers of the batch that failed had been drawn, so they have to be put back.
    """
    expected = everything(suite_of(kind, models, tmp_path / "two", 2))
    suite = suite_of(kind, models, tmp_path / "four", 4)
    trips = trip(suite, monkeypatch)
    with caplog.at_level(logging.WARNING, "bidsapp"):
        found = everything(suite)
    assert all(t.calls > t.at for t in trips)
    halvings = sum("continuing with 2" in m for m in caplog.messages)
    assert halvings == {"brain-diffuser": 5, "sd15-ip-adapter": 4}[kind]
    assert found.keys() == expected.keys()
    for name in expected.keys() - {"stage2"}:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    # stage 2 was tripped twice: the first two images went together, the others alone
    conditions = {name: rows for name, rows in found.items() if name.startswith("clip")}
    two, one = (
        suite_of(kind, models, tmp_path / f"again{n}", n).second_stage(
            found["stage1"], conditions, generators()
        )
        for n in (2, 1)
    )
    np.testing.assert_array_equal(found["stage2"][:2], two[:2])
    np.testing.assert_array_equal(found["stage2"][2:], one[2:])


def test_the_comparison_notices_generators_that_go_on(models, tmp_path, monkeypatch):
    """Without putting them back the images of the batch that failed would be others."""
    expected = everything(suite_of("brain-diffuser", models, tmp_path / "two", 2))
    suite = suite_of("brain-diffuser", models, tmp_path / "four", 4)
    trip(suite, monkeypatch)

    def forgetful(call: Callable[[slice], np.ndarray], rows: slice, _: object) -> np.ndarray | None:
        try:
            return call(rows)
        except torch.OutOfMemoryError:
            return None

    monkeypatch.setattr(batching, "_or_none", forgetful)
    found = everything(suite)
    for name in ("vdvae", "stage1", "stage2"):
        assert (found[name][:2] != expected[name][:2]).mean() > 0.3
    np.testing.assert_array_equal(found["clip_vision"], expected["clip_vision"])  # nothing is drawn there


@pytest.mark.parametrize("kind", ["brain-diffuser", "sd15-ip-adapter"])
def test_results_do_not_depend_on_the_batch(kind, models, tmp_path):
    one, two, five = (everything(suite_of(kind, models, tmp_path / f"{n}", n)) for n in (1, 2, 5))
    for other in (two, five):
        for name, rows in one.items():
            if rows.dtype == np.uint8:
                assert (np.abs(other[name].astype(int) - rows) <= 1).mean() > 0.999
            else:
                np.testing.assert_allclose(other[name], rows, rtol=1e-3, atol=1e-4, err_msg=name)


def test_evaluation_networks_too(models, tmp_path, monkeypatch, caplog):
    from bidsapp.models.judges.alexnet import AlexNet
    from bidsapp.participant.level import evaluation_networks

    recipe = load_recipe(str(write_recipe(tmp_path, metrics={"networks": ["alexnet2"]})))
    images = np.random.default_rng(1).integers(0, 256, (6, 20, 20, 3), dtype=np.uint8)
    whole = Models(recipe, models, "cpu", evaluation_networks(recipe)).networks["alexnet2"](images)
    monkeypatch.setattr(AlexNet, "forward", Trip(AlexNet.forward))
    monkeypatch.setattr(AlexNet, "__call__", lambda self, *a, **k: AlexNet.forward(self, *a, **k))
    network = Models(recipe, models, "cpu", evaluation_networks(recipe)).networks["alexnet2"]
    with caplog.at_level(logging.WARNING, "bidsapp"):
        np.testing.assert_allclose(network(images), whole, rtol=1e-4, atol=1e-5)
    assert (
        "alexnet2: 6 images at once do not fit into the memory of cpu; continuing with 3" in caplog.messages
    )
