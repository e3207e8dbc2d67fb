"""A slide and its annotations in the archive → images with boxes and types, for training.

Annotations are Microscopy Bulk Simple Annotations of any origin: a public collection, or what this
node found and a person corrected in a viewer. The type of a cell comes from its group's
AnnotationPropertyTypeCodeSequence (PS3.3 C.37.1.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dicom_io.annotation import decode_annotation
from dicom_io.errors import InputError
from dicom_io.frames import read_tiles
from dicom_io.pacs import Pacs
from dicom_io.slide import Slide
from dicom_io.slide_settings import ReadSettings
from models.boxes import VISIBLE_SHARE, centres, covered
from models.records import Cells, Float64, UInt8

ANN_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.91.1"


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedTile:
    """One piece of a slide and the annotated cells in it.

    Attributes
    ----------
    rgb : (H, W, 3) uint8
        At the scale asked for.
    box_tile_px : (M, 4) float64
        x0, y0, x1, y1 in pixels of `rgb`, cut at its edges.
    types
        Keys of the cell types, one for each box.
    origin_px
        x, y of the tile's corner on the base level.
    """

    rgb: UInt8
    box_tile_px: Float64
    types: tuple[str, ...]
    origin_px: tuple[float, float]


def read_annotations(
    pacs: Pacs, study_uid: str, series_uid: str, slide: Slide | None = None
) -> list[Cells]:
    """Every ANN instance of a series, decoded.

    Parameters
    ----------
    pacs, study_uid, series_uid
    slide
        The one annotated, as :func:`dicom_io.annotation.decode_annotation` uses it.

    Raises
    ------
    InputError
        The series holds no annotations, or some that cannot be read.
    """
    found = [
        decode_annotation(pacs.retrieve_instance(study_uid, series_uid, uid), slide)
        for uid in _annotation_uids(pacs, study_uid, series_uid)
    ]
    if not found:
        raise InputError(f"Series {series_uid} holds no annotations: name an ANN series.")
    return found


def annotated_tiles(
    pacs: Pacs,
    slide: Slide,
    annotations: list[Cells],
    tile_px: int,
    um_per_px: float,
    settings: ReadSettings | None = None,
) -> Iterator[AnnotatedTile]:
    """Read the tiles of a grid that hold the middle of an annotated cell.

    Parameters
    ----------
    pacs, slide
    annotations
        Boxes in base-level pixels; points have no box and are refused.
    tile_px
        Side of a tile at `um_per_px`.
    um_per_px
    settings
        How frames are read.

    Raises
    ------
    InputError
        An annotation has no area, or one box is there twice.
    dicom_io.errors.PacsError, FrameInvalid
        As :func:`dicom_io.frames.read_tiles`.
    """
    box = np.concatenate([each.box_px for each in annotations])
    types = [each.classes[label] for each in annotations for label in each.label.tolist()]
    if (box[:, 2:] <= box[:, :2]).any():
        raise InputError(
            f"Series {slide.series_uid}: annotations with points have no boxes to learn from: "
            "annotate with rectangles or polygons."
        )
    if len(np.unique(box, axis=0)) < len(box):
        # One cell twice could never both be found.
        raise InputError(
            f"Series {slide.series_uid}: some of its annotated cells are there twice, box for box: "
            "name an annotation series with one revision of them."
        )
    side = tile_px * um_per_px / np.array(slide.base.spacing_um)
    place = np.unique(np.floor(centres(box) / side).astype(np.int64), axis=0)
    corner = place * side
    boxes = np.concatenate((corner, corner + side), 1)
    tiles = read_tiles(pacs, slide, boxes, um_per_px, batch_size=8, settings=settings)
    for batch in tiles:
        for rgb, origin in zip(batch.rgb, batch.origin_px, strict=True):
            yield _tile(rgb, origin, batch.px_per_tile_px, box, types)


def _tile(
    rgb: UInt8, origin: Float64, px_per_tile_px: Float64, box: Float64, types: list[str]
) -> AnnotatedTile:
    height, width = rgb.shape[:2]
    local = (box - np.tile(origin, 2)) / np.tile(px_per_tile_px, 2)
    limit = np.array([width, height, width, height], np.float64)
    # Also of a cell whose middle another tile has: what is seen of it is no background.
    shown = covered(local, np.array([0, 0, width, height], np.float64)) >= VISIBLE_SHARE
    return AnnotatedTile(
        rgb=rgb,
        box_tile_px=np.clip(local[shown], 0, limit),
        types=tuple(types[row] for row in np.flatnonzero(shown)),
        origin_px=(float(origin[0]), float(origin[1])),
    )


def _annotation_uids(pacs: Pacs, study_uid: str, series_uid: str) -> list[str]:
    """SOP Instance UIDs of the ANN instances of a series: archives list them in any order."""
    found = pacs.search_instances(study_uid, series_uid)
    return sorted(
        str(each["00080018"]["Value"][0])
        for each in found
        if each.get("00080016", {}).get("Value", [None])[0] == ANN_SOP_CLASS
    )
