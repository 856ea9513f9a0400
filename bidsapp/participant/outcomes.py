"""How each subject of a run ended; one that fails does not stop the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from bidsapp.config import RunConfig
from bidsapp.errors import AppError, ExitCode
from bidsapp.participant.lock import Busy
from bidsapp.system.limits import limit_reached
from bidsapp.system.signals import Stopped, received
from bidsapp.system.write_errors import CannotWrite

LOG = logging.getLogger("bidsapp")


@dataclass
class Outcomes:
    """Labels of the subjects that failed, and of those left to other jobs."""

    config: RunConfig
    failed: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    #: the output or work folder cannot be written (a full disk): other subjects would fail too
    unwritable: CannotWrite | None = None

    @contextmanager
    def of(self, label: str, on_failure: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Run the body for a subject; an error is logged, noted, and given as text to ``on_failure``."""
        try:
            yield
        except Busy as error:
            self.leave(label, error)
        except Exception as error:
            if stopped := received():
                raise stopped from error  # a library turned the signal into an error
            self.failed.append(label)
            self.unwritable = error if isinstance(error, CannotWrite) else None
            folders = (self.config.work_dir, self.config.work_dir / f"sub-{label}", self.config.output_dir)
            known = limit_reached(error, folders) or (error if isinstance(error, AppError) else None)
            text = str(known) if known else f"{type(error).__name__}: {error}"
            trace = error if not known or self.config.verbose > 0 else None
            LOG.error("sub-%s failed: %s", label, text, exc_info=trace)
            on_failure(text)
        except (Stopped, KeyboardInterrupt):
            LOG.warning("sub-%s: stopped before it was done; the same command resumes it", label)
            raise

    def leave(self, label: str, error: Busy) -> None:
        """Leave a subject to another job; nothing of it was touched."""
        self.busy.append(label)
        LOG.error("%s", error)

    @property
    def end_the_run(self) -> bool:
        """Whether no further subject is to be begun."""
        return self.unwritable is not None or bool(self.failed and self.config.stop_on_first_crash)

    @property
    def exit_code(self) -> ExitCode:
        """That of the error if a folder cannot be written, else whether subjects failed or were left."""
        if self.unwritable:
            return self.unwritable.exit_code
        return ExitCode.SUBJECT_FAILED if self.failed else ExitCode.TRY_AGAIN if self.busy else ExitCode.OK

    def log_summary(self, labels: Sequence[str], done: Sequence[str]) -> None:
        """List the subjects by how they ended, unless all are done."""
        if not self.failed and not self.busy:
            return
        groups = {"Failed": self.failed, "Left to other jobs": self.busy, "Done": list(done)}
        groups["Not begun"] = [label for label in labels if label not in {*self.failed, *self.busy, *done}]
        shown = {name: of for name, of in groups.items() if of or name in ("Failed", "Done")}
        LOG.error("%s.", ". ".join(f"{name}: {', '.join(of) or 'none'}" for name, of in shown.items()))
