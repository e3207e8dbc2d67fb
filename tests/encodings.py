"""Every encoding of a frame: how the test slides are stored anew, and what must come out."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.processing import convert_color_space

from tests.slides import Change, WrittenSlide, cut_tiles, write_slide

UInt8 = NDArray[np.uint8]


def pillow(stream: bytes) -> UInt8:
    """Pixels of a JPEG as an independent reader sees them."""
    return np.array(Image.open(io.BytesIO(stream)).convert("RGB"))


def marked(rgb: UInt8, subsampling: str = "422") -> bytes:
    """JPEG with a JFIF marker."""
    return simplejpeg.encode_jpeg(rgb, quality=90, colorsubsampling=subsampling)


def unmarked(rgb: UInt8, subsampling: str = "422") -> bytes:
    """JPEG without its JFIF marker: 18 bytes behind the start of image."""
    stream = marked(rgb, subsampling)
    assert stream[6:10] == b"JFIF"
    return stream[:2] + stream[20:]


def rgb_components(rgb: UInt8) -> bytes:
    """JPEG whose components are R, G and B, unmarked: neither Adobe nor named by letters."""
    stream = imagecodecs.jpeg8_encode(rgb, 95, colorspace="RGB", outcolorspace="RGB")
    at = stream.index(b"\xff\xee")
    (length,) = struct.unpack(">H", stream[at + 2 : at + 4])
    stream = bytearray(stream[:at] + stream[at + 2 + length :])
    for marker, first, step in ((b"\xff\xc0", 10, 3), (b"\xff\xda", 5, 2)):
        at = stream.index(marker)
        for number in range(3):
            stream[at + first + step * number] = number + 1
    return bytes(stream)


def adobe_rgb(rgb: UInt8) -> bytes:
    return imagecodecs.jpeg8_encode(rgb, 95, colorspace="RGB", outcolorspace="RGB")


def extended(rgb: UInt8) -> bytes:
    """Process 2 with 8 bit differs from baseline in its marker alone, if tables are small."""
    return marked(rgb).replace(b"\xff\xc0", b"\xff\xc1", 1)


def run_lengths(planes: UInt8) -> bytes:
    """PackBits of nothing but literals, one segment a plane (PS3.5 annex G)."""
    segments = []
    for plane in planes:
        data = plane.tobytes()
        parts = [data[i : i + 128] for i in range(0, len(data), 128)]
        packed = b"".join(bytes([len(part) - 1]) + part for part in parts)
        segments.append(packed + b"\0" * (len(packed) % 2))
    starts = np.cumsum([64, *map(len, segments)])[:-1]
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(
        segments
    )


def deflated(frame: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(frame) + deflate.flush()


def ybr(rgb: UInt8) -> UInt8:
    return convert_color_space(rgb, "RGB", "YBR_FULL")


def back(pixels: UInt8) -> UInt8:
    return convert_color_space(pixels, "YBR_FULL", "RGB")


def shared_chroma(rgb: UInt8) -> bytes:
    """YBR_FULL_422: the chroma of each second pixel for two."""
    pixels = ybr(rgb)
    pairs = np.concatenate([pixels[:, ::2, :1], pixels[:, 1::2, :1], pixels[:, ::2, 1:]], axis=2)
    return pairs.tobytes()


def with_shared_chroma(rgb: UInt8) -> UInt8:
    pixels = ybr(rgb)
    pixels[:, 1::2, 1:] = pixels[:, ::2, 1:]
    return back(pixels)


def planes(rgb: UInt8) -> UInt8:
    return np.ascontiguousarray(np.moveaxis(rgb, 2, 0))


def jpeg_2000(rgb: UInt8, **settings: Any) -> bytes:
    return imagecodecs.jpeg2k_encode(rgb, codecformat="j2k", **settings)


def openjpeg(stream: bytes) -> UInt8:
    from openjpeg import decode

    return decode(stream)


def same(rgb: UInt8) -> UInt8:
    return rgb


@dataclass(frozen=True)
class Stored:
    """A way to store frames.

    Attributes
    ----------
    expected
        What must come out for a frame, by another decoder than ours.
    off
        Grey levels that may differ: 0 where the decoder is the same.
    served
        Orthanc 1.10 keeps its frames and serves them as they are.
    """

    transfer_syntax_uid: str
    photometric: str
    encode: Callable[[UInt8], bytes]
    expected: Callable[[UInt8], UInt8] = same
    off: int = 0
    planar: int = 0
    served: bool = True


def _by_pillow(encode: Callable[[UInt8], bytes]) -> Callable[[UInt8], UInt8]:
    return lambda rgb: pillow(encode(rgb))


def _jpeg(encode: Callable[[UInt8], bytes], photometric: str, uid: str = "50") -> Stored:
    return Stored(f"1.2.840.10008.1.2.4.{uid}", photometric, encode, _by_pillow(encode))


def _htj2k_lossy(rgb: UInt8) -> bytes:
    return imagecodecs.htj2k_encode(rgb, level=0.01, reversible=False)


def _ict(rgb: UInt8) -> bytes:
    return jpeg_2000(rgb, level=40, reversible=False)


def _ybr_2000(rgb: UInt8) -> bytes:
    return jpeg_2000(ybr(rgb), level=0, reversible=True, mct=False)


def _native(uid: str, photometric: str = "RGB", **more: Any) -> Stored:
    return Stored(f"1.2.840.10008.1.2{uid}", photometric, lambda rgb: rgb.tobytes(), **more)


STORED: dict[str, Stored] = {
    "JPEG 4:2:2": _jpeg(marked, "YBR_FULL_422"),
    "JPEG 4:4:4": _jpeg(lambda rgb: marked(rgb, "444"), "YBR_FULL_422"),
    "JPEG 4:2:0": _jpeg(lambda rgb: marked(rgb, "420"), "YBR_FULL_422"),
    "JPEG unmarked": _jpeg(unmarked, "YBR_FULL_422"),
    "JPEG called RGB": _jpeg(marked, "RGB"),
    "JPEG unmarked, called RGB": _jpeg(unmarked, "RGB"),
    "JPEG RGB": _jpeg(adobe_rgb, "RGB"),
    "JPEG RGB called YBR": _jpeg(adobe_rgb, "YBR_FULL_422"),
    "JPEG RGB unmarked": Stored(
        "1.2.840.10008.1.2.4.50", "RGB", rgb_components, _by_pillow(adobe_rgb)
    ),
    "JPEG extended": _jpeg(extended, "YBR_FULL_422", "51"),
    "JPEG 2000 RCT": Stored(
        "1.2.840.10008.1.2.4.90",
        "YBR_RCT",
        lambda rgb: jpeg_2000(rgb, level=0, reversible=True, mct=True),
    ),
    "JPEG 2000 RCT called RGB": Stored(
        "1.2.840.10008.1.2.4.90",
        "RGB",
        lambda rgb: jpeg_2000(rgb, level=0, reversible=True, mct=True),
    ),
    "JPEG 2000 RGB": Stored(
        "1.2.840.10008.1.2.4.90",
        "RGB",
        lambda rgb: jpeg_2000(rgb, level=0, reversible=True, mct=False),
    ),
    "JPEG 2000 ICT": Stored(
        "1.2.840.10008.1.2.4.91", "YBR_ICT", _ict, lambda rgb: openjpeg(_ict(rgb)), off=2
    ),
    "JPEG 2000 YBR": Stored(
        "1.2.840.10008.1.2.4.91", "YBR_FULL", _ybr_2000, lambda rgb: back(ybr(rgb))
    ),
    "JPEG 2000 YBR called ICT": Stored(
        "1.2.840.10008.1.2.4.91", "YBR_ICT", _ybr_2000, lambda rgb: back(ybr(rgb))
    ),
    "HTJ2K lossless": Stored(
        "1.2.840.10008.1.2.4.201",
        "YBR_RCT",
        lambda rgb: imagecodecs.htj2k_encode(rgb, reversible=True),
        served=False,
    ),
    "HTJ2K RPCL": Stored(
        "1.2.840.10008.1.2.4.202",
        "YBR_RCT",
        lambda rgb: imagecodecs.htj2k_encode(rgb, reversible=True, tlm=True),
        served=False,
    ),
    "HTJ2K": Stored(
        "1.2.840.10008.1.2.4.203",
        "YBR_ICT",
        _htj2k_lossy,
        lambda rgb: openjpeg(_htj2k_lossy(rgb)),
        off=2,
        served=False,
    ),
    "JPEG-LS": Stored("1.2.840.10008.1.2.4.80", "RGB", imagecodecs.jpegls_encode),
    "JPEG-LS near": Stored(
        "1.2.840.10008.1.2.4.81", "RGB", lambda rgb: imagecodecs.jpegls_encode(rgb, 2), off=2
    ),
    "JPEG-LS YBR": Stored(
        "1.2.840.10008.1.2.4.80",
        "YBR_FULL",
        lambda rgb: imagecodecs.jpegls_encode(ybr(rgb)),
        lambda rgb: back(ybr(rgb)),
    ),
    "JPEG XL lossless": Stored(
        "1.2.840.10008.1.2.4.110",
        "RGB",
        lambda rgb: imagecodecs.jpegxl_encode(rgb, lossless=True),
        served=False,
    ),
    "JPEG XL of JPEG": Stored(
        "1.2.840.10008.1.2.4.111",
        "YBR_FULL_422",
        lambda rgb: imagecodecs.jpegxl_encode_jpeg(marked(rgb)),
        _by_pillow(marked),
        served=False,
    ),
    "JPEG XL": Stored(
        "1.2.840.10008.1.2.4.112",
        "XYB",
        lambda rgb: imagecodecs.jpegxl_encode(rgb, lossless=False, distance=0.1),
        off=6,  # there is no second decoder: near to what went in
        served=False,
    ),
    "RLE": Stored("1.2.840.10008.1.2.5", "RGB", lambda rgb: run_lengths(planes(rgb)), planar=1),
    "RLE YBR": Stored(
        "1.2.840.10008.1.2.5",
        "YBR_FULL",
        lambda rgb: run_lengths(planes(ybr(rgb))),
        lambda rgb: back(ybr(rgb)),
    ),
    "Deflated frames": Stored(
        "1.2.840.10008.1.2.8.1", "RGB", lambda rgb: deflated(rgb.tobytes()), served=False
    ),
    "Deflated frames, planar": Stored(
        "1.2.840.10008.1.2.8.1",
        "RGB",
        lambda rgb: deflated(planes(rgb).tobytes()),
        planar=1,
        served=False,
    ),
    "Deflated": _native(".1.99", served=False),
    "Encapsulated uncompressed": _native(".1.98", served=False),
    "Implicit": _native(""),
    "Explicit": _native(".1"),
    "Big Endian": _native(".2", served=False),
    "planar": Stored("1.2.840.10008.1.2.1", "RGB", lambda rgb: planes(rgb).tobytes(), planar=1),
    "YBR": Stored(
        "1.2.840.10008.1.2.1",
        "YBR_FULL",
        lambda rgb: ybr(rgb).tobytes(),
        lambda rgb: back(ybr(rgb)),
    ),
    "YBR 4:2:2": Stored(
        "1.2.840.10008.1.2.1", "YBR_FULL_422", shared_chroma, with_shared_chroma, served=False
    ),
}

NATIVE = {
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
}
# pydicom writes no file under a UID that it does not know: it is put in afterwards.
UNKNOWN, KNOWN = "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.4.57"


def _offsets(ds: Dataset, frames: list[bytes]) -> None:
    ds.PixelData = encapsulate(frames)


def _no_offsets(ds: Dataset, frames: list[bytes]) -> None:
    ds.PixelData = encapsulate(frames, has_bot=False)


def _extended_offsets(ds: Dataset, frames: list[bytes]) -> None:
    ds.PixelData, ds.ExtendedOffsetTable, lengths = encapsulate_extended(frames)
    ds.ExtendedOffsetTableLengths = lengths


def _two_fragments(ds: Dataset, frames: list[bytes]) -> None:
    ds.PixelData = encapsulate(frames, fragments_per_frame=2)


# How a file says where its encapsulated frames lie (PS3.5 A.4).
TABLES: dict[str, Callable[[Dataset, list[bytes]], None]] = {
    "offsets": _offsets,
    "no offsets": _no_offsets,
    "extended offsets": _extended_offsets,
    "two fragments a frame": _two_fragments,
}


def written_in(
    name: str, write: Callable[[Change], WrittenSlide], table: str = "offsets"
) -> WrittenSlide:
    """A slide in the named encoding.

    Parameters
    ----------
    name
    write
        Writes the slide uncompressed, and gives each dataset to the change that it is called with.
    table
        Of the encapsulated frames.
    """
    how = STORED[name]

    def change(ds: Dataset, level: int) -> None:
        frames = np.frombuffer(ds.PixelData, np.uint8).reshape(-1, ds.Rows, ds.Columns, 3)
        encoded = [how.encode(frame) for frame in frames]
        ds.file_meta.TransferSyntaxUID = how.transfer_syntax_uid.replace(UNKNOWN, KNOWN)
        ds.PhotometricInterpretation, ds.PlanarConfiguration = how.photometric, how.planar
        if how.transfer_syntax_uid in NATIVE:
            ds.PixelData = b"".join(encoded)
        else:
            TABLES[table](ds, encoded)
        ds["PixelData"].VR = "OB"

    written = write(change)
    if how.transfer_syntax_uid == UNKNOWN:
        for path in written.paths:
            whole = path.read_bytes()
            path.write_bytes(whole.replace(KNOWN.encode(), UNKNOWN.encode() + b"\0", 1))
    return written


def write_encoded(
    folder: Path, name: str, header: Change = lambda ds, level: None, **layout: Any
) -> WrittenSlide:
    """One level, in the named encoding, of which `header` may then say something else."""

    def write(encode: Change) -> WrittenSlide:
        def change(ds: Dataset, level: int) -> None:
            encode(ds, level)
            header(ds, level)

        return write_slide(folder, levels=1, encoding="raw", change=change, **layout)

    return written_in(name, write)


def seen(name: str, rgb: UInt8, tile_px: tuple[int, int]) -> UInt8:
    """A level stored in the named encoding, tile by tile through the other decoder."""
    height, width = rgb.shape[:2]
    tiles, places = cut_tiles(rgb, tile_px)
    columns, rows = (last + 1 for last in places[-1])
    whole = np.empty((rows * tile_px[1], columns * tile_px[0], 3), np.uint8)
    for tile, (column, row) in zip(tiles, places, strict=True):
        x, y = column * tile_px[0], row * tile_px[1]
        whole[y : y + tile_px[1], x : x + tile_px[0]] = STORED[name].expected(tile)
    return whole[:height, :width]
