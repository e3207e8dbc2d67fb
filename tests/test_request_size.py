"""The learner of request sizes, against simulated archives."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from dicom_io.request_size import FIRST_FRAMES, Bounds, Connections, RequestCost, RequestSizes

Cost = Callable[[int], float]
MANY = 10**9
BOUNDS = Bounds(frames=2000, connections=8, bytes_in_flight=64 * 2**20)


def read(sizes: RequestSizes, cost: Cost, requests: int, frame_bytes: int = 4000) -> list[int]:
    """Frames of each request, as an archive that costs `cost` teaches."""
    asked = []
    for _ in range(requests):
        frames = sizes.frames("1.2", MANY)
        asked.append(frames)
        sizes.measured("1.2", frames, cost(frames), frames * frame_bytes)
    return asked


def noisy(fixed: float, per_frame: float, noise: float = 0.2) -> Cost:
    rng = random.Random(5)  # noqa: S311
    return lambda frames: (fixed + per_frame * frames) * rng.uniform(1 - noise, 1 + noise)


def test_archive_that_reads_the_whole_file_is_asked_for_much_at_once() -> None:
    asked = read(RequestSizes(BOUNDS), noisy(1.1, 0.0001), 8)
    assert asked[0] == FIRST_FRAMES
    assert asked[-1] == BOUNDS.frames
    assert sum(asked) > 20 * 8  # against the one-frame reader's 1.1 s a frame


def test_cheap_requests_stay_small() -> None:
    asked = read(RequestSizes(BOUNDS), noisy(0.001, 0.0005), 200)
    # 10 % of a request are 1 ms at 18 frames.
    assert 9 <= sum(asked[-50:]) / 50 <= 72


def test_one_slow_answer_does_not_make_requests_small() -> None:
    """Five hundred frames in 30 ms and 2000 in 300 ms look as if requests cost nothing."""
    sizes = RequestSizes(BOUNDS)
    seconds = iter((0.03, 0.3, 0.1))
    assert min(read(sizes, lambda frames: next(seconds), 3)) >= FIRST_FRAMES


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_fixed_part_is_a_tenth(noise: float) -> None:
    asked = read(RequestSizes(BOUNDS), noisy(0.05, 0.001, noise), 100)
    assert 225 <= sum(asked[-20:]) / 20 <= 900  # 450, where the two are 9 : 1


def test_an_archive_may_change() -> None:
    sizes = RequestSizes(BOUNDS)
    before = read(sizes, noisy(0.001, 0.0005), 100)[-1]
    after = read(sizes, noisy(1.1, 0.0001), 100)[-20:]
    assert min(after) > 10 * before


def test_slow_link_keeps_requests_short() -> None:
    asked = read(RequestSizes(BOUNDS), noisy(0.5, 0.2, 0.0), 30)
    assert 0.5 + 0.2 * asked[-1] < 11


def test_bytes_of_a_request_are_bounded() -> None:
    asked = read(RequestSizes(BOUNDS), noisy(1.1, 0.0001), 10, frame_bytes=500_000)
    # Of the first nothing is known: its bytes are bounded by the window of frames it is for.
    assert asked[0] == FIRST_FRAMES
    assert max(asked[1:]) <= 64 * 2**20 // 500_000


def test_refused_size_is_not_asked_for_again_for_long() -> None:
    sizes = RequestSizes(BOUNDS)
    read(sizes, noisy(1.1, 0.0001), 8)
    sizes.refused_above(300)
    asked = read(sizes, noisy(1.1, 0.0001), 200)
    assert set(asked[:100]) == {300}
    assert set(asked[100:]) == {600}
    sizes.refused_above(300)
    assert set(read(sizes, noisy(1.1, 0.0001), 390)) == {300}


def test_settings_are_upper_bounds() -> None:
    sizes = RequestSizes(Bounds(frames=7, connections=3, bytes_in_flight=2**20))
    assert set(read(sizes, noisy(1.1, 0.0001), 50)) == {7}
    assert 1 <= sizes.connections <= 3


def test_next_instance_starts_where_the_last_one_ended() -> None:
    sizes = RequestSizes(BOUNDS)
    read(sizes, noisy(1.1, 0.0001), 8)
    assert sizes.frames("9.9", MANY) == BOUNDS.frames


def test_fit_is_the_line_that_was_measured() -> None:
    cost = RequestCost()
    assert cost.fit() is None
    for frames in (10, 20, 40):
        cost.measured(frames, 0.3 + 0.01 * frames, frames)
    fixed, per_frame = cost.fit() or (0, 0)
    assert (fixed, per_frame) == pytest.approx((0.3, 0.01))


@pytest.mark.parametrize(("useful", "expected"), [(1, 1), (2, 2), (4, 4), (8, 8), (100, 8)])
def test_connections_stop_where_they_gain_nothing(useful: int, expected: int) -> None:
    connections = Connections(8)
    for _ in range(200):
        busy = max(1.0, connections.level / useful)  # the archive works on so many at a time
        connections.measured(10, 0.01 * busy)
    assert connections.level == expected


def test_archive_that_is_asked_too_much_is_asked_less() -> None:
    sizes = RequestSizes(BOUNDS)
    read(sizes, noisy(0.001, 0.0005), 300)
    before = sizes.connections
    assert before > 1
    sizes.too_many()
    read(sizes, noisy(0.001, 0.0005), 100)
    assert sizes.connections == before // 2
