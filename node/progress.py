"""Progress of jobs, readable by any process while they run."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from dicom_io.errors import JobCancelled
from node.work_files import disk_errors, write_atomically

log = logging.getLogger(__name__)

WRITE_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes
    ----------
    stage
        Name of the step at work.
    percent
        Of the whole job, 0 to 100.
    cells
        Cells found so far.
    """

    stage: str
    percent: float
    cells: int


class ProgressFile:
    """One small file per job, replaced at most four times a second.

    The file is a convenience for people who watch: jobs go on without it. Beside it may lie a
    request to stop.
    """

    def __init__(self, folder: Path, job: str) -> None:
        self._path = folder / f"{job}.json"
        self._stop = folder / f"{job}.cancelled"
        self._written_at = 0.0
        self._stage = ""

    def report(self, progress: Progress) -> None:
        """Tell how far the job is.

        Raises
        ------
        JobCancelled
            Somebody has asked for it to stop.
        """
        now = time.monotonic()
        if progress.stage == self._stage and now - self._written_at < WRITE_EVERY_S:
            return
        self._stage, self._written_at = progress.stage, now
        if self._stop.exists():
            raise JobCancelled("The job was cancelled by request.")
        try:
            write_atomically(self._path, json.dumps(asdict(progress)).encode())
        except OSError as error:
            log.debug("Progress cannot be written to %s (%s).", self._path.name, error.strerror)

    def read(self) -> Progress | None:
        """The last report, None when there is none yet."""
        try:
            return Progress(**json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return None

    def cancel(self) -> None:
        """Ask the process that works on the job to stop.

        Raises
        ------
        DiskFull
        """
        with disk_errors(self._stop.parent):
            write_atomically(self._stop, b"")
