"""Boxes of the slide → decoded tiles: only the frames that are needed, streamed.

Three things go on at a time: frames are fetched in windows of many tiles, one window ahead;
batches of tiles are decoded on all cores as soon as their frames are there, some ahead; and the
consumer works on the batch it has. An archive that reads the whole file for every request is so
asked seldom. Tiles that overlap show the same frames: compressed ones are kept for long, decoded
ones for tiles that come soon. Memory is bounded by :class:`ReadSettings`, however large the slide,
and however much of it a tile shows: a batch that shows more than a window of frames is read by
fewer tiles at a time, or by parts of tiles.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from queue import SimpleQueue

import numpy as np
from cachetools import LRUCache

from dicom_io.colour import profile_read, to_srgb
from dicom_io.decoding import EXPLICIT_LE
from dicom_io.frame_table import Key
from dicom_io.level_decoder import LevelDecoder
from dicom_io.pacs import InstanceReference, Pacs
from dicom_io.read_budget import most_frame_bytes
from dicom_io.recycled_memory import RecycledMemory
from dicom_io.request_size import FIRST_FRAMES
from dicom_io.slide import Level, Slide
from dicom_io.slide_settings import ReadSettings
from dicom_io.tile_pixels import bytes_at_work, decoded_tiles
from dicom_io.tile_plan import (
    Plan,
    Plans,
    choose_level,
    frames_touching,
    in_parts,
    plan_tiles,
)
from models.ahead import mapped_ahead
from models.records import Float64, Int64, Regions, Tiles

TYPICAL_COMPRESSION = 8


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
    most_px = settings.window_bytes / _stored_bytes_per_px(plans.level)
    parts, corner = in_parts(plans, most_px)
    at_a_time = _at_a_time(parts, most_px, batch_size)
    with closing(_read(pacs, slide, parts, at_a_time, settings)) as tiles:
        if parts is plans and at_a_time == batch_size:
            yield from tiles
        else:
            yield from _put_together(tiles, plans, corner, batch_size)


def _at_a_time(plans: Plans, most_px: float, batch_size: int) -> int:
    """Tiles whose frames are fetched together: no more than a window of those that take many."""
    if plans.as_stored:
        return batch_size
    return max(1, min(batch_size, int(most_px / float(np.prod(plans.shown_px)))))


def _put_together(
    parts: Iterable[Tiles], plans: Plans, corner: Int64, batch_size: int
) -> Iterator[Tiles]:
    """Whole tiles in whole batches from parts of tiles, which lie in them at `corner`."""
    width, height = plans.size
    memory = RecycledMemory((batch_size, height, width, 3))
    rest = (each for tiles in parts for each in zip(tiles.rgb, tiles.valid, strict=True))
    for start in range(0, len(plans.box_px), batch_size):
        origin_px = plans.box_px[start : start + batch_size, :2]
        rgb = memory.array()[: len(origin_px)]
        valid = np.empty(rgb.shape[:3], np.bool_)
        for index in range(len(origin_px)):
            for (x, y), (pixels, known) in zip(corner.tolist(), rest, strict=False):
                here = np.s_[index, y : y + pixels.shape[0], x : x + pixels.shape[1]]
                rgb[here], valid[here] = pixels, known
        yield Tiles(rgb, origin_px.copy(), plans.px_per_tile_px, valid)


def _read(
    pacs: Pacs, slide: Slide, plans: Plans, at_a_time: int, settings: ReadSettings
) -> Generator[Tiles, None, None]:
    """Tiles as they are planned, so many in each record."""
    colours = to_srgb(profile_read(slide, pacs.bulk_data)) if settings.icc == "srgb" else None
    threads = _threads(plans, settings)
    most_waiting = min(2 * threads, _most_waiting(plans, at_a_time, settings))
    fetcher = _Fetcher(pacs, slide, plans.level, settings, _batches(plans, at_a_time))
    memory = RecycledMemory((at_a_time, plans.size[1], plans.size[0], 3))
    decoder = LevelDecoder(plans.level, colours, pacs.budget, settings.frames_bytes)

    def decoded(work: tuple[tuple[Plan, ...], Mapping[Key, bytes]]) -> Tiles:
        return decoded_tiles(plans, *work, decoder, memory.array())

    with ThreadPoolExecutor(threads) as decoders, ThreadPoolExecutor(1) as ahead:
        try:
            yield from mapped_ahead(decoders, decoded, _one_ahead(ahead, fetcher), most_waiting)
        finally:
            decoders.shutdown(wait=False, cancel_futures=True)
            ahead.shutdown(wait=False, cancel_futures=True)


def _threads(plans: Plans, settings: ReadSettings) -> int:
    """Decoding threads: fewer where each needs much memory to bring its tiles to size."""
    threads = settings.threads or (os.cpu_count() or 1) + 1
    if plans.as_stored:
        return threads
    return max(1, min(threads, settings.decoded_bytes // bytes_at_work(plans)))


def _most_waiting(plans: Plans, at_a_time: int, settings: ReadSettings) -> int:
    """Batches that are decoded or wait for it: their pixels and their frames take memory."""
    width, height = plans.size
    pixels = 3 * width * height * at_a_time
    frames = _stored_bytes_per_px(plans.level) * float(np.prod(plans.shown_px)) * at_a_time
    return max(2, min(settings.decoded_bytes // pixels, int(settings.cache_bytes / frames)))


def _stored_bytes_per_px(level: Level) -> float:
    """An estimate before any frame was seen."""
    return 3.0 if level.transfer_syntax_uids[0] == EXPLICIT_LE else 3.0 / TYPICAL_COMPRESSION


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
        # Compressed frames for tiles that come later.
        self._cache: LRUCache[Key, bytes] = LRUCache(settings.cache_bytes, getsizeof=len)
        self._frames_seen = self._bytes_seen = 0
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
        # At first one request, so that the first cells are found soon.
        most = FIRST_FRAMES
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
        typical = width * height * _stored_bytes_per_px(self._level)
        if self._frames_seen:
            typical = self._bytes_seen / self._frames_seen
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
                self._keep((instance, number), frame)
                yield

    def _keep(self, key: Key, frame: bytes) -> None:
        self._frames_seen += 1
        self._bytes_seen += len(frame)
        if len(frame) <= self._cache.maxsize:
            self._cache[key] = frame


def _keys(batch: Iterable[Plan]) -> Iterator[Key]:
    return (key for plan in batch for key, _, _ in plan.places)


def _batches(plans: Iterable[Plan], size: int) -> Iterator[tuple[Plan, ...]]:
    rest = iter(plans)
    while batch := tuple(islice(rest, size)):
        yield batch


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
