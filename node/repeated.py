"""What a worker does beside its slides, every few seconds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dicom_io.errors import DiskFull

log = logging.getLogger(__name__)


@contextmanager
def repeated(what: Callable[[], object], every_s: float, name: str) -> Iterator[None]:
    """Do something at once and then every few seconds, in a thread, while the block runs.

    Parameters
    ----------
    what
        Where it raises DiskFull that is logged, and it is done again in its time.
    every_s
    name
        Of the thread.
    """
    ended = threading.Event()

    def keep() -> None:
        while True:
            try:
                what()
            except DiskFull as error:
                log.warning("%s", error)
            if ended.wait(every_s):
                return

    thread = threading.Thread(target=keep, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
