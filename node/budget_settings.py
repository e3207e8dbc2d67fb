"""Settings of what one job may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

_Most = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """What one job may use; a job that needs more fails, so that it cannot keep others waiting.

    A job that goes on in another process begins to count anew.

    Attributes
    ----------
    bytes_fetched
        Bytes of frames fetched from the archive.
    pixels_decoded
        Pixels decoded, those that are decoded twice counted twice.
    seconds
        Of the process that reads the slide.
    memory_bytes
        Largest resident memory of that process.
    silent_s
        Seconds without progress after which that process counts as hung, and is ended; longer than
        an archive may take to answer, with all retries.
    deaths
        How often that process may die of a slide, or hang, before the slide is put aside. A job
        that somebody waits for, such as 'marrow-node analyse', is tried once.
    """

    bytes_fetched: _Most = 64 * 2**30
    pixels_decoded: _Most = 200_000_000_000
    seconds: Annotated[float, Field(gt=0)] = 6 * 3600.0
    memory_bytes: _Most = 8 * 2**30
    silent_s: Annotated[float, Field(gt=0)] = 3600.0
    deaths: _Most = 3
