"""Stored frame bytes → RGB pixels, by transfer syntax."""

from __future__ import annotations

from collections.abc import Callable

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from pydicom.pixels.processing import convert_color_space

UInt8 = NDArray[np.uint8]

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
HTJ2K = "1.2.840.10008.1.2.4.201"
RLE = "1.2.840.10008.1.2.5"

# Adobe marker "components are RGB", put into a JPEG that says nothing about its colours.
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


def _jpeg(frame: bytes, photometric: str, size_px: tuple[int, int]) -> UInt8:
    # libjpeg takes three unmarked components as YCbCr; only then the header has to decide.
    head = frame[:4096]
    if photometric == "RGB" and b"JFIF" not in head and b"Adobe" not in head:
        frame = frame[:2] + _ADOBE_RGB + frame[2:]
    decoded: UInt8 = simplejpeg.decode_jpeg(
        frame, colorspace="RGB", fastdct=False, fastupsample=False, strict=True
    )
    return decoded


def _jpeg_2000(frame: bytes, photometric: str, size_px: tuple[int, int]) -> UInt8:
    # The codestream's own colour transform (YBR_RCT, YBR_ICT) is undone by the decoder.
    decoded: UInt8 = imagecodecs.jpeg2k_decode(frame)
    return decoded


def _jpeg_ls(frame: bytes, photometric: str, size_px: tuple[int, int]) -> UInt8:
    return _rgb(imagecodecs.jpegls_decode(frame), photometric)


def _raw(frame: bytes, photometric: str, size_px: tuple[int, int]) -> UInt8:
    width, height = size_px
    # An odd length is padded by one byte (PS3.5 §8.1.1); archives pass the pad on or not.
    pixels = np.frombuffer(frame, np.uint8)[: width * height * 3]
    return _rgb(pixels.reshape(height, width, 3), photometric)


def _rle(frame: bytes, photometric: str, size_px: tuple[int, int]) -> UInt8:
    width, height = size_px
    planes = np.frombuffer(imagecodecs.dicomrle_decode(frame, np.uint8), np.uint8)
    return _rgb(np.moveaxis(planes.reshape(3, height, width), 0, 2), photometric)


def _rgb(pixels: UInt8, photometric: str) -> UInt8:
    if photometric == "YBR_FULL":
        converted: UInt8 = convert_color_space(pixels, "YBR_FULL", "RGB")
        return converted
    return pixels


Decoder = Callable[[bytes, str, tuple[int, int]], UInt8]

DECODERS: dict[str, Decoder] = {
    IMPLICIT_LE: _raw,
    EXPLICIT_LE: _raw,
    RLE: _rle,
    JPEG_BASELINE: _jpeg,
    JPEG_LS: _jpeg_ls,
    "1.2.840.10008.1.2.4.81": _jpeg_ls,
    JPEG_2000: _jpeg_2000,
    "1.2.840.10008.1.2.4.91": _jpeg_2000,
    HTJ2K: _jpeg_2000,
    "1.2.840.10008.1.2.4.202": _jpeg_2000,
    "1.2.840.10008.1.2.4.203": _jpeg_2000,
}

DECODER_ERRORS = (ValueError, TypeError, RuntimeError, EOFError, MemoryError)

PHOTOMETRIC_INTERPRETATIONS: dict[Decoder, set[str]] = {
    _raw: {"RGB", "YBR_FULL"},
    _rle: {"RGB", "YBR_FULL"},
    _jpeg: {"RGB", "YBR_FULL", "YBR_FULL_422"},
    _jpeg_ls: {"RGB", "YBR_FULL"},
    _jpeg_2000: {"RGB", "YBR_RCT", "YBR_ICT"},
}


def decode_frame(
    frame: bytes, transfer_syntax_uid: str, photometric: str, size_px: tuple[int, int]
) -> UInt8:
    """Decode one frame.

    Returns
    -------
    (H, W, 3) uint8
        RGB.

    Raises
    ------
    ValueError
        In words: what is wrong with the bytes.
    """
    try:
        pixels = DECODERS[transfer_syntax_uid](frame, photometric, size_px)
    except DECODER_ERRORS as error:
        raise ValueError("is truncated or damaged") from error
    width, height = size_px
    if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
        raise ValueError(
            f"decodes to {' × '.join(map(str, pixels.shape))} {pixels.dtype},"
            f" not {height} × {width} × 3 uint8"
        )
    return pixels


def transfer_syntax_of(frame: bytes, size_px: tuple[int, int]) -> str | None:
    """Tell the transfer syntax from a stored frame; None if it is of no kind read here.

    ``/metadata`` carries no file meta information and few archives add
    AvailableTransferSyntaxUID, so the bytes themselves are asked.
    """
    if frame[:2] == b"\xff\xd8":
        return _jpeg_kind(frame)
    if frame[:4] == b"\xff\x4f\xff\x51":
        # Any: reversible or not does not matter for reading. CAP marker: Part 15.
        return HTJ2K if b"\xff\x50" in frame[:128] else JPEG_2000
    width, height = size_px
    if len(frame) - width * height * 3 in {0, 1}:
        return EXPLICIT_LE
    if frame[:8] == (3).to_bytes(4, "little") + (64).to_bytes(4, "little"):
        return RLE
    return None


def _jpeg_kind(frame: bytes) -> str | None:
    """Walk the JPEG markers up to the one that starts the frame."""
    kinds = {0xC0: JPEG_BASELINE, 0xF7: JPEG_LS}
    at = 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in kinds:
            return kinds[marker]
        if 0xC1 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            return None  # extended, progressive, lossless
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    # Cut off before its kind is told: read as the kind that is usual, and refused when decoded.
    return JPEG_BASELINE
