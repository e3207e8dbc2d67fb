"""Tries that wait for their time, when the clock is turned back meanwhile."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dicom_io.errors import DiskFull
from node.job_queue import JobQueue

log = logging.getLogger(__name__)

LOOK_S = 5.0


@contextmanager
def delays_kept(jobs: JobQueue) -> Iterator[None]:
    """See to it, while the block runs, that no try waits longer than it was told to.

    The database has the moment when a try is due by the clock of whoever queued it: turned back by
    an hour, that clock would let it wait an hour longer.
    """
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(LOOK_S):
            try:
                jobs.shorten_delays()
            except DiskFull as error:
                log.warning("%s", error)

    thread = threading.Thread(target=keep, name="delays", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
