"""Parts of the participant level: ``--prepare`` does what precedes stage 2, ``--shard K/N`` a share of it.

Stage 2 takes nearly all of a run's time, and its images do not depend on each other. Its blocks
(:mod:`bidsapp.storage.blocks`) lie in the work folder, where shards find what was prepared and the plain
command, which does the rest, finds the blocks. So outputs are the same, however many shards there were.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bidsapp.bids.outputs import OutputTree
from bidsapp.config import RunConfig
from bidsapp.errors import AppError, ExitCode
from bidsapp.participant.completion import Completion
from bidsapp.participant.lock import Busy, alone_after_shards, clear_leftovers, subject_lock, turn
from bidsapp.participant.reconstruct import Prepared, prepare
from bidsapp.pipeline.images import blocks_of, make_block, warn_of_size
from bidsapp.pipeline.records import Refinement
from bidsapp.records import SubjectInputs
from bidsapp.storage.blocks import Blocks
from bidsapp.storage.stages import NotThere, Stages, Survey
from bidsapp.system.logging import log_to_file, new_run_id
from bidsapp.system.progress import counter
from bidsapp.system.signals import Stopped, received
from bidsapp.system.write_errors import CannotWrite

if TYPE_CHECKING:
    from bidsapp.models.suite import Models
    from bidsapp.planning.check import Plan

LOG = logging.getLogger("bidsapp")


def run_parts(planned: Plan, models: Models, config: RunConfig, checked: str) -> ExitCode:
    """Do a part of every subject: what ``config.prepare`` or ``config.shard`` asks for.

    Writes nothing into the output folder but the log.

    Parameters
    ----------
    planned : Plan
    models : Models
    config : RunConfig
        With the device and number format that are used.
    checked : str
        What the check of the models found, for the log.

    Returns
    -------
    ExitCode
        OK if the part is done of every subject; SUBJECT_FAILED where one failed; TRY_AGAIN where one is held
        by another job; that of the error where a folder can't be written (a full disk).
    """
    failed, busy = [], []
    for subject in planned.dataset.subjects:
        label = subject.label
        tree = OutputTree(config.output_dir, label, subject.task, subject.space)
        with log_to_file(tree.path("log", run_id=new_run_id())):
            LOG.info(checked)
            part = _Part(planned, subject, tree, models, config)
            try:
                part.share() if config.shard else part.prepare()
            except Busy as error:  # nothing of it was touched
                busy.append(label)
                LOG.error("%s", error)
            except Exception as error:  # one bad subject must not stop the others
                if stopped := received():
                    raise stopped from error  # a library made an error of the signal
                failed.append(label)
                known = isinstance(error, AppError)
                text = str(error) if known else f"{type(error).__name__}: {error}"
                trace = error if not known or config.verbose > 0 else None
                LOG.error("sub-%s failed: %s", label, text, exc_info=trace)
                if isinstance(error, CannotWrite):
                    return error.exit_code  # the next subject will hardly fare better
            except (Stopped, KeyboardInterrupt):
                LOG.warning("sub-%s: stopped before it was done; the same command goes on", label)
                raise
        if failed and config.stop_on_first_crash:
            break
    return ExitCode.SUBJECT_FAILED if failed else ExitCode.TRY_AGAIN if busy else ExitCode.OK


class _Part:
    """A part of one subject."""

    def __init__(
        self, planned: Plan, subject: SubjectInputs, tree: OutputTree, models: Models, config: RunConfig
    ) -> None:
        self.planned, self.subject, self.tree = planned, subject, tree
        self.models, self.config, self.label = models, config, subject.label
        self.places = (subject.label, config.output_dir, config.work_dir)
        self.folder = config.work_dir / f"sub-{subject.label}"

    def prepare(self) -> None:
        """Do what comes before stage 2 (Busy where another job is at the subject)."""
        what = "another job does what comes before stage 2"
        with turn(self.label, self.config.work_dir, what), subject_lock(*self.places):
            self._prepare()

    def share(self) -> None:
        """Make this shard's blocks; what comes before them too, where no one else has."""
        while not self._share(compute=True):
            what = "another job does what comes before stage 2, which this one needs"
            with turn(self.label, self.config.work_dir, what):
                if not self._share(compute=False):  # no one did it in the meantime
                    with alone_after_shards(*self.places):
                        LOG.info("sub-%s: not all that stage 2 needs is there; making it", self.label)
                        self._prepare()

    def _prepare(self) -> None:
        completion = self._completion()
        if self.config.force:
            completion.withdraw()
        elif self._done(completion):
            return
        clear_leftovers(*self.places)
        stages = Stages(self.folder, self.config.force)
        n_images = n_blocks = there = 0
        for work in self._ready(stages).refinements:
            blocks, inputs = blocks_of(stages, work, self.models)
            n_images += blocks.n
            if stages.forced(blocks.name):
                stages.drop(blocks.name)
                blocks.remove()
            elif stages.is_there(blocks.name, inputs):
                LOG.info("%s: all of it is there from an earlier run", blocks.name)
                continue
            blocks.begin(self.models.second_stage_at_once)
            n_blocks, there = n_blocks + len(blocks), there + blocks.there()
        what = "sub-%s: ready for stage 2: %d images; %d blocks, %d of them there"
        LOG.info(what, self.label, n_images, n_blocks, there)

    def _share(self, *, compute: bool) -> bool:
        """Make this shard's blocks, if all is there that they need (or only say whether it is)."""
        try:
            with subject_lock(*self.places, together=True):
                if self._done(self._completion()):
                    return True
                found = Survey(self.folder, read=True)
                try:
                    ready = self._ready(found)
                    if any(not self._has_begun(found, work) for work in ready.refinements):
                        return False
                except NotThere:
                    return False
                if compute:
                    self._compute(found, ready)
                return True
        except Busy:
            return False  # a job holds it alone; whether it prepares is seen when its turn is over

    def _has_begun(self, stages: Stages, work: Refinement) -> bool:
        blocks, inputs = blocks_of(stages, work, self.models)
        return blocks.begun() or stages.is_there(blocks.name, inputs)

    def _compute(self, stages: Stages, ready: Prepared) -> None:
        assert self.config.shard is not None
        k, n = self.config.shard
        todo: list[tuple[Blocks, Refinement, list[int]]] = []
        n_images = n_mine = total = 0
        for work in ready.refinements:
            blocks, inputs = blocks_of(stages, work, self.models)
            if stages.is_there(blocks.name, inputs) or not blocks.begun():
                continue
            # Counted on over conditions: the first shard does not get every one's first block.
            mine = [i for i in range(len(blocks)) if (total + i) % n == k - 1]
            left = [i for i in mine if blocks.find(i) is None]
            n_images += sum(len(work.condition.ids[blocks.rows(i)]) for i in left)
            n_mine, total = n_mine + len(mine), total + len(blocks)
            todo.append((blocks, work, left))
        n_left = sum(len(left) for _, _, left in todo)
        what = "sub-%s: shard %d of %d has %d of %d blocks; %d of them are left, of %d images"
        LOG.info(what, self.label, k, n, n_mine, total, n_left, n_images)
        with counter(n_images, f"sub-{self.label}, stage 2 (images)") as advance:
            for blocks, work, left in todo:
                if left:
                    warn_of_size(blocks, self.models)
                for index in left:
                    advance(len(make_block(blocks, index, work, self.label, self.models)))
                    LOG.debug("%s: block %d of %d is made", blocks.name, index + 1, len(blocks))

    def _ready(self, stages: Stages) -> Prepared:
        mask, regions = self.planned.masks[self.label], self.planned.regions(self.label, self.config)
        split, stimuli = self.planned.splits[self.label], self.planned.stimuli
        return prepare(stages, self.subject, mask, split, stimuli, self.models, self.config, regions)

    def _completion(self) -> Completion:
        return Completion(self.tree, self.planned, self.models, self.config)

    def _done(self, completion: Completion) -> bool:
        if there := completion.find():
            LOG.info("sub-%s: already done by run %s, so there is no part left", self.label, there[1])
        return there is not None
