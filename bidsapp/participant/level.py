"""The participant level: one subject after the other, once :mod:`bidsapp.planning.check` has checked all."""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp import __version__
from bidsapp.config import RunConfig
from bidsapp.errors import AppError, ExitCode
from bidsapp.participant.lock import Busy, clear_leftovers, subject_lock
from bidsapp.planning.check import Plan, evaluation_networks, plan, split_notes
from bidsapp.records import SubjectInputs
from bidsapp.storage.atomic import noting_written
from bidsapp.storage.files import bytes_there
from bidsapp.system.caches import caches_in_work
from bidsapp.system.signals import Stopped, received
from bidsapp.system.units import as_text
from bidsapp.system.write_errors import CannotWrite

if TYPE_CHECKING:
    from bidsapp.bids.outputs import OutputTree
    from bidsapp.models.suite import Models
    from bidsapp.report import ScoreRow


LOG = logging.getLogger("bidsapp")


@caches_in_work
def run_participants(config: RunConfig) -> tuple[ExitCode, dict[str, list[ScoreRow]]]:
    """Run the participant level for every subject.

    Returns
    -------
    code : ExitCode
        OK if every subject is done; SUBJECT_FAILED if one failed; TRY_AGAIN if others were left to other jobs
        and none failed. Where the output or work folder can't be written (a full disk), no further subject is
        begun, and the code is that of the error (IO_ERROR, CANNOT_CREATE).
    scores : dict of list of ScoreRow
        Summary table of each subject that is done.
    """
    planned = plan(config)

    from bidsapp.bids.descriptions import update_participants, write_dataset_files
    from bidsapp.bids.outputs import OutputTree
    from bidsapp.models.devices import choose_device, choose_dtype, set_threads
    from bidsapp.models.startup import check_models
    from bidsapp.models.suite import Models
    from bidsapp.outputs.provenance import write_citation
    from bidsapp.participant.completion import Completion
    from bidsapp.system.logging import log_to_file, new_run_id

    device = choose_device(config.device)
    set_threads(config.n_threads)
    dtype = choose_dtype(config.dtype, device)
    config = replace(config, device=device, dtype=dtype)  # what is recorded is what was used
    uses = evaluation_networks(config.recipe)
    models = Models(config.recipe, config.models_dir, device, uses, dtype, config.memory)
    models.verify()
    checked = check_models(models, config.work_dir)
    if config.prepare or config.shard:
        from bidsapp.participant.shards import run_parts

        return run_parts(planned, models, config, checked), {}
    root = planned.dataset.root
    write_dataset_files(
        config.output_dir,
        source_dir=root,
        version=__version__,
        container=_container(),
        links=planned.dataset.links,
    )
    labels = [s.label for s in planned.dataset.subjects]
    write_citation(config)
    done: dict[str, list[ScoreRow]] = {}
    failed, busy = [], []
    unwritable: CannotWrite | None = None
    for label in labels:
        subject = planned.dataset.subject(label)
        tree = OutputTree(config.output_dir, label, subject.task, subject.space)
        run_id = new_run_id()
        try:
            with (
                subject_lock(label, config.output_dir, config.work_dir),
                log_to_file(tree.path("log", run_id=run_id)),
            ):
                LOG.info(checked)
                try:
                    clear_leftovers(label, config.output_dir, config.work_dir)
                    completion = Completion(tree, planned, models, config)
                    if not config.force and (there := completion.find()):
                        done[label], earlier = there
                        what = "the same inputs, settings and weights, and all outputs are there"
                        LOG.info("sub-%s: already done by run %s: %s", label, earlier, what)
                    else:
                        completion.withdraw()
                        with noting_written() as written:
                            done[label] = _run_subject(subject, tree, run_id, planned, models, config)
                        update_participants(config.output_dir, [label], source_dir=root)
                        completion.record(done[label], run_id, written)
                    _leave_work(config.work_dir / f"sub-{label}", config)
                except Exception as error:  # one bad subject must not stop the others
                    if stopped := received():
                        raise stopped from error  # a library made an error of the signal
                    failed.append(label)
                    done.pop(label, None)
                    unwritable = error if isinstance(error, CannotWrite) else None
                    _record_failure(subject, tree, error, config)
                except (Stopped, KeyboardInterrupt):
                    LOG.warning("sub-%s: stopped before it was done; the same command goes on", label)
                    raise
        except Busy as error:  # nothing of it was touched
            busy.append(label)
            LOG.error("%s", error)
        if unwritable or (failed and config.stop_on_first_crash):
            break
    if failed or busy:
        groups = {"Failed": failed} | ({"Left to other jobs": busy} if busy else {}) | {"Done": list(done)}
        rest = [label for label in labels if label not in {*failed, *busy, *done}]
        groups |= {"Not begun": rest} if rest else {}
        LOG.error("%s.", ". ".join(f"{name}: {', '.join(of) or 'none'}" for name, of in groups.items()))
    if unwritable:
        return unwritable.exit_code, done
    code = ExitCode.SUBJECT_FAILED if failed else ExitCode.TRY_AGAIN if busy else ExitCode.OK
    return code, done


def _run_subject(
    subject: SubjectInputs, tree: OutputTree, run_id: str, planned: Plan, models: Models, config: RunConfig
) -> list[ScoreRow]:
    from bidsapp.outputs.provenance import (
        machine,
        settings_of,
        software_versions,
        split_record,
        write_settings,
    )
    from bidsapp.outputs.subject import SubjectRun, write_subject
    from bidsapp.participant.reconstruct import reconstruct

    start = time.monotonic()
    label = subject.label
    settings = {"command": config.command, **settings_of(config), "versions": software_versions()}
    settings["split"] = split_record(planned.splits[label])
    mask, sizes = planned.masks[label], planned.sizes[label]
    settings["data"] = {
        "dataset": str(planned.dataset.root),
        "sessions": [session.label for session in subject.sessions],
        "trials": sizes.n_trials,
        "masks": [str(path) for path in subject.masks.values()],
        "region_voxels": mask.n_roi,
        "chosen_voxels": mask.n_voxels,
        "noise_ceiling": None if subject.noise_ceiling is None else str(subject.noise_ceiling),
    }
    record = tree.path("settings", run_id=run_id)
    write_settings(record, settings | {"machine": machine()})
    LOG.info("sub-%s: %d sessions", label, len(subject.sessions))
    regions = planned.regions(label, config)
    found = reconstruct(subject, mask, planned.splits[label], planned.stimuli, models, config, regions)
    warnings = (*split_notes(planned.splits[label]), *_warnings(planned, models, config))
    seconds = time.monotonic() - start
    run = SubjectRun(planned.dataset, planned.stimuli, config, run_id, seconds, warnings)
    rows = write_subject(found, tree, run)
    write_settings(record, settings | {"machine": machine()})  # with the peak memory of the whole run
    LOG.info("sub-%s: done in %.0f s, %s", label, time.monotonic() - start, tree.path("report"))
    return rows


def _leave_work(folder: Path, config: RunConfig) -> None:
    """Remove the stages of a subject that is done, unless they are to be kept; what subjects share stays."""
    if not folder.is_dir():
        return
    n_files = sum(len(files) for _, _, files in os.walk(folder))
    left = f"{as_text(bytes_there(folder))} in {n_files} files"
    if config.keep_work:
        LOG.info("%s: kept, %s", folder, left)
        return
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        LOG.warning("%s: not all of it could be removed; it may be deleted", folder)
    else:
        LOG.info("%s: removed, %s (--keep-work keeps them)", folder, left)


def _warnings(planned: Plan, models: Models, config: RunConfig) -> tuple[str, ...]:
    found = []
    absent = [n for n in config.recipe.metrics.networks if n not in models.networks]
    if absent:
        from bidsapp.models.judges.evalnets import EXTRAS

        found += [
            f"Not scored by {n}: it is not installed. Install it with: {EXTRAS.get(n, n)}" for n in absent
        ]
    if planned.dataset.generated_by != "bidsapp-recon demo" and config.recipe.models.location == "package":
        found.append(
            "The embedded models know drawn scenes only; these pictures say nothing about photographs."
        )
    found += [
        f"{name} in the models folder is not the published file: what is made or scored with it cannot be "
        "compared with published results."
        for name in models.unpublished
    ]
    return tuple(found)


def _record_failure(subject: SubjectInputs, tree: OutputTree, error: Exception, config: RunConfig) -> None:
    """Tell the user, leave a report that carries the error, and withdraw scores of an earlier run."""
    from bidsapp.bids.descriptions import update_participants
    from bidsapp.outputs.provenance import settings_of, software_versions
    from bidsapp.outputs.subject import remove_outputs
    from bidsapp.report import SubjectReport, write_subject_report

    label = subject.label
    known = isinstance(error, AppError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    trace = error if not known or config.verbose > 0 else None
    LOG.error("sub-%s failed: %s", label, text, exc_info=trace)
    try:
        remove_outputs(tree, suffixes=("metrics",))  # the group must not count what this report disowns
        write_subject_report(
            tree.path("report"),
            SubjectReport(
                subject=label,
                task=subject.task,
                space=subject.space,
                recipe=config.recipe.name,
                settings=settings_of(config),
                command=config.command,
                versions=software_versions(),
                seed=config.seed,
                errors=(text,),
            ),
        )
        if tree.path("model").parent.is_dir():
            update_participants(config.output_dir, [label])
    except Exception as second:  # the first error is the one that matters
        LOG.error("sub-%s: its error report could not be written either: %s", label, second)


def _container() -> dict[str, str] | None:
    """Name the container this runs in, where the image says so."""
    tag = os.environ.get("BIDSAPP_RECON_CONTAINER")
    if not tag:
        return None
    apptainer = any(os.environ.get(f"{name}_CONTAINER") for name in ("APPTAINER", "SINGULARITY"))
    kind = "apptainer" if apptainer else "docker"
    return {"Type": kind, "Tag": tag}
