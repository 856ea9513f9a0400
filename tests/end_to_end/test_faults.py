"""Runs that are killed, stopped, started at once or short of disk end as an undisturbed one does.

The long forms are slow (``pytest -m slow -s tests/test_faults.py`` prints their figures); each has a short
one in the everyday suite, here or in ``test_levels_killed.py``.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.fault_runs import Case, Runs, leftovers, small_disk, tree

from bidsapp.config import RunConfig, load_recipe
from bidsapp.models.suite import EMBEDDED
from bidsapp.planning.check import check_run
from bidsapp.planning.footprint import n_files
from bidsapp.storage.files import bytes_there

pytestmark = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")

#: Longest time that a run may take to end after SIGTERM, in seconds: schedulers then kill it. Of the
#: processor, since a test does not have it alone.
LIMIT_S = 10.0
#: What may be asked for beside the brain's pictures, left out where many runs are made.
FEW = {"controls": {"null": False, "oracle": False, "ladder": False}}


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    started = Runs()
    yield started
    started.close()


@pytest.fixture(scope="module")
def tiny(runs, tiny_dataset, tmp_path_factory) -> Case:
    """Two subjects, few pictures."""
    folder = tmp_path_factory.mktemp("faults") / "undisturbed"
    return Case(runs, tiny_dataset(n_subjects=2, n_trials=12), folder, **FEW)


@pytest.fixture(scope="module")
def scenes(runs, tmp_path_factory) -> Case:
    """One subject of the demo, with all that the embedded recipe checks."""
    folder = tmp_path_factory.mktemp("scenes")
    words = ["demo", folder, "--simulate-only", "--n-subjects", 1, "--n-train", 24, "--n-test", 5]
    assert runs.start(words, folder / "log").wait() == 0
    return Case(runs, folder / "bids", folder / "undisturbed")


def test_two_subjects_at_once(tiny):
    all_at_once(tiny, tiny.fresh())


@pytest.mark.slow
def test_eight_subjects_at_once_in_twenty_rounds(runs, tiny_dataset, tmp_path):
    case = Case(runs, tiny_dataset(n_subjects=8, n_trials=12), tmp_path / "serial", **FEW)
    for number in range(20):
        # In two rounds they do the models' check at once too.
        folder = case.fresh(knowing_models=number % 10 > 0)
        all_at_once(case, folder)
        shutil.rmtree(folder)
    print(f"\n8 subjects at once: 20 rounds, {8 * 20} jobs, no error, trees equal")


def all_at_once(case: Case, folder: Path) -> None:
    """A job a subject, then two jobs of the group level, all into the same folders."""
    for gate, start in (("subjects", case.start), ("group", case.start_group)):
        open_gate = folder / gate
        if gate == "subjects":
            jobs = [start(folder, "--participant-label", s, gate=str(open_gate)) for s in case.labels]
        else:
            jobs = [start(folder, gate=str(open_gate)) for _ in range(2)]
        open_gate.touch()
        codes = [job.wait() for job in jobs]
        assert codes == [0] * len(jobs), [job.said() for job in jobs]
    made = tree(folder / "out")
    assert made.keys() == case.expected.keys()
    # Each job's report names its own command.
    commands = {f"sub-{label}.html" for label in case.labels}
    assert [n for n in made if made[n] != case.expected[n] and n not in commands] == []
    assert leftovers(folder) == []


def moments(case: Case) -> list[tuple[str, float]]:
    """A line of the log for each stage, and how long what follows takes, in seconds."""
    spans = {stage: float(s) for stage, s in re.findall(r"(\w+): done in ([\d.]+) s", case.log)}
    stages = case.stages()
    found = [("canaries: VDVAE passed", 3.0), ("canaries: CLIP passed", 0.8)]
    found += [(f"{stage}: computing", max(0.03, spans[stage])) for stage in stages]
    found += [("zscore: done", 0.5)]  # targets of stimuli
    found += 6 * [(f"{stages[-1]}: done", 3.0)]  # writing outputs
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_interrupted_at_random_moments_within_every_stage(scenes, number):
    rng, ended, longest, waited = random.Random(int(number)), Counter(), 0.0, 0.0
    every = moments(scenes)[:: 1 if number != signal.SIGINT else 4]
    for text, span in every:
        folder = scenes.fresh(knowing_models=not text.startswith("canaries"))
        run = scenes.start(folder)
        assert run.until(text)
        time.sleep(rng.random() * span)
        before, asked = run.used(), time.monotonic()
        run.kill(number)
        code, after = run.end()
        longest, waited = max(longest, after - before), max(waited, time.monotonic() - asked)
        ended[code] += 1
        if number != signal.SIGKILL:
            assert code in (0, 128 + number), run.said()
            assert after - before < LIMIT_S, text
            assert leftovers(folder) == []
            assert "Traceback" not in run.said()
            assert code == 0 or "Run the same command again to resume." in run.said()
        scenes.check_resumes(folder)
        shutil.rmtree(folder)
    took = f"at most {waited:.1f} s to end, {longest:.1f} s of them of the processor"
    print(f"\n{number.name}: {len(every)} moments, exit codes {dict(ended)}, {took}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_the_group_level_interrupted_at_random_moments(scenes, number):
    rng, ended = random.Random(int(number)), Counter()
    for _ in range(8):
        folder = scenes.fresh()
        shutil.copytree(scenes.folder / "out", folder / "out")
        for path in (folder / "out" / "phenotype", folder / "out" / "group.html"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        run = scenes.start_group(folder)
        time.sleep(rng.random() * 1.0)
        run.kill(number)
        ended[run.wait()] += 1
        scenes.check_what_is_there(folder)
        group = scenes.start_group(folder)
        assert group.wait() == 0, group.said()
        assert tree(folder / "out").keys() == scenes.expected.keys()
    print(f"\ngroup level, {number.name}: 8 moments, exit codes {dict(ended)}")


def full_disk(case: Case, part: str, text: str, left: int, *words: str, go_on: bool = True) -> str:
    """Run until the disk of the work or the output folder is full, then go on with room; give the message."""
    folder = case.fresh(knowing_models=False)
    with small_disk(folder / "disk") as disk:
        (disk / part).mkdir()
        (folder / part).symlink_to(disk / part)
        if not text.startswith("canaries"):
            shutil.copytree(case.folder / "work" / "canaries", folder / "work" / "canaries")
        run = case.start(folder, *words, at_line={"text": text, "disk": str(disk), "left": left})
        code, said = run.wait(), run.said()
        assert code == 74, (text, left, said)
        assert "No space left on device. Free some space" in said
        assert "Traceback" not in said
        assert leftovers(folder / "out", folder / "work") == []
        shutil.rmtree(disk / "filler")
        case.check_resumes(folder) if go_on else case.check_what_is_there(folder)
    shutil.rmtree(folder)
    return next(line for line in said.splitlines() if "No space left" in line)


def test_an_output_folder_that_gets_full(tiny):
    text, label = f"{tiny.stages()[-1]}: done", ("--participant-label", "01")
    assert "_model.h5" in full_disk(tiny, "out", text, 60_000, *label, go_on=False)


@pytest.mark.slow
def test_a_disk_that_gets_full_in_every_stage(scenes):
    rng, said, stages = random.Random(0), [], scenes.stages()
    cases = [("work", "canaries: VDVAE passed", 0), ("work", "zscore: done", 0)]
    cases += [("work", "zscore: done", scenes.pages("work/targets-*") // 2)]
    for stage in stages:
        size = scenes.pages(f"work/sub-01/{stage}")
        cases += [("work", f"{stage}: computing", int(rng.choice((0, 0.9 * rng.random())) * size))]
    cases += [("work", f"{stages[3]}: computing", -1), ("out", f"{stages[-1]}: done", -1)]
    cases += [("out", "canaries: CLIP passed", 0), ("out", f"{stages[0]}: computing", 0)]
    size = scenes.pages("out/sub-01")
    cases += [("out", f"{stages[-1]}: done", int(n / 10 * size)) for n in range(10)]
    for part, text, left in cases:
        said.append(full_disk(scenes, part, text, left))
    print(f"\nfull disk: {len(cases)} times, each exit code 74 and resumed; of the last: {said[-1]}")


def lose(case: Case, pattern: str, do: str) -> Path:
    """Lose an output just before the subject is done: no exit code 0."""
    folder = case.fresh()
    what = {"text": "sub-01: done in", "pattern": pattern, "do": do, "out": str(folder / "out")}
    run = case.start(folder, "--keep-work", "--participant-label", "01", at_line=what)
    assert run.wait() == 1, (pattern, run.said())
    assert "Run the same command again" in run.said()
    return folder


def test_no_success_where_an_output_is_gone(tiny):
    lose(tiny, "sub-01/func/*_desc-recon_image.png", "remove")


@pytest.mark.slow
def test_no_success_where_any_output_is_gone_or_empty_and_the_next_run_mends_it(scenes):
    """One output of each kind, at the end of a run, and after it."""
    own = sorted(n for n in scenes.expected if n.startswith("sub-"))
    kinds = {re.sub(r"_stim-[^_]+|(?<=all)\d+", "*", name): name for name in own}
    for kind, do in [(kind, do) for kind in kinds for do in ("remove", "empty")]:
        folder = lose(scenes, kind, do)
        scenes.check_resumes(folder)
        path = folder / "out" / kinds[kind]
        path.unlink() if do == "remove" else path.write_bytes(b"")
        scenes.check_resumes(folder)
        shutil.rmtree(folder)
    print(f"\n{len(kinds)} kinds of outputs removed and emptied, before and after the end of a run")


def bounded(case: Case) -> None:
    """The work folder that was kept is not larger than what was foreseen, in bytes and files."""
    config = RunConfig(case.bids, case.folder / "out", case.folder / "work", load_recipe(str(case.recipe)))
    checked = check_run(replace(config, device="cpu", skip_bids_validation=True))
    work = case.folder / "work"
    shared = sum(bytes_there(folder) for folder in work.glob("targets-*"))
    own = [bytes_there(work / f"sub-{label}") for label in case.labels]
    assert (
        sum(own) + shared
        <= sum(subject.estimate.disk for subject in checked.subjects.values())
        < 3 * (sum(own) + shared)
    )
    for label in case.labels:
        files = [path for path in (work / f"sub-{label}").rglob("*") if path.is_file()]
        sessions = len(list((work / f"sub-{label}" / "betas").glob("*.npy")))
        assert len(files) <= n_files(sessions, 1)


def test_the_work_folder_is_bounded(tiny):
    bounded(tiny)


@pytest.mark.slow
def test_the_work_folder_is_bounded_whatever_is_computed(scenes):
    bounded(scenes)
