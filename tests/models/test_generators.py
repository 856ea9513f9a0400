"""A generator is one module: what each provides, and a tiny example that needs no change elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.published_models import write_models, write_recipe

from bidsapp import recipes
from bidsapp.config import load_recipe
from bidsapp.models import canaries, generators
from bidsapp.models.batching import Workload
from bidsapp.models.canaries import Ask
from bidsapp.models.costs import target_sizes
from bidsapp.models.generators import generator_class
from bidsapp.models.generators.latent_diffusion import DiffusionSettings
from bidsapp.models.generators.protocol import Generator
from bidsapp.models.startup import check_models
from bidsapp.models.suite import Models
from bidsapp.models.weights import registry
from bidsapp.records import TARGET_TITLES

CAPTIONS = [["one"], ["two", "three"], ["four"]]


@pytest.mark.parametrize("kind", recipes.GENERATORS)
def test_every_generator_provides_the_protocol(kind: str) -> None:
    generator, targets = generator_class(kind), recipes.GENERATORS[kind]
    assert not generator.__abstractmethods__
    assert targets[0] == "vdvae"
    assert {generator.embedding_target, generator.semantic_target} <= set(targets[1:])
    assert set(targets) <= set(TARGET_TITLES)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(KeyError, match=r"'moon'.*versatile-diffusion"):
        generator_class("moon")


# ------------------------------------------------- the example


class MeanColour(Generator):
    """Tints the stage-1 image with a predicted colour."""

    title = "Mean colour"
    embedding_target = semantic_target = "colour"
    embedding_title = "the mean colour"

    @classmethod
    def target_shapes(cls, folder: Path) -> dict[str, tuple[int, int]]:
        return {"colour": (1, 3)}

    @property
    def encoder(self) -> SimpleNamespace:
        return SimpleNamespace(vision=torch.nn.Identity())

    def targets(
        self, images: np.ndarray, captions: Sequence[Sequence[str]], most: int
    ) -> dict[str, np.ndarray]:
        work = Workload("colour", cost=1, most=most)
        return {"colour": self.batches.run(work, len(images), lambda rows: self.embed(images[rows]))}

    def embed(self, images: np.ndarray) -> np.ndarray:
        return images.mean(axis=(1, 2)).astype(np.float32)

    def encoder_cost(self) -> int:
        return 1

    def refiner(
        self,
        initial: np.ndarray,
        conditions: Mapping[str, np.ndarray],
        generators: Sequence[torch.Generator],
        settings: DiffusionSettings,
    ) -> Callable[[slice], np.ndarray]:
        tints = conditions["colour"][:, None, None]
        share = settings.strength
        return lambda rows: ((1 - share) * initial[rows] + share * tints[rows]).astype(np.uint8)

    def cost(self) -> int:
        return 1

    def canaries(self) -> dict[str, Callable[[Ask], None]]:
        def ask_for_features(ask: Ask) -> None:
            ask("colour", lambda: self.embed(canaries.image(8)), (1, 3))

        return {"colour": ask_for_features}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    """Models of a recipe with the example: its module, its entry in GENERATORS, its files, and the recipe."""
    module = ModuleType(f"{generators.__name__}.mean_colour")
    module.GENERATOR = MeanColour  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(recipes.GENERATORS, "mean-colour", ("vdvae", "colour"))
    file = registry.WeightFile(("vae/config.json",))
    part = registry.Part("mean-colour", "An example", "CC0", "", (file,))
    known = registry.load_registry()
    monkeypatch.setattr(registry, "load_registry", lambda: (*known, part))
    write_models(tmp_path / "models")
    path = write_recipe(
        tmp_path,
        "sd15-ip-adapter",
        models={"diffusion": "versatile-diffusion"},
        diffusion={"kind": "mean-colour"},
    )
    path.write_text(path.read_text().replace("clip_image", "colour"))
    return Models(load_recipe(str(path)), tmp_path / "models", "cpu")


def test_an_example_needs_no_change_elsewhere(models: Models, tmp_path: Path) -> None:
    recipe, root = models.recipe, tmp_path / "models"
    assert check_models(models, tmp_path / "work") == "canaries: VDVAE, colour passed now"
    assert recipe.target_names == ("vdvae", "colour")
    assert target_sizes(recipe, root)["colour"] == 3
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    targets = models.targets(images, CAPTIONS)
    assert list(targets) == ["vdvae", "colour"]
    np.testing.assert_allclose(targets["colour"], images.mean(axis=(1, 2)), rtol=1e-6)
    draws = [torch.Generator().manual_seed(i) for i in range(3)]
    first = models.first_stage(targets["vdvae"], draws)
    made = models.second_stage(first, targets, draws)
    share = recipe.diffusion.strength
    tinted = (1 - share) * first + share * targets["colour"][:, None, None]
    assert np.abs(made - tinted).max() < 1
    columns = models.generator.embedding_columns
    np.testing.assert_allclose(models.generator.image_embeddings(images), targets["colour"][:, columns])
    assert models.generator.caption_embeddings(CAPTIONS) is None
