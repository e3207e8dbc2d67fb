"""Frames: real tiles, headers that lie, colours that contradict."""

from __future__ import annotations

import queue
import resource
import struct
import time
from pathlib import Path

import imagecodecs
import numpy as np
import psutil
import pytest
from PIL import Image

from dicom_io import kept_apart
from dicom_io.decoding import (
    ENCODINGS,
    PixelFormat,
    colour_contradiction,
    decode_frame,
    transfer_syntax_of,
)
from dicom_io.errors import SlideProcessDied
from tests.encodings import (
    STORED,
    adobe_rgb,
    deflated,
    jpeg_2000,
    marked,
    rgb_components,
    unmarked,
    with_shared_chroma,
)
from tests.slides import picture

TILES = Path(__file__).parent / "data" / "tiles"
# What the writer called the colours, and how far lossy encoding went: grey levels.
REAL = {
    "jpeg_ybr.jpg": ("1.2.840.10008.1.2.4.50", "YBR_FULL_422", 16),
    "jpeg_rgb.jpg": ("1.2.840.10008.1.2.4.50", "RGB", 7),
    "jpeg2000_rct.j2k": ("1.2.840.10008.1.2.4.90", "YBR_RCT", 0),
    "jpeg2000_ict.j2k": ("1.2.840.10008.1.2.4.91", "YBR_ICT", 3),
    "jpeg2000_rgb_lossy.j2k": ("1.2.840.10008.1.2.4.91", "RGB", 2),
    "jpegls.jls": ("1.2.840.10008.1.2.4.80", "RGB", 0),
    "jpegls_near.jls": ("1.2.840.10008.1.2.4.81", "RGB", 1),
    "rle.rle": ("1.2.840.10008.1.2.5", "RGB", 0),
}
SIZE_PX = (64, 48)


def form(name: str) -> PixelFormat:
    how = STORED[name]
    return PixelFormat(how.transfer_syntax_uid, how.photometric, SIZE_PX, bool(how.planar))


@pytest.mark.parametrize("name", REAL)
def test_real_tile(name: str) -> None:
    uid, photometric, off = REAL[name]
    frame, size_px = (TILES / name).read_bytes(), (240, 240)
    assert transfer_syntax_of(frame, size_px) == uid
    rgb = decode_frame(frame, PixelFormat(uid, photometric, size_px))
    tile = np.array(Image.open(TILES / "tile.png").convert("RGB")).astype(int)
    assert np.abs(rgb - tile).max() <= off


@pytest.mark.parametrize("name", STORED)
def test_kind_is_told_from_the_bytes(name: str) -> None:
    """Exactly, or as the general one of those that share a lossless stream."""
    told = transfer_syntax_of(STORED[name].encode(picture(*SIZE_PX)), SIZE_PX)
    assert told is not None
    assert ENCODINGS[told].decode is ENCODINGS[STORED[name].transfer_syntax_uid].decode


LIES = {
    "JPEG 4:2:2": (b"\xff\xc0", 5, ">HH"),
    "JPEG-LS": (b"\xff\xf7", 5, ">HH"),
    "JPEG 2000 RCT": (b"\xff\x51", 6, ">II"),
    "HTJ2K lossless": (b"\xff\x51", 6, ">II"),
    "JPEG XL lossless": (b"\xff\x0a", 2, ">II"),
}


@pytest.mark.parametrize("name", LIES)
def test_header_that_claims_too_much_is_not_decoded(name: str) -> None:
    """A JPEG of 65 000 × 65 000 takes 42 s and 12 GB before its decoder gives up."""
    marker, at, numbers = LIES[name]
    frame = bytearray(STORED[name].encode(picture(*SIZE_PX)))
    start = frame.index(marker) + at
    claim = struct.pack(numbers, 65_000, 65_000)
    frame[start : start + len(claim)] = claim
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises(ValueError, match=r"65000 × 65000|not 48 × 64|truncated|kind"):
        decode_frame(bytes(frame), form(name))
    assert time.process_time() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("share", [0, 0.02, 0.5])
def test_cut_off_frame_is_refused(name: str, share: float) -> None:
    frame = STORED[name].encode(picture(*SIZE_PX))
    with pytest.raises(ValueError, match=r"truncated or damaged|decodes to"):
        decode_frame(frame[: int(len(frame) * share)], form(name))


@pytest.mark.parametrize("name", ["JPEG 4:2:2", "JPEG 2000 RCT", "HTJ2K lossless", "JPEG-LS"])
def test_grey_frame_in_a_colour_instance(name: str) -> None:
    grey = picture(*SIZE_PX)[..., 0].copy()
    encode = {
        "JPEG 4:2:2": imagecodecs.jpeg8_encode,
        "JPEG 2000 RCT": lambda g: jpeg_2000(g, level=0, reversible=True),
        "HTJ2K lossless": lambda g: imagecodecs.htj2k_encode(g, reversible=True),
        "JPEG-LS": imagecodecs.jpegls_encode,
    }[name]
    with pytest.raises(ValueError, match="48 × 64 × 1 with 8 bit"):
        decode_frame(encode(grey), form(name))


def test_twelve_bit_jpeg() -> None:
    deep = picture(*SIZE_PX).astype(np.uint16) << 4
    frame = imagecodecs.jpeg8_encode(deep, bitspersample=12)
    with pytest.raises(ValueError, match="12 bit"):
        decode_frame(frame, form("JPEG extended"))


def test_progressive_jpeg_is_no_transfer_syntax() -> None:
    import io

    out = io.BytesIO()
    Image.fromarray(picture(*SIZE_PX)).save(out, "JPEG", progressive=True)
    with pytest.raises(ValueError, match="progressive"):
        decode_frame(out.getvalue(), form("JPEG 4:2:2"))
    assert transfer_syntax_of(out.getvalue(), SIZE_PX) is None


def test_frame_of_another_kind() -> None:
    frame = STORED["JPEG-LS"].encode(picture(*SIZE_PX))
    with pytest.raises(ValueError, match="is JPEG-LS, not"):
        decode_frame(frame, form("JPEG 4:2:2"))


def test_component_transform_that_is_not_there() -> None:
    frame = STORED["JPEG 2000 RGB"].encode(picture(*SIZE_PX))
    with pytest.raises(ValueError, match="YBR_RCT"):
        decode_frame(frame, form("JPEG 2000 RCT"))


def test_deflated_frame_inflates_no_further_than_a_frame() -> None:
    with pytest.raises(ValueError, match="truncated"):
        decode_frame(deflated(b""), form("Deflated frames"))
    bomb = deflated(bytes(500_000_000))
    assert decode_frame(bomb, form("Deflated frames")).max() == 0


CONTRADICTIONS = [
    (marked, "YBR_FULL_422", None),
    (marked, "RGB", "YCbCr, not RGB"),
    (unmarked, "YBR_FULL_422", None),
    (unmarked, "RGB", "YCbCr, not RGB"),  # its chroma is subsampled
    (adobe_rgb, "RGB", None),
    (adobe_rgb, "YBR_FULL_422", "RGB, not YBR_FULL_422"),
    (rgb_components, "RGB", None),
]


@pytest.mark.parametrize(("encode", "said", "contradiction"), CONTRADICTIONS)
def test_who_is_right_about_the_colours(encode, said: str, contradiction: str | None) -> None:
    frame = encode(picture(*SIZE_PX))
    assert colour_contradiction(frame, PixelFormat("1.2.840.10008.1.2.4.50", said, SIZE_PX)) == (
        contradiction
    )


def test_shared_chroma_of_jpeg_2000_is_turned_into_rgb_once() -> None:
    """OpenJPEG does it by itself there; the file was made by its own program, 4:2:2."""
    frame = (Path(__file__).parent / "data" / "shared_chroma.j2k").read_bytes()
    how = PixelFormat("1.2.840.10008.1.2.4.91", "YBR_FULL_422", (64, 64))
    expected = with_shared_chroma(picture(64, 64)).astype(int)
    assert np.abs(decode_frame(frame, how).astype(int) - expected).max() <= 3
    assert colour_contradiction(frame, how) is None


@pytest.mark.parametrize(
    ("photometric", "samples"),
    [("YBR_FULL_422", 1), ("YBR_FULL_422", 3), ("RGB", 2), ("RGB", 4), ("RGB", 48 * 3)],
)
def test_plain_pixels_of_another_length_than_their_colours_have(
    photometric: str, samples: int
) -> None:
    """Among others all of them in answer to each."""
    how = PixelFormat("1.2.840.10008.1.2.1", photometric, SIZE_PX)
    with pytest.raises(ValueError, match="truncated or damaged"):
        decode_frame(bytes(SIZE_PX[0] * SIZE_PX[1] * samples), how)


def test_a_decoder_that_does_not_begin_is_not_the_frames_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_apart, "_idle", queue.LifoQueue())
    monkeypatch.setattr(kept_apart, "START_S", 0.0)
    before = psutil.Process().children()
    with pytest.raises(SlideProcessDied, match="did not begin") as caught:
        decode_frame(STORED["JPEG-LS"].encode(picture(*SIZE_PX)), form("JPEG-LS"))
    assert caught.value.transient
    assert psutil.Process().children() == before
