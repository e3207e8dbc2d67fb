"""How many frames to ask for at a time, and over how many connections: learnt from what it costs.

One archive answers a hundred frames as fast as it can send them; another reads the whole stored
file for every request, however few frames it is asked for. Both are seconds = fixed + frames ×
seconds per frame, with other numbers, and the numbers can be measured while reading.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

FIXED_SHARE = 0.1
"""Part of a request's time that may go into what it costs without any frame."""

FIRST_FRAMES = 512
"""Of a first request: little to wait for, but work for while the second comes, also where an
archive reads the whole file for each."""

GROWTH = 16
SHRINK = 2
"""A few measurements of a busy archive may say that requests are free: one frame would be asked
for. So it takes several in a row."""

LONGEST_S = 10.0
"""A request should not take longer, so that little is lost when it is cut."""

MEMORY = 0.95
"""Weight of a measurement when the next one comes: archives get slower and faster."""

SPREAD = 0.05
"""Sizes closer together than this share of their mean say nothing about a slope."""

TRUST = 100
"""Requests at a learnt limit before a larger one is tried: refusals may have been mishaps."""

WORTHWHILE = 1.1
WINDOW_REQUESTS = 3


class RequestCost:
    """seconds = fixed + per_frame × frames, fitted to measurements; the newest weigh most.

    Parameters
    ----------
    guess
        Frames of the first request.

    Attributes
    ----------
    wanted
        Fewest frames of which the fixed cost is a small share; not much more than was tried, nor
        much fewer than were wanted before.
    largest
        Most frames of a request so far.
    asked
        Frames that the newest request was told to ask for.
    """

    def __init__(self, guess: int = FIRST_FRAMES) -> None:
        self._weight = self._n = self._s = self._nn = self._ns = 0.0
        self._frames = self._bytes = 0
        self.largest = 0
        self.wanted = self.asked = guess

    def measured(self, frames: int, seconds: float, bytes_received: int) -> None:
        self._weight = MEMORY * self._weight + 1
        self._n = MEMORY * self._n + frames
        self._s = MEMORY * self._s + seconds
        self._nn = MEMORY * self._nn + frames * frames
        self._ns = MEMORY * self._ns + frames * seconds
        self._frames += frames
        self._bytes += bytes_received
        self.largest = max(self.largest, frames)
        self.wanted = self._best()

    @property
    def frame_bytes(self) -> float:
        """Mean bytes of a frame; 0 before the first."""
        return self._bytes / self._frames if self._frames else 0.0

    def fit(self) -> tuple[float, float] | None:
        """(fixed, per frame) in seconds; None while requests of one size only were seen."""
        if self._weight == 0:
            return None
        mean_n, mean_s = self._n / self._weight, self._s / self._weight
        variance = self._nn / self._weight - mean_n**2
        if variance < (SPREAD * mean_n) ** 2:
            return None
        slope = (self._ns / self._weight - mean_n * mean_s) / variance
        slope = min(max(slope, 0.0), mean_s / mean_n)  # neither part of the time is negative
        return mean_s - slope * mean_n, slope

    def _best(self) -> int:
        cost = self.fit()
        if cost is None or cost[1] <= 0:
            return self._next_trial()
        fixed, per_frame = cost
        wanted = fixed * (1 / FIXED_SHARE - 1) / per_frame
        in_time = max((LONGEST_S - fixed) / per_frame, wanted * FIXED_SHARE)
        wanted = max(wanted, min(self.wanted, self.largest) / SHRINK)
        return max(1, round(min(wanted, in_time, max(GROWTH * self.largest, FIRST_FRAMES))))

    def _next_trial(self) -> int:
        """More frames than ever, but not for too long if it is them that take the time."""
        in_time = self.largest * LONGEST_S / max(self._s / self._weight, 1e-9)
        more = max(GROWTH * self.largest, FIRST_FRAMES)
        return round(max(2 * self.largest, min(more, in_time)))


class Connections:
    """Requests in flight: doubled as long as that brings a tenth more frames in a second.

    One at first: an archive that reads whole files reads several of them no faster.
    """

    def __init__(self, most: int) -> None:
        self._most = max(most, 1)
        self.level = 1
        self._before: tuple[int, float] | None = None
        self._settled = False
        self._forget()

    def _forget(self) -> None:
        self._requests, self._frames, self._seconds = 0, 0, 0.0

    def measured(self, frames: int, seconds: float) -> None:
        """One request took so long while `level` were in flight."""
        self._requests += 1
        self._frames += frames
        self._seconds += seconds
        if self._settled or self._requests < WINDOW_REQUESTS * self.level:
            return
        rate = self.level * self._frames / max(self._seconds, 1e-9)
        self._forget()
        if self._before is not None and rate < WORTHWHILE * self._before[1]:
            self.level, self._settled = self._before[0], True
        elif self.level == self._most:
            self._settled = True
        else:
            self._before = self.level, rate
            self.level = min(2 * self.level, self._most)

    def too_many(self) -> None:
        """The archive asked for less."""
        self.level = max(1, self.level // 2)
        self._settled = True


@dataclass(frozen=True, slots=True)
class Bounds:
    """What requests must never exceed."""

    frames: int
    connections: int
    bytes_in_flight: int


class RequestSizes:
    """What is known of one archive; may be used from several threads.

    Parameters
    ----------
    bounds
        From the settings.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._limit = max(bounds.frames, 1)
        self._trust, self._at_limit = 0, 0
        self._costs: dict[str, RequestCost] = {}
        self._wanted = FIRST_FRAMES
        self._connections = Connections(bounds.connections)
        self._lock = threading.Lock()

    @property
    def connections(self) -> int:
        """Requests to have in flight now."""
        return self._connections.level

    @property
    def limit(self) -> int:
        """Most frames that one request may ask for here, as far as is known."""
        return self._limit

    def frames(self, sop_uid: str, rest: int) -> int:
        """Frames to ask for in the next request for this instance, of `rest` that are wanted.

        About what is best, so that the requests for the rest can be of one size: a request for
        the last few frames costs as much as one for many.
        """
        with self._lock:
            # The instance before is the best guess at what this one costs.
            cost = self._costs.setdefault(sop_uid, RequestCost(self._wanted))
            wanted = self._wanted = min(cost.wanted, self._limit)
            most = self._limit
            if cost.frame_bytes:
                each = self._bounds.bytes_in_flight / self._connections.level
                most = max(1, min(most, int(each / cost.frame_bytes)))
            requests = max(1, round(rest / wanted), math.ceil(rest / most))
            cost.asked = math.ceil(rest / requests)
            return cost.asked

    def measured(self, sop_uid: str, frames: int, seconds: float, bytes_received: int) -> None:
        """A request was answered."""
        with self._lock:
            cost = self._costs.setdefault(sop_uid, RequestCost())
            # Neither a trial of a larger size nor the last few frames of a region tell anything.
            steady = cost.asked / 2 < frames <= cost.largest
            cost.measured(frames, seconds, bytes_received)
            self._try_more(frames)
            if steady:
                self._connections.measured(frames, seconds)

    def refused_above(self, frames: int) -> None:
        """More frames than this in one request were refused, so many were given."""
        with self._lock:
            if frames < self._limit:
                self._limit, self._at_limit = max(1, frames), 0
                # A limit that is met again is met for good.
                self._trust = max(TRUST, GROWTH * self._trust)

    def _try_more(self, frames: int) -> None:
        self._at_limit += self._limit / 2 < frames and self._limit < self._bounds.frames
        if self._at_limit >= self._trust:
            self._limit, self._at_limit = min(2 * self._limit, self._bounds.frames), 0

    def too_many(self) -> None:
        """The archive said that it is asked too much (429, 503)."""
        with self._lock:
            self._connections.too_many()
