"""What a worker does beside its slides, every few seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from node.attempts import Attempts


@contextmanager
def repeated(what: Callable[[], object], every_s: float, name: str) -> Iterator[None]:
    """Do something at once and then every few seconds, in a thread, while the block runs.

    Parameters
    ----------
    what
        What it raises that has a remedy is logged once, and it is done again in its time.
    every_s
    name
        Of the thread.
    """
    ended, attempts = threading.Event(), Attempts()

    def keep() -> None:
        while True:
            attempts.make(what)
            if ended.wait(every_s):
                return

    thread = threading.Thread(target=keep, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
