"""Which of the slides that came by C-STORE have been analysed so long ago that they may go.

They are copies: whoever sent them here has them, and their results are in the archive. One that no
job has analysed stays, however old it is, as does one whose job waits, runs, has failed or was
cancelled.
"""

from __future__ import annotations

import fcntl
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dicom_io.errors import DiskFull
from dicom_io.receiver import is_image, remove_slide, series_in
from node.arrivals import Series
from node.config import Settings
from node.job import Job
from node.job_queue import JobQueue


@dataclass(frozen=True, slots=True)
class ReceivedSlides:
    """Received slides of which nothing has come for long.

    Attributes
    ----------
    analysed
        Their results were delivered long ago → bytes of their images.
    unknown
        No job is known of them.
    """

    analysed: dict[Series, int] = field(default_factory=dict)
    unknown: list[Series] = field(default_factory=list)


@contextmanager
def kept_still(settings: Settings) -> Iterator[None]:
    """Let no other process delete received slides meanwhile; it waits for one that is at it.

    Raises
    ------
    DiskFull
        The folder of received slides cannot be written.
    """
    folder = settings.receive.folder
    if not settings.receive.archive.is_dir():
        yield
        return
    with ExitStack() as stack:
        try:
            lock = stack.enter_context((folder / "retention.lock").open("a"))
        except OSError as error:
            raise _not_writable(settings, error) from error
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def old_received_slides(settings: Settings, queue: JobQueue, before_s: float) -> ReceivedSlides:
    """Look through the folder of received slides; nothing is deleted."""
    old = ReceivedSlides()
    archive = settings.receive.archive
    if settings.pacs_url.rstrip("/") == archive.as_uri():
        return old  # it is the site's archive, not the place of copies
    quiet = dict(_series_older_than(archive, before_s))
    jobs: defaultdict[Series, list[Job]] = defaultdict(list)
    for job in queue.list() if quiet else ():
        jobs[job.study_uid, job.series_uid].append(job)
    for series, files in quiet.items():
        images = [file for file in files if is_image(file)]
        newest_ms = max((file.stat().st_mtime_ns // 1_000_000 for file in images), default=0)
        if images and series not in jobs:
            old.unknown.append(series)
        elif images and _delivered(queue, jobs[series], archive, newest_ms, before_s):
            old.analysed[series] = sum(file.stat().st_size for file in images)
    return old


def remove_received_slides(
    settings: Settings, queue: JobQueue, old: ReceivedSlides, before_s: float
) -> None:
    """Delete the images of slides whose results were delivered; all else in their study stays.

    Raises
    ------
    DiskFull
        The folder of received slides cannot be written.
    """
    if not old.analysed:
        return
    wanted = {
        (job.study_uid, job.series_uid)
        for status in ("waiting", "queued", "running")
        for job in queue.list(status=status)
    }
    try:
        for series in old.analysed.keys() - wanted:
            remove_slide(settings.receive.folder, *series, before_s)
    except OSError as error:
        raise _not_writable(settings, error) from error


def _not_writable(settings: Settings, error: OSError) -> DiskFull:
    return DiskFull(
        f"Old slides in {settings.receive.archive} cannot be deleted ({error.strerror}): let this"
        " user write in receive.folder."
    )


def _series_older_than(archive: Path, before_s: float) -> Iterator[tuple[Series, list[Path]]]:
    for study_uid, series_uid, files in series_in(archive):
        if files and all(file.stat().st_mtime < before_s for file in files):
            yield (study_uid, series_uid), files


def _delivered(
    queue: JobQueue, jobs: list[Job], archive: Path, newest_ms: int, before_s: float
) -> bool:
    """Whether every job of a slide is completed, and one of them read all that was received."""
    if any(job.status != "completed" or job.updated_ms / 1000 >= before_s for job in jobs):
        return False
    return any(
        job.created_ms > newest_ms
        and not job.reason.startswith("review of ")
        and queue.settings_of(job.job).pacs_url == archive.as_uri()
        for job in jobs
    )
