"""Frames of one instance, fetched and decoded: this reader beside others, and beside the limit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import requests
import simplejpeg
from dicomweb_client import DICOMwebClient
from wsidicom import WsiDicom, WsiDicomWebClient

from dicom_io.demonstration import TILE_PX
from dicom_io.frames import read_tiles
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import open_slide
from dicom_io.tile_plan import frame_boxes
from models.records import UInt8
from tests.bench.stored_slides import StoredSlide

JPEG = ("image/jpeg", "1.2.840.10008.1.2.4.50")
ACCEPT = f'multipart/related; type="{JPEG[0]}"; transfer-syntax={JPEG[1]}'
BATCH_TILES = 16
BLOCK_FRAMES = 8  # a side of the regions that wsidicom is asked for
# Ways to fetch frames with nothing done to them; the fastest is the limit.
RAW_FETCHES = ((200, 4), (500, 2), (1000, 1), (1000, 2))  # frames a request, connections

Reader = Callable[[str, StoredSlide, int], float]


def this_reader(dicomweb_url: str, slide: StoredSlide, frames: int) -> float:
    """Seconds for the first `frames` frames as tiles, one frame each, in batches."""
    with open_pacs(dicomweb_url, PacsSettings()) as pacs:
        opened = open_slide(pacs, slide.study_uid, slide.series_uid)
        box_px = frame_boxes(opened)[:frames]
        started = time.monotonic()
        count = 0
        for tiles in read_tiles(
            pacs, opened, box_px, opened.base.um_per_px, batch_size=BATCH_TILES
        ):
            if count % 256 == 0:
                _check(tiles.rgb[0], slide, count)
            count += len(tiles.rgb)
        seconds = time.monotonic() - started
    if count != frames:
        raise AssertionError(f"{count} of {frames} tiles came")
    return seconds


def wsidicom_reader(dicomweb_url: str, slide: StoredSlide, frames: int, threads: int) -> float:
    """Seconds for the same pixels with wsidicom's read_region, block by block."""
    client = WsiDicomWebClient(DICOMwebClient(dicomweb_url))
    with WsiDicom.open_web(client, slide.study_uid, slide.series_uid) as opened:
        rows = -(-frames // slide.columns)
        side = min(BLOCK_FRAMES, slide.columns, frames)
        started = time.monotonic()
        for top in range(0, rows, side):
            for left in range(0, slide.columns, side):
                height = min(side, rows - top)
                rgb = opened.read_region(
                    (left * TILE_PX, top * TILE_PX),
                    0,
                    (side * TILE_PX, height * TILE_PX),
                    threads=threads,
                    as_array=True,
                )
                if left == 0:
                    _check(rgb[:TILE_PX, :TILE_PX], slide, top * slide.columns)
                if (top * slide.columns + left + side) >= frames:
                    break
        return time.monotonic() - started


def one_by_one(dicomweb_url: str, slide: StoredSlide, frames: int) -> float:
    """Seconds with dicomweb-client, a request for each frame."""
    client = DICOMwebClient(dicomweb_url)
    started = time.monotonic()
    for number in range(frames):
        (stored,) = client.retrieve_instance_frames(
            slide.study_uid, slide.series_uid, slide.sop_uid, [number + 1], media_types=(JPEG,)
        )
        rgb = _decode(stored)
        if number % 256 == 0:
            _check(rgb, slide, number)
    return time.monotonic() - started


def raw_fetch(
    dicomweb_url: str, slide: StoredSlide, frames: int, per_request: int, connections: int
) -> float:
    """Seconds until the bytes have come, with nothing done to them."""
    base = (
        f"{dicomweb_url}/studies/{slide.study_uid}/series/{slide.series_uid}"
        f"/instances/{slide.sop_uid}/frames/"
    )
    session = requests.Session()

    def fetch(start: int) -> int:
        numbers = range(start + 1, min(start + per_request, frames) + 1)
        answer = session.get(
            base + ",".join(map(str, numbers)), headers={"Accept": ACCEPT}, timeout=600
        )
        answer.raise_for_status()
        return len(answer.content)

    with ThreadPoolExecutor(connections) as pool:
        started = time.monotonic()
        received = sum(pool.map(fetch, range(0, frames, per_request)))
        seconds = time.monotonic() - started
    if received < sum(map(len, slide.stored[:frames])):
        raise AssertionError("the raw fetch did not bring all frames")
    return seconds


def raw_decode(dicomweb_url: str, slide: StoredSlide, frames: int) -> float:
    """Seconds of libjpeg-turbo on all cores, the bytes lying in memory."""
    del dicomweb_url
    threads = os.cpu_count() or 1
    parts = [slide.stored[:frames][start::threads] for start in range(threads)]

    def decode_all(part: Sequence[bytes]) -> int:
        return sum(len(_decode(stored)) for stored in part)

    with ThreadPoolExecutor(threads) as pool:
        started = time.monotonic()
        list(pool.map(decode_all, parts))
        return time.monotonic() - started


READERS: Mapping[str, Reader] = {
    "this reader": this_reader,
    "wsidicom": partial(wsidicom_reader, threads=1),
    "wsidicom, 8 threads": partial(wsidicom_reader, threads=8),
    "dicomweb-client, one by one": one_by_one,
}
LIMITS: Mapping[str, Reader] = {
    **{
        f"raw fetch, {frames} a request, {connections} connections": partial(
            raw_fetch, per_request=frames, connections=connections
        )
        for frames, connections in RAW_FETCHES
    },
    "libjpeg-turbo on all cores": raw_decode,
}


def _decode(stored: bytes) -> UInt8:
    decoded: UInt8 = simplejpeg.decode_jpeg(
        stored, colorspace="RGB", fastdct=False, fastupsample=False
    )
    return decoded


def _check(rgb: UInt8, slide: StoredSlide, number: int) -> None:
    """A reader that gives other pixels than the frame's own is no reader."""
    if np.abs(rgb.astype(int) - _decode(slide.stored[number])).max() > 2:
        raise AssertionError(f"other pixels than those of frame {number + 1}")
