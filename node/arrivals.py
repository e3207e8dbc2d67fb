"""Which of the slides that are being received are complete."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from dicom_io.arrival import Arrival, is_whole

Series = tuple[str, str]


@dataclass(slots=True)
class _Arriving:
    """Instances of one series by UID, and the associations that brought them and are still open."""

    instances: dict[str, Arrival] = field(default_factory=dict)
    associations: set[int] = field(default_factory=set)
    last_s: float = 0.0
    waits: bool = False


class Arrivals:
    """Collects instances until their slide is complete.

    A slide is complete when its senders have gone and its levels are whole by count, after a short
    silence; where counting cannot tell, after a long one. An instance that comes later makes it
    wait anew; one that only comes again does not.

    Parameters
    ----------
    settle_s, quiet_s
        The short silence and the long one.
    clock
        Seconds that never go back.
    """

    def __init__(
        self, settle_s: float, quiet_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settle_s, self._quiet_s, self._clock = settle_s, quiet_s, clock
        self._series: dict[Series, _Arriving] = {}
        self._lock = threading.Lock()

    def arrived(self, arrival: Arrival, association: int | None = None) -> None:
        """Note an instance, and the association it came on; None for one that was here before."""
        with self._lock:
            series = self._series.setdefault((arrival.study_uid, arrival.series_uid), _Arriving())
            series.waits = series.waits or arrival.sop_uid not in series.instances
            series.instances[arrival.sop_uid] = arrival
            series.last_s = self._clock()
            if association is not None:
                series.associations.add(association)

    def began(self, study_uid: str, series_uid: str) -> None:
        """Forget a series of which nothing is here: what comes of it now is not here already."""
        with self._lock:
            self._series.pop((study_uid, series_uid), None)

    def ended(self, association: int) -> None:
        """Note that a sender has gone."""
        with self._lock:
            for series in self._series.values():
                series.associations.discard(association)

    def complete(self, busy: Collection[Series]) -> Iterator[tuple[Series, bool]]:
        """Yield each slide once that has become complete, and whether counting says so.

        Parameters
        ----------
        busy
            Slides that are being analysed: what comes for one of them waits for the next turn.
        """
        with self._lock:
            due = [
                (key, series)
                for key, series in self._series.items()
                if key not in busy and self._is_due(series)
            ]
            for _, series in due:
                series.waits = False
        for key, series in due:
            yield key, is_whole(series.instances.values())

    def _is_due(self, series: _Arriving) -> bool:
        if not series.waits or series.associations:
            return False
        if not any(each.is_volume for each in series.instances.values()):
            return False
        needed_s = self._settle_s if is_whole(series.instances.values()) else self._quiet_s
        return self._clock() - series.last_s >= needed_s
