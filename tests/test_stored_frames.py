"""Frames of a file by seeking: offset tables, fragments, damage."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames

from dicom_io import stored_frames
from dicom_io.errors import InputError, PacsAnswerInvalid, PacsError
from dicom_io.folder import FolderClient
from dicom_io.pacs import InstanceReference, open_pacs
from dicom_io.stored_frames import PER_FRAME, frame_table, header_of, read_frames
from tests.conftest import QUICK
from tests.encodings import write_encoded
from tests.slides import write_slide

FRAMES = 12
Change = Callable[[Dataset, list[bytes]], None]


def basic(ds: Dataset, frames: list[bytes]) -> None:
    ds.PixelData = encapsulate(frames)


def empty(ds: Dataset, frames: list[bytes]) -> None:
    ds.PixelData = encapsulate(frames, has_bot=False)


def extended(ds: Dataset, frames: list[bytes]) -> None:
    ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(
        frames
    )


def fragments(ds: Dataset, frames: list[bytes]) -> None:
    ds.PixelData = encapsulate(frames, fragments_per_frame=3)


def fragments_without_table(ds: Dataset, frames: list[bytes]) -> None:
    ds.PixelData = encapsulate(frames, fragments_per_frame=3, has_bot=False)


def wrong_table(ds: Dataset, frames: list[bytes]) -> None:
    """Offsets that ran over, as in a file of more than 4 GiB."""
    whole = bytearray(encapsulate(frames))
    whole[8 + 4 * 5 : 8 + 4 * 6] = struct.pack("<I", 8)
    ds.PixelData = bytes(whole)


TABLES = [basic, empty, extended, fragments, fragments_without_table, wrong_table]


@pytest.mark.parametrize("table", TABLES)
def test_frames_are_found_however_they_are_listed(tmp_path: Path, table: Change) -> None:
    stored: list[bytes] = []

    def change(ds: Dataset, level: int) -> None:
        stored.extend(generate_frames(ds.PixelData, number_of_frames=FRAMES))
        table(ds, stored)

    written = write_slide(tmp_path, size_px=(256, 192), levels=1, change=change)
    found = frame_table(written.paths[0])
    assert found.frames == FRAMES
    order = [3, 11, 0, 11]
    assert read_frames(found, order) == [stored[number] for number in order]


def test_one_frame_in_many_fragments(tmp_path: Path) -> None:
    def change(ds: Dataset, level: int) -> None:
        (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
        ds.PixelData = encapsulate([frame], fragments_per_frame=5, has_bot=False)
        change.frame = frame  # type: ignore[attr-defined]

    written = write_slide(tmp_path, size_px=(64, 64), levels=1, change=change)
    assert read_frames(frame_table(written.paths[0]), [0]) == [change.frame]


def test_fragments_of_streams_without_end_are_not_guessed(tmp_path: Path) -> None:
    def change(ds: Dataset, level: int) -> None:
        ds.PixelData = encapsulate([bytes(64)] * FRAMES, fragments_per_frame=2, has_bot=False)

    written = write_slide(tmp_path, size_px=(256, 192), levels=1, change=change)
    with pytest.raises(ValueError, match="which fragments"):
        frame_table(written.paths[0])


@pytest.mark.parametrize("name", ["Implicit", "Explicit", "Big Endian", "Deflated", "YBR 4:2:2"])
def test_frames_that_are_not_encapsulated(tmp_path: Path, name: str) -> None:
    written = write_encoded(tmp_path, name, size_px=(256, 192))
    data = dcmread(written.paths[0]).PixelData
    size = len(data) // FRAMES
    found = frame_table(written.paths[0])
    assert read_frames(found, [7, 0]) == [data[7 * size : 8 * size], data[:size]]


def test_words_of_big_endian_are_turned(tmp_path: Path) -> None:
    def words(ds: Dataset, level: int) -> None:
        ds["PixelData"].VR = "OW"
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
        ds.PixelData = np.frombuffer(ds.PixelData, ">u2").astype("<u2").tobytes()

    plain = write_slide(tmp_path / "1", size_px=(256, 192), levels=1, encoding="raw")
    turned = write_slide(tmp_path / "2", size_px=(256, 192), levels=1, encoding="raw", change=words)
    numbers = range(FRAMES)
    assert read_frames(frame_table(turned.paths[0]), numbers) == read_frames(
        frame_table(plain.paths[0]), numbers
    )


def test_deflated_file_that_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_encoded(tmp_path, "Deflated", size_px=(1024, 1024))
    monkeypatch.setattr(stored_frames, "MAX_INFLATED_BYTES", 2**20)
    monkeypatch.setattr(stored_frames, "INFLATE_STEP_BYTES", 2**16)
    with pytest.raises(PacsAnswerInvalid, match=written.paths[0].name):
        open_pacs(f"file://{tmp_path}", QUICK)


def test_what_stands_behind_what_is_wanted_is_not_read(tmp_path: Path) -> None:
    """Also where nothing tells how long it is, and pydicom would go through it item by item."""
    (path,) = write_slide(tmp_path, levels=1, organization="TILED_SPARSE").paths
    ds = dcmread(path)
    ds["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    ds.save_as(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\x00\x52\x30\x92SQ") + 20])
    assert header_of(path, ["Rows", "SOPInstanceUID"]).Rows == 64
    assert "SharedFunctionalGroupsSequence" in header_of(path, before=PER_FRAME)


def test_replaced_file_is_read_anew(tmp_path: Path) -> None:
    written = write_slide(tmp_path, size_px=(256, 192), levels=1)
    ds = dcmread(written.paths[0])
    reference = InstanceReference(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        before = next(pacs.frames(reference, [2]))
        ds.PixelData = encapsulate([b"\xff\xd8\xff\xd9" * number for number in range(1, 13)])
        ds.save_as(written.paths[0])
        assert next(pacs.frames(reference, [2])) == b"\xff\xd8\xff\xd9" * 3 != before


@pytest.mark.filterwarnings("ignore:.*Invalid value for VR")
@settings(max_examples=80, deadline=None)
@given(at=st.integers(0, 2**16), value=st.binary(min_size=1, max_size=8))
def test_damaged_file_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: bytes
) -> None:
    whole = _whole_file(tmp_path_factory)
    at %= len(whole)
    path = tmp_path_factory.mktemp("damaged") / "slide.dcm"
    path.write_bytes(whole[:at] + value + whole[at + len(value) :])
    with suppress(InputError, PacsError):
        client = FolderClient(f"file://{path.parent}")
        for found in client.search_for_instances(*_UIDS):
            sop = str(found["00080018"]["Value"][0])
            assert len(client.retrieve_instance_frames(*_UIDS, sop, [1, 5, 12])) == 3
            client.retrieve_series_metadata(*_UIDS)


def test_file_whose_uid_is_another_attribute_by_now_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    whole, folder = _whole_file(tmp_path_factory), tmp_path_factory.mktemp("without")
    (folder / "slide.dcm").write_bytes(whole.replace(b"\x08\x00\x18\x00UI", b"\x08\x00\x19\x00UI"))
    with pytest.raises(PacsAnswerInvalid, match="damaged"):
        FolderClient(f"file://{folder}").search_for_instances(*_UIDS)


_UIDS = ["", ""]
_WHOLE: list[bytes] = []


def _whole_file(factory: pytest.TempPathFactory) -> bytes:
    if not _WHOLE:
        written = write_slide(factory.mktemp("whole"), size_px=(256, 192), levels=1)
        _UIDS[:2] = written.study_uid, written.series_uid
        _WHOLE.append(written.paths[0].read_bytes())
    return _WHOLE[0]
