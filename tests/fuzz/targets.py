"""What is fuzzed: each target takes bytes and returns, or raises a clear error of the node."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from dicom_io.decoding import EXPLICIT_LE, PixelFormat, decode_frame, transfer_syntax_of
from dicom_io.dicom_json import Json, attributes, value
from dicom_io.folder import FolderClient
from dicom_io.native_model import NativeModelInvalid, from_xml, to_xml
from dicom_io.pacs import InstanceReference, PacsSettings, open_pacs
from dicom_io.slide import open_slide
from models.errors import MarrowNodeError
from tests.encodings import STORED, TABLES, written_in
from tests.filed_archive import TOLD
from tests.in_process import InProcess
from tests.layouts import LAYOUTS
from tests.quirky_proxy import HABITS, Habits, multipart_body
from tests.slides import Change, WrittenSlide, picture

SIZE_PX = (32, 24)
STUDY, SERIES, INSTANCE = "1.2.3", "1.2.3.4", "1.2.3.4.5"
ARCHIVE = "http://archive.invalid/dicom-web"
BOUNDARY = "frontier"
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
    with _clear(), _archive(data, "application/dicom+json") as pacs:
        open_slide(pacs, STUDY, SERIES)


def multipart(data: bytes) -> None:
    """Body of an answer with three frames."""
    kind = f'multipart/related; type="application/octet-stream"; boundary={BOUNDARY}'
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


def _archive(body: bytes, kind: str) -> Any:
    """An archive behind the real client, its network replaced at the lowest place."""
    # A host is not left alone here, or the inputs after some bad ones would test nothing.
    settings = PacsSettings(retries=0, connections=1, breaker_failures=10**9)
    pacs = open_pacs(ARCHIVE, settings)
    pacs._retrieve._session.mount(ARCHIVE, InProcess(lambda path: (200, kind, body)))
    return pacs


def frame_seeds() -> Iterator[bytes]:
    for number, name in enumerate(NAMES):
        yield bytes([number]) + STORED[name].encode(picture(*SIZE_PX))


def metadata_seeds() -> Iterator[bytes]:
    """Every layout, and every way to tell of one instance and of several."""
    for layout in LAYOUTS:
        yield json.dumps(_described(layout)).encode()
    for told in TOLD.values():
        for layout in ("no low level", "split over instances"):
            yield json.dumps(told(_described(layout), EXPLICIT_LE)).encode()


def multipart_seeds() -> Iterator[bytes]:
    """Every way to write parts, frames in another order, and one that comes twice."""
    frames = list(enumerate((b"\xff\xd8first\xff\xd9", b"second", bytes(range(256))), start=1))
    instance = f"/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}"
    written = (replace(habits, boundary=BOUNDARY) for habits in HABITS.values())
    yield from dict.fromkeys(multipart_body(frames, habits, instance) for habits in written)
    labelled = Habits(boundary=BOUNDARY, content_location=True)
    yield multipart_body(frames[::-1], labelled, instance)
    yield multipart_body([*frames, frames[0]], labelled, instance)


def file_seeds() -> Iterator[bytes]:
    """Every way to find frames in a file."""
    for table in TABLES:
        yield _file("JPEG 4:2:2", table)
    for name in ("Encapsulated uncompressed", "Implicit", "Explicit", "Big Endian", "Deflated"):
        yield _file(name)


def native_model_seeds() -> Iterator[bytes]:
    yield to_xml(_described("no low level")[0])
    yield to_xml(attributes(PatientName=[{"Alphabetic": "A^B^C"}], ImageType=["A", None, "C"]))


def _file(encoding: str, table: str = "offsets") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return _written(folder, "no low level", encoding, table).paths[0].read_bytes()


def _described(layout: str) -> list[Json]:
    with tempfile.TemporaryDirectory() as folder:
        _written(folder, layout)
        described = FolderClient(f"file://{folder}").retrieve_series_metadata(STUDY, SERIES)
    # Told, so that no frame has to be asked for.
    return [each | attributes(AvailableTransferSyntaxUID=EXPLICIT_LE) for each in described]


def _written(
    folder: str, layout: str, encoding: str = "Explicit", table: str = "offsets"
) -> WrittenSlide:
    """A slide with the same bytes every time."""

    def write(change: Change) -> WrittenSlide:
        def both(ds: Dataset, level: int) -> None:
            change(ds, level)
            _name(ds)

        return LAYOUTS[layout].write(Path(folder), both)

    return written_in(encoding, write, table)


def _name(ds: Dataset) -> None:
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = STUDY, SERIES, "1.2.3.5"
    ds.SOPInstanceUID = f"{INSTANCE}.{ds.get('InstanceNumber', 1)}"
    if "ConcatenationUID" in ds:
        ds.ConcatenationUID = "1.2.3.6"


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
