"""One finished analysis: all that the documents are written from."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from models.records import Cells, Differential, Regions

if TYPE_CHECKING:
    from dicom_io.slide import Slide


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The model package as results name it.

    Attributes
    ----------
    name, version
    digest
        SHA-256 (hex) of the package's manifest, which holds the digests of its files.
    intended_use
        One sentence; for a demonstration model it says "not for clinical use".
    demonstration
        True for weights that only demonstrate the node.
    """

    name: str
    version: str
    digest: str
    intended_use: str
    demonstration: bool


Decision = Literal["confirmed", "corrected", "withdrawn"]
Standing = Literal["unreviewed", "final", "corrected", "withdrawn"]
FIRST_REVISION = 1


@dataclass(frozen=True, slots=True)
class Signature:
    """Who reviewed a result, for which organisation, when, and what it is since then.

    Attributes
    ----------
    name
        Person name as DICOM writes it (PS3.5 6.2.1), for example ``"Lee^Anna^^Dr."``.
    organization
    at
        UTC.
    decision
        What the person did to the revision before.
    standing
        What the result is by that: a result that is corrected before anybody made it final is
        ``"final"``, one that was final before it was corrected stays ``"corrected"``.
    reason
        Why, in the person's words; a withdrawal has one.
    """

    name: str
    organization: str
    at: datetime
    decision: Decision = "confirmed"
    standing: Standing = "final"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Analysis:
    """What was found on a slide, by what, and when.

    Attributes
    ----------
    slide, regions, cells, differential
    model
    configuration_digest
        SHA-256 (hex) of every setting that can change a result.
    revision
        1 for the first result; a review makes the next one.
    icc
        "srgb" if pixels were brought to sRGB by the slide's ICC profile before the models saw
        them, "none" if they were taken as stored.
    icc_profile
        Of the optical path that was read; empty where the slide has none.
    pixels_sha256
        SHA-256 (hex) of the SHA-256 of every batch of tiles that was searched for cells, in the
        order of reading; empty where that was not kept.
    started, finished
        UTC; `finished` is that of the first run, of a corrected revision that of its review.
    signature
        Of the review that made this revision; None for the first one, which nobody has reviewed.
    """

    slide: Slide
    regions: Regions
    cells: Cells
    differential: Differential
    model: ModelIdentity
    configuration_digest: str
    revision: int
    started: datetime
    finished: datetime
    icc: str = "none"
    icc_profile: bytes = field(default=b"", repr=False)
    pixels_sha256: str = ""
    signature: Signature | None = None

    @property
    def issued(self) -> datetime:
        """When this revision was made, UTC: content dates of its documents come from here."""
        return self.finished if self.signature is None else self.signature.at

    @property
    def standing(self) -> Standing:
        return "unreviewed" if self.signature is None else self.signature.standing

    @property
    def by_hand(self) -> bool:
        """Whether a person changed the cells of this revision."""
        return self.signature is not None and self.signature.decision == "corrected"
