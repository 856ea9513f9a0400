"""What can go wrong, each with the exit code of the BIDS execution specification.

An error message states what is wrong, where (a path), why, and how to fix it.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the BIDS execution specification."""

    OK = 0
    SUBJECT_FAILED = 1
    INVALID_BIDS = 16
    UNKNOWN_LEVEL = 17
    NOTHING_MATCHED = 18
    USAGE = 64
    BAD_DATA = 65
    NO_INPUT = 66
    INTERNAL = 70
    CANNOT_CREATE = 73
    IO_ERROR = 74
    TRY_AGAIN = 75


#: With problems of several kinds, the first of these among them is the exit code: the command itself, then
#: the input from the whole to the single file, then the folders to write to. 75 is last, because a scheduler
#: may submit such a job again, which must not happen while anything else is wrong.
PRECEDENCE = (
    ExitCode.USAGE,
    ExitCode.UNKNOWN_LEVEL,
    ExitCode.INVALID_BIDS,
    ExitCode.NOTHING_MATCHED,
    ExitCode.NO_INPUT,
    ExitCode.BAD_DATA,
    ExitCode.CANNOT_CREATE,
    ExitCode.IO_ERROR,
    ExitCode.TRY_AGAIN,
)


#: Characters of one line of a message; a cell of a table may have millions.
_LONGEST_LINE = 6000
#: Control characters, which can change what a terminal shows, and marks that change the writing direction.
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def as_shown(text: str) -> str:
    """Make text that may come from files safe to show in a terminal and in a log.

    Control characters are escaped; lines of more than 6000 characters lose their middle.
    """
    if max(map(len, text.split("\n"))) > _LONGEST_LINE:
        text = "\n".join(map(_cut, text.split("\n")))
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _cut(line: str) -> str:
    half = _LONGEST_LINE // 2
    left_out = len(line) - 2 * half
    return f"{line[:half]} ... {left_out} characters ... {line[-half:]}" if left_out > 0 else line


#: How to fix a path that is not UTF-8.
RENAME = "Give the folder or file another name, for example with letters, digits and hyphens only."


def is_utf8(text: str) -> bool:
    """Whether text from the command line, or a path, is valid UTF-8."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest known names that a mistyped word resembles: " Did you mean 'demo'?"; "" if there is none."""
    from difflib import get_close_matches

    by_case = {name.lower(): name for name in known}
    found = [repr(by_case[name]) for name in get_close_matches(word.lower(), by_case, n=2, cutoff=0.7)]
    return f" Did you mean {' or '.join(found)}?" if found else ""


class AppError(Exception):
    """An error meant for the user: a message that names the fix, and an exit code.

    ``path`` is the file that it is about, if any; the message names it too. ``fix`` is the end of the
    message that states the fix, where it is known apart from the rest.
    """

    exit_code: ExitCode = ExitCode.SUBJECT_FAILED

    def __init__(
        self,
        message: str,
        *,
        exit_code: ExitCode | None = None,
        path: str | os.PathLike[str] | None = None,
        fix: str = "",
    ) -> None:
        super().__init__(as_shown(message))
        self.fix = fix
        self.path = None if path is None else os.fspath(path)
        if exit_code is not None:
            self.exit_code = exit_code


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: where it is, what is wrong, how to fix it.

    ``fix`` is "" if ``what`` states it; ``subject`` is the label of the only subject that has the problem.
    """

    path: str
    what: str
    fix: str = ""
    code: ExitCode = ExitCode.BAD_DATA
    subject: str = ""

    @classmethod
    def of(
        cls, error: AppError, path: str | os.PathLike[str], fix: str = "", *, subject: str = ""
    ) -> Problem:
        """Turn an error into a problem of the path that it names, or else of ``path``."""
        where = error.path or os.fspath(path)
        what, fix = str(error).removesuffix(f" {error.fix}"), error.fix or fix
        if what.startswith((f"{where}:", f"{where},")):
            what = what.removeprefix(where).lstrip(":, ")
        if not re.search(r"/|\.\w", what.partition(" ")[0]):  # a path keeps its spelling
            what = what[:1].upper() + what[1:]
        return cls(where, what, fix, error.exit_code, subject)


#: Problems listed for one path; a table may be wrong in each of 73,000 rows.
_MOST_OF_A_FILE = 20


class InputProblems(AppError):
    """All problems found in an input; :data:`PRECEDENCE` chooses the exit code."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.as_text())
        codes = {problem.code for problem in self.problems}
        self.exit_code = next((c for c in PRECEDENCE if c in codes), ExitCode.BAD_DATA)

    def as_text(self, width: int | None = None) -> str:
        """List the problems: those of the whole run, then subject by subject, each path once.

        The first 20 problems of a path are listed, the others counted. Lines are folded at ``width`` columns
        of a terminal, except for paths, so that they can be copied; by default nothing is folded, for logs.
        """
        groups: dict[str, dict[str, list[Problem]]] = {"": {}}
        for problem in self.problems:
            groups.setdefault(problem.subject, {}).setdefault(problem.path, []).append(problem)
        lines = [f"{_plural(len(self.problems), 'problem')} found, nothing was computed:"]
        for subject, paths in sorted(groups.items(), key=lambda group: (len(group[0]), group[0])):
            if paths and len(groups) > 1:
                lines += ["", f"sub-{subject}:" if subject else "All subjects:"]
            for path, problems in paths.items():
                lines.append("  " + path.replace("\n", "\\n"))
                for problem in problems[:_MOST_OF_A_FILE]:
                    lines += _folded(problem.what, width)
                    lines += _folded(f"To fix: {problem.fix}", width) if problem.fix else []
                if len(problems) > _MOST_OF_A_FILE:
                    lines += _folded(f"... and {len(problems) - _MOST_OF_A_FILE} more here.", width)
        return as_shown("\n".join(lines))


class ProblemCollector:
    """Collects problems from checks that raise errors, to report all of them at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._errors: list[AppError] = []

    def add(self, problems: Iterable[Problem]) -> None:
        """Add problems, each once."""
        self.problems += [p for p in dict.fromkeys(problems) if p not in self.problems]

    @contextmanager
    def at(self, path: str | os.PathLike[str], fix: str = "", *, subject: str = "") -> Iterator[None]:
        """Turn an error of the body into a problem (of ``path``, if the error names none)."""
        try:
            yield
        except InputProblems as error:
            self.add(error.problems)
        except AppError as error:
            self._errors.append(error)
            self.add([Problem.of(error, path, fix, subject=subject)])

    def raise_any(self) -> None:
        """Raise what was collected, if anything: a single error as it was, several as a list."""
        if len(self.problems) == 1 and self._errors:
            raise self._errors[0]
        if self.problems:
            raise InputProblems(self.problems)


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' if n != 1 else ''}"


def _folded(text: str, width: int | None, indent: str = " " * 6) -> Iterator[str]:
    for line in text.split("\n"):
        if width is None or len(indent) + len(line) <= width:
            yield indent + line
        else:
            yield from textwrap.wrap(
                line,
                max(width, 40),
                initial_indent=indent,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
