"""Rows of pixels, top to bottom → DICOM whole slide levels, without holding the slide in memory.

Each level takes rows, cuts them into tiles as soon as a row of tiles is full, and hands the rows
on, halved, to the next level.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Final

import numpy as np
import simplejpeg
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite

from models.records import UInt8

_ITEM: Final = b"\xfe\xff\x00\xe0"
_SEQUENCE_END: Final = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
# (7FE0,0010) OB of undefined length, explicit little endian: encapsulated, PS3.5 A.4.
_PIXEL_DATA: Final = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"


def level_size(size_px: tuple[int, int], level: int) -> tuple[int, int]:
    """Matrix (width, height) of a level that is 2^level times coarser than the base."""
    width, height = size_px
    for _ in range(level):
        width, height = -(-width // 2), -(-height // 2)
    return width, height


def write_pyramid(
    paths: Sequence[Path],
    headers: Sequence[Dataset],
    rows: Iterable[UInt8],
    quality: int,
    threads: int,
) -> None:
    """Write one VL Whole Slide Microscopy instance per level, TILED_FULL, JPEG baseline 4:2:2.

    Parameters
    ----------
    paths, headers
        One per level, the base first. A header is the whole data set but for the pixel data and
        the compression ratio; matrix size, tile size and frame count are taken from it.
    rows : (h, width, 3) uint8
        The base level from top to bottom, in pieces of any height.
    quality
        JPEG quality, 1 to 100.
    """
    with ThreadPoolExecutor(threads) as encoders:
        levels: list[_LevelWriter] = []
        for path, header in reversed(list(zip(paths, headers, strict=True))):
            coarser = levels[-1] if levels else None
            levels.append(_LevelWriter(path, header, coarser, encoders, quality))
        for piece in rows:
            levels[-1].add(piece)
        for level in reversed(levels):
            level.finish()


class _LevelWriter:
    """One level while it is written: rows that wait for a tile row, frames in a spool file."""

    def __init__(
        self,
        path: Path,
        header: Dataset,
        coarser: _LevelWriter | None,
        encoders: Executor,
        quality: int,
    ) -> None:
        self._path = path
        self._header = header
        self._coarser = coarser
        self._encoders = encoders
        # 4:2:2 is what photometric interpretation YBR_FULL_422 says.
        self._encode = partial(
            simplejpeg.encode_jpeg, quality=quality, colorspace="RGB", colorsubsampling="422"
        )
        self._waiting: list[UInt8] = []
        self._rows_waiting = 0
        self._frame_bytes: list[int] = []
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed in finish

    def add(self, rows: UInt8) -> None:
        """Take rows (h, width, 3); write what full tile rows they complete."""
        self._waiting.append(rows)
        self._rows_waiting += len(rows)
        tile_rows = int(self._header.Rows)
        if self._rows_waiting < tile_rows:
            return
        block = np.concatenate(self._waiting)
        full = len(block) // tile_rows * tile_rows
        # A copy, so that a few rows do not keep the whole block alive.
        self._waiting = [block[full:].copy()]
        self._rows_waiting = len(block) - full
        self._write(block[:full])

    def finish(self) -> None:
        """Write the last, partly filled tile row and the file itself."""
        if self._rows_waiting:
            self._write(np.concatenate(self._waiting))
        frames = int(self._header.NumberOfFrames)
        if len(self._frame_bytes) != frames:
            raise ValueError(
                f"{self._path.name}: {len(self._frame_bytes)} frames were made, "
                f"its header says {frames}"
            )
        raw = frames * int(self._header.Rows) * int(self._header.Columns) * 3
        self._header.LossyImageCompressionRatio = round(raw / sum(self._frame_bytes), 2)
        with self._path.open("wb") as file, self._spool:
            dcmwrite(file, self._header, enforce_file_format=True)
            file.write(_PIXEL_DATA + _basic_offset_table(self._frame_bytes))
            self._spool.seek(0)
            copyfileobj(self._spool, file, 1 << 20)
            file.write(_SEQUENCE_END)

    def _write(self, block: UInt8) -> None:
        """Encode a block of whole tile rows (the slide's last one may be short)."""
        tiles = _cut(block, int(self._header.Columns), int(self._header.Rows))
        for frame in self._encoders.map(self._encode, tiles):
            padded = frame + b"\x00" * (len(frame) % 2)
            self._spool.write(_ITEM + struct.pack("<I", len(padded)) + padded)
            self._frame_bytes.append(len(padded))
        if self._coarser is not None:
            self._coarser.add(_halve(block))


def _basic_offset_table(frame_bytes: Sequence[int]) -> bytes:
    starts = np.concatenate([[0], np.cumsum(np.array(frame_bytes[:-1], np.int64) + 8)])
    if starts[-1] > 0xFFFFFFFF:
        # The table's offsets have 32 bits; an empty one is allowed (PS3.5 A.4).
        return _ITEM + struct.pack("<I", 0)
    return _ITEM + struct.pack("<I", 4 * len(starts)) + starts.astype("<u4").tobytes()


def _cut(block: UInt8, tile_width: int, tile_height: int) -> Iterable[UInt8]:
    """Tiles in row-major order; white where the block ends inside a tile."""
    height, width, _ = block.shape
    down, across = -height % tile_height, -width % tile_width
    if down or across:
        block = np.pad(block, ((0, down), (0, across), (0, 0)), constant_values=255)
    for y in range(0, block.shape[0], tile_height):
        for x in range(0, block.shape[1], tile_width):
            yield np.ascontiguousarray(block[y : y + tile_height, x : x + tile_width])


def _halve(block: UInt8) -> UInt8:
    """Mean of 2 × 2 pixels; a last odd row or column counts twice."""
    odd_rows, odd_columns = block.shape[0] % 2, block.shape[1] % 2
    if odd_rows or odd_columns:
        block = np.pad(block, ((0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
    total = block[0::2, 0::2].astype(np.uint16)
    total += block[0::2, 1::2]
    total += block[1::2, 0::2]
    total += block[1::2, 1::2]
    total += 2
    total >>= 2
    return total.astype(np.uint8)
