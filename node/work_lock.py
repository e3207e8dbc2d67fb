"""Which process works for a work folder: one numbered worker per live process.

A worker holds an operating-system lock on its file for as long as it lives, so that a worker whose
lock is free is known to be dead, and a survivor may finish its jobs. Of workers on other hosts,
which share a PostgreSQL database, :mod:`node.lease` knows.
"""

from __future__ import annotations

import fcntl
import socket
from pathlib import Path
from typing import IO

from dicom_io.errors import DiskFull
from node.config import Settings

MOST_WORKERS = 64


def host_name(settings: Settings) -> str:
    """This host among those whose workers share a database."""
    return settings.jobs.host or socket.gethostname()


def lock_folder(settings: Settings) -> Path:
    """Where this host's workers have their locks; hosts may share a work folder."""
    folder = settings.work_folder / "workers"
    return folder / host_name(settings) if settings.database_url else folder


def take_worker(folder: Path) -> tuple[str, IO[str]]:
    """Become the first free worker of a work folder.

    Returns
    -------
    tuple
        The worker's name, and its open lock file: the lock lasts until that is closed.

    Raises
    ------
    DiskFull
        When the folder cannot be written, or all workers are taken.
    """
    for number in range(MOST_WORKERS):
        lock = _try_lock(folder, number)
        if lock is not None:
            return _name(number), lock
    raise DiskFull(
        f"{MOST_WORKERS} processes already work in {folder}: wait for one to end "
        "or set another work_folder."
    )


def live_workers(folder: Path) -> list[str]:
    """Workers of this folder whose process lives; empty also where nobody ever worked in it."""
    there = [number for number in range(MOST_WORKERS) if _path(folder, number).exists()]
    live = []
    for number in there:
        lock = _try_lock(folder, number)
        if lock is None:
            live.append(_name(number))
        else:
            lock.close()
    return live


def _name(number: int) -> str:
    return f"worker-{number}"


def _path(folder: Path, number: int) -> Path:
    return folder / f"{_name(number)}.lock"


def _try_lock(folder: Path, number: int) -> IO[str] | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _path(folder, number).open("a")
    except OSError as error:
        raise DiskFull(
            f"The work folder {folder} cannot be written ({error.strerror}): "
            "free space there or set another folder with work_folder."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
