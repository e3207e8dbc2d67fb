"""Stored frame bytes → RGB pixels, by transfer syntax.

Who is right about the colours, where the stream and PhotometricInterpretation differ: the stream,
as far as it speaks (PS3.5 §8.2.1: "the characteristics … included in the … stream shall be used").
A JPEG speaks through JFIF or Adobe markers, component names or subsampled chroma, JPEG 2000 through
its component transform, JPEG XL always. PhotometricInterpretation decides for the rest: unmarked
JPEG, JPEG 2000 without transform (scanners store YCbCr so), JPEG-LS, RLE, Deflated, uncompressed.
:func:`colour_contradiction` says where they differ, and whoever decodes the first frame logs it.

JPEG is decoded exactly: the fast DCT and upsampling of libjpeg-turbo save 5–19 % of the decoding
time of a cell tile, but change pixels by up to 26 grey levels, so there is no setting for them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from pydicom.pixels.processing import convert_color_space

from dicom_io import stream_header as streams
from dicom_io.kept_apart import decode_jpeg_ls
from dicom_io.stream_header import StreamHeader, stream_header

UInt8 = NDArray[np.uint8]

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
DEFLATED_EXPLICIT_LE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR = "1.2.840.10008.1.2.4.81"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
JPEG_2000_LOSSY = "1.2.840.10008.1.2.4.91"
JPEG_XL = "1.2.840.10008.1.2.4.112"
HTJ2K = "1.2.840.10008.1.2.4.203"
RLE = "1.2.840.10008.1.2.5"
DEFLATED_FRAME = "1.2.840.10008.1.2.8.1"

# Adobe marker "components are RGB", put into a JPEG that says nothing about its colours.
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
# Tiles inside one JPEG 2000 frame: each costs a decoder state, and frames are tiles already.
MAX_INNER_TILES = 1024
RLE_HEADER_BYTES = 64
# Up to here the frames of a slide are alike: markers, quantisation and frame header of a JPEG.
COMMON_BYTES = 192


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How the frames of an instance are stored.

    Attributes
    ----------
    transfer_syntax_uid
    photometric_interpretation
        As the DICOM header says.
    size_px : (width, height)
        Of a frame.
    planar
        PlanarConfiguration 1: uncompressed samples lie plane by plane.
    """

    transfer_syntax_uid: str
    photometric_interpretation: str
    size_px: tuple[int, int]
    planar: bool = False


def _jpeg(frame: bytes, form: PixelFormat, header: StreamHeader, out: UInt8 | None = None) -> UInt8:
    # libjpeg takes three unmarked components as YCbCr.
    if header.colour is None and form.photometric_interpretation == "RGB":
        frame = frame[:2] + _ADOBE_RGB + frame[2:]
    decoded: UInt8 = simplejpeg.decode_jpeg(
        frame, colorspace="RGB", fastdct=False, fastupsample=False, strict=True, buffer=out
    )
    return decoded


def _jpeg_2000(frame: bytes, form: PixelFormat, header: StreamHeader) -> UInt8:
    # HTJ2K by OpenJPEG too: imagecodecs.htj2k_decode is faster (1.4 for 2.4 ms a tile of 256 px),
    # but ignores errors of its library and gives whatever was decoded before them.
    # A component transform (YBR_RCT, YBR_ICT) is undone by the decoder.
    return _rgb(imagecodecs.jpeg2k_decode(frame), form, header)


def _jpeg_ls(frame: bytes, form: PixelFormat, header: StreamHeader) -> UInt8:
    return _rgb(decode_jpeg_ls(frame, form.size_px), form, header)


def _jpeg_xl(frame: bytes, form: PixelFormat, header: StreamHeader) -> UInt8:
    if streams.holds_jpeg(frame):
        # The JPEG as it was, so that its pixels are those of the slide before it was stored anew.
        form = replace(form, transfer_syntax_uid=JPEG_BASELINE)
        jpeg = bytes(imagecodecs.jpegxl_decode_jpeg(frame, numthreads=1))
        return _jpeg(jpeg, form, checked_header(jpeg, form))
    # index 0: only the first image of what may be an animation, or it would fill the memory.
    decoded: UInt8 = imagecodecs.jpegxl_decode(frame, index=0, numthreads=1)
    return decoded


def _raw(frame: bytes, form: PixelFormat, header: None) -> UInt8:
    width, height = form.size_px
    if form.photometric_interpretation == "YBR_FULL_422":
        return _rgb(_paired_chroma(frame, form.size_px), form, header)
    # An odd length is padded by one byte (PS3.5 §8.1.1); archives pass the pad on or not.
    if len(frame) - width * height * 3 not in {0, 1}:
        raise ValueError("its length is not that of its pixels")
    samples = np.frombuffer(frame, np.uint8)[: width * height * 3]
    if form.planar:
        return _rgb(np.moveaxis(samples.reshape(3, height, width), 0, 2), form, header)
    return _rgb(samples.reshape(height, width, 3), form, header)


def _paired_chroma(frame: bytes, size_px: tuple[int, int]) -> UInt8:
    """Y Y Cb Cr for each two pixels of a row (PS3.3 C.7.6.3.1.2) → Y Cb Cr for each."""
    width, height = size_px
    if len(frame) - width * height * 2 not in {0, 1}:
        raise ValueError("its length is not that of shared chroma")
    pairs = np.frombuffer(frame, np.uint8)[: width * height * 2].reshape(height, width // 2, 1, 4)
    pixels = np.empty((height, width // 2, 2, 3), np.uint8)
    pixels[..., 0] = pairs[..., 0, :2]
    pixels[..., 1:] = pairs[..., 2:]
    return pixels.reshape(height, width, 3)


def _deflated(frame: bytes, form: PixelFormat, header: None) -> UInt8:
    return _raw(_inflated(frame, form.size_px), form, header)


def _inflated(frame: bytes, size_px: tuple[int, int]) -> bytes:
    """Raw Deflate (RFC 1951), no further than one frame."""
    limit = size_px[0] * size_px[1] * 3 + 1
    return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(frame, limit)


def _rle(frame: bytes, form: PixelFormat, header: None) -> UInt8:
    """Three segments of PackBits, one a plane (PS3.5 annex G).

    Not by ``imagecodecs.dicomrle_decode``, which crashes on damaged segment offsets.
    """
    width, height = form.size_px
    count, *starts = struct.unpack_from("<4I", frame)
    if count != len(starts) or not RLE_HEADER_BYTES <= starts[0] < starts[1] < starts[2]:
        raise ValueError("segments are damaged")
    ends = [*starts[1:], len(frame)]
    planes = np.empty((3, height, width), np.uint8)
    for plane, start, end in zip(planes, starts, ends, strict=True):
        segment = imagecodecs.packbits_decode(frame[start:end], out=width * height)
        plane[:] = np.frombuffer(segment, np.uint8).reshape(height, width)
    return _rgb(np.moveaxis(planes, 0, 2), form, header)


def _rgb(pixels: UInt8, form: PixelFormat, header: StreamHeader | None) -> UInt8:
    if (header is not None and header.colour == "RGB") or form.photometric_interpretation == "RGB":
        return pixels
    # YBR_ICT without the transform is what converters write for YCbCr of scanners: same matrix.
    converted: UInt8 = convert_color_space(pixels, "YBR_FULL", "RGB")
    return converted


StreamDecoder = Callable[[bytes, PixelFormat, StreamHeader], UInt8]
PlainDecoder = Callable[[bytes, PixelFormat, None], UInt8]

_JPEG_COLOURS = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420"})
_JPEG_2000_COLOURS = frozenset({"RGB", "YBR_RCT", "YBR_ICT", "YBR_FULL", "YBR_FULL_422"})
_PLAIN_COLOURS = frozenset({"RGB", "YBR_FULL"})
_JPEG_XL_COLOURS = frozenset({"RGB", "XYB", "YBR_FULL", "YBR_FULL_422"})


@dataclass(frozen=True, slots=True)
class Encoding:
    """One way to store frames.

    Attributes
    ----------
    codings
        Names of the streams it holds (:mod:`dicom_io.stream_header`); none for plain bytes.
    colours
        PhotometricInterpretation that can be read.
    """

    codings: frozenset[str]
    colours: frozenset[str]
    decode: StreamDecoder | PlainDecoder


_BASELINE = Encoding(frozenset({streams.JPEG}), _JPEG_COLOURS, _jpeg)
_J2K = Encoding(frozenset({streams.JPEG_2000, streams.HTJ2K}), _JPEG_2000_COLOURS, _jpeg_2000)
_LS = Encoding(frozenset({streams.JPEG_LS}), _PLAIN_COLOURS, _jpeg_ls)
_XL = Encoding(frozenset({streams.JPEG_XL}), _JPEG_XL_COLOURS, _jpeg_xl)
_NATIVE = Encoding(frozenset(), _PLAIN_COLOURS | {"YBR_FULL_422"}, _raw)

ENCODINGS: dict[str, Encoding] = {
    IMPLICIT_LE: _NATIVE,
    EXPLICIT_LE: _NATIVE,
    ENCAPSULATED_UNCOMPRESSED: _NATIVE,
    DEFLATED_EXPLICIT_LE: _NATIVE,  # a frame that was taken out of it is plain
    EXPLICIT_BE: _NATIVE,
    RLE: Encoding(frozenset(), _PLAIN_COLOURS, _rle),
    DEFLATED_FRAME: Encoding(frozenset(), _PLAIN_COLOURS | {"YBR_FULL_422"}, _deflated),
    JPEG_BASELINE: _BASELINE,
    JPEG_EXTENDED: _BASELINE,
    JPEG_LS: _LS,
    JPEG_LS_NEAR: _LS,
    JPEG_2000: _J2K,
    JPEG_2000_LOSSY: _J2K,
    "1.2.840.10008.1.2.4.201": _J2K,
    "1.2.840.10008.1.2.4.202": _J2K,
    HTJ2K: _J2K,
    "1.2.840.10008.1.2.4.110": _XL,
    "1.2.840.10008.1.2.4.111": _XL,
    JPEG_XL: _XL,
}

# Those of imagecodecs are RuntimeErrors, those of zlib are their own.
DECODER_ERRORS = (
    ValueError,
    TypeError,
    RuntimeError,
    EOFError,
    MemoryError,
    IndexError,
    struct.error,
    zlib.error,
)


def decode_frame(frame: bytes, form: PixelFormat, out: UInt8 | None = None) -> UInt8:
    """Decode one frame.

    Parameters
    ----------
    frame, form
    out : (H, W, 3) uint8, optional
        Contiguous; filled with the pixels, by JPEG without a copy in between.

    Returns
    -------
    (H, W, 3) uint8
        RGB.

    Raises
    ------
    ValueError
        In words: what is wrong with the bytes.
    """
    encoding = ENCODINGS[form.transfer_syntax_uid]
    header = checked_header(frame, form) if encoding.codings else None
    straight = out is not None and encoding.decode is _jpeg
    decode = partial(_jpeg, out=out) if straight else encoding.decode
    try:
        pixels = decode(frame, form, header)  # type: ignore[arg-type]
    except DECODER_ERRORS as error:
        raise ValueError("is truncated or damaged") from error
    width, height = form.size_px
    if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
        raise ValueError(
            f"decodes to {' × '.join(map(str, pixels.shape))} {pixels.dtype},"
            f" not {height} × {width} × 3 uint8"
        )
    if out is not None and not straight:
        out[:] = pixels
    return pixels


def checked_header(frame: bytes, form: PixelFormat) -> StreamHeader:
    """Header of a compressed frame that holds what its instance says: nothing else is decoded.

    Raises
    ------
    ValueError
        In words.
    """
    try:
        return _checked_start(frame[:COMMON_BYTES], form)
    except ValueError:
        return _checked(frame, form)  # the header goes further, or is wrong


def _checked(frame: bytes, form: PixelFormat) -> StreamHeader:
    try:
        header = stream_header(frame)
    except ValueError as error:
        raise ValueError("is truncated or damaged") from error
    if header is None:
        raise ValueError("is truncated or damaged, or of another kind than its transfer syntax")
    if header.coding not in ENCODINGS[form.transfer_syntax_uid].codings:
        raise ValueError(f"is {header.coding}, not what its transfer syntax says")
    width, height = header.size_px
    # What is not in the header counts as right and is checked after decoding.
    samples, bits = header.samples or 3, header.bits or 8
    if (header.size_px, samples, bits) != (form.size_px, 3, 8):
        raise ValueError(
            f"decodes to {height} × {width} × {samples} with {bits} bit,"
            f" not {form.size_px[1]} × {form.size_px[0]} × 3 with 8 bit"
        )
    if header.tiles > MAX_INNER_TILES:
        raise ValueError(f"is cut into {header.tiles} tiles of its own")
    if (
        header.coding in {streams.JPEG_2000, streams.HTJ2K}
        and header.colour is None
        and form.photometric_interpretation == "YBR_RCT"
    ):
        raise ValueError("has no component transform, though its colours are called YBR_RCT")
    return header


_checked_start = lru_cache(maxsize=64)(_checked)


def colour_contradiction(frame: bytes, form: PixelFormat) -> str | None:
    """Where the stream's colours are others than PhotometricInterpretation says: in words."""
    if not ENCODINGS[form.transfer_syntax_uid].codings:
        return None
    header, said = checked_header(frame, form), form.photometric_interpretation
    if header.coding == streams.JPEG and header.colour is not None:
        stored = "RGB" if header.colour == "RGB" else "YCbCr"
        return None if (stored == "RGB") == (said == "RGB") else f"{stored}, not {said}"
    if header.coding in {streams.JPEG_2000, streams.HTJ2K}:
        if header.colour == "RGB" and said not in {"YBR_RCT", "YBR_ICT", "YBR_FULL_422"}:
            return f"turned into RGB by what their stream says, not {said}"
        if header.colour is None and said == "YBR_ICT":
            return "YCbCr without the component transform that YBR_ICT means"
    return None


def transfer_syntax_of(frame: bytes, size_px: tuple[int, int]) -> str | None:
    """Tell the transfer syntax from a stored frame; None if it is of no kind read here.

    ``/metadata`` carries no file meta information and few archives add
    AvailableTransferSyntaxUID, so the bytes themselves are asked. What a stream does not tell is
    which of the lossless and the general transfer syntax it was stored under, if it is lossless.
    """
    width, height = size_px
    if len(frame) - width * height * 3 in {0, 1}:
        return EXPLICIT_LE
    try:
        header = stream_header(frame)
    except ValueError:
        # Cut off before its kind is told: read as the kind that is usual, and refused when decoded.
        return JPEG_BASELINE
    if header is not None:
        return _BY_CODING.get((header.coding, header.variant))
    if frame[:8] == (3).to_bytes(4, "little") + (64).to_bytes(4, "little"):
        return RLE
    return _plain_kind(frame, size_px)


_BY_CODING = {
    (streams.JPEG, ""): JPEG_BASELINE,
    (streams.JPEG, "extended"): JPEG_EXTENDED,
    (streams.JPEG_LS, ""): JPEG_LS,
    (streams.JPEG_LS, "lossy"): JPEG_LS_NEAR,
    (streams.JPEG_2000, ""): JPEG_2000,
    (streams.JPEG_2000, "lossy"): JPEG_2000_LOSSY,
    (streams.HTJ2K, ""): HTJ2K,
    (streams.HTJ2K, "lossy"): HTJ2K,
    (streams.JPEG_XL, ""): JPEG_XL,
}


def _plain_kind(frame: bytes, size_px: tuple[int, int]) -> str | None:
    """Uncompressed with shared chroma, or deflated to the right length; neither has a mark."""
    pixels = size_px[0] * size_px[1]
    if len(frame) - pixels * 2 in {0, 1}:
        return EXPLICIT_LE
    try:
        inflated = len(_inflated(frame, size_px))
    except zlib.error:
        return None
    return DEFLATED_FRAME if inflated in {pixels * 2, pixels * 3} else None
