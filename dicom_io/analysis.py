"""One finished analysis: all that the documents are written from."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from dicom_io.slide import Slide
from models.records import Cells, Differential, Regions


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
        UTC; content dates of the documents come from `finished` of the first run.
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
