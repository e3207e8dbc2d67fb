"""Frames of a DICOM file, read where they lie: only their own bytes, whatever the file's size."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import parse_basic_offsets, parse_fragments
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from dicom_io.decoding import DEFLATED_EXPLICIT_LE, EXPLICIT_BE, IMPLICIT_LE

Int64 = NDArray[np.int64]

ITEM, DELIMITER = 0xE000FFFE, 0xE0DDFFFE
PIXEL_DATA = 0x7FE00010
PIXELS = 0x7FE00008  # Float Pixel Data, the first of their kind
PER_FRAME = 0x52009230
PREAMBLE_BYTES = 132
META_GROUP = 2
# Inflated data goes to a temporary file; what claims more is damaged, or made to fill the disk.
MAX_INFLATED_BYTES = 4 * 2**30
INFLATE_STEP_BYTES = 2**20
# All that a damaged file makes pydicom, zlib, the system and this module raise.
FILE_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    MemoryError,  # for the length of an element that the file does not hold
    InvalidDicomError,
    BytesLengthException,
    struct.error,
    zlib.error,
)
END_OF_IMAGE = b"\xff\xd9"  # closes JPEG, JPEG-LS and JPEG 2000 streams

_KEYWORDS = (
    "SOPInstanceUID",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "ExtendedOffsetTable",
)
_UNCOMPRESSED = {
    IMPLICIT_LE,
    "1.2.840.10008.1.2.1",
    DEFLATED_EXPLICIT_LE,
    EXPLICIT_BE,
}


@dataclass(frozen=True, slots=True, eq=False)
class FrameTable:
    """Where the frames of one file lie.

    Attributes
    ----------
    path
        None where `opened` is read.
    identity
        Of the file when it was read; another one means that it was replaced.
    sop_uid
        Of the instance that it holds.
    start, end : (N,) int64
        First byte, and one behind the last; −1 where the end is told by what lies there. Of
        encapsulated frames with the headers of their items.
    encapsulated
    swapped
        Pairs of bytes are exchanged (Big Endian, VR OW).
    opened
        A file without a name: what a deflated dataset inflates to, or an instance as it came.
    """

    path: Path | None
    identity: tuple[int, int, int]
    sop_uid: str
    start: Int64
    end: Int64
    encapsulated: bool
    swapped: bool = False
    opened: BinaryIO | None = field(default=None, repr=False)

    @property
    def frames(self) -> int:
        return len(self.start)


def identity_of(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced or written to."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def header_of(path: Path, keywords: Sequence[str] = (), before: int = PIXELS) -> Dataset:
    """Attributes of a DICOM file, all or some, up to the pixels or another tag.

    What stands behind the last one that is wanted is not read: per-frame items are many.

    Raises
    ------
    One of FILE_ERRORS
        The file is damaged.
    """
    wanted: list[BaseTag | int] = [Tag(keyword) for keyword in keywords]
    end = min(before, int(max(wanted)) + 1) if wanted else before

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        return int(tag) >= end

    with path.open("rb") as file:
        if _transfer_syntax(file) != DEFLATED_EXPLICIT_LE:
            file.seek(0)
            return read_partial(file, stop, specific_tags=wanted or None)
        # It would be inflated into memory, all of it.
        with _inflated(file) as inflated:
            return read_dataset(inflated, False, True, stop_when=stop, specific_tags=wanted or None)


def frame_table(path: Path) -> FrameTable:
    """Find the frames of a DICOM file; reads its header and, without offset table, item headers.

    Raises
    ------
    One of FILE_ERRORS
        The file is damaged.
    """
    with path.open("rb", buffering=0) as raw:
        table = opened_frame_table(raw)
    return replace(table, path=path, opened=None if table.opened is raw else table.opened)


def opened_frame_table(raw: BinaryIO) -> FrameTable:
    """The same of a file that stays open as long as its frames are read.

    Parameters
    ----------
    raw
        Without a buffer, which would be filled anew for every item.
    """
    status = os.fstat(raw.fileno())
    identity = (status.st_ino, status.st_size, status.st_mtime_ns)
    syntax = _transfer_syntax(raw)
    if syntax == DEFLATED_EXPLICIT_LE:
        inflated = _inflated(raw)
        header = read_dataset(inflated, False, True, stop_when=_at_pixels)
        start, end = _plain(inflated, header, 12)
        return FrameTable(None, identity, _sop_uid(header), start, end, False, False, inflated)
    with open(raw.fileno(), "rb", closefd=False) as buffered:
        buffered.seek(0)
        header = dcmread(buffered, stop_before_pixels=True, specific_tags=list(_KEYWORDS))
        at = buffered.tell()
    raw.seek(at)
    if syntax in _UNCOMPRESSED:
        vr = raw.read(6)[4:]
        raw.seek(at)
        order: Literal["<", ">"] = ">" if syntax == EXPLICIT_BE else "<"
        start, end = _plain(raw, header, 8 if UID(syntax).is_implicit_VR else 12, order)
        swapped = syntax == EXPLICIT_BE and vr == b"OW"
        return FrameTable(None, identity, _sop_uid(header), start, end, False, swapped, raw)
    raw.seek(at + 12)
    start, end = _encapsulated(raw, header)
    return FrameTable(None, identity, _sop_uid(header), start, end, True, False, raw)


def read_frames(table: FrameTable, numbers: Sequence[int]) -> list[bytes]:
    """Bytes of frames (0-based numbers); safe from several threads at a time.

    Raises
    ------
    ValueError
        One of them is not there or cut off.
    """
    with _opened(table) as descriptor:
        return [_frame(descriptor, table, number) for number in numbers]


@contextmanager
def _opened(table: FrameTable) -> Iterator[int]:
    if table.opened is not None:
        yield table.opened.fileno()
        return
    if table.path is None:
        raise ValueError("the file is not open")
    with table.path.open("rb", buffering=0) as file:
        yield file.fileno()


def _frame(descriptor: int, table: FrameTable, number: int) -> bytes:
    if not 0 <= number < table.frames:
        raise ValueError(f"there are {table.frames} frames")
    start, end = int(table.start[number]), int(table.end[number])
    if not table.encapsulated:
        stored = _exactly(descriptor, start, end - start)
        return np.frombuffer(stored, ">u2").astype("<u2").tobytes() if table.swapped else stored
    if end < 0:
        return b"".join(_items(descriptor, start))
    return _joined(_exactly(descriptor, start, end - start))


def _exactly(descriptor: int, start: int, size: int) -> bytes:
    # Never more than the file holds is allocated, whatever a length claims.
    if size < 0 or start + size > os.fstat(descriptor).st_size:
        raise ValueError("the file ends before")
    return os.pread(descriptor, size, start)


def _joined(region: bytes) -> bytes:
    """Fragments of a frame without their item headers."""
    parts, at = [], 0
    while at < len(region):
        tag, length = struct.unpack_from("<II", region, at)
        if tag != ITEM or at + 8 + length > len(region):
            raise ValueError("an item is damaged")
        parts.append(region[at + 8 : at + 8 + length])
        at += 8 + length
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _items(descriptor: int, at: int) -> Iterator[bytes]:
    """Fragments from `at` to the end of the pixel data."""
    while (found := struct.unpack("<II", _exactly(descriptor, at, 8)))[0] != DELIMITER:
        tag, length = found
        if tag != ITEM:
            raise ValueError("an item is damaged")
        yield _exactly(descriptor, at + 8, length)
        at += 8 + length


def _plain(
    file: BinaryIO, header: Dataset, element_header: int, order: Literal["<", ">"] = "<"
) -> tuple[Int64, Int64]:
    """Frames lie one behind the other, and fill the element but for what pads it."""
    samples = 2 if header.PhotometricInterpretation == "YBR_FULL_422" else header.SamplesPerPixel
    size = header.Rows * header.Columns * samples * (header.BitsAllocated // 8)
    at = file.tell() + element_header
    file.seek(at - 4)
    (length,) = struct.unpack(f"{order}I", file.read(4))
    said = _frames(header) * size
    if not 0 <= length - said < max(2, size // 4):
        raise ValueError(f"it holds {length} bytes of pixels, where its header says {said}")
    start = at + np.arange(_frames(header), dtype=np.int64) * size
    return start, start + size


def _encapsulated(file: BinaryIO, header: Dataset) -> tuple[Int64, Int64]:
    """Ends and starts from the best table there is (PS3.5 A.4, PS3.3 C.7.6.3.1.8)."""
    frames = _frames(header)
    basic = parse_basic_offsets(file)
    first, size = file.tell(), os.fstat(file.fileno()).st_size
    extended = np.frombuffer(header.get("ExtendedOffsetTable", b""), "<u8").astype(np.int64)
    for offsets in (extended, np.array(basic, np.int64)):
        start = first + offsets
        # 32-bit offsets run over in files of more than 4 GiB.
        if len(offsets) == frames and (np.diff(offsets) > 0).all() and (start < size).all():
            return start, np.append(start[1:], -1)
    return _by_fragments(file, frames)


def _by_fragments(file: BinaryIO, frames: int) -> tuple[Int64, Int64]:
    """There is no table: from the item headers of all fragments."""
    fragment = np.array(parse_fragments(file)[1], np.int64)
    if len(fragment) != frames and frames != 1:
        ends = np.append(fragment[1:], 0)[:-1]
        closes = [END_OF_IMAGE in _exactly(file.fileno(), end - 10, 10) for end in ends.tolist()]
        fragment = fragment[np.append(True, closes)]
    if frames == 1:
        fragment = fragment[:1]
    if len(fragment) != frames:
        raise ValueError("it cannot be told which fragments make up a frame")
    return fragment, np.append(fragment[1:], -1)


def _sop_uid(header: Dataset) -> str:
    return str(header.get("SOPInstanceUID", ""))


def _frames(header: Dataset) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _transfer_syntax(file: BinaryIO) -> str:
    """From the file meta information (PS3.10 §7.1), which is always Explicit Little Endian."""
    file.seek(PREAMBLE_BYTES)
    meta = read_dataset(
        file, False, True, stop_when=lambda tag, vr, length: tag.group != META_GROUP
    )
    if "TransferSyntaxUID" not in meta:
        raise InvalidDicomError("it does not say how it is encoded")
    return str(meta.TransferSyntaxUID)


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return int(tag) == PIXEL_DATA


def _inflated(file: BinaryIO) -> BinaryIO:
    """Dataset of a deflated file in a temporary file, at its start."""
    file.seek(PREAMBLE_BYTES + 8)
    (length,) = struct.unpack("<I", file.read(4))
    file.seek(PREAMBLE_BYTES + 12 + length)
    out = cast(BinaryIO, TemporaryFile())  # noqa: SIM115 - lives as long as the table
    inflate, written = zlib.decompressobj(-zlib.MAX_WBITS), 0
    rest = b""
    while not inflate.eof and (deflated := rest or file.read(INFLATE_STEP_BYTES)):
        written += out.write(inflate.decompress(deflated, INFLATE_STEP_BYTES))
        rest = inflate.unconsumed_tail
        if written > MAX_INFLATED_BYTES:
            raise ValueError(f"it inflates to more than {MAX_INFLATED_BYTES} bytes")
    out.flush()
    out.seek(0)
    return out
