"""Recipes: every number of a pipeline, read from a TOML file and checked.

The TOML files next to this module come with the app and name the source of every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, ValidationInfo
from pydantic import field_validator as validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bidsapp.errors import InputProblems, Problem, did_you_mean

#: The generators of stage 2 and the targets that a recipe with them predicts, in the order reported.
GENERATORS = {
    "versatile-diffusion": ("vdvae", "clip_vision", "clip_text"),
    "ip-adapter": ("vdvae", "clip_image"),
}

_INT64 = 1 << 63
Count = Annotated[int, Field(ge=1, lt=_INT64)]
FromTwo = Annotated[int, Field(ge=2, lt=_INT64)]
Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(gt=0)]
Lengths = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)]
_ONE, _SEVERAL = "<one>", "<several>"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelsSection(_Section):
    """Where the weights are."""

    location: Literal["package", "models-dir"] = Field(
        description="in the package itself, or in the folder given by --models-dir"
    )
    vdvae: str = Field(description="folder of the VDVAE's weights")
    diffusion: str = Field(description="folder of the latent diffusion model's weights")

    @validator("vdvae", "diffusion")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        path = PurePosixPath(name)
        plain = path.parts and not any(c in name for c in "\0\\:")
        if not plain or path.is_absolute() or ".." in path.parts:
            raise ValueError("should be the path of a folder in the models folder, without '..'")
        return name


class VdvaeSection(_Section):
    """Stage 1: how many layers' latents are predicted, and how images are read out."""

    layers: Count = Field(description="top-down layers whose latents are predicted")
    sample_latents: bool = Field(description="draw the target latents from the posterior, not take its mean")
    sample_pixels: bool = Field(description="draw pixels from the output mixture, not take its mean")
    temperature: Annotated[float, Field(ge=0)] = Field(
        description="temperature of the prior in the layers that are not predicted"
    )
    batch: Count = Field(description="most images at once on a CPU; does not change results")


class DiffusionSection(_Section):
    """Stage 2: image-to-image latent diffusion."""

    kind: str = Field(description="generator: " + " or ".join(f"'{name}'" for name in GENERATORS))
    steps: Count = Field(description="DDIM steps of the whole schedule")
    strength: Annotated[float, Field(gt=0, le=1)] = Field(
        description="fraction of the steps that is run, starting from the noised stage-1 image"
    )
    guidance: float = Field(description="scale of classifier-free guidance")
    text_share: Share = Field(description="weight of the text tokens; the image tokens have the rest")
    noise_one_step_higher: bool = Field(
        description="add the noise of one step more than is then removed, as the public code does"
    )
    sample_posterior: bool = Field(description="draw the initial latent from AutoKL's posterior")
    batch: Count = Field(description="most images at once on a CPU; does not change results")

    @validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        if kind not in GENERATORS:
            raise ValueError(f"should be one of {', '.join(GENERATORS)}")
        return kind

    @validator("strength")
    @classmethod
    def _leaves_steps(cls, strength: float, info: ValidationInfo) -> float:
        steps = info.data.get("steps")  # None if that is wrong itself
        if steps is not None and int(steps * strength) < 1:
            raise ValueError("leaves none of diffusion.steps to run")
        return strength


class TargetSection(_Section):
    """One regression target."""

    alpha: Annotated[
        Annotated[Penalty, Tag(_ONE)]
        | Annotated[tuple[Penalty, ...], Field(strict=False, min_length=1), Tag(_SEVERAL)],
        Discriminator(lambda value: _SEVERAL if isinstance(value, (list, tuple)) else _ONE),
    ] = Field(description="ridge penalty, or several to choose from")
    stored: Literal["float16", "float32"] = Field(description="number format on disk")

    @validator("alpha")
    @classmethod
    def _differ(cls, alpha: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if isinstance(alpha, tuple) and len(set(alpha)) < len(alpha):
            raise ValueError("lists a penalty twice")
        return alpha

    @property
    def alphas(self) -> tuple[float, ...]:
        """The penalties to choose from; a single one leaves no choice."""
        return self.alpha if isinstance(self.alpha, tuple) else (self.alpha,)


class RidgeSection(_Section):
    """How a target's penalty is chosen if the recipe lists several."""

    selection: Literal["loo", "kfold"] = Field(
        description="exact errors of leave-one-out or of k-fold predictions"
    )
    folds: FromTwo = Field(description="number of folds of 'kfold'")


class CalibrationSection(_Section):
    """How predictions get the mean and spread of the training targets."""

    method: Literal["train-cv", "transductive", "none"] = Field(
        description="spread of held-out training predictions, or of all test predictions together"
    )
    max_rows: FromTwo = Field(description="held-out training images that mean and spread are taken from")


class MetricsSection(_Section):
    """How reconstructions are scored."""

    protocol: str = Field(description="evaluation protocol")
    size: Annotated[int, Field(ge=11, lt=_INT64)] = Field(
        description="side of the compared images in pixels; SSIM's window has 11"
    )
    networks: Annotated[tuple[str, ...], Field(strict=False)] = Field(description="evaluation networks")


class ControlsSection(_Section):
    """The control ladder."""

    null: bool = Field(description="the whole pipeline on shuffled pairs")
    oracle: bool = Field(description="the true latents, decoded")
    ladder: bool = Field(description="the rungs in between")
    max_images: FromTwo = Field(description="most test images of the ladder")


class RoiSection(_Section):
    """Lengths that a region's synthetic activation is scaled to, one per target; 0 for the natural length."""

    norms: Lengths = Field(description="length of each target, in the order of [targets]")
    calibrated_norms: Lengths = Field(description="length after calibration over regions; 0: no calibration")


class Recipe(_Section):
    """Every number of a pipeline; ``recipes/*.toml`` name their sources."""

    name: str = Field(description="name in reports and records")
    title: str = Field(description="what the recipe consists of, in a line")
    reference: str = Field(description="the paper it follows")
    models: ModelsSection
    vdvae: VdvaeSection
    diffusion: DiffusionSection
    targets: dict[str, TargetSection]
    ridge: RidgeSection
    calibration: CalibrationSection
    metrics: MetricsSection
    controls: ControlsSection
    roi_analysis: RoiSection

    @validator("targets")
    @classmethod
    def _are_the_generators(
        cls, targets: dict[str, TargetSection], info: ValidationInfo
    ) -> dict[str, TargetSection]:
        if "diffusion" in info.data and set(targets) != set(names := GENERATORS[info.data["diffusion"].kind]):
            raise ValueError(f"should have exactly the tables {', '.join(names)}")
        return targets

    @validator("roi_analysis")
    @classmethod
    def _one_length_per_target(cls, section: RoiSection, info: ValidationInfo) -> RoiSection:
        for name in ("norms", "calibrated_norms"):
            if "targets" in info.data and len(getattr(section, name)) != len(info.data["targets"]):
                raise ValueError(f"should have one number per target in {name}")
        return section

    @property
    def target_names(self) -> tuple[str, ...]:
        """The regression targets, in the order they are reported."""
        return GENERATORS[self.diffusion.kind]

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dict, for run records and hashes."""
        return self.model_dump()


def build_recipe(content: dict[str, Any], path: Path) -> Recipe:
    """Make a recipe of a TOML file's content.

    Raises
    ------
    InputProblems
        With everything that is wrong in the file; exit code 65.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = [Problem(f"--recipe {path}", *_in_words(found)) for found in error.errors()]
    raise InputProblems(problems)


#: What a value should be, by pydantic's type of error.
_SHOULD_BE = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a table",
    "dict_type": "a table",
    "literal_error": "one of {expected}",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "a number that fits into 64 bits",
    "less_than_equal": "at most {le:g}",
    "too_short": "a list with at least one number",
}


def _in_words(error: ErrorDetails) -> tuple[str, str]:
    """State what is wrong with a key and how to fix it."""
    kind, about = error["type"], error.get("ctx", {})
    place = [part for part in error["loc"] if part not in (_ONE, _SEVERAL)]
    *table, key = [part for part in place if isinstance(part, str)]
    where = f"[{'.'.join(table)}]: " if table else ""
    fields = _fields(table)
    description = fields[key].description if key in fields else None
    meaning = f"\nMeaning of the key: {description}." if description else ""
    if kind == "missing":
        return f"{where}missing key '{key}'.{meaning}", ""
    if kind == "extra_forbidden":
        known = f"Remove it. The keys here are {', '.join(fields)}."
        return f"{where}unknown key '{key}'.", did_you_mean(key, fields).strip() or known
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if kind in ("model_type", "dict_type") or name in ("targets", "roi_analysis"):
        name = f"[{name}]"
    if kind == "value_error":
        return f"{name} {about['error']}.{meaning}", ""
    should_be = _SHOULD_BE.get(kind, "another value").format(**about)
    return f"{name} should be {should_be}, but is {_shown(error['input'])}.{meaning}", ""


def _fields(table: Sequence[str]) -> dict[str, FieldInfo]:
    """Fields of a table of the file; none of one that the recipe does not have."""
    if table[:1] == ["targets"]:
        return TargetSection.model_fields if len(table) == 2 else {}
    section = Recipe.model_fields[table[0]].annotation if table else Recipe
    return section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}


def _shown(value: Any) -> str:
    """Show a value of a file that may hold anything."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # too many digits, nested too deeply
        return "something else"
    return text if len(text) < 80 else text[:80] + " ..."
