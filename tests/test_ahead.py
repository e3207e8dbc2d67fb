"""Work done ahead: in order, not further than said, and given up when nobody asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ahead import mapped_ahead


@given(st.lists(st.integers()), st.integers(1, 4), st.integers(1, 6))
def test_results_come_in_the_order_of_the_items(items: list[int], threads: int, most: int) -> None:
    with ThreadPoolExecutor(threads) as workers:
        assert list(mapped_ahead(workers, lambda n: 2 * n, items, most)) == [2 * n for n in items]


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_is_taken_than_may_wait(most: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(2) as workers:
        results = mapped_ahead(workers, lambda n: n, items(), most)
        for asked in range(1, 4):
            next(results)
            assert len(taken) == asked + most - 1
        results.close()
    assert len(taken) == 3 + most - 1


def test_an_error_comes_in_its_turn_and_ends_the_work() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == 1:
            go_on.wait(5)
            raise ValueError("the second")
        return number

    with ThreadPoolExecutor(1) as workers:
        results = mapped_ahead(workers, work, range(10), 4)
        assert next(results) == 0
        go_on.set()
        with pytest.raises(ValueError, match="the second"):
            list(results)
    assert max(begun) < 6
