"""Resources of a job: time and memory of the dry run's estimates, with a margin."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from bidsapp.errors import AppError, ExitCode
from bidsapp.planning.estimate import ResourceEstimate

#: Estimated times may be wrong by a factor of two or more (docs/reference/checks.md), memory by far less.
TIME_MARGIN, MEMORY_MARGIN = 3.0, 1.25
#: Minutes for imports, checks of the input and loading the models, which the estimates leave out.
STARTING = 15
_STEP = 15
#: Minutes and MiB for the group level, several times what it needs.
GROUP_TIME, GROUP_MEMORY = 30, 4096
#: Parts of a run (``ResourceEstimate.seconds``) by step of a run in shards; the last step, ``gather``, does
#: the rest.
STEPS = {"prepare": ("betas", "targets", "ridge", "latents", "stage 1"), "shard": ("stage 2",)}
_TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+|\d+-\d+:\d\d|\d+-\d+:\d\d:\d\d", re.ASCII)


@dataclass(frozen=True)
class Resources:
    """What a task of a job requests."""

    #: as sbatch takes it
    time: str
    #: MiB, SLURM's "M"
    memory: int
    cpus: int
    #: generic resources, such as ``gpu:1``
    gres: str | None = None

    @property
    def gpu(self) -> bool:
        """Whether a GPU is requested."""
        return asks_for_gpu(self.gres)


def asks_for_gpu(gres: str | None) -> bool:
    """Whether there is a GPU among generic resources as ``--gres`` takes them."""
    return any(re.match(r"(gres[:/])?gpu(:|$)", part) for part in (gres or "").split(","))


def is_time(text: str) -> bool:
    """Whether sbatch takes this as a time limit: minutes, [H:]MM:SS, D-H[:MM[:SS]]."""
    return _TIME.fullmatch(text) is not None


def time_limit(needs: Iterable[ResourceEstimate], step: str | None = None, shards: int = 1) -> str:
    """Give the time limit of an array's tasks, for the subject that takes longest.

    It is ``TIME_MARGIN`` times the estimate plus ``STARTING`` minutes, rounded up to a quarter of an hour,
    as ``D-HH:MM:SS``.

    ``step`` is one of :data:`STEPS`, or ``gather``; the whole run by default. The step ``shard`` is split
    into ``shards`` tasks.

    Raises
    ------
    AppError
        Exit code 64 if there is no estimate.
    """
    longest = 0.0
    for need in needs:
        parts = [seconds for name, seconds in need.seconds.items() if step in (None, _step_of(name))]
        known = [s for s in parts if s is not None]
        if len(known) < len(parts):
            raise AppError(
                "There is no estimate of the time of a task: these models were not timed on this kind of "
                "device. Give a generous --time. If a task reaches its limit, its results so far are kept, "
                "and submitting again resumes it.",
                exit_code=ExitCode.USAGE,
            )
        longest = max(longest, sum(known) * (_largest_share(need, shards) if step == "shard" else 1))
    minutes = math.ceil((TIME_MARGIN * longest / 60 + STARTING) / _STEP) * _STEP
    return as_limit(minutes)


def _largest_share(need: ResourceEstimate, shards: int) -> float:
    """Give the largest share of stage 2 that a task gets: whole blocks, at least one."""
    if not need.images or not need.at_once:
        return 1 / shards
    return min(1.0, math.ceil(_blocks(need) / shards) * need.at_once / need.images)


def _blocks(need: ResourceEstimate) -> int:
    return math.ceil(need.images / max(1, need.at_once))


def most_shards(needs: Iterable[ResourceEstimate]) -> int:
    """Count the shards of a subject that can have something to do; 0 if that is unknown."""
    return max(map(_blocks, needs), default=0)


def _step_of(part: str) -> str:
    return next((step for step, parts in STEPS.items() if part in parts), "gather")


def as_limit(minutes: int) -> str:
    """Write minutes as ``D-HH:MM:SS``."""
    days, rest = divmod(minutes, 24 * 60)
    return f"{days}-{rest // 60:02d}:{rest % 60:02d}:00"


def memory_limit(needs: Iterable[ResourceEstimate]) -> int:
    """Give the memory of an array's tasks in MiB: the largest estimate with its margin, in whole GiB."""
    most = max(need.memory for need in needs)
    return 1024 * math.ceil(MEMORY_MARGIN * most / 1024**3)
