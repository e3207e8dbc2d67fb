"""In which order waiting slides are taken: by their priority, and then site by site in turn.

The queue takes the lowest number first (DBOS). Each kind of priority has a band of numbers, and in
it every slide has a turn: of one site's slides no two have the same, and a site that comes later
begins at the turn after the one that is being served: were it that one, a site whose slot is low
could send one slide after the other and be served each time before a site that waits. So a site
that has sent a thousand slides and one that sends its first alternate: start-time fair queueing
(Goyal, Vin, Cheng 1996, section 2), all slides at the same cost. A number is
``band + turn * SLOTS + slot``; sites share a slot where their names' digests do, and then also its
turns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

SLOTS = 64
BAND = 500_000_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in a band.

    Attributes
    ----------
    least
        Smallest number; None where nothing waits.
    own_last
        Largest number of the site's slot; None where nothing of it waits.
    """

    least: int | None
    own_last: int | None


def slot_of(site: str) -> int:
    """1 to 63: with 0 the first number of the first band would be that of commands."""
    return 1 + int.from_bytes(hashlib.sha256(site.encode()).digest()[:4]) % (SLOTS - 1)


def number_of(band: int, site: str, waiting: Callable[[int, int, int], Waiting]) -> int:
    """The number of a slide that is queued now.

    Parameters
    ----------
    band
        0 for the kind of priority that goes first.
    site
    waiting
        Looks up what waits: first number of the band, first one behind it, slot.
    """
    first, slot = band * BAND, slot_of(site)
    found = waiting(first, first + BAND, slot)
    turns = [0]
    if found.least is not None:
        turns.append((found.least - first) // SLOTS + 1)
    if found.own_last is not None:
        turns.append((found.own_last - first) // SLOTS + 1)
    return min(first + max(turns) * SLOTS + slot, first + BAND - 1)
