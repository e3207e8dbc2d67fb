"""How much of a slide may be read: a bound for what foreign data can make a reader do."""

from __future__ import annotations

import sys
import threading

from dicom_io.errors import BudgetExceeded

# A tile that does not compress is as long as its pixels, and one with padding or a scanner's notes
# in every frame, longer. The largest colour profile that is read has 16 MiB.
TIMES_UNCOMPRESSED, BESIDE_PIXELS_BYTES = 4, 16 * 2**20
MOST_FRAME_BYTES = 2**30
"""Of a frame of unknown size: 18 000 × 18 000 px that are not compressed."""


def most_frame_bytes(size_px: tuple[int, int]) -> int:
    """Most bytes that the stored frame of a tile can have."""
    width, height = size_px
    return TIMES_UNCOMPRESSED * 3 * width * height + BESIDE_PIXELS_BYTES


def most_of_frames(most_bytes: int, frames: int) -> int:
    """Most bytes of so many frames of one size together, each of `most_bytes` at most.

    What scanners write beside the pixels is small in most.
    """
    return most_bytes + (frames - 1) * max(most_bytes - BESIDE_PIXELS_BYTES, 0)


class ReadBudget:
    """Counts what is read of a slide, and ends it where it is too much; from any thread.

    Parameters
    ----------
    most_bytes
        Of frames, as the archive sends them.
    most_pixels
        Decoded; one that is decoded twice counts twice.
    """

    def __init__(self, most_bytes: int = sys.maxsize, most_pixels: int = sys.maxsize) -> None:
        self._most_bytes, self._most_pixels = most_bytes, most_pixels
        self._bytes = self._pixels = 0
        self._lock = threading.Lock()

    @property
    def bytes_fetched(self) -> int:
        return self._bytes

    @property
    def pixels_decoded(self) -> int:
        return self._pixels

    def fetched(self, n_bytes: int) -> None:
        """Count bytes that have come.

        Raises
        ------
        BudgetExceeded
        """
        with self._lock:
            self._bytes += n_bytes
        if self._bytes > self._most_bytes:
            raise exceeded("bytes of frames", "bytes_fetched", self._most_bytes)

    def decoded(self, n_pixels: int) -> None:
        """Count pixels that are about to be decoded.

        Raises
        ------
        BudgetExceeded
        """
        with self._lock:
            self._pixels += n_pixels
        if self._pixels > self._most_pixels:
            raise exceeded("decoded pixels", "pixels_decoded", self._most_pixels)


def exceeded(what: str, setting: str, most: float) -> BudgetExceeded:
    """The error of a budget that does not suffice, in one sentence."""
    return BudgetExceeded(
        f"The slide needs more than {most:,.15g} {what}, which is its budget: raise "
        f"budget.{setting} if slides may be so large, or leave this one out."
    )
