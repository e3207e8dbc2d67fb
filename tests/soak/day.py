"""A day of a hospital, squeezed: what happens at which hour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

HOURS = 24.0
# Slides come from the laboratory by day, in twos and threes in the evening, hardly by night.
_SHARE_OF_HOUR = (*[0.2] * 6, 1.0, 3.0, 5.0, 6.0, 6.0, 5.0, 4.0, 5.0, 6.0, 6.0, 5.0, 3.0, 2.0)
_EVENING = (1.0, 1.0, 0.6, 0.4, 0.2)


@dataclass(frozen=True, slots=True)
class Window:
    """Hours in which something is not there.

    Attributes
    ----------
    what
        PACS or EHR.
    begin_h, end_h
    """

    what: str
    begin_h: float
    end_h: float


MAINTENANCE = Window("PACS", 9.0, 10.0)
EHR_DOWN = Window("EHR", 14.0, 15.0)
WINDOWS = (MAINTENANCE, EHR_DOWN)
TOKEN_LIFE_H = 1.0


def arrivals_h(slides: int, seed: int) -> Iterator[float]:
    """Hours at which so many slides come, in order."""
    shares = np.array([*_SHARE_OF_HOUR, *_EVENING])
    rng = np.random.default_rng(seed)
    hours = rng.choice(len(shares), slides, p=shares / shares.sum())
    yield from sorted((hours + rng.random(slides)).tolist())
