"""The methods paragraphs: what was done, worded for a paper, with references."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidsapp.report.labels import is_two_way, metric_label


@dataclass(frozen=True)
class Reference:
    """One entry of the list of references."""

    key: str
    short: str
    authors: str
    year: int
    title: str
    venue: str
    url: str

    def bibtex(self) -> str:
        """Return the reference as a BibTeX entry."""
        doi = self.url.startswith("https://doi.org")
        kind, place = ("article", "journal") if doi else ("misc", "howpublished")
        # "Allen, E. J., St-Yves, G." -> "Allen, E. J. and St-Yves, G."
        names = self.authors.replace("., ", ".; ").replace(" & ", " ").replace("et al.", "others")
        author = " and ".join(part.strip(" ,") for part in names.split(";"))
        return (
            f"@{kind}{{{self.key},\n  author = {{{author}}},\n  title = {{{{{self.title}}}}},\n"
            f"  {place} = {{{self.venue}}},\n  year = {{{self.year}}},\n  url = {{{self.url}}}\n}}"
        )


def _table(name: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


REFERENCES = {key: Reference(key=key, **row) for key, row in _table("references.toml").items()}
#: Words on the models of each recipe that comes with the app.
_MODELS = _table("methods.toml")
_CAUTION = (
    "Interpret the reconstructions with care: a generative model makes a plausible image from any "
    "input, and identification can be high where test images resemble training images "
    "(Shirakawa et al., 2024). Scores are comparable with published ones only for the same subjects, "
    "sessions and test images."
)


@dataclass(frozen=True)
class Methods:
    """The methods text: paragraphs, how to read the reconstructions, and references."""

    paragraphs: tuple[str, ...]
    caution: str
    references: tuple[Reference, ...]

    def as_markdown(self) -> str:
        """Return the text as Markdown, for ``logs/CITATION.md``."""
        entries = [f"- {r.authors} ({r.year}). {r.title}. {r.venue}. <{r.url}>" for r in self.references]
        return "\n\n".join([*self.paragraphs, self.caution, "## References", "\n".join(entries)]) + "\n"


def methods_text(
    recipe: str,
    *,
    version: str = "",
    counts: Mapping[str, float] | None = None,
    metrics: tuple[str, ...] = (),
    conditions: tuple[str, ...] = ("brain", "null", "oracle"),
) -> Methods:
    """Write the methods text of a run.

    Parameters
    ----------
    recipe : str
        One that comes with the app; with any other name, the text does not describe the models.
    version : str
        Version of this app.
    counts : mapping of str to number, optional
        As in :class:`~bidsapp.report.records.SubjectReport`.
    metrics, conditions : tuple of str
        Those that were computed.
    """
    own = _MODELS.get(recipe, {})
    paragraphs = (
        _data(counts or {}, version),
        own.get(
            "targets",
            f"The targets computed from every image are those of the recipe '{recipe}' (see Settings).",
        ),
        "Each target was predicted from the responses by ridge regression (Hoerl & Kennard, 1970) with "
        "an intercept. Predictions were rescaled, dimension by dimension, to the mean and the standard "
        "deviation of the training targets; the settings list the predictions that the scale was estimated "
        "from.",
        _generation(own),
        _evaluation(metrics, conditions),
    )
    return _with_references(tuple(text for text in paragraphs if text), recipe)


def _with_references(paragraphs: tuple[str, ...], recipe: str) -> Methods:
    caution = str(_MODELS.get(recipe, {}).get("caution", _CAUTION))
    cited = [r for r in REFERENCES.values() if r.short in " ".join((*paragraphs, caution))]
    return Methods(paragraphs, caution, tuple(cited))


def group_methods_text(recipes: tuple[str, ...], n: int, version: str) -> Methods:
    """Write the methods text of the group level.

    Parameters
    ----------
    recipes : tuple of str
        Those of the subjects' runs.
    n : int
        Number of subjects.
    """
    text = (
        f"Scores of {n} subject{'s' if n != 1 else ''} were summarized with "
        f"{f'bidsapp-recon {version}'.strip()}, a BIDS App (Gorgolewski et al., 2016). "
        "A subject's score is its mean over test images. Group values are means over subjects with 95% "
        "intervals from the t distribution; subjects are the unit of analysis, and images of different "
        "subjects were not pooled. The report of each subject describes its data and models."
    )
    return _with_references((text,), recipes[0] if len(recipes) == 1 else "")


def voxel_count(counts: Mapping[str, float]) -> str:
    """Return the key of the number of voxels that were decoded."""
    return "voxels used" if "voxels used" in counts else "voxels"


def _data(counts: Mapping[str, float], version: str) -> str:
    text = (
        f"Seen images were reconstructed from single-trial fMRI responses with "
        f"{f'bidsapp-recon {version}'.strip()}, a BIDS App (Gorgolewski et al., 2016) that follows the "
        "two-stage approach of Brain-Diffuser (Ozcelik & VanRullen, 2023). "
    )
    key = voxel_count(counts)
    voxels = f"{counts[key]:,} voxels" if key in counts else "the voxels of the region of interest"
    for name, left in counts.items():
        if name.startswith("voxels with a noise ceiling"):
            region = counts.get("voxels in the region of interest", left)
            text += f"Of the {region:,} voxels of the region of interest, the {left:,} "
            text += f"{name.removeprefix('voxels ')} were selected. "
    text += f"Betas of {voxels}, in percent signal change, were averaged over the repeats of each image"
    if "trials" in counts and "sessions" in counts:
        text += f" ({counts['trials']:,} trials in {counts['sessions']} sessions)"
    text += " and z-scored voxel by voxel with the mean and the standard deviation of the training images."
    if "training images" in counts and "test images" in counts:
        text += (
            f" {counts['training images']:,} images were used for training; {counts['test images']:,} "
            "others, never used in training, for testing."
        )
    if any("noise ceiling" in name for name in counts):
        text += " Noise ceilings follow the definition of the Natural Scenes Dataset (Allen et al., 2022)."
    return text


def _generation(own: Mapping[str, Any]) -> str:
    text = (
        "In stage 1 an image was decoded from the predicted latents; in stage 2 a generative model "
        "refined it, guided by the other predictions."
    )
    if own:
        text = (
            "In stage 1 the VDVAE decoded the predicted latents into a coarse image. In stage 2 "
            f"{own['stage2']} started from that image with noise added and denoised it, guided by "
            f"{own['guide']}."
        )
    return (
        f"{text} Every image has its own random seed, so it does not depend on the other images of the run."
    )


def _evaluation(metrics: tuple[str, ...], conditions: tuple[str, ...]) -> str:
    text = (
        f"Reconstructions were compared with the stimuli by {_listed(_phrases(metrics))}. " if metrics else ""
    )
    if any(m.startswith("ssim") for m in metrics):
        text += "SSIM is the structural similarity index (Wang et al., 2004). "
    if any(is_two_way(m) for m in metrics):
        text += (
            "In two-way identification, a reconstruction's features are correlated with those of its own "
            "stimulus and of every other test stimulus; the score is the proportion of the others that "
            "correlate less than its own (Ozcelik & VanRullen, 2023; Scotti et al., 2023). "
        )
    if "null" in conditions:
        text += "The null is the same pipeline with responses and images shuffled in training. "
    if "oracle" in conditions:
        text += "The oracle gives the generative models the true targets. "
    return text.rstrip()


def _phrases(metrics: tuple[str, ...]) -> list[str]:
    """``Two-way identification, CLIP`` and ``..., AlexNet(2)`` become one phrase with both networks."""
    networks: dict[str, list[str]] = {}
    for metric in metrics:
        title, _, network = metric_label(metric).title.partition(", ")
        networks.setdefault(title, []).extend([network] if network else [])
    phrases = []
    for title, names in networks.items():
        plain = title if title[:4].isupper() else f"{title[0].lower()}{title[1:]}"
        phrases.append(f"{plain} ({_listed(names)})" if names else plain)
    return phrases


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if names[:-1] else "") + names[-1]
