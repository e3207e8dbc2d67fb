"""Rules for objects together: references, UIDs, series, and where things lie on the slide."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset

from conformance.annotation_rules import coordinates, groups
from conformance.finding import Fault, Rule
from conformance.geometry import Matrix, frame_of_reference, matrix_of
from conformance.reading import first, items, paths, text, whole
from conformance.report_rules import EVIDENCE
from conformance.result_set import ResultSet, is_slide, kind_of
from conformance.value_sets import KINDS
from conformance.viewer_rules import MICROSCOPY_VIEWER

# Coordinates are single floats: on the edge of 300 000 px they are this exact.
EDGE_PX = 0.05
# References to these need not be in the set: what was before, and procedure steps.
_ELSEWHERE = (
    "PredecessorDocumentsSequence",
    "IdenticalDocumentsSequence",
    "ReferencedPerformedProcedureStepSequence",
    "ReferencedStudySequence",
    "ReferencedRequestSequence",
)


def references_of(document: Dataset) -> Iterator[tuple[str, str, str]]:
    """(path, SOP class, SOP instance) of every reference to an object the kit knows."""
    for path, item in items(document):
        sop_class = text(item, "ReferencedSOPClassUID")
        if sop_class and not path.startswith(_ELSEWHERE):
            yield path.rstrip("/"), sop_class, text(item, "ReferencedSOPInstanceUID")


def _known(results: ResultSet) -> dict[str, Dataset]:
    known = {text(each, "SOPInstanceUID"): each for each in results.objects}
    for level in results.of_kind("SM"):
        source = text(level, "SOPInstanceUIDOfConcatenationSource")
        if source:
            known.setdefault(source, level)
    return known


def _resolvable(results: ResultSet) -> Iterator[Fault]:
    known = _known(results)
    for document in results.objects:
        for path, sop_class, uid in references_of(document):
            if uid not in known and not left_open(results, sop_class):
                yield Fault(
                    path,
                    f"Instance {uid} is referred to and not in the set.",
                    text(document, "SOPInstanceUID"),
                )


def left_open(results: ResultSet, sop_class: str) -> bool:
    """Whether a reference to this class cannot be looked at: its kind was not given."""
    kind = KINDS.get(sop_class)
    if kind is None:
        return True
    if kind == "SM":
        return next(results.of_kind("SM"), None) is None
    return sum(not is_slide(each) for each in results.objects) < 2


def _reference_classes(results: ResultSet) -> Iterator[Fault]:
    known = _known(results)
    for document in results.objects:
        for path, sop_class, uid in references_of(document):
            if uid in known and text(known[uid], "SOPClassUID") != sop_class:
                yield Fault(
                    f"{path}/ReferencedSOPClassUID",
                    f"Instance {uid} is of another SOP class than the reference says.",
                    text(document, "SOPInstanceUID"),
                )


def _reference_series(results: ResultSet) -> Iterator[Fault]:
    known = _known(results)
    for document in results.objects:
        for path, series in _referenced_series(document):
            for here, item in items(series, path):
                uid = text(item, "ReferencedSOPInstanceUID")
                if uid in known and text(known[uid], "SeriesInstanceUID") != text(
                    series, "SeriesInstanceUID"
                ):
                    yield Fault(
                        here.rstrip("/"),
                        f"Instance {uid} lies in another series than the reference says.",
                        text(document, "SOPInstanceUID"),
                    )


def _referenced_series(document: Dataset) -> Iterator[tuple[str, Dataset]]:
    yield from paths(document, "ReferencedSeriesSequence")
    for keyword in EVIDENCE:
        for path, study in paths(document, keyword):
            yield from paths(study, "ReferencedSeriesSequence", path)


def _unique(results: ResultSet) -> Iterator[Fault]:
    seen: set[str] = set()
    for document in results.objects:
        uid = text(document, "SOPInstanceUID")
        if uid in seen:
            yield Fault("SOPInstanceUID", "Two objects have the same SOP Instance UID.", uid)
        seen.add(uid)


def _series(results: ResultSet) -> Iterator[Fault]:
    first_of: dict[str, Dataset] = {}
    for document in results.objects:
        series = text(document, "SeriesInstanceUID")
        other = first_of.setdefault(series, document)
        for keyword, what in (("StudyInstanceUID", "studies"), ("Modality", "modalities")):
            if text(other, keyword) != text(document, keyword):
                yield Fault(
                    keyword, f"Series {series} is of two {what}.", text(document, "SOPInstanceUID")
                )


def _studies(results: ResultSet) -> Iterator[Fault]:
    """What General Study holds is the study's, so each of its objects says the same."""
    first_of: dict[str, Dataset] = {}
    for document in results.objects:
        other = first_of.setdefault(text(document, "StudyInstanceUID"), document)
        for keyword in ("AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
            if text(other, keyword) != text(document, keyword):
                yield Fault(
                    keyword,
                    "Another object of the study has another value.",
                    text(document, "SOPInstanceUID"),
                )


def _bounds(results: ResultSet) -> Iterator[Fault]:
    for document in results.of_kind("ANN"):
        matrix = _matrix_of_coordinates(results, document)
        if matrix is None:
            continue
        size, glass = matrix
        for path, group in groups(document):
            points = coordinates(document, group)
            if glass is not None:
                points = glass.to_px(points[:, :2])
            inside = (points >= -EDGE_PX) & (points <= np.array(size) + EDGE_PX)
            outside = int((~inside & np.isfinite(points)).any(axis=1).sum())
            if outside:
                yield Fault(
                    f"{path}PointCoordinatesData",
                    f"{outside} points lie outside {size[0]} × {size[1]} px.",
                    text(document, "SOPInstanceUID"),
                )


def _matrix_of_coordinates(
    results: ResultSet, document: Dataset
) -> tuple[tuple[int, int], Matrix | None] | None:
    """(size, how millimetres become its pixels); None where the image is not in the set."""
    if text(document, "AnnotationCoordinateType") == "3D":
        base = _base_of(results, document)
        glass = matrix_of(base) if base is not None else None
        return None if glass is None else (glass.size_px, glass)
    image = results.slide(
        text(first(document, "ReferencedImageSequence"), "ReferencedSOPInstanceUID")
    )
    if image is None:
        return None
    prefix = "" if text(document, "PixelOriginInterpretation") == "FRAME" else "TotalPixelMatrix"
    size = (whole(image, f"{prefix}Columns") or 0, whole(image, f"{prefix}Rows") or 0)
    return (size, None) if min(size) > 0 else None


def _base_level(results: ResultSet) -> Iterator[Fault]:
    for document in results.of_kind("ANN"):
        image = results.slide(
            text(first(document, "ReferencedImageSequence"), "ReferencedSOPInstanceUID")
        )
        if image is None or text(document, "AnnotationCoordinateType") != "2D":
            continue
        base = results.base_level(text(image, "SeriesInstanceUID"))
        if base is not None and whole(base, "TotalPixelMatrixColumns") != whole(
            image, "TotalPixelMatrixColumns"
        ):
            yield Fault(
                "ReferencedImageSequence[1]",
                f"{MICROSCOPY_VIEWER} draws 2D coordinates on the level they refer to: refer to "
                "the base level.",
                text(document, "SOPInstanceUID"),
            )


def _place(results: ResultSet) -> Iterator[Fault]:
    for document in results.objects:
        kind, uid = kind_of(document), text(document, "SOPInstanceUID")
        base = _base_of(results, document) if kind in {"ANN", "SEG", "PM"} else None
        if base is None:
            continue
        glass = matrix_of(base)
        ours, theirs = frame_of_reference(document), frame_of_reference(base)
        if ours and theirs and ours != theirs:
            yield Fault("FrameOfReferenceUID", "It is not the slide's frame of reference.", uid)
        matrix = matrix_of(document) if kind != "ANN" else None
        if matrix is not None and glass is not None and not _lies_on(matrix, glass):
            yield Fault(
                "TotalPixelMatrixOriginSequence[1]", "The matrix does not lie on the slide's.", uid
            )


def _base_of(results: ResultSet, document: Dataset) -> Dataset | None:
    """Base level of the slide that a document refers to first."""
    for _, _, uid in references_of(document):
        level = results.slide(uid)
        if level is not None:
            return results.base_level(text(level, "SeriesInstanceUID"))
    return None


def _lies_on(matrix: Matrix, glass: Matrix) -> bool:
    """Whether no corner lies further outside than one pixel, as a last tile may stick out."""
    width, height = matrix.size_px
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    on_glass = glass.to_px(matrix.to_mm(corners))
    pixel = float(np.abs(matrix.along_mm @ np.linalg.inv(glass.along_mm)).max()) + 1
    return bool(((on_glass >= -pixel) & (on_glass <= np.array(glass.size_px) + pixel)).all())


SET_RULES: tuple[Rule[ResultSet], ...] = (
    Rule("set-reference", "error", "PS3.3 10.8", "References can be resolved.", _resolvable),
    Rule("set-reference-class", "error", "PS3.3 10.8", "… and tell the class.", _reference_classes),
    Rule("set-reference-series", "error", "PS3.3 C.12.2", "… and the series.", _reference_series),
    Rule("set-uid-unique", "error", "PS3.5 9", "No two objects share a UID.", _unique),
    Rule("set-series", "error", "PS3.3 A.1.2.3", "A series is of one study and kind.", _series),
    Rule("set-study", "error", "PS3.3 C.7.2.1", "A study is one for all its objects.", _studies),
    Rule("set-place", "error", "PS3.3 C.7.4.1", "Results lie on the slide.", _place),
    Rule("ann-bounds", "error", "PS3.3 C.37.1.2", "Coordinates lie on the image.", _bounds),
    Rule("view-base-level", "warning", MICROSCOPY_VIEWER, "2D: the base level.", _base_level),
)
