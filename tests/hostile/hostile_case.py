"""What a hostile case is, and how it is run: with little memory, little time, and a watch on the disk."""

from __future__ import annotations

import pickle
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidsapp import cli
from bidsapp.errors import AppError

#: What a case may take: address space beyond what the process has, and seconds.
SLACK, SECONDS = 1 << 30, 60
SESSION = "sub-01/ses-s1/func/sub-01_ses-s1_task-tiny"
BETAS = f"{SESSION}_space-func3mm_stat-effect_desc-singletrial_statmap.nii.gz"
BETAS_HDF5 = BETAS.replace(".nii.gz", ".hdf5")
SIDECAR = BETAS.replace(".nii.gz", ".json")
TRIALS = f"{SESSION}_desc-singletrial_trials.tsv"
MASK = "sub-01/func/sub-01_task-tiny_space-func3mm_label-nsdgeneral_mask.nii.gz"
LABELS = "sub-01/func/sub-01_task-tiny_space-func3mm_seg-visualrois_dseg.tsv"
STIMULI, CAPTIONS = "stimuli/stimuli.tsv", "stimuli/captions.tsv"
IMAGE = "stimuli/stim-pic001_image.png"


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def mark(tmp: Path) -> Path:
    """The file that would be there if a trap had sprung."""
    return tmp / "ran"


def trap(tmp: Path) -> bytes:
    return pickle.dumps(Trap(mark(tmp)))


#: Runs what reads the input: gives the exit code, or raises the named error.
How = Callable[[Path], int | None]


def participant(*options: object) -> How:
    """The command on the dataset ``bids``; ``{tmp}`` and ``{bids}`` stand for folders."""

    def run(tmp: Path) -> int:
        words = [str(o).format(tmp=tmp, bids=tmp / "bids") for o in options]
        words += [] if "--recipe" in words else ["--recipe", "embedded"]
        words += ["-w", str(tmp / "work"), "--skip-bids-validation", "--device", "cpu", "--n-cpus", "1"]
        return cli.main([str(tmp / "bids"), str(tmp / "out"), "participant", *words])

    return run


def group(tmp: Path) -> int:
    """The group level on the folder ``bids``, which stands for the participant level's output."""
    return cli.main([str(tmp / "bids"), str(tmp / "bids"), "group"])


def reader(read: Callable[[Path], object]) -> How:
    """A reader, given the folder; what it returns is no refusal."""

    def run(tmp: Path) -> int:
        read(tmp)
        return 0

    return run


PLAIN = participant()


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes
    ----------
    code : int
        The exit code.
    reason : str
        Words of the message, whatever their case.
    make : callable
        Makes the input in a folder that has a good dataset in ``bids``.
    how : callable
        Meets it.
    """

    code: int
    reason: str
    make: Callable[[Path], object]
    how: How = PLAIN


@contextmanager
def confined(seconds: int = SECONDS, slack: int = SLACK) -> Iterator[None]:
    """Let the body neither allocate much nor wait long: what it meets then fails the test, not the host."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still at it after {seconds} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + slack, before[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def refusal(how: How, tmp: Path, said: Callable[[], str]) -> tuple[int, str]:
    """Exit code and message of what meets a hostile input."""
    with confined():
        try:
            code = how(tmp) or 0
        except AppError as error:
            return int(error.exit_code), str(error)
    return code, said()
