"""Settings of the re-analysis of an archive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How fast an archive is analysed again, so that it stays quick for those who work with it.

    Attributes
    ----------
    at_a_time
        Most jobs of a batch that wait or run at a time.
    slides_per_hour
        Most jobs of a batch that are begun in an hour; 0 for no limit but at_a_time.
    """

    at_a_time: Annotated[int, Field(ge=1)] = 4
    slides_per_hour: Annotated[float, Field(ge=0)] = 0.0
