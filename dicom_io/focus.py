"""The sharpest focal plane of each region of a slide, told from a sample."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_io.frame_table import in_planes
from dicom_io.frames import read_tiles
from dicom_io.pacs import Pacs
from dicom_io.slide import Level, Slide, at_plane
from dicom_io.slide_settings import ReadSettings, SlideSettings
from dicom_io.tile_plan import level_scale
from models.records import Float64, Regions, UInt8

log = logging.getLogger(__name__)

# One look at every plane for so many tiles along x and y: focus drifts slowly over a smear.
BLOCK_TILES = 8
SAMPLE_PX = 512


def in_focus(
    pacs: Pacs,
    slide: Slide,
    regions: Regions,
    settings: SlideSettings,
    reading: ReadSettings | None = None,
) -> Slide:
    """Show each part of the slide in the focal plane that is sharpest there.

    Around the best region of each block of 8 × 8 base-level tiles every plane is read; the block
    takes the one whose Laplacian varies most. Blocks without a region follow the nearest that
    has one.

    Parameters
    ----------
    pacs, slide
    regions
        Where cells lie.
    settings
        Unless they say sharpest, the slide is given back as it is.
    reading

    Raises
    ------
    dicom_io.errors.FrameInvalid, dicom_io.errors.PacsError
    """
    planes = len(slide.base.focal_planes)
    if settings.focal_plane != "sharpest" or planes == 1 or not len(regions.box_px):
        return slide
    block_px = BLOCK_TILES * np.array(slide.base.tile_size_px)
    block, box_px = _samples(slide, regions, block_px)
    sharpness = np.stack(
        [
            _sharpness(pacs, at_plane(slide, number), box_px, reading)
            for number in range(1, planes + 1)
        ]
    )
    best = sharpness.argmax(axis=0)
    log.info(
        "Series %s: planes 1 to %d are sharpest in %s of %d places",
        slide.series_uid,
        planes,
        np.bincount(best, minlength=planes).tolist(),
        len(best),
    )
    plane_of_block = _spread(best, block, _blocks(slide, block_px))
    levels = (_focused(slide, level, plane_of_block, block_px) for level in slide.levels)
    said = f"of {planes} the sharpest in each block of {BLOCK_TILES} × {BLOCK_TILES} tiles"
    return replace(slide, levels=tuple(levels), focal_plane=said)


def _blocks(slide: Slide, block_px: NDArray[np.int64]) -> tuple[int, int]:
    """Rows and columns of blocks."""
    columns, rows = -(-np.array(slide.base.size_px) // block_px)
    return int(rows), int(columns)


def _samples(
    slide: Slide, regions: Regions, block_px: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Float64]:
    """(B, 2) row and column of each block that has a region, and a box around its best one."""
    centre = (regions.box_px[:, :2] + regions.box_px[:, 2:]) / 2
    rows, columns = _blocks(slide, block_px)
    column, row = np.clip(centre // block_px, 0, (columns - 1, rows - 1)).astype(np.int64).T
    best_first = np.argsort(-regions.score, kind="stable")
    _, first = np.unique((row * columns + column)[best_first], return_index=True)
    chosen = best_first[first]
    half = np.minimum(slide.base.tile_size_px, SAMPLE_PX) / 2
    corner = np.floor(centre[chosen] - half)
    return (
        np.stack([row[chosen], column[chosen]], axis=1),
        np.concatenate([corner, corner + 2 * half], axis=1),
    )


def _sharpness(pacs: Pacs, slide: Slide, box_px: Float64, settings: ReadSettings | None) -> Float64:
    tiles = read_tiles(pacs, slide, box_px, slide.base.um_per_px, settings=settings)
    return np.array([_variation(rgb) for batch in tiles for rgb in batch.rgb])


def _variation(rgb: UInt8) -> float:
    """Variance of the Laplacian of the green channel, in which stained nuclei stand out."""
    return float(ndimage.laplace(rgb[..., 1].astype(np.float32)).var())


def _spread(
    best: NDArray[np.int64], block: NDArray[np.int64], shape: tuple[int, int]
) -> NDArray[np.int64]:
    """(rows, columns) of blocks: each takes the plane of the nearest sampled one."""
    plane = np.zeros(shape, np.int64)
    unknown = np.ones(shape, np.bool_)
    plane[tuple(block.T)] = best
    unknown[tuple(block.T)] = False
    row, column = ndimage.distance_transform_edt(
        unknown, return_distances=False, return_indices=True
    )
    nearest: NDArray[np.int64] = plane[row, column]
    return nearest


def _focused(
    slide: Slide, level: Level, plane_of_block: NDArray[np.int64], block_px: NDArray[np.int64]
) -> Level:
    """A level whose table takes each tile from the plane of its block."""
    if len(level.focal_planes) != len(slide.base.focal_planes):
        return level
    scale = level_scale(slide, level)
    x, y = level.frames.layout.centre_px
    limit_row, limit_column = np.array(plane_of_block.shape) - 1
    row = np.minimum(y * scale[1] // block_px[1], limit_row).astype(np.int64)
    column = np.minimum(x * scale[0] // block_px[0], limit_column).astype(np.int64)
    chosen = plane_of_block[row, column].ravel()
    return replace(level, frames=in_planes(level.focal_planes, chosen))
