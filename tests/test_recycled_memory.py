"""Memory is used again, and never while somebody still holds a view of it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dicom_io.recycled_memory import RecycledMemory

SHAPE = (2, 4, 4, 3)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_of_what_is_gone_is_used_again() -> None:
    memory = RecycledMemory(SHAPE)
    first = memory.array()
    held = address(first)
    assert first.shape == SHAPE
    del first
    assert address(memory.array()) == held


@given(st.lists(st.sampled_from(["array", "slice", "slice of slice", "read-only"]), max_size=12))
def test_a_view_keeps_its_memory(kinds: list[str]) -> None:
    memory = RecycledMemory(SHAPE)
    views = []
    for number, kind in enumerate(kinds):
        array = memory.array()
        array[:] = number
        if kind == "read-only":
            array.flags.writeable = False
        view = {"slice": array[1:], "slice of slice": array[:1][0, :2]}.get(kind, array)
        views.append(view)
        del array
    for number, view in enumerate(views):
        assert (view == number).all()
