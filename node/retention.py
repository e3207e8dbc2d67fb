"""What a node forgets when it is old: results, the files and jobs behind them, received slides.

The archive and the EHR have the results by then. A result that somebody has reviewed is kept,
because a later run of the same analysis must know of it; so is everything that a job at work may
need.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from node.config import Settings
from node.job_queue import JobQueue
from node.received_slides import kept_still, old_received_slides, remove_received_slides
from node.revisions import revisions
from node.shared_storage import SharedStorage
from node.work_files import disk_errors, shared_storage, write_atomically

log = logging.getLogger(__name__)

DAY_S = 86_400.0
_DIGEST = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Purged:
    """What was forgotten.

    Attributes
    ----------
    results, files, jobs
        Numbers of them.
    bytes_freed
        Of files.
    slides
        Received by C-STORE, whose results were delivered.
    slide_bytes
        Of slides.
    slides_without_job
        As old and kept, as nothing tells that they were analysed.
    """

    results: int
    files: int
    jobs: int
    bytes_freed: int
    slides: int
    slide_bytes: int
    slides_without_job: int


def purge(settings: Settings, queue: JobQueue, days: float, *, dry_run: bool = False) -> Purged:
    """Forget what is older than so many days.

    Parameters
    ----------
    settings
    queue
    days
    dry_run
        Only count.

    Raises
    ------
    DiskFull
        The work folder, the job database or the folder of received slides cannot be used. What is
        left goes next time.
    SharedStorageUnreachable
        The same of the storage that hosts share.
    """
    with kept_still(settings):
        return _purged(settings, queue, time.time() - days * DAY_S, dry_run)


def _purged(settings: Settings, queue: JobQueue, before_s: float, dry_run: bool) -> Purged:
    work, shared = settings.work_folder, shared_storage(settings)
    slides = old_received_slides(settings, queue, before_s)
    with disk_errors(work):
        results, kept = _old_and_kept_results(settings, before_s)
        needed = {digest for path in kept for digest in _DIGEST.findall(path.read_bytes())}
        files = [
            path
            for path in (work / "files").glob("??/*")
            if path.name.encode() not in needed and _is_older(path, before_s)
        ]
        progress = [path for path in (work / "progress").glob("*") if _is_older(path, before_s)]
        jobs = queue.ended_before(before_s)
        purged = Purged(
            results=len(results),
            files=len(files),
            jobs=len(jobs),
            bytes_freed=sum(_size(path) for path in files),
            slides=len(slides.analysed),
            slide_bytes=sum(slides.analysed.values()),
            slides_without_job=len(slides.unknown),
        )
        if dry_run:
            return purged
        # All that is needed is known before anything goes.
        needed_there = _needed_by_other_hosts(shared, work) if shared is not None and files else ()
        for path in (*results, *files):
            if not _is_older(path, before_s):
                continue  # it was used again meanwhile
            # There first: what is gone here is not looked for there again. Also what another host
            # was the first to write: digests name the same content.
            if shared is not None and path.name not in needed_there:
                shared.remove(path.relative_to(work).as_posix())
            path.unlink(missing_ok=True)
        for path in progress:
            path.unlink(missing_ok=True)
    # Before the jobs: nothing else tells that a slide was analysed.
    remove_received_slides(settings, queue, slides, before_s)
    queue.forget(jobs)
    log.info(
        "Forgot %d results, %d files (%.1f MB), %d tries of jobs and %d received slides (%.1f MB).",
        purged.results,
        purged.files,
        purged.bytes_freed / 1e6,
        purged.jobs,
        purged.slides,
        purged.slide_bytes / 1e6,
    )
    return purged


def _old_and_kept_results(settings: Settings, before_s: float) -> tuple[list[Path], list[Path]]:
    """Files of results that go, and of those that stay: all revisions of a result together."""
    folder = settings.work_folder / "results"
    of: defaultdict[str, list[Path]] = defaultdict(list)
    for path in folder.glob("*.json"):
        of[path.name.partition(".")[0]].append(path)
    old: list[Path] = []
    kept: list[Path] = []
    for identity, paths in of.items():
        goes = len(paths) == 1 and _is_older(paths[0], before_s)
        if goes and len(revisions(settings, identity)) > 1:
            # Reviewed on another host, and only now copied from the shared storage.
            kept.extend(folder.glob(f"{identity}.*"))
            continue
        (old if goes else kept).extend(paths)
    return old, kept


def _needed_by_other_hosts(shared: SharedStorage, work: Path) -> set[str]:
    """Digests that results name which lie in the shared storage alone.

    What was read is remembered: each result is fetched once, as long as it stays the same.
    """
    remembered = work / "results-elsewhere.json"
    known: dict[str, list[str]] = json.loads(_text(remembered) or "{}")
    elsewhere = {
        f"{name} {version}": name
        for name, version in shared.versions("results").items()
        if name.endswith(".json") and not (work / name).exists()
    }
    named = {each: known[each] for each in elsewhere if each in known}
    try:
        for each in elsewhere.keys() - known.keys():
            content = shared.get(elsewhere[each]) or b""
            named[each] = sorted({digest.decode() for digest in _DIGEST.findall(content)})
    finally:
        if named.keys() != known.keys():
            write_atomically(remembered, json.dumps(named).encode())
    return {digest for digests in named.values() for digest in digests}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _is_older(path: Path, before_s: float) -> bool:
    try:
        return path.stat().st_mtime < before_s
    except FileNotFoundError:  # another process was quicker
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
