"""Problems: collected from many checks, listed by subject, with one exit code for all."""

from __future__ import annotations

import pytest

from bidsapp.errors import PRECEDENCE, AppError, ExitCode, InputProblems, Problem, ProblemCollector

LONG = "/" + "a-very-long-folder-name/" * 8 + "sub-01_statmap.nii.gz"


def test_every_exit_code_of_a_problem_has_a_precedence() -> None:
    done = {ExitCode.OK, ExitCode.SUBJECT_FAILED, ExitCode.INTERNAL}
    assert set(PRECEDENCE) == set(ExitCode) - done
    assert PRECEDENCE[0] == ExitCode.USAGE
    assert PRECEDENCE[-1] == ExitCode.TRY_AGAIN


@pytest.mark.parametrize("first", range(2))
def test_the_code_does_not_depend_on_the_order(first: int) -> None:
    codes = [ExitCode.TRY_AGAIN, ExitCode.BAD_DATA, ExitCode.NO_INPUT, ExitCode.CANNOT_CREATE]
    problems = [Problem("p", "w", "m", code) for code in codes[:: 1 - 2 * first]]
    assert InputProblems(problems).exit_code == ExitCode.NO_INPUT
    assert InputProblems(problems[2 * first : 2 * first + 2]).exit_code == ExitCode.BAD_DATA


def test_problems_are_listed_by_subject_and_path() -> None:
    problems = [
        Problem("a.nii", "Is cut.", "Copy it.", subject="02"),
        Problem("stimuli.tsv", "Has no rows."),
        Problem("b.nii", "Is no image.", "Fix it.", subject="01"),
        Problem("a.nii", "Is moved.", "Move it.", subject="02"),
    ]
    assert str(InputProblems(problems)).split("\n") == [
        "4 problems found, nothing was computed:",
        "",
        "All subjects:",
        "  stimuli.tsv",
        "      Has no rows.",
        "",
        "sub-01:",
        "  b.nii",
        "      Is no image.",
        "      To fix: Fix it.",
        "",
        "sub-02:",
        "  a.nii",
        "      Is cut.",
        "      To fix: Copy it.",
        "      Is moved.",
        "      To fix: Move it.",
    ]
    assert str(InputProblems(problems[1:2])).split("\n")[1:] == ["  stimuli.tsv", "      Has no rows."]


def test_lines_fold_at_the_terminals_width_and_paths_do_not() -> None:
    error = InputProblems([Problem(LONG, "word " * 40, f"Put a file beside {LONG} and run again.")])
    lines = error.as_text(60).split("\n")
    assert "  " + LONG in lines
    assert all(len(line) <= 60 or LONG in line for line in lines)
    assert " ".join(error.as_text(60).split()) == " ".join(str(error).split())


def test_errors_become_problems_of_the_path_they_name() -> None:
    error = AppError("d/x.json, line 3: is not JSON.", exit_code=ExitCode.BAD_DATA, path="d/x.json")
    assert Problem.of(error, "d/other", "Fix.") == Problem("d/x.json", "Line 3: is not JSON.", "Fix.")
    plain = Problem.of(AppError("no task.", exit_code=ExitCode.USAGE), "d", subject="01")
    assert plain == Problem("d", "No task.", "", ExitCode.USAGE, "01")


def test_errors_and_problems_are_collected() -> None:
    found = ProblemCollector()
    found.raise_any()
    alone = AppError("one thing", exit_code=ExitCode.USAGE)
    with found.at("here"):
        raise alone
    with pytest.raises(AppError, match=r"^one thing$") as caught:
        found.raise_any()
    assert caught.value is alone
    several = [Problem("x", "w"), Problem("x", "w"), Problem("y", "w")]
    with found.at("there"):
        raise InputProblems(several)
    found.add(several)
    with pytest.raises(InputProblems) as caught:
        found.raise_any()
    assert [p.path for p in caught.value.problems] == ["here", "x", "y"]
    with pytest.raises(KeyError), found.at("there"):
        raise KeyError("a bug is no problem of the input")


def test_a_path_is_cut_off_the_message_only_where_it_is_the_whole_path() -> None:
    message = "bids/stimuli/stimuli.tsv, line 3: is odd."
    assert Problem.of(AppError(message), "bids/stimuli").what == message
    assert Problem.of(AppError(message), "bids/stimuli/stimuli.tsv").what == "Line 3: is odd."
    bare = "stimuli.tsv is missing."
    assert Problem.of(AppError(bare), ".").what == bare, "the name of a file keeps its case"
    own = Problem.of(AppError(message, path="bids/stimuli/stimuli.tsv"), "bids/stimuli")
    assert (own.path, own.what) == ("bids/stimuli/stimuli.tsv", "Line 3: is odd.")


def test_a_table_wrong_in_every_row_does_not_fill_the_screen() -> None:
    problems = [Problem("t.tsv", f"Line {i}: is odd.", "Fix it.") for i in range(2, 1002)]
    problems.append(Problem("u.tsv", "Is gone."))
    lines = str(InputProblems(problems)).split("\n")
    assert lines[0].startswith("1001 problems found")
    assert len(lines) == 1 + 1 + 20 * 2 + 1 + 2
    assert lines[-3:] == ["      ... and 980 more here.", "  u.tsv", "      Is gone."]


def test_a_line_break_in_a_path_begins_no_line():
    path = "/data/a\nsub-02:\n  /data/b"
    error = InputProblems([Problem(path, "Empty.", subject="01"), Problem("x", "No\nsub-03:")])
    assert "\nsub-0" not in str(error).replace("\nsub-01:\n", "")
