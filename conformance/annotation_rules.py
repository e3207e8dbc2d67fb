"""Rules for Microscopy Bulk Simple Annotations (PS3.3 A.87, C.37.1)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset

from conformance.finding import Fault, Rule
from conformance.reading import content, numbers, paths, sequence, text, whole
from models.records import Float64, Int32

# Points of one annotation (PS3.3 C.37.1.2.1.1); those of lines and polygons vary.
POINTS = {"POINT": 1, "RECTANGLE": 4, "ELLIPSE": 4}
LISTED = frozenset({"POLYLINE", "POLYGON"})
FEWEST = {"POLYLINE": 2, "POLYGON": 3}
# Of a right angle, in parts of both sides: single floats of a matrix of 300 000 pixels need it.
RIGHT_ANGLE = 1e-2


def groups(document: Dataset) -> Iterator[tuple[str, Dataset]]:
    """(path ending in a slash, group)."""
    return paths(document, "AnnotationGroupSequence")


def values_per_point(document: Dataset, group: Dataset) -> int:
    """2 for pixels, and for millimetres with a common Z; else 3."""
    flat = text(document, "AnnotationCoordinateType") != "3D"
    return 2 if flat or "CommonZCoordinateValue" in group else 3


def coordinates(document: Dataset, group: Dataset) -> Float64:
    """Whole points of a group: (P, 2) pixels, or (P, 3) mm. Empty where there are none."""
    single = content(group, "PointCoordinatesData")
    values = np.frombuffer(single[: len(single) // 4 * 4], "<f4").astype(np.float64)
    if not len(single):
        double = content(group, "DoublePointCoordinatesData")
        values = np.frombuffer(double[: len(double) // 8 * 8], "<f8")
    width = values_per_point(document, group)
    points = values[: len(values) // width * width].reshape(-1, width)
    common = numbers(group, "CommonZCoordinateValue")
    if width == 2 and common and text(document, "AnnotationCoordinateType") == "3D":
        return np.column_stack([points, np.full(len(points), common[0])])
    return points


def _first_values(group: Dataset) -> Int32:
    """1-based number of the first value of each annotation, as the point index list has it."""
    stored = content(group, "LongPrimitivePointIndexList")
    return np.frombuffer(stored[: len(stored) // 4 * 4], "<i4")


def _starts(document: Dataset, group: Dataset) -> Int32 | None:
    """0-based number of the first point of each annotation; None for a broken index list."""
    listed = _first_values(group).astype(np.int64) - 1
    width = values_per_point(document, group)
    points = len(coordinates(document, group))
    broken = (
        not len(listed)
        or listed[0] != 0
        or (np.diff(listed) <= 0).any()
        or (listed % width).any()
        or listed[-1] >= points * width
    )
    return None if broken else (listed // width).astype(np.int32)


def _group_numbers(document: Dataset) -> Iterator[Fault]:
    for number, (path, group) in enumerate(groups(document), start=1):
        told = whole(group, "AnnotationGroupNumber")
        if told != number:
            yield Fault(
                f"{path}AnnotationGroupNumber",
                f"Group {number} of the sequence has the number {told}: they start at 1 and "
                "increase by 1.",
            )


def _group_uids(document: Dataset) -> Iterator[Fault]:
    seen: set[str] = set()
    for path, group in groups(document):
        uid = text(group, "AnnotationGroupUID")
        if uid in seen:
            yield Fault(f"{path}AnnotationGroupUID", "Two groups have the same UID.")
        seen.add(uid)


def _count(document: Dataset) -> Iterator[Fault]:
    for path, group in groups(document):
        graphic, told = text(group, "GraphicType"), whole(group, "NumberOfAnnotations")
        points = len(coordinates(document, group))
        if graphic in POINTS and points and told != points / POINTS[graphic]:
            yield Fault(
                f"{path}NumberOfAnnotations",
                f"{told} annotations of type {graphic} are told, and there are {points} points.",
            )


def _whole_points(document: Dataset) -> Iterator[Fault]:
    for path, group in groups(document):
        width = values_per_point(document, group)
        for keyword, size in (("PointCoordinatesData", 4), ("DoublePointCoordinatesData", 8)):
            if len(content(group, keyword)) % (size * width):
                yield Fault(f"{path}{keyword}", f"The values are not whole points of {width}.")


def _finite(document: Dataset) -> Iterator[Fault]:
    for path, group in groups(document):
        bad = int((~np.isfinite(coordinates(document, group))).any(axis=1).sum())
        if bad:
            yield Fault(f"{path}PointCoordinatesData", f"{bad} points are not finite numbers.")


def _index_list(document: Dataset) -> Iterator[Fault]:
    for path, group in groups(document):
        here = f"{path}LongPrimitivePointIndexList"
        graphic = text(group, "GraphicType")
        present = "LongPrimitivePointIndexList" in group
        if graphic in LISTED and not present:
            yield Fault(here, f"A group of type {graphic} has no point index list.")
        elif graphic in POINTS and present:
            yield Fault(here, f"A group of type {graphic} has a point index list.")
        elif graphic in LISTED:
            yield from _index_values(document, group, here)


def _index_values(document: Dataset, group: Dataset, here: str) -> Iterator[Fault]:
    listed = _first_values(group)
    told = whole(group, "NumberOfAnnotations")
    if len(listed) != told:
        yield Fault(here, f"The list has {len(listed)} entries for {told} annotations.")
    if len(listed) and _starts(document, group) is None:
        yield Fault(
            here,
            "The entries are not the numbers of first values: the first is 1, they increase, each "
            "is that of a point's first value, and none lies behind the coordinates.",
        )


def _polygons(document: Dataset) -> Iterator[Fault]:
    for path, group in groups(document):
        graphic = text(group, "GraphicType")
        points, starts = coordinates(document, group), _starts(document, group)
        if graphic not in LISTED or starts is None:
            continue
        lengths = np.diff(starts, append=len(points))
        short = int((lengths < FEWEST[graphic]).sum())
        if short:
            yield Fault(
                f"{path}PointCoordinatesData",
                f"{short} annotations have fewer points than a {graphic} needs.",
            )
        ends = starts + lengths - 1
        closed = int(((points[starts] == points[ends]).all(axis=1) & (lengths > 1)).sum())
        if graphic == "POLYGON" and closed:
            yield Fault(
                f"{path}PointCoordinatesData",
                f"{closed} polygons repeat their first point, which closes them twice.",
            )


def _rectangles(document: Dataset) -> Iterator[Fault]:
    for path, group in groups(document):
        points = coordinates(document, group)
        if text(group, "GraphicType") != "RECTANGLE" or not len(points) or len(points) % 4:
            continue
        corners = points.reshape(-1, 4, points.shape[1])
        sides = np.roll(corners, -1, axis=1) - corners
        turns = np.abs((sides * np.roll(sides, -1, axis=1)).sum(axis=2))
        size = np.linalg.norm(sides, axis=2)
        scale = np.maximum(size * np.roll(size, -1, axis=1), np.finfo(np.float32).tiny)
        bad = int(((turns / scale) > RIGHT_ANGLE).any(axis=1).sum())
        if bad:
            yield Fault(
                f"{path}PointCoordinatesData", f"{bad} rectangles have corners out of square."
            )


def _coordinates(document: Dataset) -> Iterator[Fault]:
    for path, group in groups(document):
        single, double = "PointCoordinatesData" in group, "DoublePointCoordinatesData" in group
        if single and double:
            yield Fault(path.rstrip("/"), "The group has single and double coordinates.")
        if not (
            content(group, "PointCoordinatesData") + content(group, "DoublePointCoordinatesData")
        ):
            yield Fault(path.rstrip("/"), "The group has no coordinates.")
        if text(document, "AnnotationCoordinateType") == "2D" and (
            "CommonZCoordinateValue" in group
        ):
            yield Fault(
                f"{path}CommonZCoordinateValue", "Coordinates in pixels have no common Z in mm."
            )


def _reference(document: Dataset) -> Iterator[Fault]:
    kind = text(document, "AnnotationCoordinateType")
    if kind == "2D":
        if not text(document, "PixelOriginInterpretation"):
            yield Fault("PixelOriginInterpretation", "It is not said where pixel (0, 0) lies.")
        if len(sequence(document, "ReferencedImageSequence")) != 1:
            yield Fault("ReferencedImageSequence", "2D coordinates refer to exactly one image.")
    if kind == "3D" and not text(document, "FrameOfReferenceUID"):
        yield Fault("FrameOfReferenceUID", "3D coordinates lie in no frame of reference.")


def _algorithm(document: Dataset) -> Iterator[Fault]:
    for path, group in groups(document):
        keyword = "AnnotationGroupAlgorithmIdentificationSequence"
        kind = text(group, "AnnotationGroupGenerationType")
        if kind in {"AUTOMATIC", "SEMIAUTOMATIC"} and not sequence(group, keyword):
            yield Fault(f"{path}{keyword}", f"An {kind} group names no algorithm.")


def _measurements(document: Dataset) -> Iterator[Fault]:
    for path, group in groups(document):
        annotations = whole(group, "NumberOfAnnotations") or 0
        for here, measurement in paths(group, "MeasurementsSequence", path):
            for place, item in paths(measurement, "MeasurementValuesSequence", here):
                yield from _measured(item, place, annotations)


def _measured(item: Dataset, path: str, annotations: int) -> Iterator[Fault]:
    values = len(content(item, "FloatingPointValues")) // 4
    if "AnnotationIndexList" not in item:
        if values != annotations:
            yield Fault(
                f"{path}FloatingPointValues", f"{values} values measure {annotations} annotations."
            )
        return
    stored = content(item, "AnnotationIndexList")
    listed = np.frombuffer(stored[: len(stored) // 4 * 4], "<u4")
    outside = ((listed < 1) | (listed > annotations)).any()
    if outside or len(np.unique(listed)) != len(listed) or len(listed) != values:
        yield Fault(
            f"{path}AnnotationIndexList",
            f"The list does not name one of the annotations 1 to {annotations} for each value.",
        )


def _optical_paths(document: Dataset) -> Iterator[Fault]:
    for path, group in groups(document):
        everywhere = text(group, "AnnotationAppliesToAllOpticalPaths")
        named = bool(text(group, "ReferencedOpticalPathIdentifier"))
        if everywhere == "NO" and not named:
            yield Fault(
                f"{path}ReferencedOpticalPathIdentifier",
                "The group applies to some optical paths and names none.",
            )
        if everywhere == "YES" and named:
            yield Fault(
                f"{path}ReferencedOpticalPathIdentifier",
                "The group applies to all optical paths and names some.",
            )


_MODULE = "PS3.3 C.37.1.2"
_GRAPHICS = "PS3.3 C.37.1.2.1.1"
ANNOTATION_RULES: tuple[Rule[Dataset], ...] = (
    Rule("ann-group-numbers", "error", _MODULE, "Groups are numbered 1 to N.", _group_numbers),
    Rule("ann-group-uids", "error", _MODULE, "Group UIDs are unique.", _group_uids),
    Rule("ann-count", "error", _MODULE, "As many annotations as told.", _count),
    Rule("ann-points", "error", _MODULE, "Coordinates are whole points.", _whole_points),
    Rule("ann-finite", "error", _MODULE, "Coordinates are finite.", _finite),
    Rule("ann-index-list", "error", _GRAPHICS, "Index lists fit their points.", _index_list),
    Rule("ann-polygons", "error", _GRAPHICS, "Lines and polygons are sound.", _polygons),
    Rule("ann-rectangles", "error", _GRAPHICS, "Rectangles are square-cornered.", _rectangles),
    Rule("ann-coordinates", "error", _MODULE, "One kind of coordinates.", _coordinates),
    Rule("ann-reference", "error", _MODULE, "Coordinates refer to something.", _reference),
    Rule("ann-algorithm", "error", _MODULE, "Machines are named.", _algorithm),
    Rule("ann-measurements", "error", _MODULE, "Values belong to annotations.", _measurements),
    Rule("ann-optical-paths", "error", _MODULE, "Optical paths are all or named.", _optical_paths),
)
