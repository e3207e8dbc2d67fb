"""Settings of the ways in that look for slides by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, slots=True)
class PollSettings:
    """Looking for new slides, in the archive and in a folder.

    Attributes
    ----------
    pacs_every_s
        Seconds between searches (QIDO-RS) for new slides in the archive; 0 for none.
    overlap_days
        Studies of so many days before the last search are looked through again: slides come later
        than their studies are dated.
    folder
        Files that are dropped there are taken into the archive of [receive] and analysed; none if
        it is not set.
    folder_every_s
        Seconds between looks into it; a file that has not changed in between is whole.
    """

    pacs_every_s: Annotated[float, Field(ge=0)] = 0.0
    overlap_days: Annotated[int, Field(ge=1)] = 7
    folder: Path | None = None
    folder_every_s: Annotated[float, Field(gt=0)] = 2.0
