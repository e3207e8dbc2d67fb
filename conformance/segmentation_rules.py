"""Rules for segmentations (PS3.3 A.51, C.8.20) and for slides (C.8.12)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset

from conformance.finding import Fault, Rule
from conformance.reading import first, items, numbers, paths, text, whole

RIGHT_ANGLE = 1e-4


def _segment_numbers(document: Dataset) -> Iterator[Fault]:
    described: set[int | None] = set()
    labels = text(document, "SegmentationType") == "LABELMAP"
    for number, (path, segment) in enumerate(paths(document, "SegmentSequence"), start=1):
        told = whole(segment, "SegmentNumber")
        described.add(told)
        if not labels and told != number:
            yield Fault(
                f"{path}SegmentNumber",
                f"Segment {number} has the number {told}: they start at 1 and increase by 1.",
            )
    for path, item in items(document):
        if not path.rstrip("/").partition("/")[2].startswith("SegmentIdentificationSequence"):
            continue
        shown = whole(item, "ReferencedSegmentNumber")
        if shown not in described:
            yield Fault(f"{path}ReferencedSegmentNumber", f"Segment {shown} is not described.")


def _algorithm(document: Dataset) -> Iterator[Fault]:
    for path, segment in paths(document, "SegmentSequence"):
        kind = text(segment, "SegmentAlgorithmType")
        if kind in {"AUTOMATIC", "SEMIAUTOMATIC"} and not text(segment, "SegmentAlgorithmName"):
            yield Fault(f"{path}SegmentAlgorithmName", f"An {kind} segment names no algorithm.")


def _bits(document: Dataset) -> Iterator[Fault]:
    needed = {"BINARY": {1}, "FRACTIONAL": {8}, "LABELMAP": {8, 16}}
    kind, allocated = text(document, "SegmentationType"), whole(document, "BitsAllocated")
    if kind in needed and allocated not in needed[kind]:
        yield Fault("BitsAllocated", f"A {kind} segmentation has {allocated} bits a pixel.")


def _geometry(document: Dataset) -> Iterator[Fault]:
    for keyword in ("TotalPixelMatrixColumns", "TotalPixelMatrixRows", "Columns", "Rows"):
        if (whole(document, keyword) or 0) < 1:
            yield Fault(keyword, f"{keyword} is not a positive number.")
    spacing = pixel_spacing_mm(document)
    if len(spacing) != 2 or min(spacing) <= 0:
        yield Fault(
            "SharedFunctionalGroupsSequence[1]/PixelMeasuresSequence[1]/PixelSpacing",
            "The pixel spacing is missing or not positive.",
        )
    orientation = numbers(document, "ImageOrientationSlide")
    if len(orientation) != 6:
        yield Fault("ImageOrientationSlide", "The slide's orientation has not six values.")
        return
    along = np.reshape(orientation, (2, 3))
    if not np.allclose(along @ along.T, np.eye(2), atol=RIGHT_ANGLE):
        yield Fault(
            "ImageOrientationSlide", "Rows and columns are not unit vectors at right angles."
        )


def _functional_groups(document: Dataset) -> Iterator[Fault]:
    """What every frame of a slide has: in the shared groups, or in its own."""
    shared = first(document, "SharedFunctionalGroupsSequence")
    frame = first(document, "PerFrameFunctionalGroupsSequence")
    for keyword in ("PixelMeasuresSequence", "WholeSlideMicroscopyImageFrameTypeSequence"):
        if keyword not in shared and keyword not in frame:
            yield Fault(
                f"SharedFunctionalGroupsSequence[1]/{keyword}",
                f"{keyword} is neither shared nor a frame's own.",
            )


def pixel_spacing_mm(document: Dataset) -> list[float]:
    """[row, column] spacing as DICOM has it; empty where it is not said."""
    shared = first(document, "SharedFunctionalGroupsSequence")
    return numbers(first(shared, "PixelMeasuresSequence"), "PixelSpacing")


SEGMENTATION_RULES: tuple[Rule[Dataset], ...] = (
    Rule(
        "seg-segment-numbers",
        "error",
        "PS3.3 C.8.20.2",
        "Segments are numbered 1 to N, and frames show described ones.",
        _segment_numbers,
    ),
    Rule("seg-algorithm", "error", "PS3.3 C.8.20.2", "Machines are named.", _algorithm),
    Rule("seg-bits", "error", "PS3.3 C.8.20.2.1", "Bits fit the type.", _bits),
)
SLIDE_RULES: tuple[Rule[Dataset], ...] = (
    Rule("sm-geometry", "error", "PS3.3 C.8.12.4", "The slide has a geometry.", _geometry),
    Rule(
        "sm-functional-groups",
        "error",
        "PS3.3 table A.32.8-2",
        "Frames have the functional groups of slides.",
        _functional_groups,
    ),
)
