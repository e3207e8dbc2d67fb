"""What a compressed frame says about itself, read before anything is decoded.

A few bytes of a damaged or hostile frame can claim 65 535 × 65 535 pixels, for which a decoder
allocates gigabytes and works for a minute. So size, samples and bits are read from the stream's
own header first; it is also the stream, not the DICOM header, that knows its colours best.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Colour = Literal["RGB", "YBR"]

JPEG, JPEG_LS, JPEG_2000, HTJ2K, JPEG_XL = "JPEG", "JPEG-LS", "JPEG 2000", "HTJ2K", "JPEG XL"
# What a stream is that starts like JPEG but is none of the kinds that are read.
OTHER_JPEG = "progressive, arithmetic or lossless JPEG"

HEADER_ERRORS = (struct.error, IndexError)

_SIZ_START = b"\xff\x4f\xff\x51"
_JXL_CODESTREAM = b"\xff\x0a"
_JXL_CONTAINER = b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a"
# Colour Specification box of JP2: method 1, and 18 for sYCC (ISO/IEC 15444-1 I.5.3.3).
_SYCC = b"colr\x01\x00\x00\x00\x00\x00\x12"
_JP2_CONTAINER = b"\x00\x00\x00\x0cjP  \x0d\x0a\x87\x0a"
# ISO/IEC 18181-1 table D.2: width over height.
_JXL_RATIOS = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """Header of a compressed frame.

    Attributes
    ----------
    coding
        One of the names above.
    size_px : (width, height)
    samples, bits
        Components, and bits of each; 0 where the header was not read that far.
    colour
        What the decoder's output is according to the stream; None where it does not say, and
        PhotometricInterpretation decides.
    tiles
        Tiles inside the frame (JPEG 2000), else 1.
    variant
        Transfer syntaxes that share the coding are told apart by it: "extended" JPEG, "lossy"
        JPEG 2000 (irreversible wavelet) and JPEG-LS (near-lossless); empty where it is the plain
        one, or not known.
    """

    coding: str
    size_px: tuple[int, int]
    samples: int
    bits: int
    colour: Colour | None
    tiles: int = 1
    variant: str = ""


def stream_header(frame: bytes) -> StreamHeader | None:
    """Read the header of a compressed frame; None if it starts like no kind known here.

    Raises
    ------
    ValueError
        It starts like one, but is cut off or contradicts itself.
    """
    try:
        for start, read in _READERS:
            if frame.startswith(start):
                return read(frame)
    except HEADER_ERRORS as error:
        raise ValueError("the header is cut off") from error
    return None


def _jpeg(frame: bytes) -> StreamHeader:
    """Up to the frame header (SOF); JPEG-LS shares the markers (ISO/IEC 10918-1 B.2.2)."""
    marked: Colour | None = None
    for marker, at in _jpeg_segments(frame):
        payload = frame[at : at + 64]
        if marker == 0xE0 and payload.startswith(b"JFIF\0"):
            marked = "YBR"
        elif marker == 0xEE and payload.startswith(b"Adobe") and marked is None:
            marked = "YBR" if payload[11] else "RGB"
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}):
            bits, height, width, samples = struct.unpack_from(">BHHB", payload)
            components = [struct.unpack_from("BB", payload, 6 + 3 * i) for i in range(samples % 5)]
            coding = {0xC0: JPEG, 0xC1: JPEG, 0xF7: JPEG_LS}.get(marker, OTHER_JPEG)
            colour = None if coding == JPEG_LS else marked or _by_components(components)
            variant = "extended" if marker == 0xC1 else ""
            if coding == JPEG_LS:
                variant = _near_lossless(frame, at - 4)
            return StreamHeader(coding, (width, height), samples, bits, colour, 1, variant)
    raise ValueError("there is no frame header")


def _jpeg_segments(frame: bytes, at: int = 2) -> Iterator[tuple[int, int]]:
    """Each marker with the place of its payload."""
    while frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        (length,) = struct.unpack_from(">H", frame, at + 2)
        if length < 2:
            raise ValueError("a segment has no length")
        yield marker, at + 4
        at += 2 + length


def _near_lossless(frame: bytes, frame_header_at: int) -> str:
    """From NEAR in the scan header, behind the components (ISO/IEC 14495-1 C.2.3)."""
    for marker, at in _jpeg_segments(frame, frame_header_at):
        if marker == 0xDA:
            return "lossy" if frame[at + 1 + 2 * frame[at]] else ""
    return ""


def _by_components(components: list[tuple[int, int]]) -> Colour | None:
    """Colours of an unmarked stream, where its components can only be of one kind."""
    if [name for name, _ in components] == list(b"RGB"):
        return "RGB"
    # Nobody samples red, green and blue at different rates.
    return "YBR" if len({sampling for _, sampling in components}) > 1 else None


def _jpeg_2000(frame: bytes) -> StreamHeader:
    """SIZ, and of the main header CAP (Part 15) and COD (ISO/IEC 15444-1 A.5, A.6).

    OpenJPEG turns YCbCr into RGB by itself where it can only be that: under a component transform,
    where chroma has fewer samples than luma, and in a file that names its colours sYCC.
    """
    start = frame[:4096].find(_SIZ_START)
    if start < 0:
        raise ValueError("there is no codestream")
    fields = struct.unpack_from(">8IH", frame, start + 8)
    (x1, y1, x0, y0, tile_width, tile_height, tile_x0, tile_y0), samples = fields[:8], fields[8]
    bits = (frame[start + 42] & 0x7F) + 1
    sampling = {frame[start + 43 + 3 * i : start + 45 + 3 * i] for i in range(samples % 5)}
    if not (tile_width and tile_height and x0 < x1 and y0 < y1):
        raise ValueError("its size makes no sense")
    tiles = -(-(x1 - tile_x0) // tile_width) * -(-(y1 - tile_y0) // tile_height)
    coding, transformed, variant = JPEG_2000, False, ""
    for marker, at in _jpeg_segments(frame[start : start + 4096]):
        if marker == 0x50:
            coding = HTJ2K
        elif marker == 0x52:
            transformed = bool(frame[start + at + 4])
            variant = "" if frame[start + at + 9] else "lossy"  # 1 is the reversible wavelet
            break
    shared = len(sampling) > 1 or _SYCC in frame[:start]
    colour: Colour | None = "RGB" if transformed or shared else None
    return StreamHeader(coding, (x1 - x0, y1 - y0), samples, bits, colour, tiles, variant)


def _jpeg_xl(frame: bytes) -> StreamHeader:
    """SizeHeader (ISO/IEC 18181-1 D.2); bits are read from the lowest."""
    start = _jxl_codestream(frame)
    bits = _Bits(int.from_bytes(frame[start + 2 : start + 20], "little"))
    small = bits.take(1)
    height = _jxl_side(bits, small)
    ratio = _JXL_RATIOS[bits.take(3)]
    width = int(height * Fraction(*ratio)) if ratio else _jxl_side(bits, small)
    if frame[start : start + 2] != _JXL_CODESTREAM:
        raise ValueError("there is no codestream")
    return StreamHeader(JPEG_XL, (width, height), 0, 0, "RGB")


def _jxl_codestream(frame: bytes) -> int:
    """Where the codestream starts: at once, or in a box of the container."""
    if frame.startswith(_JXL_CODESTREAM):
        return 0
    for kind, at in _jxl_boxes(frame):
        if kind in {b"jxlc", b"jxlp"}:
            return at + (4 if kind == b"jxlp" else 0)
    raise ValueError("there is no codestream")


def holds_jpeg(frame: bytes) -> bool:
    """Whether a JPEG XL frame is a JPEG stored smaller, which can be had back byte for byte."""
    return frame.startswith(_JXL_CONTAINER) and any(
        kind == b"jbrd" for kind, _ in _jxl_boxes(frame)
    )


def _jxl_boxes(frame: bytes) -> Iterator[tuple[bytes, int]]:
    """Each box with the place of its content (ISO/IEC 18181-2)."""
    at = len(_JXL_CONTAINER)
    while at + 8 <= len(frame):
        length, kind = struct.unpack_from(">I4s", frame, at)
        header = 8
        if length == 1:
            (length,), header = struct.unpack_from(">Q", frame, at + 8), 16
        yield kind, at + header
        if length < header:  # 0: up to the end
            return
        at += length


@dataclass(slots=True)
class _Bits:
    rest: int

    def take(self, count: int) -> int:
        value = self.rest & ((1 << count) - 1)
        self.rest >>= count
        return value


def _jxl_side(bits: _Bits, small: int) -> int:
    if small:
        return 8 * (bits.take(5) + 1)
    return bits.take((9, 13, 18, 30)[bits.take(2)]) + 1


_READERS: tuple[tuple[bytes, Callable[[bytes], StreamHeader]], ...] = (
    (b"\xff\xd8", _jpeg),
    (_SIZ_START, _jpeg_2000),
    (_JP2_CONTAINER, _jpeg_2000),
    (_JXL_CODESTREAM, _jpeg_xl),
    (_JXL_CONTAINER, _jpeg_xl),
)
