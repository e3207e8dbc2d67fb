"""Boxes of the slide → decoded tiles: only the frames that are needed, streamed.

Three things go on at a time: frames are fetched in windows of many tiles, one window ahead;
batches of tiles are decoded on all cores as soon as their frames are there, some ahead; and the
consumer works on the batch it has. An archive that reads the whole file for every request is so
asked seldom; a cache of compressed frames serves tiles that overlap. Memory is bounded by
:class:`ReadSettings`, however large the slide.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from queue import SimpleQueue

import numpy as np

from dicom_io.colour import profile_read, to_srgb
from dicom_io.decoding import EXPLICIT_LE, PixelFormat, decode_frame
from dicom_io.errors import FrameInvalid
from dicom_io.frame_cache import FrameCache
from dicom_io.frame_table import Key
from dicom_io.pacs import InstanceReference, Pacs
from dicom_io.read_budget import most_frame_bytes
from dicom_io.recycled_memory import RecycledMemory
from dicom_io.resampling import resampled
from dicom_io.slide import Level, Slide
from dicom_io.slide_settings import ReadSettings
from dicom_io.tile_layout import Box
from dicom_io.tile_plan import Plan, Plans, choose_level, frames_touching, plan_tiles
from models.ahead import mapped_ahead
from models.records import Bool, Float64, Regions, Tiles, UInt8

TYPICAL_COMPRESSION = 8
# The first window is small, so that the first cells are found soon.
FIRST_WINDOW_FRAMES = 128

_format = functools.lru_cache(maxsize=64)(PixelFormat)  # the same few, once for every frame

Colours = Callable[[UInt8], UInt8] | None


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
    dicom_io.errors.BudgetExceeded
        Of the archive's budget.
    """
    settings = settings or ReadSettings()
    plans = plan_tiles(slide, box_px, um_per_px, within)
    colours = to_srgb(profile_read(slide, pacs.bulk_data)) if settings.icc == "srgb" else None
    threads = settings.threads or (os.cpu_count() or 1) + 1
    batch_bytes = 3 * plans.size[0] * plans.size[1] * batch_size
    most_waiting = min(2 * threads, max(2, settings.decoded_bytes // batch_bytes))
    fetcher = _Fetcher(pacs, slide, plans.level, settings, _batches(plans, batch_size))
    memory = RecycledMemory((batch_size, plans.size[1], plans.size[0], 3))

    width, height = plans.level.tile_size_px

    def decoded(work: tuple[tuple[Plan, ...], Mapping[Key, bytes]]) -> Tiles:
        pacs.budget.decoded(sum(len(plan.places) for plan in work[0]) * width * height)
        return _decoded(plans, *work, colours, memory.array())

    with ThreadPoolExecutor(threads) as decoders, ThreadPoolExecutor(1) as ahead:
        try:
            yield from mapped_ahead(decoders, decoded, _one_ahead(ahead, fetcher), most_waiting)
        finally:
            decoders.shutdown(wait=False, cancel_futures=True)
            ahead.shutdown(wait=False, cancel_futures=True)


def _one_ahead(
    executor: Executor, fetcher: _Fetcher
) -> Iterator[tuple[tuple[Plan, ...], Mapping[Key, bytes]]]:
    """Each batch of tiles with its frames, while the next window is fetched."""

    def begun() -> tuple[_Window, Future[bool]]:
        window = _Window({}, SimpleQueue())
        return window, executor.submit(fetcher.fetch_next, window)

    coming = begun()
    while True:
        (window, fetched), coming = coming, begun()
        for batch in iter(window.ready.get, None):
            yield batch, window.frames
        if not fetched.result():
            return


@dataclass(frozen=True, slots=True)
class _Window:
    """Frames of many tiles, as they come.

    Attributes
    ----------
    frames
    ready
        Batches of tiles whose frames have come; None after the last.
    """

    frames: dict[Key, bytes]
    ready: SimpleQueue[tuple[Plan, ...] | None]


class _Fetcher:
    """Frames of one level, by windows; in one thread at a time."""

    def __init__(
        self,
        pacs: Pacs,
        slide: Slide,
        level: Level,
        settings: ReadSettings,
        batches: Iterator[tuple[Plan, ...]],
    ) -> None:
        self._pacs = pacs
        self._slide = slide
        self._level = level
        self._window_bytes = settings.window_bytes
        self._cache = FrameCache(settings.cache_bytes)
        self._windows = self._planned(batches)

    def fetch_next(self, window: _Window) -> bool:
        """Fill the next window; False if there is none."""
        try:
            batches, keys = next(self._windows, ((), set()))
            window.frames.update(self._kept(keys))
            arriving = self._arriving(sorted(keys - window.frames.keys()), window.frames)
            for batch in batches:
                for key in _keys(batch):
                    while key not in window.frames:
                        next(arriving)
                window.ready.put(batch)
            return bool(batches)
        finally:
            window.ready.put(None)

    def _planned(
        self, batches: Iterator[tuple[Plan, ...]]
    ) -> Iterator[tuple[list[tuple[Plan, ...]], set[Key]]]:
        """As many batches at a time as the window's bytes allow, with the frames they need."""
        most = FIRST_WINDOW_FRAMES
        held: list[tuple[Plan, ...]] = []
        keys: set[Key] = set()
        for batch in batches:
            more = keys.union(_keys(batch))
            if held and len(more) > min(most, self._most_frames()):
                yield held, keys
                most = self._pacs.frames_per_request * self._pacs.connections  # all at work
                held, more = [], set(_keys(batch))
            held.append(batch)
            keys = more
        if held:
            yield held, keys

    def _most_frames(self) -> int:
        """Frames that the window's bytes allow, in requests as large as may be."""
        width, height = self._level.tile_size_px
        typical = float(width * height * 3)
        if self._cache.mean_bytes is not None:
            typical = self._cache.mean_bytes
        elif self._level.transfer_syntax_uids[0] != EXPLICIT_LE:
            typical /= TYPICAL_COMPRESSION
        frames = max(1, int(self._window_bytes / max(typical, 1.0)))
        in_full_requests = frames - frames % self._pacs.frames_per_request
        return in_full_requests or frames

    def _kept(self, keys: set[Key]) -> dict[Key, bytes]:
        return {key: frame for key in keys if (frame := self._cache.get(key)) is not None}

    def _arriving(self, missing: Sequence[Key], frames: dict[Key, bytes]) -> Iterator[None]:
        """Put frames that the archive gives into `frames`, one by one."""
        most_bytes = most_frame_bytes(self._level.tile_size_px)
        for instance, of_instance in groupby(missing, lambda key: key[0]):
            numbers = [number for _, number in of_instance]
            reference = InstanceReference(
                self._slide.study_uid,
                self._level.series_uids[instance],
                self._level.instance_uids[instance],
            )
            syntax = self._level.transfer_syntax_uids[instance]
            received = self._pacs.frames(reference, numbers, syntax, most_bytes)
            for number, frame in zip(numbers, received, strict=True):
                frames[instance, number] = frame
                self._cache.put((instance, number), frame)
                yield


def _keys(batch: Iterable[Plan]) -> Iterator[Key]:
    return (key for plan in batch for key, _, _ in plan.places)


def _batches(plans: Iterable[Plan], size: int) -> Iterator[tuple[Plan, ...]]:
    rest = iter(plans)
    while batch := tuple(islice(rest, size)):
        yield batch


def _decoded(
    plans: Plans,
    batch: Sequence[Plan],
    frames: Mapping[Key, bytes],
    colours: Colours,
    rgb: UInt8,
) -> Tiles:
    """Decode and join the frames of a batch of tiles, in `rgb` (≥ N, H, W, 3)."""
    rgb = rgb[: len(batch)]
    known = [_tile(plans, *each, frames, colours) for each in zip(batch, rgb, strict=True)]
    return Tiles(
        rgb,
        np.stack([plan.origin_px for plan in batch]),
        plans.px_per_tile_px,
        _valid(known, rgb.shape[:3]),
    )


def _valid(known: Sequence[Bool | None], shape: tuple[int, ...]) -> Bool:
    """Where tiles have pixels; takes memory only where one lacks some."""
    everywhere: Bool = np.broadcast_to(np.True_, shape)
    if all(each is None for each in known):
        return everywhere
    return np.stack([everywhere[0] if each is None else each for each in known])


def _tile(
    plans: Plans, plan: Plan, rgb: UInt8, frames: Mapping[Key, bytes], colours: Colours
) -> Bool | None:
    """Fill one tile (H, W, 3); where it has pixels (H, W), None for everywhere."""
    if plan.as_stored:
        return _join(plans.level, plan, frames, colours, rgb)
    left, top, right, bottom = plan.box
    canvas = np.empty((bottom - top, right - left, 3), np.uint8)
    here = _join(plans.level, plan, frames, colours, canvas)
    if here is None:
        here = np.ones(canvas.shape[:2], np.bool_)
    rgb[:], known = resampled(canvas, here, plan.corner - (left, top), plan.extent, plans.size)
    return known


def _join(
    level: Level, plan: Plan, frames: Mapping[Key, bytes], colours: Colours, canvas: UInt8
) -> Bool | None:
    """Lay frames on a canvas (h, w, 3) that shows the plan's box; later ones over earlier ones.

    White where there is none; returns where there is (h, w), None for everywhere.
    """
    x_from, y_from, _, _ = plan.box
    if colours is None and _is_one_frame(level, plan):
        ((key, _, _),) = plan.places
        _pixels(level, key, frames[key], canvas)  # decoded to where it belongs
        return None
    known = None
    if not _covers(level, plan):
        known = np.zeros(canvas.shape[:2], np.bool_)
        canvas[:] = 255
    for key, left, top in plan.places:
        x0, y0, x1, y1 = _shared(level, plan.box, left, top)
        pixels = _pixels(level, key, frames[key])
        if colours is not None:
            pixels = colours(pixels)
        target = np.s_[y0 - y_from : y1 - y_from, x0 - x_from : x1 - x_from]
        canvas[target] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
        if known is not None:
            known[target] = True
    return known


def _is_one_frame(level: Level, plan: Plan) -> bool:
    """Whether a plan's box is that of its only frame."""
    if len(plan.places) != 1:
        return False
    ((_, left, top),) = plan.places
    width, height = level.tile_size_px
    frame = (left, top, left + width, top + height)
    return frame == plan.box == _shared(level, plan.box, left, top)


def _covers(level: Level, plan: Plan) -> bool:
    """Whether frames show all of a plan's box; False also where they may overlap."""
    boxes = (_shared(level, plan.box, left, top) for _, left, top in plan.places)
    seen_px = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes)
    x_from, y_from, x_to, y_to = plan.box
    return level.frames.layout.disjoint and seen_px == (x_to - x_from) * (y_to - y_from)


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


def _pixels(level: Level, key: Key, stored: bytes, out: UInt8 | None = None) -> UInt8:
    instance, number = key
    try:
        return decode_frame(
            stored,
            _format(
                level.transfer_syntax_uids[instance],
                level.photometric_interpretation,
                level.tile_size_px,
                level.planar,
            ),
            out,
        )
    except ValueError as error:
        raise FrameInvalid(
            f"Frame {number + 1} of instance {level.instance_uids[instance]} {error}:"
            " store the instance again, complete."
        ) from error


def bytes_of_regions(pacs: Pacs, slide: Slide, regions: Regions, um_per_px: float) -> int:
    """Stored bytes of the frames that regions touch, each counted once.

    The mean of the frames received from `pacs` times their number: exact where nothing else was
    read with it and no frame came twice.
    """
    level = choose_level(slide, um_per_px)
    stored = level.frames.count(frames_touching(slide, level, regions))
    return round(stored * pacs.bytes_read / pacs.frames_read) if pacs.frames_read else 0


def bytes_slide(pacs: Pacs, slide: Slide) -> int:
    """Stored bytes of all frames of the slide's levels: an *estimate*.

    DICOMweb does not tell sizes, so it is the mean of the frames received from `pacs` so far
    times the number of frames stored; uncompressed levels are exact.
    """
    total = 0.0
    for level in slide.levels:
        width, height = level.tile_size_px
        mean = float(width * height * 3)
        if level.transfer_syntax_uids[0] != EXPLICIT_LE and pacs.frames_read:
            mean = pacs.bytes_read / pacs.frames_read
        total += level.frames.count() * mean
    return round(total)
