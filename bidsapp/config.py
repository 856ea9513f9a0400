"""One run's settings, frozen, and the recipes (TOML files) that hold every hyperparameter."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, get_type_hints

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.text import read_text

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class ModelsSection:
    """Where the weights are: in the package, or in the models folder, and in which sub-folders."""

    location: str
    vdvae: str
    diffusion: str


@dataclass(frozen=True)
class VdvaeSection:
    """Stage 1: how many blocks' latents are predicted, and how images are read out."""

    layers: int
    sample_latents: bool
    sample_pixels: bool
    temperature: float
    batch: int


@dataclass(frozen=True)
class DiffusionSection:
    """Stage 2: the image-to-image loop, and which generator runs it (a key of GENERATORS)."""

    kind: str
    steps: int
    strength: float
    guidance: float
    text_share: float
    noise_one_step_higher: bool
    sample_posterior: bool
    batch: int


@dataclass(frozen=True)
class TargetSection:
    """One regression target: its ridge penalty, or several to choose from, and its number format on disk."""

    alpha: float | tuple[float, ...]
    stored: str

    @property
    def alphas(self) -> tuple[float, ...]:
        """The penalties to choose from; a single one leaves no choice."""
        return self.alpha if isinstance(self.alpha, tuple) else (self.alpha,)


@dataclass(frozen=True)
class RidgeSection:
    """How a target's penalty is chosen where the recipe lists several."""

    selection: str
    folds: int


@dataclass(frozen=True)
class CalibrationSection:
    """How predictions get the spread of the training targets."""

    method: str
    max_rows: int


@dataclass(frozen=True)
class MetricsSection:
    """Protocol, image size (pixels) and judging networks."""

    protocol: str
    size: int
    networks: tuple[str, ...]


@dataclass(frozen=True)
class ControlsSection:
    """Null and oracle runs, the ladder's other rungs, and on how many test images."""

    null: bool
    oracle: bool
    ladder: bool
    max_images: int


@dataclass(frozen=True)
class RoiSection:
    """Lengths that the targets of a region's synthetic activation are scaled to, in the targets' order."""

    norms: tuple[float, ...]
    calibrated_norms: tuple[float, ...]


#: The generators of stage 2 and the targets that a recipe with them predicts, in the order reported.
GENERATORS = {
    "versatile-diffusion": ("vdvae", "clip_vision", "clip_text"),
    "ip-adapter": ("vdvae", "clip_image"),
}


@dataclass(frozen=True)
class Recipe:
    """Every number of a pipeline; see ``recipes/*.toml`` for their sources."""

    name: str
    title: str
    reference: str
    models: ModelsSection
    vdvae: VdvaeSection
    diffusion: DiffusionSection
    targets: dict[str, TargetSection]
    ridge: RidgeSection
    calibration: CalibrationSection
    metrics: MetricsSection
    controls: ControlsSection
    roi_analysis: RoiSection

    @property
    def target_names(self) -> tuple[str, ...]:
        """The regression targets, in the order they are reported."""
        return GENERATORS[self.diffusion.kind]

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dict, for run records and hashes."""
        return asdict(self)


#: Kinds of stages, which ``--force`` may name. A run has several of a kind where it makes something under
#: several conditions (``stage1_brain``, ``stage1_null``, ...); they are forced together.
STAGES = (
    *("betas", "responses", "zscore", "halves", "alphas", "ridge", "regions"),
    *("latents", "quality", "holdout", "stage1", "stage2"),
)


@dataclass(frozen=True)
class RunConfig:
    """What a user asked for, after checks; one object for the whole run."""

    bids_dir: Path
    output_dir: Path
    work_dir: Path
    recipe: Recipe
    recipe_given: str | None = None
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    task: str | None = None
    space: str | None = None
    filters: Path | None = None
    roi: tuple[str, ...] = ("nsdgeneral",)
    #: the first sessions of each subject; None for all
    max_sessions: int | None = None
    #: percent; voxels below it are left out
    min_noise_ceiling: float | None = None
    #: further datasets that ROIs may come from, by name
    derivatives: Mapping[str, Path] = field(default_factory=dict)
    #: ``{subject}`` in it stands for the label
    split_file: Path | None = None
    split_variant: str | None = None
    captions: Path | None = None
    models_dir: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    n_cpus: int = 1
    memory: int | None = None
    save_weights: bool = False
    seed: int = 0
    ladder_images: int | None = None
    #: seeds under which the ladder's brain images are made; 1 is the run's own alone
    generator_seeds: int = 1
    #: predict test images from training images of other clusters
    cluster_holdout: bool = False
    #: decode regions one at a time
    roi_analysis: bool = False
    skip_bids_validation: bool = False
    stop_on_first_crash: bool = False
    #: kinds of :data:`STAGES`, or "all": computed again though they are there
    force: tuple[str, ...] = ()
    #: leave the stages of a subject that is done
    keep_work: bool = False
    #: stop before stage 2
    prepare: bool = False
    #: (K, N), K from 1: make the K-th of N shares of stage 2's blocks, and stop
    shard: tuple[int, int] | None = None
    verbose: int = 0
    command: str = ""


def ladder_size(config: RunConfig, n_test: int) -> int:
    """Count the ladder's images: the option's or the recipe's number, and no more than there are."""
    wanted = config.recipe.controls.max_images if config.ladder_images is None else config.ladder_images
    return min(wanted, n_test)


#: Clusters of stimuli (Shirakawa et al. 2024 use 40), and the test images a cluster should have at least.
_CLUSTERS, _PER_CLUSTER = 40, 10


def cluster_count(n_test: int) -> int:
    """Count the clusters that stimuli are put into: below two there are none."""
    return min(_CLUSTERS, n_test // _PER_CLUSTER)


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe by its name or from a TOML file.

    Raises
    ------
    AppError
        Exit code 64 if there is no such recipe; 65 if the file is not a recipe.
    """
    known = sorted(p.stem for p in RECIPES.glob("*.toml"))
    path = RECIPES / f"{name_or_path}.toml" if name_or_path in known else Path(name_or_path)
    if not path.is_file():
        raise AppError(
            f"--recipe {name_or_path}: no recipe of this name and no such file. "
            f"Choose one of {', '.join(known)}, or give the path of a TOML file.",
            exit_code=ExitCode.USAGE,
        )
    try:
        content = tomllib.loads(read_text(path))
        recipe: Recipe = _build(Recipe, content, "")
    except (ValueError, RecursionError) as error:  # TOML's own error and _Misfit are of the first
        raise AppError(
            f"--recipe {path}: not a recipe: {error}. Start from a copy of {RECIPES / 'embedded.toml'}.",
            exit_code=ExitCode.BAD_DATA,
        ) from error
    _check(recipe, path)
    return recipe


class _Misfit(ValueError):
    """A recipe file that does not have the recipe's form."""


T = TypeVar("T")


def _build(kind: type[T], content: Any, where: str) -> T:
    """Make a frozen section from a TOML table: no key missing, none unknown, each of its type."""
    if not isinstance(content, dict):
        raise _Misfit(f"[{where}] should be a table")
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(content) - set(names))
    missing = [n for n in names if n not in content]
    if unknown or missing:
        place = f"[{where}] " if where else ""
        raise _Misfit(
            f"{place}"
            + ("; ".join([f"unknown key {k!r}" for k in unknown] + [f"missing key {k!r}" for k in missing]))
        )
    values = {n: _value(hints[n], content[n], f"{where}.{n}".lstrip(".")) for n in names}
    return kind(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and hint.__module__ == __name__:
        return _build(hint, value, where)
    if hint == dict[str, TargetSection]:
        if not isinstance(value, dict):
            raise _Misfit(f"[{where}] should be a table of tables")
        return {key: _build(TargetSection, table, f"{where}.{key}") for key, table in value.items()}
    if hint == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise _Misfit(f"{where} should be a list of words")
        return tuple(value)
    if hint == tuple[float, ...]:
        if not isinstance(value, list):
            raise _Misfit(f"{where} should be a list of numbers")
        return tuple(_value(float, v, where) for v in value)
    if hint == float | tuple[float, ...]:
        if isinstance(value, list):
            if not value:
                raise _Misfit(f"{where} should not be an empty list")
            return tuple(_value(float, v, where) for v in value)
        return _value(float, value, where)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise _Misfit(f"{where} should be a finite number")
        return number
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise _Misfit(f"{where} should be of type {hint.__name__}, got {value!r}")
    if hint is int and abs(value) >= 1 << 63:
        raise _Misfit(f"{where} should be a number that fits into 64 bits")
    return value


def _inside(name: str) -> bool:
    """Whether a path stays in the folder that it starts in."""
    path = PurePosixPath(name)
    plain = not any(c in name for c in "\0\\:")
    return bool(path.parts) and plain and not path.is_absolute() and ".." not in path.parts


def _check(recipe: Recipe, path: Path) -> None:
    wrong = []
    names = GENERATORS.get(recipe.diffusion.kind, ())
    if not names:
        wrong.append(f"diffusion.kind should be one of {', '.join(GENERATORS)}")
    elif set(recipe.targets) != set(names):
        wrong.append(f"[targets] should be exactly {', '.join(names)}")
    for name, target in recipe.targets.items():
        if min(target.alphas) <= 0:
            wrong.append(f"targets.{name}.alpha should be above 0")
        if len(set(target.alphas)) < len(target.alphas):
            wrong.append(f"targets.{name}.alpha lists a penalty twice")
        if target.stored not in ("float16", "float32"):
            wrong.append(f"targets.{name}.stored should be 'float16' or 'float32'")
    if recipe.ridge.selection not in ("loo", "kfold") or recipe.ridge.folds < 2:
        wrong.append("ridge.selection should be 'loo' or 'kfold', and ridge.folds at least 2")
    if not 0 < recipe.diffusion.strength <= 1:
        wrong.append("diffusion.strength should lie in (0, 1]")
    if not 0 <= recipe.diffusion.text_share <= 1:
        wrong.append("diffusion.text_share should lie in [0, 1]")
    if recipe.diffusion.steps >= 1 and int(recipe.diffusion.steps * recipe.diffusion.strength) < 1:
        wrong.append("diffusion.strength leaves none of diffusion.steps to run")
    for name in ("steps", "batch"):
        if getattr(recipe.diffusion, name) < 1:
            wrong.append(f"diffusion.{name} should be at least 1")
    if recipe.vdvae.layers < 1 or recipe.vdvae.batch < 1 or recipe.vdvae.temperature < 0:
        wrong.append("vdvae.layers and vdvae.batch should be at least 1, vdvae.temperature at least 0")
    for name in ("vdvae", "diffusion"):
        if not _inside(getattr(recipe.models, name)):
            wrong.append(
                f"models.{name} should be the path of a folder in the models folder, with no '..' in it"
            )
    if recipe.models.location not in ("package", "models-dir"):
        wrong.append("models.location should be 'package' or 'models-dir'")
    if recipe.calibration.max_rows < 2 or recipe.controls.max_images < 2:
        wrong.append("calibration.max_rows and controls.max_images should be at least 2")
    lengths = (recipe.roi_analysis.norms, recipe.roi_analysis.calibrated_norms)
    if any(len(each) != len(recipe.targets) or min(each, default=0) < 0 for each in lengths):
        wrong.append(
            "roi_analysis.norms and .calibrated_norms should have a number from 0 on for each target"
        )
    if recipe.metrics.size < 11:
        wrong.append("metrics.size should be at least 11, the side of SSIM's window")
    if recipe.calibration.method not in ("train-cv", "transductive", "none"):
        wrong.append("calibration.method should be 'train-cv', 'transductive' or 'none'")
    if wrong:
        raise AppError(f"--recipe {path}: " + "; ".join(wrong), exit_code=ExitCode.BAD_DATA)


#: Random voxel sets that a region is compared with.
RANDOM_SETS = 200
