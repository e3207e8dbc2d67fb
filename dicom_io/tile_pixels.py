"""Frames → the pixels of a tile: decoded, laid on a canvas, and brought to the wanted size.

A tile that is shown coarser than it is stored is made in bands of a few rows, from the top to the
bottom: at a sixteenth of the resolution a tile of 640 px shows 10 240 × 10 240 px of the slide,
which are nearly a gigabyte together with what resampling needs. Every frame is decoded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np

from dicom_io.frame_table import Key, Place
from dicom_io.level_decoder import LevelDecoder
from dicom_io.pyramid import Level
from dicom_io.resampling import filter_reach, resampled
from dicom_io.tile_layout import Box
from dicom_io.tile_plan import Plan, Plans
from models.records import Bool, Tiles, UInt8

# Level pixels of a band. It has some rows of the filter's reach at least, because bands that meet
# share the rows that the filter of both reaches.
BAND_PX = 2**18
BAND_REACHES = 8
# A canvas pixel has three bytes, four more as Pillow keeps it, and one that says if it is known.
CANVAS_BYTES_PER_PX = 8


def decoded_tiles(
    plans: Plans,
    batch: Sequence[Plan],
    frames: Mapping[Key, bytes],
    decoder: LevelDecoder,
    rgb: UInt8,
) -> Tiles:
    """Decode and join the frames of a batch of tiles.

    Parameters
    ----------
    plans, batch
    frames
        Stored bytes.
    decoder
        Of their level.
    rgb : (≥ N, H, W, 3) uint8
        Where the pixels are put.

    Raises
    ------
    FrameInvalid
    """
    rgb = rgb[: len(batch)]
    shown = _Frames(plans.level, frames, decoder)
    known = [_tile(plans, *each, shown) for each in zip(batch, rgb, strict=True)]
    return Tiles(
        rgb,
        np.stack([plan.origin_px for plan in batch]),
        plans.px_per_tile_px,
        _valid(known, rgb.shape[:3]),
    )


def bytes_at_work(plans: Plans) -> int:
    """Memory that a thread needs to bring a tile to size, beside the tile's own: an estimate."""
    tile_width, tile_height = plans.level.tile_size_px
    width, height = (math.ceil(float(shown)) for shown in plans.shown_px)
    band = min(height, _band_height(width, float(plans.step[1])))
    held = 3 * width * min(height, band + 2 * tile_height)
    return 3 * tile_width * tile_height + held + CANVAS_BYTES_PER_PX * width * band


def _valid(known: Sequence[Bool | None], shape: tuple[int, ...]) -> Bool:
    """Where tiles have pixels; takes memory only where one lacks some."""
    everywhere: Bool = np.broadcast_to(np.True_, shape)
    if all(each is None for each in known):
        return everywhere
    return np.stack([everywhere[0] if each is None else each for each in known])


@dataclass(frozen=True, slots=True)
class _Frames:
    """Frames of a level as tiles show them.

    Attributes
    ----------
    level, stored, decoder
        As of :func:`decoded_tiles`.
    """

    level: Level
    stored: Mapping[Key, bytes]
    decoder: LevelDecoder

    def fill(self, key: Key, canvas: UInt8) -> None:
        self.decoder.fill(key, self.stored[key], canvas)

    def piece(self, place: Place, part: Box) -> UInt8:
        """Some of a frame: the level pixels of a box that lies in it."""
        key, left, top = place
        x0, y0, x1, y1 = part
        pixels = self.decoder.shown(key, self.stored[key])
        return pixels[y0 - top : y1 - top, x0 - left : x1 - left]


class _HeldPieces:
    """Parts of frames that a tile shows, each kept until the last band that it reaches into."""

    def __init__(self, frames: _Frames, plan: Plan) -> None:
        self._frames, self._box = frames, plan.box
        # By their tops: a tile can show thousands of frames, and has many bands.
        by_top = sorted(plan.places, key=itemgetter(2))
        self._rows = [(top, list(row)) for top, row in groupby(by_top, itemgetter(2))]
        self._held: dict[Key, UInt8] = {}

    def begin(self, box: Box) -> list[Place]:
        """Frames that reach into a band, in the order in which they lie over one another."""
        level = self._frames.level
        height, start, end = level.tile_size_px[1], box[1], min(box[3], level.size_px[1])
        reaching = (row for top, row in self._rows if max(top, start) < min(top + height, end))
        places = sorted(place for row in reaching for place in row)
        self._held = {key: self._held[key] for key, _, _ in places if key in self._held}
        return places

    def piece(self, place: Place, part: Box) -> UInt8:
        """Some rows of a frame, as wide as the tile shows it."""
        key, left, top = place
        shown = _shared(self._frames.level, self._box, left, top)
        if key not in self._held:
            piece = self._frames.piece(place, shown)
            width, height = self._frames.level.tile_size_px
            # A view would keep all of a large frame for the corner that is seen of it.
            self._held[key] = piece.copy() if 2 * piece.size < 3 * width * height else piece
        return self._held[key][part[1] - shown[1] : part[3] - shown[1]]


def _tile(plans: Plans, plan: Plan, rgb: UInt8, frames: _Frames) -> Bool | None:
    """Fill one tile (H, W, 3); where it has pixels (H, W), None for everywhere."""
    if not plan.as_stored:
        return _in_bands(plans, plan, rgb, frames)
    if _is_one_frame(plans.level, plan):
        ((key, _, _),) = plan.places
        frames.fill(key, rgb)
        return None
    return _join(plans.level, plan.box, plan.places, frames.piece, rgb)


def _in_bands(plans: Plans, plan: Plan, rgb: UInt8, frames: _Frames) -> Bool | None:
    """Fill one tile from the top to the bottom; as :func:`_tile`."""
    pieces = _HeldPieces(frames, plan)
    known: Bool | None = None
    for start, end, box in _bands(plans, plan):
        left, top, right, bottom = box
        canvas = np.empty((bottom - top, right - left, 3), np.uint8)
        here = _join(plans.level, box, pieces.begin(box), pieces.piece, canvas)
        corner = plan.corner - (left, top - start * plans.step[1])
        size = plans.size[0], end - start
        rgb[start:end], seen = resampled(canvas, here, corner, plans.step, size)
        if seen is not None:
            known = np.ones(rgb.shape[:2], np.bool_) if known is None else known
            known[start:end] = seen
    return known


def _bands(plans: Plans, plan: Plan) -> Iterator[tuple[int, int, Box]]:
    """First row and end of each band, and the level pixels that its filter sees."""
    left, top, right, bottom = plan.box
    step, corner, height = float(plans.step[1]), float(plan.corner[1]), plans.size[1]
    reach = filter_reach(step)
    rows = max(1, int((_band_height(right - left, step) - 2 * reach) / step))
    for start in range(0, height, rows):
        end = min(start + rows, height)
        first = math.floor(corner + start * step) - reach
        last = math.ceil(corner + end * step) + reach
        yield start, end, (left, max(first, top), right, min(last, bottom))


def _band_height(width: int, step: float) -> int:
    """Level pixels, where none are cut off by the tile's edge."""
    return max(BAND_PX // width, BAND_REACHES * filter_reach(step))


def _join(
    level: Level,
    box: Box,
    places: Sequence[Place],
    piece: Callable[[Place, Box], UInt8],
    canvas: UInt8,
) -> Bool | None:
    """Lay frames on a canvas (h, w, 3) that shows a box; later ones over earlier ones.

    White where there is none; returns where there is (h, w), None for everywhere.
    """
    known = None
    parts = [_shared(level, box, left, top) for _, left, top in places]
    if not _cover(level, box, parts):
        known = np.zeros(canvas.shape[:2], np.bool_)
        canvas[:] = 255
    for place, part in zip(places, parts, strict=True):
        x0, y0, x1, y1 = part
        target = np.s_[y0 - box[1] : y1 - box[1], x0 - box[0] : x1 - box[0]]
        canvas[target] = piece(place, part)
        if known is not None:
            known[target] = True
    return known


def _cover(level: Level, box: Box, parts: Sequence[Box]) -> bool:
    """Whether what frames show of a box is all of it; False also where they may overlap."""
    seen_px = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in parts)
    return level.frames.layout.disjoint and seen_px == (box[2] - box[0]) * (box[3] - box[1])


def _is_one_frame(level: Level, plan: Plan) -> bool:
    """Whether a plan's box is that of its only frame."""
    if len(plan.places) != 1:
        return False
    ((_, left, top),) = plan.places
    width, height = level.tile_size_px
    frame = (left, top, left + width, top + height)
    return frame == plan.box == _shared(level, plan.box, left, top)


def _shared(level: Level, box: Box, left: int, top: int) -> Box:
    """What a frame shows of a box, in level pixels."""
    (width, height), (matrix_width, matrix_height) = level.tile_size_px, level.size_px
    # The last frames of a row and of the matrix are padded beyond its edge.
    return (
        max(left, box[0]),
        max(top, box[1]),
        min(left + width, matrix_width, box[2]),
        min(top + height, matrix_height, box[3]),
    )
