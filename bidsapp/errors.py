"""What can go wrong, each with the exit code of the BIDS execution specification.

An error message says what is wrong, where (a path), why, and how to mend it.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: where it is, what is wrong, how to mend it."""

    path: str
    what: str
    mend: str
    code: ExitCode = ExitCode.BAD_DATA


class AppError(Exception):
    """An error meant for the user: a message that names the fix, and an exit code."""

    exit_code: ExitCode = ExitCode.SUBJECT_FAILED

    def __init__(self, message: str, *, exit_code: ExitCode | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class InputProblems(AppError):
    """All the problems found in an input, at once.

    Its exit code is that of the first problem.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [f"{p.path}\n    {p.what}\n    To mend: {p.mend}" for p in self.problems]
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__(f"{count} found, nothing was computed:\n" + "\n".join(lines))
        self.exit_code = self.problems[0].code if self.problems else ExitCode.BAD_DATA
