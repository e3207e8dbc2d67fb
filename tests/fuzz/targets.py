"""What is fuzzed: each target takes bytes and returns, or raises a clear error of the node."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import requests
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse

from dicom_io.decoding import PixelFormat, decode_frame, transfer_syntax_of
from dicom_io.dicom_json import attributes, value
from dicom_io.folder import FolderClient
from dicom_io.native_model import NativeModelInvalid, from_xml, to_xml
from dicom_io.pacs import InstanceReference, PacsSettings, open_pacs
from dicom_io.slide import open_slide
from models.errors import MarrowNodeError
from tests.encodings import STORED
from tests.slides import picture, write_slide

SIZE_PX = (32, 24)
STUDY, SERIES, INSTANCE = "1.2.3", "1.2.3.4", "1.2.3.4.5"
ARCHIVE = "http://archive.invalid/dicom-web"
BOUNDARY = b"frontier"
UNCLEAR_BYTES = 2000
NAMES = list(STORED)


class Unclear(AssertionError):
    """An error that says too little or too much."""


def frame(data: bytes) -> None:
    """One byte for the encoding, then a stored frame."""
    if not data:
        return
    how = STORED[NAMES[data[0] % len(NAMES)]]
    stored = data[1:]
    transfer_syntax_of(stored, SIZE_PX)
    form = PixelFormat(how.transfer_syntax_uid, how.photometric, SIZE_PX, bool(how.planar))
    try:
        rgb = decode_frame(stored, form)
    except ValueError as error:  # becomes a FrameInvalid with the frame's name
        if not str(error) or len(str(error)) > UNCLEAR_BYTES:
            raise Unclear(error) from error
        return
    if rgb.shape != (SIZE_PX[1], SIZE_PX[0], 3) or rgb.dtype != np.uint8:
        raise Unclear(f"{rgb.shape} {rgb.dtype}")


def metadata(data: bytes) -> None:
    """DICOM JSON of a series, as an archive answers with it."""
    with _clear(), _archive(data, b"application/dicom+json") as pacs:
        open_slide(pacs, STUDY, SERIES)


def multipart(data: bytes) -> None:
    """Body of an answer with three frames."""
    kind = b'multipart/related; type="application/octet-stream"; boundary=' + BOUNDARY
    with _clear(), _archive(data, kind) as pacs:
        parts = list(pacs.frames(InstanceReference(STUDY, SERIES, INSTANCE), [0, 1, 2]))
        if len(parts) != 3 or not all(parts):
            raise Unclear(f"{len(parts)} frames")


def file(data: bytes) -> None:
    """A DICOM file in a folder."""
    with _clear(), tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "slide.dcm").write_bytes(data)
        client = FolderClient(f"file://{folder}")
        for found in client.search_for_instances(STUDY, SERIES):
            client.retrieve_series_metadata(STUDY, SERIES)
            sop = str(value(found, "SOPInstanceUID"))
            client.retrieve_instance_frames(STUDY, SERIES, sop, [1, 2])


def native_model(data: bytes) -> None:
    """A workitem as XML; what is read is written, and read again, as the same."""
    try:
        dataset = from_xml(data)
    except NativeModelInvalid as error:
        if not 10 < len(str(error)) < UNCLEAR_BYTES:
            raise Unclear(error) from error
        return
    if from_xml(to_xml(dataset)) != dataset:
        raise Unclear("the model changes as it is written")


class _clear(suppress):  # noqa: N801 - reads like suppress
    """Suppress the node's own errors; others, and ones that say nothing, are findings."""

    def __init__(self) -> None:
        super().__init__(MarrowNodeError)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if isinstance(error, MarrowNodeError) and not 20 < len(str(error)) < UNCLEAR_BYTES:
            raise Unclear(error) from error
        return bool(super().__exit__(kind, error, trace))


@dataclass
class _Answer(BaseAdapter):
    """A server that has one answer."""

    body: bytes
    kind: bytes

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response.request, response.url = 200, request, str(request.url)
        response.headers["Content-Type"] = self.kind.decode()
        response.raw = HTTPResponse(BytesIO(self.body), preload_content=False)
        return response

    def close(self) -> None:
        pass


def _archive(body: bytes, kind: bytes) -> Any:
    """An archive behind the real client, its network replaced at the lowest place."""
    # A host is not left alone here, or the inputs after some bad ones would test nothing.
    settings = PacsSettings(retries=0, connections=1, breaker_failures=10**9)
    pacs = open_pacs(ARCHIVE, settings)
    pacs._retrieve._session.mount(ARCHIVE, _Answer(body, kind))
    return pacs


def frame_seeds() -> Iterator[bytes]:
    for number, name in enumerate(NAMES):
        yield bytes([number]) + STORED[name].encode(picture(*SIZE_PX))


def metadata_seeds() -> Iterator[bytes]:
    for organization in ("TILED_FULL", "TILED_SPARSE"):
        yield json.dumps([_described(_written(organization))]).encode()


def multipart_seeds() -> Iterator[bytes]:
    head = b"\r\n--" + BOUNDARY + b"\r\nContent-Type: application/octet-stream\r\n"
    end = b"\r\n--" + BOUNDARY + b"--"
    bodies = (b"\xff\xd8first\xff\xd9", b"second", bytes(range(256)))
    yield b"".join(head + b"\r\n" + body for body in bodies) + end
    yield b"".join(head + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in bodies) + end


def file_seeds() -> Iterator[bytes]:
    for encoding in ("jpeg", "raw"):
        yield _written("TILED_FULL", encoding).read_bytes()


def native_model_seeds() -> Iterator[bytes]:
    yield to_xml(_described(_written("TILED_FULL")))
    yield to_xml(attributes(PatientName=[{"Alphabetic": "A^B^C"}], ImageType=["A", None, "C"]))


def _written(organization: str, encoding: str = "jpeg") -> Path:
    def name(ds: Any, level: int) -> None:
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = STUDY, SERIES, INSTANCE
        ds.FrameOfReferenceUID = "1.2.3.5"

    folder = Path(tempfile.mkdtemp())
    return write_slide(
        folder,
        size_px=(64, 48),
        tile_px=SIZE_PX,
        levels=1,
        organization=organization,
        encoding=encoding,
        change=name,
    ).paths[0]


def _described(path: Path) -> dict[str, Any]:
    client = FolderClient(f"file://{path.parent}")
    (described,) = client.retrieve_series_metadata(STUDY, SERIES)
    # Told, so that no frame has to be asked for.
    return described | {"00083002": {"vr": "UI", "Value": ["1.2.840.10008.1.2.4.50"]}}


@dataclass(frozen=True)
class Target:
    """A reader of bytes and what it reads well."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


TARGETS = {
    "frame": Target(frame, frame_seeds),
    "metadata": Target(metadata, metadata_seeds),
    "multipart": Target(multipart, multipart_seeds),
    "file": Target(file, file_seeds),
    "native_model": Target(native_model, native_model_seeds),
}
CORPUS = Path(__file__).parent / "corpus"


def kept(target: str) -> Sequence[bytes]:
    """Inputs that once found something, in the order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]
