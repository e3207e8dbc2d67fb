"""Frames of a DICOM file (PS3.10) read one by one, without holding its pixel data in memory."""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from typing import BinaryIO

from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.encaps import parse_basic_offsets, parse_fragments
from pydicom.uid import DeflatedExplicitVRLittleEndian

UNDEFINED_LENGTH = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
ITEM_HEADER_BYTES = 8

Span = tuple[int, int]
"""Offset in the file, length in bytes."""


class Part10Frames:
    """The stored frames of one file; may be used from several threads.

    Parameters
    ----------
    file
        Open for reading, with a file descriptor; read by position, and left open.

    Attributes
    ----------
    transfer_syntax_uid
    number_of_frames

    Raises
    ------
    ValueError
        The file is damaged, or does not say where its frames begin. (What pydicom raises for
        other damage, such as InvalidDicomError, passes through.)
    """

    def __init__(self, file: BinaryIO) -> None:
        file.seek(0)
        header = dcmread(file, stop_before_pixels=True)
        self.transfer_syntax_uid = str(header.file_meta.TransferSyntaxUID)
        self.number_of_frames = int(header.get("NumberOfFrames", 1) or 1)
        if self.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
            self._inflated: bytes | None = _inflated_pixels(file)
            self._spans = _native_spans(header, self.number_of_frames, 0, len(self._inflated))
            return
        self._inflated = None
        self._descriptor = file.fileno()
        length = _enter_pixel_data(file, header)
        if length == UNDEFINED_LENGTH:
            self._spans = _encapsulated_spans(file, header, self.number_of_frames)
        else:
            self._spans = _native_spans(header, self.number_of_frames, file.tell(), length)

    def frame(self, number: int) -> bytes:
        """Stored bytes of a frame, counted from 0; IndexError beyond the last."""
        if not 0 <= number < len(self._spans):
            raise IndexError(f"there is no frame {number + 1} of {len(self._spans)}")
        return b"".join(self._bytes(offset, length) for offset, length in self._spans[number])

    def _bytes(self, offset: int, length: int) -> bytes:
        if self._inflated is not None:
            return self._inflated[offset : offset + length]
        data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise ValueError("the file ends in the middle of a frame")
        return data


def _inflated_pixels(file: BinaryIO) -> bytes:
    """A deflated dataset can only be read from its beginning."""
    file.seek(0)
    pixels: bytes = dcmread(file).PixelData
    return pixels


def _enter_pixel_data(file: BinaryIO, header: FileDataset) -> int:
    """Go to the first byte of the value of Pixel Data, where pydicom stopped; its length."""
    little, implicit = header.original_encoding[1], header.original_encoding[0]
    order = "<" if little else ">"
    head = file.read(8)
    if len(head) < 8:
        raise ValueError("the file holds no pixel data")
    group, element = struct.unpack(f"{order}HH", head[:4])
    if (group << 16 | element) != PIXEL_DATA:
        raise ValueError("the file holds no pixel data")
    rest = head[4:] if implicit else file.read(4)
    return int(struct.unpack(f"{order}L", rest)[0])


def _native_spans(header: FileDataset, frames: int, start: int, length: int) -> list[list[Span]]:
    bits = header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated
    size = bits // 8
    if frames * size > length:
        raise ValueError("the pixel data are shorter than the frames they should hold")
    return [[(start + index * size, size)] for index in range(frames)]


def _encapsulated_spans(file: BinaryIO, header: FileDataset, frames: int) -> list[list[Span]]:
    """Fragments of each frame (PS3.5 §A.4): one each, or as an offset table says."""
    basic = parse_basic_offsets(file)
    first = file.tell()
    fragments = _fragments(file)
    if len(fragments) == frames:
        return [[fragment] for fragment in fragments]
    if frames == 1:
        return [fragments]
    table = header.get("ExtendedOffsetTable")
    offsets = list(struct.unpack(f"<{len(table) // 8}Q", table)) if table else basic
    if len(offsets) != frames:
        raise ValueError(
            f"{len(fragments)} fragments hold {frames} frames and no offset table says how"
        )
    starts = [first + offset for offset in offsets]
    spans: list[list[Span]] = [[] for _ in starts]
    for offset, length in fragments:
        frame = bisect_right(starts, offset - ITEM_HEADER_BYTES) - 1
        if frame < 0:
            raise ValueError("the offset table points behind the first fragment")
        spans[frame].append((offset, length))
    return spans


def _fragments(file: BinaryIO) -> list[Span]:
    _, starts = parse_fragments(file)
    spans = []
    for start in starts:
        file.seek(start + 4)
        spans.append((start + ITEM_HEADER_BYTES, int(struct.unpack("<L", file.read(4))[0])))
    return spans
