"""NSD's file layout: paths below the download folder are the same as in its S3 bucket.

Paths and numbers are those of the NSD Data Manual (https://cvnlab.slite.page/p/CT9Fwl4_hc) and of Allen et
al. 2022 (doi:10.1038/s41593-021-00962-x).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BUCKET = "s3://natural-scenes-dataset"
COCO_URL = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"

#: Core sessions of subjects 1 to 8.
SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
#: Versions of the betas (b3, b2, b1 in the paper), and the volume spaces that they exist in.
BETAS = ("fithrf_GLMdenoise_RR", "fithrf", "assumehrf")
SPACES = ("func1pt8mm", "func1mm")
#: How betas and the brick of images are placed in the dataset, and the form of the images.
LINKS = ("hard", "symbolic", "copy")
STIMULI = ("hdf5", "png")
#: Stored betas divided by this are percent signal change, in every version and volume space.
SCALE_FACTOR = 300
TASK = "nsdcore"

#: The mask of responsive posterior cortex, and the volumes of labels.
MASK = "nsdgeneral"
_FLOC = ("faces", "words", "places", "bodies")
SEGMENTATIONS = ("prf-visualrois", "prf-eccrois", *(f"floc-{name}" for name in _FLOC), "streams")

DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
STIMULUS_INFO = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
BRICK = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
#: Folders in which COCO's annotations are looked for; the first is where nsd_access puts them.
ANNOTATIONS = (f"{Path(BRICK).parent}/annotations", "annotations", "COCO/annotations", "coco/annotations")
#: COCO's sets that NSD's images come from.
COCO_SPLITS = ("train2017", "val2017")


def session_label(session: int) -> str:
    """BIDS label of a session, numbered from 1, as in NSD's raw data."""
    return f"nsd{session:02d}"


@dataclass(frozen=True)
class Missing:
    """A missing file.

    Attributes
    ----------
    path : Path
        Where it should be.
    origin : str
        Where to get it: its path in NSD's bucket, or a URL.
    what : str
        What it is, and what the dataset lacks without it.
    """

    path: Path
    origin: str
    what: str


@dataclass(frozen=True)
class Nsd:
    """A download of NSD: its folder, and the version and space of the betas to convert."""

    root: Path
    betas: str
    space: str

    def betas_folder(self, subject: int) -> str:
        """Folder of a subject's betas, relative to the root."""
        return f"nsddata_betas/ppdata/subj{subject:02d}/{self.space}/betas_{self.betas}"

    def session(self, subject: int, session: int) -> str:
        """Betas of a session, relative to the root, without ``.nii.gz`` or ``.hdf5``."""
        return f"{self.betas_folder(subject)}/betas_session{session:02d}"

    def ncsnr(self, subject: int) -> str:
        """Map of the noise-ceiling signal-to-noise ratio, relative to the root."""
        return f"{self.betas_folder(subject)}/ncsnr.nii.gz"

    def roi(self, subject: int, name: str) -> str:
        """Volume of one ROI or of a set of labels, relative to the root."""
        return f"nsddata/ppdata/subj{subject:02d}/{self.space}/roi/{name}.nii.gz"

    def label_tables(self, subject: int, name: str) -> tuple[str, ...]:
        """Possible files with the names of a volume's labels, the usual one first.

        NSD stores them with the surfaces; the values are the same in the volumes.
        """
        return (
            f"nsddata/freesurfer/subj{subject:02d}/label/{name}.mgz.ctab",
            f"nsddata/freesurfer/fsaverage/label/{name}.mgz.ctab",
            f"nsddata/ppdata/subj{subject:02d}/{self.space}/roi/{name}.mgz.ctab",
            f"nsddata/ppdata/subj{subject:02d}/{self.space}/roi/{name}.ctab",
        )

    def find(self, *relative: str) -> Path | None:
        """Return the first of these files that exists."""
        return next((self.root / path for path in relative if (self.root / path).is_file()), None)

    def missing(self, relative: str, what: str) -> Missing:
        """Describe a missing file of the bucket."""
        return Missing(self.root / relative, f"{BUCKET}/{relative}", what)
