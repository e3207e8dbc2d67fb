"""Faults of annotations, and what viewers cannot draw."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from tests.kit.bases import Case


def group(case: Case, number: int = 1) -> Dataset:
    found: Dataset = case.ann.AnnotationGroupSequence[number - 1]
    return found


def points(item: Dataset) -> np.ndarray:
    return np.frombuffer(item.PointCoordinatesData, "<f4").reshape(-1, 2).copy()


def set_points(item: Dataset, changed: np.ndarray) -> None:
    item.PointCoordinatesData = changed.astype("<f4").tobytes()


def starts(item: Dataset) -> np.ndarray:
    return np.frombuffer(item.LongPrimitivePointIndexList, "<i4").copy()


def set_starts(item: Dataset, changed: np.ndarray) -> None:
    item.LongPrimitivePointIndexList = changed.astype("<i4").tobytes()


def group_number_left_out(case: Case) -> None:
    for item in case.ann.AnnotationGroupSequence[1:]:
        item.AnnotationGroupNumber += 1


def group_number_twice(case: Case) -> None:
    group(case, 2).AnnotationGroupNumber = 1


def group_uid_twice(case: Case) -> None:
    group(case, 2).AnnotationGroupUID = group(case, 1).AnnotationGroupUID


def count_of_another(case: Case) -> None:
    group(case).NumberOfAnnotations += 1


def half_a_point(case: Case) -> None:
    # A value more at the end, so that all that the index list names is still there.
    group(case).PointCoordinatesData += b"\0\0\0\0"


def coordinate_not_a_number(case: Case) -> None:
    changed = points(group(case))
    changed[0, 0] = np.nan
    set_points(group(case), changed)


def coordinate_outside(case: Case) -> None:
    changed = points(group(case))
    changed[:4, 0] += case.slide.TotalPixelMatrixColumns
    set_points(group(case), changed)


def coordinate_negative(case: Case) -> None:
    changed = points(group(case))
    changed[0, 0] = -20
    set_points(group(case), changed)


def index_list_missing(case: Case) -> None:
    del group(case).LongPrimitivePointIndexList


def index_list_from_zero(case: Case) -> None:
    set_starts(group(case), starts(group(case)) - 1)


def index_list_backwards(case: Case) -> None:
    changed = starts(group(case))
    changed[1], changed[2] = changed[2], changed[1]
    set_starts(group(case), changed)


def index_list_too_short(case: Case) -> None:
    set_starts(group(case), starts(group(case))[:-1])


def index_beyond_points(case: Case) -> None:
    changed = starts(group(case))
    changed[-1] = 2 * len(points(group(case))) + 1
    set_starts(group(case), changed)


def polygon_closed_twice(case: Case) -> None:
    item = group(case)
    changed, first_values = points(item), starts(item)
    end = (first_values[1] - 1) // 2
    set_points(item, np.insert(changed, end, changed[0], axis=0))
    first_values[1:] += 2
    set_starts(item, first_values)


def polygon_of_two_points(case: Case) -> None:
    item = group(case)
    changed, first_values = points(item), starts(item)
    end = (first_values[1] - 1) // 2
    set_points(item, np.delete(changed, range(2, end), axis=0))
    first_values[1:] -= 2 * (end - 2)
    set_starts(item, first_values)


def rectangle_skewed(case: Case) -> None:
    changed = points(group(case))
    changed[2, 0] -= 10
    set_points(group(case), changed)


def coordinates_twice(case: Case) -> None:
    group(case).DoublePointCoordinatesData = points(group(case)).astype("<f8").tobytes()


def coordinates_missing(case: Case) -> None:
    del group(case).PointCoordinatesData


def common_z_in_2d(case: Case) -> None:
    group(case).CommonZCoordinateValue = [0.0]


def pixel_origin_missing(case: Case) -> None:
    del case.ann.PixelOriginInterpretation


def referenced_image_missing(case: Case) -> None:
    del case.ann.ReferencedImageSequence


def frame_of_reference_missing(case: Case) -> None:
    """Flat on the glass: pixels of the slide as millimetres, one Z for all."""
    ann, slide = case.ann, case.slide
    ann.AnnotationCoordinateType = "3D"
    del ann.PixelOriginInterpretation
    from conformance.geometry import matrix_of

    glass = matrix_of(slide)
    assert glass is not None
    for item in ann.AnnotationGroupSequence:
        set_points(item, glass.to_mm(points(item).astype(float)))
        item.CommonZCoordinateValue = [0.0]
        item.AnnotationAppliesToAllZPlanes = "NO"
    ann.pop("FrameOfReferenceUID", None)
    ann.pop("PositionReferenceIndicator", None)


def algorithm_missing(case: Case) -> None:
    del group(case).AnnotationGroupAlgorithmIdentificationSequence


def measurement_values_short(case: Case) -> None:
    values = group(case).MeasurementsSequence[0].MeasurementValuesSequence[0]
    values.FloatingPointValues = values.FloatingPointValues[:-4]


def measurement_index_outside(case: Case) -> None:
    values = group(case).MeasurementsSequence[0].MeasurementValuesSequence[0]
    listed = np.arange(1, len(values.FloatingPointValues) // 4 + 1, dtype="<u4")
    listed[-1] += 5
    values.AnnotationIndexList = listed.tobytes()


def optical_paths_not_named(case: Case) -> None:
    group(case).AnnotationAppliesToAllOpticalPaths = "NO"


def viewer_series_missing(case: Case) -> None:
    case.ann.pop("ReferencedSeriesSequence", None)


def viewer_frame_origin(case: Case) -> None:
    case.ann.PixelOriginInterpretation = "FRAME"
    case.ann.ReferencedImageSequence[0].ReferencedFrameNumber = 1
    for item in case.ann.AnnotationGroupSequence:
        set_points(item, points(item) % 200)


def viewer_other_level(case: Case) -> None:
    """Half the size, and half the coordinates."""
    levels = sorted(
        (each for each in case.objects if each.Modality == "SM"),
        key=lambda level: -int(level.TotalPixelMatrixColumns),
    )
    ann = case.ann
    ann.ReferencedImageSequence[0].ReferencedSOPInstanceUID = levels[1].SOPInstanceUID
    for item in ann.AnnotationGroupSequence:
        set_points(item, points(item) / 2)


def viewer_too_many(case: Case) -> None:
    item = group(case)
    one = points(item)[:6]
    set_points(item, np.tile(one, (100_000, 1)))
    set_starts(item, np.arange(100_000) * 12 + 1)
    item.NumberOfAnnotations = 100_000
    values = item.MeasurementsSequence[0].MeasurementValuesSequence[0]
    values.FloatingPointValues = np.ones(100_000, "<f4").tobytes()
