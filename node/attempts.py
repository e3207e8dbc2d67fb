"""Loops that go on whatever may pass, and tell of it once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager

from dicom_io.errors import DiskFull, PacsUnreachable
from models.errors import MarrowNodeError

log = logging.getLogger(__name__)


class Attempts:
    """Makes attempts, and logs what went wrong: once, until something else does or nothing."""

    def __init__(self) -> None:
        self._told = ""

    def make(self, attempt: Callable[[], object]) -> None:
        try:
            attempt()
        except MarrowNodeError as error:
            if str(error) != self._told:
                log.warning("%s", error)
            self._told = str(error)
        else:
            self._told = ""


class OneByOne:
    """Goes through many things, of which one that fails keeps no other back."""

    def __init__(self) -> None:
        self._first: MarrowNodeError | None = None

    @contextmanager
    def one(self) -> Iterator[None]:
        """One of them.

        Raises
        ------
        PacsUnreachable, DiskFull
            The next ones would meet the same. After many time-outs in a row, the archive counts as
            not reachable.
        """
        try:
            yield
        except (PacsUnreachable, DiskFull):
            raise
        except MarrowNodeError as error:
            self._first = self._first or error

    def end(self) -> None:
        """All were gone through.

        Raises
        ------
        MarrowNodeError
            What the first that failed has met.
        """
        if self._first is not None:
            raise self._first


def run_loops(loops: Sequence[Callable[[], None]], stopped: threading.Event) -> None:
    """Run loops side by side until all end; a defect in one ends the others, and is raised."""
    with ThreadPoolExecutor(len(loops)) as pool:
        running = [pool.submit(loop) for loop in loops]
        ended, _ = wait(running, return_when=FIRST_EXCEPTION)
        stopped.set()
    for each in ended:
        each.result()
