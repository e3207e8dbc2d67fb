"""Faults of segmentations and slides."""

from __future__ import annotations

from tests.kit.bases import Case


def segment_numbers(case: Case) -> None:
    case.seg.SegmentSequence[0].SegmentNumber = 2
    for groups in (
        case.seg.get("SharedFunctionalGroupsSequence", []),
        case.seg.get("PerFrameFunctionalGroupsSequence", []),
    ):
        for item in groups:
            if "SegmentIdentificationSequence" in item:
                item.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2


def segment_unknown(case: Case) -> None:
    frame = case.seg.PerFrameFunctionalGroupsSequence[0]
    frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 3


def segment_algorithm_missing(case: Case) -> None:
    del case.seg.SegmentSequence[0].SegmentAlgorithmName


def binary_of_eight_bits(case: Case) -> None:
    seg = case.seg
    seg.BitsAllocated, seg.BitsStored, seg.HighBit = 8, 8, 7
    seg.PixelData = bytes(seg.Rows * seg.Columns * int(seg.NumberOfFrames))


def frames_too_few(case: Case) -> None:
    seg = case.seg
    frame = seg.Rows * seg.Columns // 8
    seg.NumberOfFrames = int(seg.NumberOfFrames) - 1
    seg.PixelData = seg.PixelData[:-frame]


def frame_groups_too_few(case: Case) -> None:
    del case.seg.PerFrameFunctionalGroupsSequence[-1]


def segmentation_beside_the_slide(case: Case) -> None:
    origin = case.seg.TotalPixelMatrixOriginSequence[0]
    origin.XOffsetInSlideCoordinateSystem = float(origin.XOffsetInSlideCoordinateSystem) + 100


def matrix_of_no_rows(case: Case) -> None:
    case.slide.TotalPixelMatrixRows = 0


def spacing_missing(case: Case) -> None:
    del case.slide.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing


def orientation_skewed(case: Case) -> None:
    case.slide.ImageOrientationSlide = [0, -1, 0, -0.8, -0.6, 0]


def slide_frames_too_few(case: Case) -> None:
    case.slide.NumberOfFrames = int(case.slide.NumberOfFrames) - 1
