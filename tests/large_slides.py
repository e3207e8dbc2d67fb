"""An archive with one slide of any size: its metadata made up, one small JPEG for every frame.

Orthanc takes half a minute to describe 40 000 sparse frames; what the node makes of the answer
is measured behind this one, which answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import simplejpeg

from tests.served import served
from tests.slides import UInt8, image_dataset, place_frames

TILE_PX = 256
STUDY, SERIES, INSTANCE = "1.2.3.1", "1.2.3.2", "1.2.3.3"


@contextmanager
def large_slide(
    columns: int, rows: int, organization: str, shift_px: int = 0, rgb: UInt8 | None = None
) -> Iterator[str]:
    """Serve a base level of `columns` × `rows` frames of 256 px at 0.25 µm, all of them stored.

    Parameters
    ----------
    columns, rows
    organization
    shift_px
        Of every second row of TILED_SPARSE, to the right.
    rgb : (256, 256, 3) uint8, optional
        What each frame shows; pink by default.

    Yields
    ------
    str
        URL of the archive, which knows study, series and instance 1.2.3.1, .2 and .3.
    """
    if rgb is None:
        rgb = np.full((TILE_PX, TILE_PX, 3), (225, 200, 215), np.uint8)
    jpeg = simplejpeg.encode_jpeg(rgb, quality=90, colorsubsampling="422")
    metadata = _metadata(rgb, columns, rows, organization, shift_px)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if "/frames/" in self.path:
                count = self.path.count(",") + 1
                part = b"--x\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg + b"\r\n"
                kind = 'multipart/related; type="image/jpeg"; boundary=x'
                self._answer(part * count + b"--x--\r\n", kind)
            else:
                found = metadata if self.path.endswith("/metadata") else b"[]"
                self._answer(found, "application/dicom+json")

        def _answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


def _metadata(rgb: UInt8, columns: int, rows: int, organization: str, shift_px: int) -> bytes:
    size_px = (columns * TILE_PX + shift_px, rows * TILE_PX)
    ds = image_dataset([rgb], "jpeg", (TILE_PX, TILE_PX), size_px)
    del ds.PixelData
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = STUDY, SERIES, INSTANCE
    ds.FrameOfReferenceUID = "1.2.3.4"
    ds.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    ds.NumberOfFrames = columns * rows
    place_frames(ds, organization, [(0, 0)], 0.25, (20, 40))
    header = ds.to_json_dict()
    if organization != "TILED_SPARSE":
        return json.dumps([header]).encode()
    item = json.dumps(header.pop("52009230")["Value"][0])
    for tag in ("0048021E", "0048021F"):
        before = f'"{tag}": {{"vr": "SL", "Value": [1]'
        assert before in item
        item = item.replace(before, before.replace("[1]", f"[@{tag}]"))
    items = ",".join(
        item.replace("@0048021E", str(column * TILE_PX + row % 2 * shift_px + 1)).replace(
            "@0048021F", str(row * TILE_PX + 1)
        )
        for row in range(rows)
        for column in range(columns)
    )
    text = json.dumps(header)[:-1] + ', "52009230": {"vr": "SQ", "Value": [' + items + "]}}"
    return f"[{text}]".encode()
