"""What is checked together: the objects about one slide, the slide, and the FHIR bundles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import VLWholeSlideMicroscopyImageStorage

from conformance.reading import text, whole
from conformance.value_sets import KINDS


@dataclass(frozen=True, slots=True)
class ResultSet:
    """Objects that belong together.

    Attributes
    ----------
    objects
        DICOM objects; of slides the header is enough.
    bundles
        FHIR Bundles as JSON.
    """

    objects: tuple[Dataset, ...] = ()
    bundles: tuple[Mapping[str, Any], ...] = ()

    def of_kind(self, kind: str) -> Iterator[Dataset]:
        """Objects that are ``ANN``, ``SR``, ``SEG``, ``SM``, ``PM`` or ``PDF``."""
        return (each for each in self.objects if kind_of(each) == kind)

    def slide(self, uid: str) -> Dataset | None:
        """Level that has this SOP Instance UID, or is a part of the concatenation that has it."""
        for level in self.of_kind("SM"):
            if uid in {
                text(level, "SOPInstanceUID"),
                text(level, "SOPInstanceUIDOfConcatenationSource"),
            }:
                return level
        return None

    def base_level(self, series_uid: str = "") -> Dataset | None:
        """Largest VOLUME level of a series, or of the set."""
        levels = [
            level
            for level in self.of_kind("SM")
            if "VOLUME" in text(level, "ImageType")
            and series_uid in {"", text(level, "SeriesInstanceUID")}
        ]
        return max(
            levels, key=lambda level: whole(level, "TotalPixelMatrixColumns") or 0, default=None
        )


def kind_of(document: Dataset) -> str:
    """Kind of a DICOM object; its SOP class where the kit has no rules of its own for it."""
    sop_class = text(document, "SOPClassUID")
    return KINDS.get(sop_class, sop_class)


def is_slide(document: Dataset) -> bool:
    return text(document, "SOPClassUID") == VLWholeSlideMicroscopyImageStorage
