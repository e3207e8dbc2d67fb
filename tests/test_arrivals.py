"""When a slide that is being received is complete."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dicom_io.arrival import Arrival, is_whole, read_arrival
from dicom_io.errors import PacsRefused
from node.arrivals import Arrivals
from tests.encodings import write_encoded
from tests.slides import write_slide

LEVEL = Arrival("1.1", "1.2", "1.3", "1.4", True, (100, 100), frames=4, frames_of_level=4)
SERIES = ("1.1", "1.2")
SETTLE_S, QUIET_S = 10.0, 300.0


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def arrivals(clock: Clock) -> Arrivals:
    return Arrivals(SETTLE_S, QUIET_S, clock)


def drop_last_tile(column: int, row: int) -> bool:
    return (column, row) == (7, 5)


@pytest.mark.parametrize(
    ("layout", "whole"),
    [
        ({}, True),
        ({"parts": 3}, True),
        ({"organization": "TILED_SPARSE"}, True),
        ({"organization": "TILED_SPARSE", "parts": 2}, True),
        ({"organization": "TILED_SPARSE", "leave_out": drop_last_tile}, False),
    ],
)
def test_whole_slides_by_count(tmp_path: Path, layout: dict[str, Any], whole: bool) -> None:
    slide = write_slide(tmp_path, **layout)
    read = [read_arrival(path) for path in slide.paths]
    assert is_whole(read) is whole
    assert {(each.study_uid, each.series_uid) for each in read} == {
        (slide.study_uid, slide.series_uid)
    }


@pytest.mark.parametrize("missing", range(3))
def test_a_concatenation_lacks_a_part(tmp_path: Path, missing: int) -> None:
    slide = write_slide(tmp_path, parts=3, levels=1)
    read = [read_arrival(path) for path in slide.paths]
    del read[missing]
    assert not is_whole(read)


def test_a_total_counts_parts_where_frames_cannot() -> None:
    part = replace(LEVEL, concatenation_uid="1.9", parts=2)
    assert not is_whole([part])
    assert is_whole([part, replace(part, sop_uid="1.5")])


def test_a_label_alone_is_no_slide() -> None:
    assert not is_whole([])
    assert not is_whole([replace(LEVEL, is_volume=False)])


def test_what_is_no_dicom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no DICOM at all" * 100)
    with pytest.raises(PacsRefused, match="InvalidDicomError"):
        read_arrival(tmp_path / "file")


def test_a_deflated_slide_is_counted_without_being_held_in_memory(tmp_path: Path) -> None:
    written = write_encoded(tmp_path, "Deflated", size_px=(4096, 4096))
    tracemalloc.start()
    try:
        read = read_arrival(written.paths[0])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert is_whole([read])
    assert peak_bytes < 4096 * 4096 * 3 / 4


def test_a_damaged_deflated_object_is_refused(tmp_path: Path) -> None:
    (path,) = write_encoded(tmp_path, "Deflated").paths
    whole = path.read_bytes()
    begin = 144 + int.from_bytes(whole[140:144], "little")  # behind the file meta information
    path.write_bytes(whole[:begin] + b"\xff" + whole[begin + 1 :])  # no such kind of block
    with pytest.raises(PacsRefused, match="cannot be read"):
        read_arrival(path)


def due(arrivals: Arrivals, busy: tuple[tuple[str, str], ...] = ()) -> list[bool]:
    return [whole for _, whole in arrivals.complete(busy)]


def test_a_whole_slide_is_complete_once_its_sender_has_gone(
    arrivals: Arrivals, clock: Clock
) -> None:
    arrivals.arrived(LEVEL, association=1)
    clock.now_s = 2 * QUIET_S
    assert due(arrivals) == []  # the association is still open
    arrivals.ended(1)
    assert due(arrivals) == [True]
    assert due(arrivals) == []


def test_a_slide_settles_before_it_is_complete(arrivals: Arrivals, clock: Clock) -> None:
    arrivals.arrived(LEVEL)
    clock.now_s = SETTLE_S - 1
    arrivals.arrived(replace(LEVEL, sop_uid="1.5"))
    clock.now_s += SETTLE_S - 1
    assert due(arrivals) == []
    clock.now_s += 1
    assert due(arrivals) == [True]


def test_what_cannot_be_counted_waits_for_a_long_silence(arrivals: Arrivals, clock: Clock) -> None:
    arrivals.arrived(replace(LEVEL, frames=3))
    clock.now_s = QUIET_S - 1
    assert due(arrivals) == []
    clock.now_s = QUIET_S
    assert due(arrivals) == [False]


def again(arrivals: Arrivals) -> None:
    arrivals.arrived(LEVEL)


def one_more(arrivals: Arrivals) -> None:
    arrivals.arrived(replace(LEVEL, sop_uid="1.5"))


@pytest.mark.parametrize(("later", "expected"), [(again, []), (one_more, [True])])
def test_only_news_makes_a_slide_wait_anew(
    arrivals: Arrivals,
    clock: Clock,
    later: Callable[[Arrivals], None],
    expected: list[bool],
) -> None:
    arrivals.arrived(LEVEL)
    clock.now_s = SETTLE_S
    assert due(arrivals) == [True]
    later(arrivals)
    clock.now_s = 2 * SETTLE_S
    assert due(arrivals, busy=(SERIES,)) == []  # while its analysis runs
    assert due(arrivals) == expected


def test_a_series_without_a_level_is_never_complete(arrivals: Arrivals, clock: Clock) -> None:
    arrivals.arrived(replace(LEVEL, is_volume=False))
    clock.now_s = 10 * QUIET_S
    assert due(arrivals) == []
