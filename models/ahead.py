"""Work done ahead of who asks for it, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def mapped_ahead(
    workers: Executor, function: Callable[[Item], Result], items: Iterable[Item], most: int
) -> Generator[Result, None, None]:
    """Results of `function`, in the order of `items`.

    Parameters
    ----------
    workers
        Where the function runs.
    items
        Taken one by one, `most` further than the results that were asked for.
    most
        Items at work or done that nobody has asked for yet.

    Raises
    ------
    What the function raises, in its item's turn; what was not begun is then not done.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(workers.submit(function, item))
            if len(waiting) == most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
