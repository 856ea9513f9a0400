"""One run's settings, frozen; the recipe among them holds every hyperparameter."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp.errors import AppError, ExitCode, did_you_mean
from bidsapp.storage.text import read_text

if TYPE_CHECKING:
    from bidsapp.recipes import Recipe

RECIPES = Path(__file__).parent / "recipes"


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
        "--skip-bids-validation", INPUT,
        "Do not run the BIDS validator on the input (the extra 'validator' installs one).", False,
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
        kind="number", least=1, shown="those this process may use, at most OMP_NUM_THREADS", effect="run",
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
    #: (K, N), K from 1: make the K-th of N parts of stage 2's blocks, and stop
    shard: tuple[int, int] | None = _setting(
        "--shard", PERFORMANCE,
        "Compute the K-th of N parts of stage 2, and stop. The same command without it collects them.", None,
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


#: Clusters of stimuli (Shirakawa et al. 2024 use 40), and the fewest test images per cluster.
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
    from bidsapp.recipes import build_recipe  # not needed for the command line's help

    try:
        content = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise AppError(
            f"--recipe {path}: not a recipe: {error}. Start from a copy of {RECIPES / 'embedded.toml'}.",
            exit_code=ExitCode.BAD_DATA,
        ) from error
    return build_recipe(content, path)


#: Random voxel sets that a region is compared with.
RANDOM_SETS = 200
