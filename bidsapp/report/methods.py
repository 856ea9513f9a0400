"""The methods paragraph: what was done, in words fit for a paper, with the references it leans on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        kind, place = (
            ("article", "journal") if self.url.startswith("https://doi.org") else ("misc", "howpublished")
        )
        # "Allen, E. J., St-Yves, G." -> "Allen, E. J. and St-Yves, G."
        names = self.authors.replace("., ", ".; ").replace(" & ", " ").replace("et al.", "others")
        author = " and ".join(part.strip(" ,") for part in names.split(";"))
        lines = [f"@{kind}{{{self.key},", f"  author = {{{author}}},", f"  title = {{{{{self.title}}}}},"]
        lines += [
            f"  {place} = {{{self.venue}}},",
            f"  year = {{{self.year}}},",
            f"  url = {{{self.url}}}",
            "}",
        ]
        return "\n".join(lines)


def _ref(key: str, short: str, authors: str, year: int, title: str, venue: str, url: str) -> Reference:
    if not url.startswith("https://"):
        url = f"https://arxiv.org/abs/{url}" if url[:4].isdigit() else f"https://doi.org/{url}"
    return Reference(key, short, authors, year, title, venue, url)


REFERENCES: dict[str, Reference] = {
    r.key: r
    for r in (
        _ref("braindiffuser", "Ozcelik & VanRullen, 2023", "Ozcelik, F., VanRullen, R.", 2023,
             "Natural scene reconstruction from fMRI signals using generative latent diffusion",
             "Scientific Reports, 13, 15666 (arXiv 2303.05334)", "10.1038/s41598-023-42891-8"),
        _ref("vdvae", "Child, 2021", "Child, R.", 2021,
             "Very deep VAEs generalize autoregressive models and can outperform them on images",
             "International Conference on Learning Representations (arXiv 2011.10650)", "2011.10650"),
        _ref("versatile", "Xu et al., 2023", "Xu, X., Wang, Z., Zhang, E., Wang, K., Shi, H.", 2023,
             "Versatile Diffusion: Text, images and variations all in one diffusion model",
             "International Conference on Computer Vision (arXiv 2211.08332)", "2211.08332"),
        _ref("clip", "Radford et al., 2021", "Radford, A., Kim, J. W., Hallacy, C., et al.", 2021,
             "Learning transferable visual models from natural language supervision",
             "International Conference on Machine Learning (arXiv 2103.00020)", "2103.00020"),
        _ref("latentdiffusion", "Rombach et al., 2022",
             "Rombach, R., Blattmann, A., Lorenz, D., Esser, P., Ommer, B.", 2022,
             "High-resolution image synthesis with latent diffusion models",
             "Computer Vision and Pattern Recognition (arXiv 2112.10752)", "2112.10752"),
        _ref("ddim", "Song et al., 2021", "Song, J., Meng, C., Ermon, S.", 2021,
             "Denoising diffusion implicit models",
             "International Conference on Learning Representations (arXiv 2010.02502)", "2010.02502"),
        _ref("ipadapter", "Ye et al., 2023", "Ye, H., Zhang, J., Liu, S., Han, X., Yang, W.", 2023,
             "IP-Adapter: Text compatible image prompt adapter for text-to-image diffusion models",
             "arXiv 2308.06721", "2308.06721"),
        _ref("nsd", "Allen et al., 2022", "Allen, E. J., St-Yves, G., Wu, Y., et al.", 2022,
             "A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial intelligence",
             "Nature Neuroscience, 25, 116-126", "10.1038/s41593-021-00962-x"),
        _ref("mindeye", "Scotti et al., 2023", "Scotti, P. S., Banerjee, A., Goode, J., et al.", 2023,
             "Reconstructing the mind's eye: fMRI-to-image with contrastive learning and diffusion priors",
             "Advances in Neural Information Processing Systems (arXiv 2305.18274)", "2305.18274"),
        _ref("ridge", "Hoerl & Kennard, 1970", "Hoerl, A. E., Kennard, R. W.", 1970,
             "Ridge regression: Biased estimation for nonorthogonal problems",
             "Technometrics, 12(1), 55-67", "10.1080/00401706.1970.10488634"),
        _ref("ssim", "Wang et al., 2004", "Wang, Z., Bovik, A. C., Sheikh, H. R., Simoncelli, E. P.", 2004,
             "Image quality assessment: From error visibility to structural similarity",
             "IEEE Transactions on Image Processing, 13(4), 600-612", "10.1109/TIP.2003.819861"),
        _ref("spurious", "Shirakawa et al., 2024", "Shirakawa, K., Nagano, Y., Tanaka, M., et al.", 2024,
             "Spurious reconstruction from brain activity", "arXiv 2405.10078", "2405.10078"),
        _ref("bids", "Gorgolewski et al., 2016", "Gorgolewski, K. J., Auer, T., Calhoun, V. D., et al.", 2016,
             "The brain imaging data structure, a format for organizing and describing outputs of "
             "neuroimaging experiments", "Scientific Data, 3, 160044", "10.1038/sdata.2016.44"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Methods:
    """The methods text: paragraphs, an honest word on what the pictures mean, and references."""

    paragraphs: tuple[str, ...]
    caution: str
    references: tuple[Reference, ...]

    def as_markdown(self) -> str:
        """Return the same as Markdown, for ``logs/CITATION.md``."""
        entries = [f"- {r.authors} ({r.year}). {r.title}. {r.venue}. <{r.url}>" for r in self.references]
        return "\n\n".join([*self.paragraphs, self.caution, "## References", "\n".join(entries)]) + "\n"


def describe(
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
        ``embedded``, ``brain-diffuser``, ``sd15-ip-adapter``; any other name gives a wording that
        claims nothing about the models.
    version : str
        Version of this app.
    counts : mapping of str to number, optional
        ``voxels used`` (or ``voxels``), ``training images``, ``test images``, ``sessions`` and
        ``trials`` are used if there.
    metrics : tuple of str
        Metrics that were computed.
    conditions : tuple of str
        Conditions that were run.
    """
    texts = [
        _data(counts or {}, version),
        _targets(recipe),
        _decoding(),
        _generation(recipe),
        _evaluation(metrics, conditions),
    ]
    caution = _caution(recipe)
    texts = [text for text in texts if text]
    keys = [key for key, ref in REFERENCES.items() if any(ref.short in t for t in (*texts, caution))]
    return Methods(tuple(texts), caution, tuple(REFERENCES[k] for k in keys))


def voxel_count(counts: Mapping[str, float]) -> str:
    """Return the key of the number of voxels that were decoded."""
    return "voxels used" if "voxels used" in counts else "voxels"


def _data(counts: Mapping[str, float], version: str) -> str:
    app = f"bidsapp-recon {version}".strip()
    text = (
        f"Seen images were reconstructed from single-trial fMRI responses with {app}, a BIDS App "
        "(Gorgolewski et al., 2016) that follows the two-stage approach of Brain-Diffuser "
        "(Ozcelik & VanRullen, 2023). "
    )
    key = voxel_count(counts)
    voxels = f"{counts[key]:,} voxels" if key in counts else "the voxels of the region of interest"
    for name, left in counts.items():
        if name.startswith("voxels with a noise ceiling"):
            region = counts.get("voxels in the region of interest", left)
            text += f"Of the {region:,} voxels of the region of interest the {left:,} "
            text += f"{name.removeprefix('voxels ')} were chosen. "
    text += f"Betas, in percent signal change, of {voxels} were averaged over the repeats of each image"
    if "trials" in counts and "sessions" in counts:
        text += f" ({counts['trials']:,} trials in {counts['sessions']} sessions)"
    text += ", and z-scored voxel by voxel with the mean and the standard deviation of the training images."
    if "training images" in counts and "test images" in counts:
        text += (
            f" {counts['training images']:,} images served for training and {counts['test images']:,} "
            "others, never used in training, for testing."
        )
    if any("noise ceiling" in name for name in counts):
        text += " Noise ceilings are those of the Natural Scenes Dataset's definition (Allen et al., 2022)."
    return text


def _targets(recipe: str) -> str:
    if recipe == "embedded":
        return (
            "Three targets were computed from every image: the latents of a very deep variational "
            "autoencoder (VDVAE; Child, 2021), the image tokens and the caption tokens of a CLIP "
            "(Radford et al., 2021). Both are small models of the same kinds as those of the paper, "
            "trained on drawn scenes and delivered with the app."
        )
    if recipe == "brain-diffuser":
        return (
            "Three targets were computed from every image: the latents of the first 31 layers of a very deep "
            "variational autoencoder trained on ImageNet at 64 x 64 pixels (VDVAE; Child, 2021), and the "
            "257 image tokens and 77 caption tokens of CLIP ViT-L/14 (Radford et al., 2021) in the form that "
            "Versatile Diffusion takes them, averaged over the captions of an image."
        )
    if recipe == "sd15-ip-adapter":
        return (
            "Two kinds of target were computed from every image: the latents of a very deep variational "
            "autoencoder trained on ImageNet at 64 x 64 pixels (VDVAE; Child, 2021), and the CLIP image "
            "embedding (Radford et al., 2021) that IP-Adapter takes (Ye et al., 2023)."
        )
    return f"The targets computed from every image are those of the recipe '{recipe}' (see Settings)."


def _decoding() -> str:
    return (
        "Each target was predicted from the responses by ridge regression (Hoerl & Kennard, 1970) with "
        "an intercept. Predictions were rescaled, dimension by dimension, to the mean and the standard "
        "deviation of the training targets; the settings say from which predictions the scale was taken."
    )


def _generation(recipe: str) -> str:
    if recipe == "embedded":
        second = (
            "a small latent diffusion model (Rombach et al., 2022; Song et al., 2021) with attention to "
            "image and to text tokens, as Versatile Diffusion has it (Xu et al., 2023),"
        )
    elif recipe == "brain-diffuser":
        second = "Versatile Diffusion (Xu et al., 2023), a latent diffusion model (Rombach et al., 2022),"
    elif recipe == "sd15-ip-adapter":
        second = "Stable Diffusion 1.5 (Rombach et al., 2022) with IP-Adapter (Ye et al., 2023)"
    else:
        return (
            "In stage 1 an image was made from the predicted latents; in stage 2 a generating model refined "
            "it, guided by the other predictions. Every image has a seed of its own."
        )
    guided = (
        "the predicted image embedding"
        if recipe == "sd15-ip-adapter"
        else "the predicted image and text tokens"
    )
    return (
        "In stage 1 the VDVAE decoded the predicted latents into a coarse image. In stage 2 "
        f"{second} started from that image with noise added and denoised it, guided by {guided}. "
        "Every image has a seed of its own, so it does not depend on the other images of the run."
    )


def _evaluation(metrics: tuple[str, ...], conditions: tuple[str, ...]) -> str:
    text = (
        f"Reconstructions were compared with the stimuli by {_listed(_phrases(metrics))}. " if metrics else ""
    )
    if any(m.startswith("ssim") for m in metrics):
        text += "SSIM is the structural similarity index (Wang et al., 2004). "
    if any(is_two_way(m) for m in metrics):
        text += (
            "In two-way identification a reconstruction's features are correlated with those of its own "
            "stimulus and of each other test stimulus; the score is the share of the others that its own "
            "surpasses, as the field uses it (Ozcelik & VanRullen, 2023; Scotti et al., 2023). "
        )
    if "null" in conditions:
        text += "The null is the same pipeline with responses and images shuffled in training. "
    if "oracle" in conditions:
        text += "The oracle gives the generating models the true targets. "
    return text.rstrip()


def _phrases(metrics: tuple[str, ...]) -> list[str]:
    """``Two-way identification, CLIP`` and ``..., AlexNet(2)`` become one phrase with both networks."""
    networks: dict[str, list[str]] = {}
    for metric in metrics:
        title, _, network = metric_label(metric).title.partition(", ")
        networks.setdefault(title, []).extend([network] if network else [])
    phrases = []
    for title, names in networks.items():
        plain = title if title.isupper() or title[:4].isupper() else f"{title[0].lower()}{title[1:]}"
        phrases.append(f"{plain} ({_listed(names)})" if names else plain)
    return phrases


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if names[:-1] else "") + names[-1]


def _caution(recipe: str) -> str:
    if recipe == "embedded":
        return (
            "What these pictures show: that the pipeline works from betas to scores. The embedded models "
            "know nothing but drawn scenes and are far smaller than those of the paper. Neither the "
            "pictures nor the scores say what real data would give, and they must not be set beside "
            "published values."
        )
    return (
        "Read the pictures with care: a generating model makes a plausible image of anything it is "
        "given, and identification can be high where the images of the test set resemble those of "
        "training (Shirakawa et al., 2024). Scores can be compared with published ones only for the same "
        "subjects, sessions and test images."
    )
