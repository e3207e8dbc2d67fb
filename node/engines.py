"""Where a process keeps TensorRT's engines: a folder that no other live process has."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import IO

from node.config import Settings
from node.work_lock import host_name, take_worker

# In the work folder. Whoever deletes it while no process runs only makes the next ones wait.
ENGINES = "tensorrt"


def own_engines(settings: Settings) -> Path:
    """The first folder that is free, this process's until it ends: the next one goes on with it.

    Raises
    ------
    DiskFull
        When it cannot be written, or all are taken.
    """
    folder = settings.work_folder.absolute() / ENGINES
    # Hosts that share a work folder may have other GPUs.
    own, _ = _held(folder / host_name(settings) if settings.database_url else folder)
    return own


@cache
def _held(folder: Path) -> tuple[Path, IO[str]]:
    """A folder and its lock, which lasts for as long as this is remembered."""
    name, lock = take_worker(folder)
    return folder / name, lock
