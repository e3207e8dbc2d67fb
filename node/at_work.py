"""What a worker is at, and whether it may still record what comes of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class AtWork:
    """Counts slides and reviews at work; from any thread."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()
        self._left = threading.Event()

    @property
    def count(self) -> int:
        return self._count

    @contextmanager
    def one_more(self) -> Iterator[None]:
        with self._lock:
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1

    def leave(self) -> bool:
        """Let nothing further be recorded; whether nothing was at work."""
        self._left.set()
        return not self._count

    def check(self) -> None:
        """Return unless all was left: then never, since the process is about to end."""
        if self._left.is_set():
            threading.Event().wait()
