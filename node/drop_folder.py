"""A folder into which slides are dropped: its files go into the archive of received slides.

A file is taken when it has not changed between two looks; it is renamed or copied into the archive
whole, so that no half object is ever seen there. What is no DICOM object stays where it is.
"""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
from pathlib import Path
from uuid import uuid4

from dicom_io.arrival import Arrival, read_arrival
from dicom_io.errors import ConfigurationInvalid, DiskFull, PacsRefused
from dicom_io.receiver import instance_path
from models.errors import MarrowNodeError
from node.arrivals import Arrivals, Series
from node.config import Settings
from node.job import ENDED
from node.job_queue import JobQueue
from node.pipeline import SlideReference
from node.receive import not_analysed, received_settings
from node.rules import submit_by_rules

log = logging.getLogger(__name__)

# Size and time of the last change.
Look = tuple[int, int]


class DropFolder:
    """Takes files out of a folder. Call :meth:`look` again and again.

    Parameters
    ----------
    settings
    queue

    Raises
    ------
    ConfigurationInvalid
        The folder is not there.
    """

    def __init__(self, settings: Settings, queue: JobQueue) -> None:
        folder = settings.poll.folder
        if folder is None or not folder.is_dir():
            raise ConfigurationInvalid(f"poll.folder names {folder}, which is no folder: make it.")
        self._folder, self._queue = folder, queue
        self._settings = received_settings(settings)
        self._archive = settings.receive.archive
        self._beside = settings.receive.folder.absolute() / "dropped"
        self._arrivals = Arrivals(settings.receive.settle_s, settings.receive.quiet_s)
        self._before: dict[Path, Look] = {}
        self._refused: dict[Path, Look] = {}
        self._jobs: dict[str, Series] = {}
        self._due: list[Series] = []
        for arrival in not_analysed(self._archive, queue.list()):
            self._arrivals.arrived(arrival)

    def look(self) -> None:
        """Take what is whole, and queue slides that are complete.

        Raises
        ------
        DiskFull
            The archive cannot be written.
        MarrowNodeError
            The archive or the job database cannot be used at present.
        """
        now = _files(self._folder)
        for path, seen in now.items():
            if self._before.get(path) == seen and self._refused.get(path) != seen:
                self._take(path, seen)
        self._before = now
        self._jobs = {
            job: series
            for job, series in self._jobs.items()
            if self._queue.get(job).status not in ENDED
        }
        self._due += [series for series, _ in self._arrivals.complete(self._jobs.values())]
        while self._due:
            self._submit(self._due[0])
            self._due.pop(0)

    def _submit(self, series: Series) -> None:
        slide = SlideReference(*series, "dropped into a folder")
        try:
            job, _ = submit_by_rules(self._settings, self._queue, slide, "routine", again=True)
        except MarrowNodeError as error:
            if error.transient:
                raise
            log.warning("Series %s is not analysed: %s", slide.series_uid, error)
            return
        if job is not None:
            self._jobs[job.job] = series

    def _take(self, path: Path, seen: Look) -> None:
        try:
            arrival = read_arrival(path)
        except PacsRefused as error:
            log.warning("A file in poll.folder is left there: %s", error)
            self._refused[path] = seen
            return
        target = instance_path(self._archive, arrival)
        if target.exists() and not filecmp.cmp(path, target, shallow=False):
            log.warning(
                "Instance %s was dropped again, changed: the first is kept.", arrival.sop_uid
            )
            self._refused[path] = seen
            return
        try:
            self._into(path, target)
        except OSError as error:
            raise DiskFull(
                f"The archive {self._archive} cannot be written ({error.strerror}): free space "
                "there, or set another receive.folder."
            ) from error
        self._took(arrival)

    def _into(self, path: Path, target: Path) -> None:
        """Move a file; another file system gets a copy, which is whole before it has its name."""
        target.parent.mkdir(parents=True, exist_ok=True)
        self._beside.mkdir(parents=True, exist_ok=True)
        if path.stat().st_dev == target.parent.stat().st_dev:
            path.replace(target)
            return
        copy = self._beside / uuid4().hex
        with path.open("rb") as source, copy.open("wb") as written:
            shutil.copyfileobj(source, written)
            written.flush()
            os.fsync(written.fileno())
        copy.replace(target)
        path.unlink()

    def _took(self, arrival: Arrival) -> None:
        log.info("Took instance %s of series %s.", arrival.sop_uid, arrival.series_uid)
        self._arrivals.arrived(arrival)


def _files(folder: Path) -> dict[Path, Look]:
    """Files under a folder, without hidden ones, which belong to whoever is still writing."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        state = path.stat()
        found[path] = (state.st_size, state.st_mtime_ns)
    return found
