"""Frames of one level → pixels; what several tiles show is decoded once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from cachetools import LRUCache

from dicom_io.decoding import PixelFormat, decode_frame
from dicom_io.errors import FrameInvalid
from dicom_io.frame_table import Key
from dicom_io.pixel_format import told
from dicom_io.pyramid import Level
from dicom_io.read_budget import ReadBudget
from dicom_io.recycled_memory import RecycledMemory
from models.records import UInt8


class LevelDecoder:
    """Decodes frames, and keeps pixels for tiles that come later. May be used from many threads.

    A tile with a halo of 64 px around a core of 2 × 2 frames shows 4 × 4: without what is kept,
    each frame of the slide is decoded four times.

    Parameters
    ----------
    level
    colours
        Applied to what was decoded; None leaves it as it is.
    budget
        Told of what is decoded.
    kept_bytes
        Of pixels that are kept; those that were not shown for longest go first.
    """

    def __init__(
        self,
        level: Level,
        colours: Callable[[UInt8], UInt8] | None,
        budget: ReadBudget,
        kept_bytes: int,
    ) -> None:
        width, height = level.tile_size_px
        self._level, self._colours, self._budget = level, colours, budget
        most = max(1, kept_bytes // (3 * width * height))
        self._forms: dict[int, PixelFormat] = {}
        self._kept: LRUCache[Key, Future[UInt8]] = LRUCache(most)
        self._lock = threading.Lock()
        self._memory = RecycledMemory((height, width, 3))

    def shown(self, key: Key, stored: bytes) -> UInt8:
        """Pixels (H, W, 3) of a frame, which nobody may change.

        Raises
        ------
        FrameInvalid
            Names the SOP Instance UID and the frame number as DICOM counts it.
        PixelsUnsupported
            They are stored as something that cannot be read here.
        BudgetExceeded
        """
        with self._lock:
            known = self._kept.get(key)
            if known is None:
                pixels = self._kept[key] = Future()
        if known is not None:
            return known.result()  # whoever came first may still be at it
        try:
            canvas = self._memory.array()
            self.fill(key, stored, canvas)
            pixels.set_result(canvas)
        except BaseException as error:
            pixels.set_exception(error)
            raise
        return canvas

    def fill(self, key: Key, stored: bytes, canvas: UInt8) -> None:
        """Decode a frame to where it belongs: `canvas` (H, W, 3), contiguous.

        Raises
        ------
        FrameInvalid, PixelsUnsupported, BudgetExceeded
            As :meth:`shown`.
        """
        (instance, number), level = key, self._level
        width, height = level.tile_size_px
        self._budget.decoded(width * height)
        form = self._forms.get(instance) or self._form(instance, stored)
        try:
            decode_frame(stored, form, canvas)
        except ValueError as error:
            raise FrameInvalid(
                f"Frame {number + 1} of instance {level.instance_uids[instance]} {error}:"
                " store the instance again, complete."
            ) from error
        if self._colours is not None:
            canvas[:] = self._colours(canvas)

    def _form(self, instance: int, first: bytes) -> PixelFormat:
        """How the frames of an instance are stored, of which this one is decoded first."""
        level = self._level
        said = PixelFormat(
            level.transfer_syntax_uids[instance],
            level.photometric_interpretation,
            level.tile_size_px,
            level.planar,
        )
        form = told(first, said, level.instance_uids[instance])
        return self._forms.setdefault(instance, form)
