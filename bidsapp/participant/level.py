"""The participant level: subject by subject, once :mod:`bidsapp.planning.check` has checked all."""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp import __version__
from bidsapp.config import RunConfig
from bidsapp.errors import ExitCode
from bidsapp.participant.lock import Busy, clear_leftovers, subject_lock
from bidsapp.participant.outcomes import Outcomes
from bidsapp.participant.summary import FinishedSubject
from bidsapp.planning.check import (
    CheckedRun,
    check_run,
    evaluation_networks,
    split_notes,
    trained_on_other_images,
)
from bidsapp.storage.atomic import noting_written
from bidsapp.storage.files import bytes_there
from bidsapp.system.logging import log_to_file, new_run_id
from bidsapp.system.processes import caches_in_work
from bidsapp.system.resources import as_text

if TYPE_CHECKING:
    from bidsapp.bids.outputs import OutputTree
    from bidsapp.models.suite import Models
    from bidsapp.report.records import ScoreRow


LOG = logging.getLogger("bidsapp")


@caches_in_work
def run_participants(config: RunConfig) -> tuple[ExitCode, dict[str, FinishedSubject]]:
    """Run the participant level for every subject.

    Returns
    -------
    code : ExitCode
        OK if every subject is done; SUBJECT_FAILED if one failed; TRY_AGAIN if others were left to other jobs
        and none failed. If the output or work folder cannot be written (a full disk), no further subject is
        begun, and the code is that of the error (IO_ERROR, CANNOT_CREATE).
    done : dict of FinishedSubject
        Subjects that are done, by label.
    """
    run = check_run(config)

    from bidsapp.bids.outputs import OutputTree
    from bidsapp.models.startup import check_models

    config, models = _load_models(config)
    models_check = check_models(models, config.work_dir)
    if config.prepare or config.shard:
        from bidsapp.participant.shards import run_parts

        return run_parts(run, models, config, models_check), {}
    _write_dataset_files(run, config)
    done: dict[str, FinishedSubject] = {}
    outcomes = Outcomes(config)
    for label, subject in run.subjects.items():
        tree = OutputTree(config.output_dir, label, subject.inputs.task, subject.inputs.space)
        run_id = new_run_id()
        try:
            with (
                subject_lock(label, config.output_dir, config.work_dir),
                log_to_file(tree.path("log", run_id=run_id)),
                outcomes.of(label, partial(_report_failure, tree, config)),
            ):
                LOG.info(models_check)
                rows = _finish_subject(run, tree, run_id, models, config)
                done[label] = FinishedSubject(tree, rows)
        except Busy as error:
            outcomes.leave(label, error)
        if outcomes.end_the_run:
            break
    outcomes.log_summary(list(run.subjects), list(done))
    return outcomes.exit_code, done


def _load_models(config: RunConfig) -> tuple[RunConfig, Models]:
    """Choose device and number format, so that records hold what is used, and verify the weights."""
    from bidsapp.models.devices import choose_device, choose_dtype, set_threads
    from bidsapp.models.suite import Models

    device = choose_device(config.device)
    set_threads(config.n_threads)
    dtype = choose_dtype(config.dtype, device)
    networks = evaluation_networks(config.recipe)
    models = Models(config.recipe, config.models_dir, device, networks, dtype, config.memory)
    models.verify()
    return replace(config, device=device, dtype=dtype), models


def _write_dataset_files(run: CheckedRun, config: RunConfig) -> None:
    from bidsapp.bids.descriptions import write_dataset_files
    from bidsapp.outputs.provenance import write_citation

    write_dataset_files(
        config.output_dir,
        source_dir=run.dataset.root,
        version=__version__,
        container=_container(),
        links=run.dataset.links,
    )
    write_citation(config)


def _finish_subject(
    run: CheckedRun, tree: OutputTree, run_id: str, models: Models, config: RunConfig
) -> list[ScoreRow]:
    """Process a subject unless it is already done, and return its summary table."""
    from bidsapp.bids.descriptions import update_participants
    from bidsapp.participant.completion import Completion

    label = tree.subject
    clear_leftovers(label, config.output_dir, config.work_dir)
    completion = Completion(tree, run, models, config)
    if not config.force and (there := completion.find()):
        rows, earlier = there
        what = "the same inputs, settings and weights, and all outputs exist"
        LOG.info("sub-%s: already done by run %s: %s", label, earlier, what)
    else:
        completion.withdraw()
        with noting_written() as written:
            rows = _compute_subject(run, tree, run_id, models, config)
        update_participants(config.output_dir, [label], source_dir=run.dataset.root)
        completion.record(rows, run_id, written)
    _leave_work(config.work_dir / f"sub-{label}", config)
    return rows


def _compute_subject(
    run: CheckedRun, tree: OutputTree, run_id: str, models: Models, config: RunConfig
) -> list[ScoreRow]:
    """Reconstruct a subject's images and write its outputs."""
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
    subject = run.subjects[tree.subject]
    inputs, split, mask = subject.inputs, subject.split, subject.mask
    settings = {"command": config.command, **settings_of(config), "versions": software_versions()}
    settings["split"] = split_record(split)
    settings["data"] = {
        "dataset": str(run.dataset.root),
        "sessions": [session.label for session in inputs.sessions],
        "trials": subject.sizes.n_trials,
        "masks": [str(path) for path in inputs.masks.values()],
        "region_voxels": mask.n_roi,
        "chosen_voxels": mask.n_voxels,
        "noise_ceiling": None if inputs.noise_ceiling is None else str(inputs.noise_ceiling),
    }
    record = tree.path("settings", run_id=run_id)
    write_settings(record, settings | {"machine": machine()})
    LOG.info("sub-%s: %d sessions", inputs.label, len(inputs.sessions))
    found = reconstruct(run, inputs.label, models, config)
    warnings = (*split_notes(split), *_warnings(run, models, config))
    seconds = time.monotonic() - start
    rows = write_subject(found, tree, SubjectRun(run.dataset, run.stimuli, config, run_id, seconds, warnings))
    write_settings(record, settings | {"machine": machine()})  # with the peak memory of the whole run
    LOG.info("sub-%s: done in %.0f s, %s", inputs.label, time.monotonic() - start, tree.path("report"))
    return rows


def _leave_work(folder: Path, config: RunConfig) -> None:
    """Remove the stages of a subject that is done, unless they are to be kept; shared files stay."""
    if not folder.is_dir():
        return
    n_files = sum(len(files) for _, _, files in os.walk(folder))
    left = f"{as_text(bytes_there(folder))} in {n_files} files"
    if config.keep_work:
        LOG.info("%s: kept, %s", folder, left)
        return
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        LOG.warning("%s: could not be removed completely; you can delete it", folder)
    else:
        LOG.info("%s: removed, %s (--keep-work keeps them)", folder, left)


def _warnings(run: CheckedRun, models: Models, config: RunConfig) -> tuple[str, ...]:
    """Warn readers of the report."""
    found = []
    absent = [n for n in config.recipe.metrics.networks if n not in models.networks]
    if absent:
        from bidsapp.models.judges.evalnets import EXTRAS

        found += [
            f"Not scored by {n}: it is not installed. Install it with: {EXTRAS.get(n, n)}" for n in absent
        ]
    if trained_on_other_images(run.dataset, config.recipe):
        found.append(
            "The embedded models were trained on drawn scenes only: their reconstructions of photographs "
            "mean nothing."
        )
    found += [
        f"{name} in the models folder is not the published file. Results that depend on it cannot be "
        "compared with published ones."
        for name in models.unpublished
    ]
    return tuple(found)


def _report_failure(tree: OutputTree, config: RunConfig, text: str) -> None:
    """Leave a report with the error, and remove scores of an earlier run."""
    from bidsapp.bids.descriptions import update_participants
    from bidsapp.group.level import remove_group_results
    from bidsapp.outputs.provenance import settings_of, software_versions
    from bidsapp.outputs.subject import remove_outputs
    from bidsapp.report.records import SubjectReport
    from bidsapp.report.subject import write_subject_report

    try:
        remove_outputs(tree, suffixes=("metrics",))  # the group level must not count a failed subject
        if remove_group_results(config.output_dir, tree.subject):
            LOG.warning("The group's table and report had sub-%s's scores and were removed.", tree.subject)
        write_subject_report(
            tree.path("report"),
            SubjectReport(
                subject=tree.subject,
                task=tree.task,
                space=tree.space,
                recipe=config.recipe.name,
                settings=settings_of(config),
                command=config.command,
                versions=software_versions(),
                seed=config.seed,
                errors=(text,),
            ),
        )
        if tree.path("model").parent.is_dir():
            update_participants(config.output_dir, [tree.subject])
    except Exception as second:  # the first error is the one that matters
        LOG.error("sub-%s: its error report could not be written either: %s", tree.subject, second)


def _container() -> dict[str, str] | None:
    """Name the container that this runs in, if the image has set its tag."""
    tag = os.environ.get("BIDSAPP_RECON_CONTAINER")
    if not tag:
        return None
    apptainer = any(os.environ.get(f"{name}_CONTAINER") for name in ("APPTAINER", "SINGULARITY"))
    kind = "apptainer" if apptainer else "docker"
    return {"Type": kind, "Tag": tag}
