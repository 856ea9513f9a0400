"""Parts of the participant level: ``--prepare`` does what precedes stage 2, ``--shard K/N`` a share of it.

Stage 2 takes nearly all of a run's time, and its images do not depend on each other. Its blocks
(:mod:`bidsapp.storage.blocks`) are in the work folder: shards find there what was prepared, and the plain
command, which does the rest, finds the blocks. Outputs are the same for any number of shards.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bidsapp.bids.outputs import OutputTree
from bidsapp.config import RunConfig
from bidsapp.errors import ExitCode
from bidsapp.participant.completion import Completion
from bidsapp.participant.lock import Busy, alone_after_shards, clear_leftovers, subject_lock, turn
from bidsapp.participant.outcomes import Outcomes
from bidsapp.participant.reconstruct import PreparedSubject, prepare_stage2
from bidsapp.pipeline.images import blocks_of, make_block, warn_of_size
from bidsapp.pipeline.records import Refinement
from bidsapp.storage.blocks import Blocks
from bidsapp.storage.stages import NotThere, Stages, Survey
from bidsapp.system.logging import counter, log_to_file, new_run_id

if TYPE_CHECKING:
    from bidsapp.models.suite import Models
    from bidsapp.planning.check import CheckedRun

LOG = logging.getLogger("bidsapp")


def run_parts(run: CheckedRun, models: Models, config: RunConfig, models_check: str) -> ExitCode:
    """Do a part of every subject: what ``config.prepare`` or ``config.shard`` asks for.

    Writes nothing into the output folder but the log.

    Parameters
    ----------
    config : RunConfig
        With the device and number format that are used.
    models_check : str
        Result of the check of the models, for the log.

    Returns
    -------
    ExitCode
        OK if the part of every subject is done; SUBJECT_FAILED if one failed; TRY_AGAIN if another job holds
        one; that of the error if a folder cannot be written (a full disk).
    """
    outcomes = Outcomes(config)
    for label, subject in run.subjects.items():
        tree = OutputTree(config.output_dir, label, subject.inputs.task, subject.inputs.space)
        with log_to_file(tree.path("log", run_id=new_run_id())):
            LOG.info(models_check)
            with outcomes.of(label):
                part = _Part(run, tree, models, config)
                part.share() if config.shard else part.prepare()
        if outcomes.end_the_run:
            break
    return outcomes.exit_code


class _Part:
    """A part of one subject."""

    def __init__(self, run: CheckedRun, tree: OutputTree, models: Models, config: RunConfig) -> None:
        self.run, self.tree, self.models, self.config = run, tree, models, config
        self.label = tree.subject
        self.places = (self.label, config.output_dir, config.work_dir)
        self.folder = config.work_dir / f"sub-{self.label}"

    def prepare(self) -> None:
        """Do what precedes stage 2 (Busy if another job works on the subject)."""
        what = "another job computes what precedes stage 2"
        with turn(self.label, self.config.work_dir, what), subject_lock(*self.places):
            self._prepare()

    def share(self) -> None:
        """Make this shard's blocks, and what precedes them if no other job has."""
        while not self._share(compute=True):
            what = "another job computes what precedes stage 2, which this one needs"
            with turn(self.label, self.config.work_dir, what):
                if not self._share(compute=False):  # no other job did it in the meantime
                    with alone_after_shards(*self.places):
                        LOG.info("sub-%s: computing first what stage 2 needs", self.label)
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
        for work in self._prepared(stages).refinements:
            blocks, inputs = blocks_of(stages, work, self.models)
            n_images += blocks.n
            if stages.forced(blocks.name):
                stages.drop(blocks.name)
                blocks.remove()
            elif stages.is_there(blocks.name, inputs):
                LOG.info("%s: complete from an earlier run", blocks.name)
                continue
            blocks.begin(self.models.second_stage_at_once)
            n_blocks, there = n_blocks + len(blocks), there + blocks.there()
        what = "sub-%s: ready for stage 2: %d images; %d blocks, %d of them made already"
        LOG.info(what, self.label, n_images, n_blocks, there)

    def _share(self, *, compute: bool) -> bool:
        """Return whether all that this shard's blocks need exists; if so, make them with ``compute``."""
        try:
            with subject_lock(*self.places, together=True):
                if self._done(self._completion()):
                    return True
                found = Survey(self.folder, read=True)
                try:
                    prepared = self._prepared(found)
                    if any(not self._has_begun(found, work) for work in prepared.refinements):
                        return False
                except NotThere:
                    return False
                if compute:
                    self._compute(found, prepared)
                return True
        except Busy:
            return False  # a job holds it alone; whether it prepares shows when its turn is over

    def _has_begun(self, stages: Stages, work: Refinement) -> bool:
        blocks, inputs = blocks_of(stages, work, self.models)
        return blocks.begun() or stages.is_there(blocks.name, inputs)

    def _compute(self, stages: Stages, prepared: PreparedSubject) -> None:
        assert self.config.shard is not None
        k, n = self.config.shard
        todo: list[tuple[Blocks, Refinement, list[int]]] = []
        n_images = n_mine = total = 0
        for work in prepared.refinements:
            blocks, inputs = blocks_of(stages, work, self.models)
            if stages.is_there(blocks.name, inputs) or not blocks.begun():
                continue
            # Numbered across conditions, or the first shard would get the first block of each.
            mine = [i for i in range(len(blocks)) if (total + i) % n == k - 1]
            left = [i for i in mine if blocks.find(i) is None]
            n_images += sum(len(work.condition.ids[blocks.rows(i)]) for i in left)
            n_mine, total = n_mine + len(mine), total + len(blocks)
            todo.append((blocks, work, left))
        n_left = sum(len(left) for _, _, left in todo)
        what = "sub-%s: shard %d of %d has %d of %d blocks; %d blocks of %d images are left to make"
        LOG.info(what, self.label, k, n, n_mine, total, n_left, n_images)
        with counter(n_images, f"sub-{self.label}, stage 2 (images)") as advance:
            for blocks, work, left in todo:
                if left:
                    warn_of_size(blocks, self.models)
                for index in left:
                    advance(len(make_block(blocks, index, work, self.label, self.models)))
                    LOG.debug("%s: made block %d of %d", blocks.name, index + 1, len(blocks))

    def _prepared(self, stages: Stages) -> PreparedSubject:
        return prepare_stage2(self.run, self.label, stages, self.models, self.config)

    def _completion(self) -> Completion:
        return Completion(self.tree, self.run, self.models, self.config)

    def _done(self, completion: Completion) -> bool:
        if there := completion.find():
            LOG.info("sub-%s: already done by run %s, so no part is left", self.label, there[1])
        return there is not None
