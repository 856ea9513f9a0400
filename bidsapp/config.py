"""One run's settings, frozen, and the recipes (TOML files) that hold every hyperparameter."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, get_type_hints

from bidsapp.errors import AppError, ExitCode, did_you_mean
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
    """Protocol, image size (pixels) and evaluation networks."""

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


#: Kinds of stages that ``--force`` may name. Stages of one kind that run under several conditions
#: (``stage1_brain``, ``stage1_null``, ...) are forced together.
STAGES = (
    *("betas", "responses", "zscore", "halves", "alphas", "ridge", "regions"),
    *("latents", "quality", "holdout", "stage1", "stage2"),
)

#: Groups of options in the command line's help, in its order.
GROUPS = INPUT, DECODING, MODELS, ANALYSES, PERFORMANCE, OUTPUT, OTHER = (
    *("Input", "Decoding", "Models", "Analyses", "Performance", "Output"),
    "Other options",
)


@dataclass(frozen=True)
class Option:
    """How a setting is given on the command line, and which records of a run hold it.

    Attributes
    ----------
    flags : str
        Names on the command line, separated by blanks. The first long one also names the setting in
        ``run.toml``. Without flags the setting is not an option, and its field's name is used.
    group : str
        One of :data:`GROUPS`.
    kind : str
        A key of :data:`bidsapp.cli.options.KINDS`.
    several : bool
        May be given more than once. If ``metavar`` ends in ``...``, one flag also takes several values.
    shown : str
        The default in words, where a run works it out.
    effect : str
        ``results``: outputs depend on it, so a finished subject is computed again when it changes.
        ``run``: recorded in ``run.toml`` and the report, without effect on outputs.
        ``none``: recorded nowhere, for the ``reason`` given.
    """

    flags: str = ""
    group: str = ""
    help: str = ""
    kind: str = "text"
    choices: tuple[str, ...] = ()
    least: int | None = None
    several: bool = False
    metavar: str | None = None
    shown: str = ""
    envvar: str | None = None
    effect: str = "results"
    reason: str = ""

    @property
    def flag(self) -> str:
        """The first long flag, ``--n-cpus``; "" if there is none."""
        return next((flag for flag in self.flags.split() if flag.startswith("--")), "")


def _setting(flags: str = "", group: str = "", help: str = "", default: Any = MISSING, **about: Any) -> Any:
    """Make a field of :class:`RunConfig` with its :class:`Option`."""
    given: dict[str, Any] = {"default_factory": dict} if default == {} else {"default": default}
    return field(**given, metadata={"option": Option(flags, group, help, **about)})


_NO_RECORD = "a run with it writes no outputs, and so no record"


@dataclass(frozen=True)
class RunConfig:
    """What a user asked for, after checks; one object for the whole run.

    Each field has an :class:`Option`, from which come the option on the command line, its help, the Boutiques
    descriptor, the settings in ``run.toml`` and the report, and what a finished subject is looked up by.
    """

    bids_dir: Path = _setting()
    output_dir: Path = _setting(effect="run")
    work_dir: Path = _setting(
        "-w --work-dir", OUTPUT, "Folder for intermediate files.",
        kind="path", shown="OUTPUT_DIR/.work", effect="run",
    )  # fmt: skip
    recipe: Recipe = _setting()
    recipe_given: str | None = _setting(
        "--recipe", DECODING, "Name of a recipe, or a TOML file.", None, kind="recipe",
        shown="brain-diffuser; embedded for a simulated dataset", effect="run",
    )  # fmt: skip
    participants: tuple[str, ...] = _setting(
        "--participant-label", INPUT, "Subjects, with or without 'sub-'.", (),
        several=True, metavar="LABEL...", effect="run",
    )  # fmt: skip
    sessions: tuple[str, ...] = _setting(
        "--session-label", INPUT, "Sessions, with or without 'ses-'.", (), several=True, metavar="LABEL..."
    )
    max_sessions: int | None = _setting(
        "--max-sessions", INPUT,
        "Use the first N sessions of each subject (37 in the Brain-Diffuser paper on NSD).", None,
        kind="number", least=1,
    )  # fmt: skip
    task: str | None = _setting("--task-label", INPUT, "Task, if there are betas of several tasks.", None)
    space: str | None = _setting("--space", INPUT, "Space, if there are betas in several spaces.", None)
    filters: Path | None = _setting(
        "--bids-filter-file", INPUT, "JSON file with filters for input files.", None, kind="file"
    )
    derivatives: Mapping[str, Path] = _setting(
        "-d --derivatives", INPUT, "Further datasets with masks that --roi may name.", {},
        kind="dataset", several=True, metavar="NAME=PATH...",
    )  # fmt: skip
    #: ``{subject}`` in it stands for the label
    split_file: Path | None = _setting(
        "--split", INPUT,
        "Training and test stimuli: TSV or JSON; {subject} in the path stands for the label.", None,
        kind="file", shown="the column 'split' of stimuli.tsv",
    )  # fmt: skip
    split_variant: str | None = _setting(
        "--split-variant", INPUT, "Variant of a JSON split that has several.", None, metavar="ID", shown="0"
    )
    captions: Path | None = _setting(
        "--captions", INPUT, "Captions: TSV or CSV.", None, kind="file", shown="those of the stimuli folder"
    )
    skip_bids_validation: bool = _setting(
        "--skip-bids-validation", INPUT, "Do not run the BIDS validator on the input.", False,
        kind="flag", effect="run",
    )  # fmt: skip
    roi: tuple[str, ...] = _setting(
        "--roi", DECODING, "Masks or segmentation labels whose voxels are decoded (their union).",
        ("nsdgeneral",), several=True, metavar="NAME...",
    )  # fmt: skip
    #: percent; voxels below it are left out
    min_noise_ceiling: float | None = _setting(
        "--min-noise-ceiling", DECODING,
        "Decode only ROI voxels with a noise ceiling of at least PERCENT.", None, kind="percent",
    )  # fmt: skip
    seed: int = _setting("--seed", DECODING, "Seed of the whole run.", 0, kind="number", least=0)
    models_dir: Path | None = _setting(
        "--models-dir", MODELS, "Folder of downloaded model weights.", None, kind="folder",
        envvar="BIDSAPP_RECON_MODELS", shown="bidsapp-recon/models in the user's cache", effect="run",
    )  # fmt: skip
    ladder_images: int | None = _setting(
        "--ladder-images", ANALYSES,
        "Test images of the control ladder, which separates a broken stage from noisy data; 0 for no ladder.",
        None, kind="number", least=0, shown="the recipe's",
    )  # fmt: skip
    #: seeds under which the ladder's brain images are made; 1 is the run's own alone
    generator_seeds: int = _setting(
        "--generator-seeds", ANALYSES,
        "Reconstruct the ladder's images under N seeds, to estimate seed-to-seed variability.", 1,
        kind="number", least=1,
    )  # fmt: skip
    cluster_holdout: bool = _setting(
        "--cluster-holdout", ANALYSES,
        "Also predict test images without the training images of their cluster.", False, kind="flag",
    )  # fmt: skip
    roi_analysis: bool = _setting(
        "--roi-analysis", ANALYSES,
        "Also decode regions one at a time: those of --roi if it names several, otherwise all inside it.",
        False, kind="flag",
    )  # fmt: skip
    n_cpus: int = _setting(
        "--n-cpus --nthreads", PERFORMANCE, "CPUs to use.", 1,
        kind="number", least=1, shown="those this process may use", effect="run",
    )  # fmt: skip
    omp_nthreads: int | None = _setting(
        "--omp-nthreads", PERFORMANCE, "Threads of linear algebra and of the networks, at most --n-cpus.",
        None, kind="number", least=1, shown="--n-cpus", effect="run",
    )  # fmt: skip
    #: bytes
    memory: int | None = _setting(
        "--mem --mem-mb", PERFORMANCE,
        "Memory to stay under, with its unit (8GB, 900MiB); a bare number after --mem-mb is in MB.", None,
        kind="memory", effect="run",
    )  # fmt: skip
    device: str = _setting(
        "--device", PERFORMANCE, "Where the networks run.", "auto", choices=("auto", "cpu", "cuda", "mps")
    )
    dtype: str = _setting(
        "--dtype", PERFORMANCE,
        "Number format of the networks; auto: float16 on CUDA, float32 elsewhere.", "auto",
        choices=("auto", "float32", "float16", "bfloat16"),
    )  # fmt: skip
    #: stop before stage 2
    prepare: bool = _setting(
        "--prepare", PERFORMANCE, "Do everything that precedes stage 2, and stop.", False,
        kind="flag", effect="none", reason=_NO_RECORD,
    )  # fmt: skip
    #: (K, N), K from 1: make the K-th of N shares of stage 2's blocks, and stop
    shard: tuple[int, int] | None = _setting(
        "--shard", PERFORMANCE,
        "Compute the K-th of N shares of stage 2, and stop; the command without it collects them.", None,
        kind="shard", effect="none", reason=_NO_RECORD,
    )  # fmt: skip
    stop_on_first_crash: bool = _setting(
        "--stop-on-first-crash", PERFORMANCE, "Stop when a subject fails.", False, kind="flag", effect="run"
    )
    save_weights: bool = _setting(
        "--save-weights", OUTPUT, "Write the ridge weights into the model file (large).", False, kind="flag"
    )
    #: kinds of :data:`STAGES`, or "all"
    force: tuple[str, ...] = _setting(
        "--force", OUTPUT,
        f"Recompute a stage even if it is cached: {', '.join(STAGES)}, or all (repeatable).", (),
        choices=(*STAGES, "all"), several=True, metavar="STAGE", effect="run",
    )  # fmt: skip
    keep_work: bool = _setting(
        "--keep-work", OUTPUT, "Keep the intermediate files of finished subjects.", False,
        kind="flag", effect="run",
    )  # fmt: skip
    verbose: int = _setting(
        "-v --verbose", OTHER, "Print more (-vv: debugging lines, tracebacks).", 0,
        kind="count", effect="none", reason="it changes only what is printed",
    )  # fmt: skip
    command: str = _setting(
        default="", effect="none", reason="run.toml and the report have it next to the settings"
    )

    @property
    def n_threads(self) -> int:
        """Threads of linear algebra and of the networks."""
        return min(self.n_cpus, self.omp_nthreads or self.n_cpus)

    def recorded(self) -> dict[str, Any]:
        """List the settings for ``run.toml`` and the report, named and written as on the command line.

        Those that were not given and have no default are left out; the recipe is there by name.
        """
        options = {name: option for name, option in OPTIONS.items() if name != "recipe"}
        found = {
            setting_name(n): _plain(getattr(self, n), o) for n, o in options.items() if o.effect != "none"
        }
        return {name: value for name, value in found.items() if value is not None}

    def affecting_results(self) -> dict[str, Any]:
        """List the settings that outputs depend on, by field; the recipe as a nested dict."""
        names = [name for name, option in OPTIONS.items() if option.effect == "results"]
        return {name: getattr(self, name) for name in names} | {"recipe": self.recipe.as_dict()}


#: By field of :class:`RunConfig`.
OPTIONS: dict[str, Option] = {f.name: f.metadata["option"] for f in fields(RunConfig)}


def setting_name(name: str) -> str:
    """Name a field as options and ``run.toml`` do: ``participant_label`` for ``participants``."""
    return OPTIONS[name].flag.removeprefix("--").replace("-", "_") or name


def _plain(value: Any, option: Option) -> Any:
    """Write a value as TOML and the command line take it."""
    if option.kind == "memory" and value is not None:
        return f"{value}B"
    if isinstance(value, Mapping):
        return [f"{name}={path}" for name, path in value.items()]
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


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
            f"--recipe {name_or_path}: no recipe and no file of this name."
            f"{did_you_mean(name_or_path, known)} Choose one of {', '.join(known)}, or give the path of a "
            "TOML file.",
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
