"""Log lines on standard error: time, level, logger, job, sentence. Never patient data."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

LogFormat = Literal["plain", "json"]

_MOST_LINES = 12
# Try of a job, and study UID, that this thread works for.
_works_for: ContextVar[tuple[str, str]] = ContextVar("works_for", default=("", ""))


def set_up_logging(verbose: bool, log_format: LogFormat = "plain") -> None:
    """Log warnings, or with `verbose` everything the node itself says, to standard error."""
    handler = logging.StreamHandler()
    handler.addFilter(_told)
    handler.setFormatter(
        JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s %(job)s %(study_uid)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )
        if log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s%(for_job)s: %(message)s")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("node", "dicom_io", "models", "conformance"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.WARNING)
    # pynetdicom logs each refusal several times, and whole data sets on lower levels; the node
    # says each once, in its own words, without patient data.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    # DBOS prints tracebacks of failed workflows; the job layer reports those in one sentence.
    logging.getLogger("dbos").setLevel(logging.CRITICAL)
    # pydicom quotes values that break their VR's rules, and those may be a patient's.
    # highdicom quotes names of one word, which many people have.
    for library in ("pydicom", "highdicom"):
        logging.getLogger(library).propagate = False
        warnings.filterwarnings("ignore", module=library)
    warnings.filterwarnings("ignore", message="The string .* person name")


@contextmanager
def telling_of(try_id: str, study_uid: str) -> Iterator[None]:
    """Let every line that this thread logs name a job and a study."""
    token = _works_for.set((try_id, study_uid))
    try:
        yield
    finally:
        _works_for.reset(token)


def where_raised(error: Exception) -> str:
    """Kind of an unexpected error and the lines it came through, innermost first.

    Not its message, which may quote what a slide says of its patient.
    """
    lines = [
        f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}"
        for frame in reversed(traceback.extract_tb(error.__traceback__))
    ]
    return f"{type(error).__name__} at {', '.join(lines[:_MOST_LINES])}"


def _told(record: logging.LogRecord) -> bool:
    job, study_uid = _works_for.get()
    vars(record).update(job=job, study_uid=study_uid, for_job=f" [{job}]" if job else "")
    return True
