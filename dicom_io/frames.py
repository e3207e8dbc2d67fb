"""Boxes of the slide → decoded tiles: only the frames that are needed, streamed.

Frames are fetched in windows of many tiles, one window ahead of the consumer, so that an archive
that reads the whole file for every request is asked seldom; a cache of compressed frames serves
tiles that overlap. Memory is bounded by :class:`ReadSettings`.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dicom_io.colour import Icc, icc_profile, to_srgb
from dicom_io.decoding import EXPLICIT_LE, PixelFormat, decode_frame
from dicom_io.errors import FrameInvalid
from dicom_io.frame_cache import FrameCache
from dicom_io.pacs import InstanceReference, Pacs
from dicom_io.resampling import resampled
from dicom_io.slide import Level, Slide
from models.records import Bool, Float64, Regions, Tiles, UInt8

# A level up to 1 % coarser than asked for serves, and one this close is not resampled.
SCALE_TOLERANCE = 0.01
TYPICAL_COMPRESSION = 8


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """Bounds of the reader.

    Attributes
    ----------
    cache_bytes
        Compressed frames kept for tiles that come later.
    window_bytes
        Compressed frames fetched at a time; two windows are held.
    threads
        Decoding threads; 0 takes one per processor.
    icc
        "srgb" brings pixels to sRGB by the slide's ICC profile; "none" takes them as they are
        stored, as models are trained.
    """

    cache_bytes: int = 128 * 2**20
    window_bytes: int = 32 * 2**20
    threads: int = 0
    icc: Icc = "none"


Key = tuple[int, int]
"""Instance of the level, 0-based frame."""

Place = tuple[Key, int, int]
"""Frame, its tile column and tile row."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """One tile: where its pixels lie in the level.

    Attributes
    ----------
    origin_px
        Base-level position of its top-left corner.
    corner, extent : (x, y)
        The same, and its size, in level pixels.
    places
        Frames to read.
    """

    origin_px: Float64
    corner: Float64
    extent: Float64
    places: tuple[Place, ...]


def choose_level(slide: Slide, um_per_px: float) -> Level:
    """Coarsest level that is at least as fine as asked for (1 % tolerance), else the finest."""
    fine = [level for level in slide.levels if level.um_per_px <= um_per_px * (1 + SCALE_TOLERANCE)]
    return fine[-1] if fine else slide.base


def level_scale(slide: Slide, level: Level) -> Float64:
    """Base-level pixels per pixel of `level`, along x and y; outer corners coincide."""
    scale: Float64 = np.array(level.spacing_mm) / np.array(slide.base.spacing_mm)
    return scale


def frame_boxes(slide: Slide, level: Level | None = None) -> Float64:
    """Frames of a level (the base level by default) as boxes, row by row.

    Returns
    -------
    (rows × columns, 4) float64
        x0, y0, x1, y1 in base-level pixels, clipped to the slide.
    """
    level = level or slide.base
    scale, (tile_width, tile_height) = level_scale(slide, level), level.tile_size_px
    columns, rows = grid_size(level)
    row, column = np.divmod(np.arange(rows * columns), columns)
    x0, y0 = column * tile_width * scale[0], row * tile_height * scale[1]
    x1, y1 = x0 + tile_width * scale[0], y0 + tile_height * scale[1]
    width, height = slide.base.size_px
    boxes: Float64 = np.stack([x0, y0, np.minimum(x1, width), np.minimum(y1, height)], axis=1)
    return boxes


def grid_size(level: Level) -> tuple[int, int]:
    """Frames over the level's matrix: (columns, rows)."""
    (width, height), (tile_width, tile_height) = level.size_px, level.tile_size_px
    return -(-width // tile_width), -(-height // tile_height)


def frames_touching(slide: Slide, level: Level, regions: Regions) -> Bool:
    """(rows, columns): which frames of a level share area with a region."""
    columns, rows = grid_size(level)
    touched = np.zeros((rows, columns), np.bool_)
    frame_px = level_scale(slide, level) * level.tile_size_px
    first = np.floor(regions.box_px[:, :2] / frame_px + 1e-9).astype(int)
    last = np.ceil(regions.box_px[:, 2:] / frame_px - 1e-9).astype(int)
    for (c0, r0), (c1, r1) in zip(np.maximum(first, 0), np.maximum(last, 0), strict=True):
        touched[r0:r1, c0:c1] = True
    return touched


def read_tiles(
    pacs: Pacs,
    slide: Slide,
    box_px: Float64,
    um_per_px: float,
    *,
    within: Regions | None = None,
    batch_size: int = 8,
    settings: ReadSettings | None = None,
) -> Generator[Tiles, None, None]:
    """Read boxes of the slide as tiles of one size.

    Parameters
    ----------
    pacs, slide
    box_px : (M, 4) float64
        x0, y0, x1, y1 in base-level pixels; may lie partly outside the slide.
    um_per_px
        Wanted. A level within 1 % is given as it is stored, at whole level pixels, so that
        ``Tiles.origin_px`` can differ from the box by half a level pixel.
    within
        Only frames that touch these are fetched; None fetches all.
    batch_size
        Tiles in each record; the last one may hold fewer.
    settings

    Yields
    ------
    Tiles
        In the order of `box_px`; white and not ``valid`` where there are no pixels.

    Raises
    ------
    FrameInvalid
        Names the SOP Instance UID and the frame number as DICOM counts it.
    dicom_io.errors.PacsError
    """
    settings = settings or ReadSettings()
    level = choose_level(slide, um_per_px)
    reader = _Reader(pacs, slide, level, settings)
    wanted = None if within is None else frames_touching(slide, level, within)
    px_per_tile_px = _px_per_tile_px(slide, level, um_per_px)
    size = _tile_size(slide, np.asarray(box_px, np.float64), um_per_px)
    plans = [
        _plan(
            level,
            level_scale(slide, level),
            corner,
            px_per_tile_px=px_per_tile_px,
            size=size,
            wanted=wanted,
        )
        for corner in np.asarray(box_px, np.float64)[:, :2]
    ]
    threads = settings.threads or os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as decoders, ThreadPoolExecutor(1) as ahead:
        try:
            batch: list[tuple[_Plan, UInt8, Bool]] = []
            windows = reader.windows(plans)
            coming = ahead.submit(next, windows, None)
            while (window := coming.result()) is not None:
                coming = ahead.submit(next, windows, None)
                for plan in window.plans:
                    batch.append((plan, *reader.tile(plan, window.frames, size, decoders)))
                    if len(batch) == batch_size:
                        yield _tiles(batch, px_per_tile_px)
                        batch = []
            if batch:
                yield _tiles(batch, px_per_tile_px)
        finally:
            decoders.shutdown(wait=False, cancel_futures=True)
            ahead.shutdown(wait=False, cancel_futures=True)


def _tiles(batch: Sequence[tuple[_Plan, UInt8, Bool]], px_per_tile_px: Float64) -> Tiles:
    return Tiles(
        rgb=np.stack([rgb for _, rgb, _ in batch]),
        origin_px=np.stack([plan.origin_px for plan, _, _ in batch]),
        px_per_tile_px=px_per_tile_px,
        valid=np.stack([valid for _, _, valid in batch]),
    )


def _px_per_tile_px(slide: Slide, level: Level, um_per_px: float) -> Float64:
    wanted = um_per_px / 1000 / np.array(slide.base.spacing_mm)
    stored = level_scale(slide, level)
    return stored if _as_stored(wanted / stored) else wanted


def _as_stored(level_px_per_tile_px: Float64) -> bool:
    return bool((np.abs(level_px_per_tile_px - 1) <= SCALE_TOLERANCE).all())


def _tile_size(slide: Slide, box_px: Float64, um_per_px: float) -> tuple[int, int]:
    """(width, height) in tile pixels that all boxes share."""
    um = 1000 * np.array(slide.base.spacing_mm)
    sizes = np.unique(np.rint((box_px[:, 2:] - box_px[:, :2]) * um / um_per_px), axis=0)
    if len(box_px) == 0:
        return 1, 1
    if len(sizes) != 1 or (sizes < 1).any():
        raise ValueError(f"boxes must have one size of at least one tile pixel, not {sizes}")
    return int(sizes[0, 0]), int(sizes[0, 1])


def _plan(
    level: Level,
    scale: Float64,
    origin_px: Float64,
    *,
    px_per_tile_px: Float64,
    size: tuple[int, int],
    wanted: Bool | None,
) -> _Plan:
    step = px_per_tile_px / scale
    corner = origin_px / scale
    if _as_stored(step):
        corner = np.rint(corner)
        origin_px = corner * scale
    extent = np.array(size) * step
    columns, rows = grid_size(level)
    limit = np.array([columns, rows])
    first = np.clip(np.floor(corner / level.tile_size_px), 0, limit).astype(int)
    last = np.clip(np.ceil((corner + extent) / level.tile_size_px), 0, limit).astype(int)
    places = [
        (key, column, row)
        for row in range(first[1], last[1])
        for column in range(first[0], last[0])
        if (wanted is None or wanted[row, column]) and (key := level.frame(column, row)) is not None
    ]
    return _Plan(origin_px, corner, extent, tuple(places))


@dataclass(frozen=True, slots=True)
class _Window:
    plans: tuple[_Plan, ...]
    frames: dict[Key, bytes]


class _Reader:
    """Frames of one level."""

    def __init__(self, pacs: Pacs, slide: Slide, level: Level, settings: ReadSettings) -> None:
        self._pacs = pacs
        self._slide = slide
        self._level = level
        self._settings = settings
        self._cache = FrameCache(settings.cache_bytes)
        self._colours = (
            to_srgb(icc_profile(slide.colour_metadata, pacs.bulk_data))
            if settings.icc == "srgb"
            else None
        )

    def windows(self, plans: Sequence[_Plan]) -> Iterator[_Window]:
        """Fetch for as many tiles at a time as the window's bytes allow."""
        start = 0
        while start < len(plans):
            limit = self._window_frames()
            keys: dict[Key, None] = {}
            stop = start
            while stop < len(plans) and (stop == start or len(keys) < limit):
                keys.update((key, None) for key, _, _ in plans[stop].places)
                stop += 1
            yield _Window(tuple(plans[start:stop]), self._fetched(list(keys)))
            start = stop

    def _window_frames(self) -> int:
        width, height = self._level.tile_size_px
        typical = width * height * 3
        if self._cache.mean_bytes is not None:
            typical = int(self._cache.mean_bytes)
        elif self._level.transfer_syntax_uids[0] != EXPLICIT_LE:
            typical //= TYPICAL_COMPRESSION
        most = self._pacs.frames_per_request * self._pacs.connections
        return max(1, min(most, self._settings.window_bytes // max(typical, 1)))

    def _fetched(self, keys: Sequence[Key]) -> dict[Key, bytes]:
        frames = {key: frame for key in keys if (frame := self._cache.get(key)) is not None}
        missing = sorted(set(keys) - set(frames))
        for instance in sorted({key[0] for key in missing}):
            numbers = [frame for i, frame in missing if i == instance]
            reference = InstanceReference(
                self._slide.study_uid, self._slide.series_uid, self._level.instance_uids[instance]
            )
            syntax = self._level.transfer_syntax_uids[instance]
            received = self._pacs.frames(reference, numbers, syntax)
            for number, frame in zip(numbers, received, strict=True):
                frames[instance, number] = frame
                self._cache.put((instance, number), frame)
        return frames

    def tile(
        self,
        plan: _Plan,
        frames: dict[Key, bytes],
        size: tuple[int, int],
        decoders: ThreadPoolExecutor,
    ) -> tuple[UInt8, Bool]:
        """Decode and join the frames of one tile: (H, W, 3) RGB and (H, W) validity."""
        tile_size = np.array(self._level.tile_size_px)
        corner = np.floor(plan.corner).astype(int)
        width, height = np.ceil(plan.corner + plan.extent).astype(int) - corner
        canvas = np.full((height, width, 3), 255, np.uint8)
        known = np.zeros((height, width), np.bool_)
        decoded = decoders.map(lambda place: self._decoded(place[0], frames), plan.places)
        for (_, column, row), pixels in zip(plan.places, decoded, strict=True):
            at = np.array([column, row]) * tile_size
            # The last frames of a row and of the matrix are padded beyond its edge.
            end = np.minimum(at + tile_size, self._level.size_px)
            x0, y0 = np.maximum(at, corner)
            x1, y1 = np.minimum(end, corner + np.array([width, height]))
            target = np.s_[y0 - corner[1] : y1 - corner[1], x0 - corner[0] : x1 - corner[0]]
            canvas[target] = pixels[y0 - at[1] : y1 - at[1], x0 - at[0] : x1 - at[0]]
            known[target] = True
        return resampled(canvas, known, plan.corner - corner, plan.extent, size)

    def _decoded(self, key: Key, frames: dict[Key, bytes]) -> UInt8:
        instance, frame = key
        level = self._level
        try:
            rgb = decode_frame(
                frames[key],
                PixelFormat(
                    level.transfer_syntax_uids[instance],
                    level.photometric_interpretation,
                    level.tile_size_px,
                    level.planar,
                ),
            )
        except ValueError as error:
            raise FrameInvalid(
                f"Frame {frame + 1} of instance {level.instance_uids[instance]} {error}:"
                " store the instance again, complete."
            ) from error
        return rgb if self._colours is None else self._colours(rgb)


def bytes_of_regions(pacs: Pacs, slide: Slide, regions: Regions, um_per_px: float) -> int:
    """Stored bytes of the frames that regions touch, each counted once.

    The mean of the frames received from `pacs` times their number: exact where nothing else was
    read with it and no frame came twice.
    """
    level = choose_level(slide, um_per_px)
    rows, columns = np.nonzero(frames_touching(slide, level, regions))
    places = zip(columns.tolist(), rows.tolist(), strict=True)
    stored = sum(level.frame(column, row) is not None for column, row in places)
    return round(stored * pacs.bytes_read / pacs.frames_read) if pacs.frames_read else 0


def bytes_slide(pacs: Pacs, slide: Slide) -> int:
    """Stored bytes of all frames of the slide's levels: an *estimate*.

    DICOMweb does not tell sizes, so it is the mean of the frames received from `pacs` so far
    times the number of frames stored; uncompressed levels are exact.
    """
    total = 0.0
    for level in slide.levels:
        columns, rows = grid_size(level)
        stored = sum(
            level.frame(column, row) is not None for row in range(rows) for column in range(columns)
        )
        width, height = level.tile_size_px
        mean = float(width * height * 3)
        if level.transfer_syntax_uids[0] != EXPLICIT_LE and pacs.frames_read:
            mean = pacs.bytes_read / pacs.frames_read
        total += stored * mean
    return round(total)
