"""Exit codes of the command line, read off the error tree."""

from __future__ import annotations

import dicom_io.errors  # noqa: F401  its classes are found as subclasses of the root
from models.errors import MarrowNodeError

# Of sysexits.h, EX_IOERR and EX_TEMPFAIL, and one more: the process gives its jobs up, and is
# started again.
RECORDING_FAILED = 74
FENCED = 75
WORKER_BROKEN = 76
_ENDINGS = (
    (RECORDING_FAILED, "worker: the job database cannot be written; started again, it goes on"),
    (FENCED, "worker: silent for longer than jobs.lease_s, others have its jobs; start it again"),
    (WORKER_BROKEN, "worker: it can start no process for a slide; started again, it goes on"),
)


def error_classes() -> dict[str, type[MarrowNodeError]]:
    """Every class of the error tree by its name."""
    found: dict[str, type[MarrowNodeError]] = {}
    waiting: list[type[MarrowNodeError]] = [MarrowNodeError]
    while waiting:
        error_class = waiting.pop()
        found[error_class.__name__] = error_class
        waiting.extend(error_class.__subclasses__())
    return found


def exit_code_table() -> list[tuple[int, str]]:
    """(code, meaning) of every way a command can end, in order."""
    own = {(error.exit_code, error.meaning) for error in error_classes().values()}
    usage = (2, "the command line could not be understood")
    done = (0, "done: everything asked for is delivered and reconciled")
    return sorted({done, usage, *_ENDINGS} | own)
