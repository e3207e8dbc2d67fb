"""The PACS seam: what works, and every way in which an archive fails."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import generate_uid

from dicom_io.arrival import read_arrival
from dicom_io.dicom_json import PER_FRAME
from dicom_io.errors import (
    ConfigurationInvalid,
    FrameInvalid,
    PacsAnswerInvalid,
    PacsBusy,
    PacsError,
    PacsNotFound,
    PacsRefused,
    PacsTimeout,
    PacsUnauthorized,
    PacsUnreachable,
    PixelsUnsupported,
)
from dicom_io.pacs import InstanceReference, Pacs, PacsSettings, open_pacs, secret
from dicom_io.receiver import instance_path
from dicom_io.search import Search
from dicom_io.slide import open_slide
from tests.conftest import QUICK
from tests.copied_slides import copied_slides
from tests.faulty_proxy import Fault, Proxy
from tests.servers import Orthanc, free_port
from tests.slides import WrittenSlide, write_slide

Archive = Callable[[WrittenSlide | None], Pacs]


def result_of(slide: WrittenSlide) -> Dataset:
    """A small instance to store beside the slide."""
    ds = dcmread(slide.paths[-1])
    ds.SeriesInstanceUID, ds.SOPInstanceUID = generate_uid(), generate_uid()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def uids_of(ds: Dataset) -> tuple[str, str, str]:
    return str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID)


def reference_to(path: Path) -> InstanceReference:
    return InstanceReference(*uids_of(dcmread(path, stop_before_pixels=True)))


def test_frames_are_the_stored_bytes_in_order(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    pacs = archive(written)
    data = dcmread(written.paths[0]).PixelData
    stored = list(generate_frames(data, number_of_frames=48))
    numbers = [*range(47, -1, -1), 5]
    received = list(pacs.frames(reference_to(written.paths[0]), numbers, "1.2.840.10008.1.2.4.50"))
    assert [frame.rstrip(b"\0") for frame in received] == [stored[n].rstrip(b"\0") for n in numbers]
    assert pacs.frames_read == 49
    assert pacs.bytes_read == sum(map(len, received))


def test_threads_may_share_an_archive(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    pacs = archive(written)
    reference = reference_to(written.paths[0])
    alone = [next(pacs.frames(reference, [n])) for n in range(48)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda n: next(pacs.frames(reference, [n])), range(48)))
    assert together == alone
    assert pacs.bytes_read == 2 * sum(map(len, alone))


def test_frame_beyond_the_last(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    pacs = archive(written)
    reference = reference_to(written.paths[0])
    with pytest.raises((FrameInvalid, PacsError), match=reference.sop_uid):
        list(pacs.frames(reference, [0, 1, 999]))


def test_stored_instance_is_found_and_read_back(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path)
    pacs, result = archive(written), result_of(written)
    assert not pacs.has_instance(*uids_of(result))
    pacs.store([result])
    assert pacs.has_instance(*uids_of(result))
    assert pacs.retrieve_instance(*uids_of(result)).PixelData == result.PixelData
    assert len(pacs.search_instances(*uids_of(result)[:2])) == 1
    # What was there is still there.
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    assert len(slide.levels) == 3


def test_has_instance_is_not_misled_by_the_series(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path)
    pacs = archive(written)
    assert not pacs.has_instance(written.study_uid, written.series_uid, generate_uid())


@pytest.fixture
def filed(tmp_path: Path) -> tuple[Path, WrittenSlide]:
    """An archive as the receiver keeps it: a slide, and a damaged file of another study."""
    folder = tmp_path / "archive"
    written = write_slide(tmp_path / "slide")
    for path in written.paths:
        target = instance_path(folder, read_arrival(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    damaged = folder / "studies" / "1.2.3" / "series" / "1.2.4" / "instances" / "1.2.5"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(bytes(128) + b"DICM cut")
    return folder, written


def test_one_study_is_read_without_all_others(filed: tuple[Path, WrittenSlide]) -> None:
    folder, written = filed
    result = result_of(written)
    with open_pacs(folder.as_uri(), QUICK) as pacs:
        assert len(pacs.search_series(written.study_uid)) == 1
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        assert len(slide.levels) == 3
        assert not pacs.has_instance(*uids_of(result))
        pacs.store([result])
        assert pacs.has_instance(*uids_of(result))
        assert pacs.search_instances("1.2.9", "1.2.9") == []
        with pytest.raises(PacsAnswerInvalid, match=r"1\.2\.5"):
            pacs.search_instances("1.2.3", "1.2.4")
        with pytest.raises(PacsAnswerInvalid, match=r"1\.2\.5"):
            pacs.search_studies({})


@pytest.mark.parametrize("beside", ["note.txt", "studies/slide.dcm", "studies/mine/slide.dcm"])
def test_all_is_read_where_a_slide_may_lie_anywhere(
    filed: tuple[Path, WrittenSlide], beside: str
) -> None:
    folder, _ = filed
    (folder / beside).parent.mkdir(exist_ok=True)
    (folder / beside).write_bytes(b"")
    with pytest.raises(PacsAnswerInvalid, match=r"1\.2\.5"):
        open_pacs(folder.as_uri(), QUICK)


def test_another_writer_of_the_folder_is_seen(tmp_path: Path) -> None:
    written = write_slide(tmp_path)
    url = f"file://{tmp_path}"
    with open_pacs(url, QUICK) as reader, open_pacs(url, QUICK) as writer:
        result = result_of(written)
        writer.store([result])
        assert reader.has_instance(*uids_of(result))
        assert reader.retrieve_instance(*uids_of(result)).SOPInstanceUID == result.SOPInstanceUID


def test_half_written_file_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    written = write_slide(tmp_path)
    result = result_of(written)
    study, series, sop = uids_of(result)
    place = tmp_path / "studies" / study / "series" / series / "instances"
    place.mkdir(parents=True)
    whole = written.paths[-1].read_bytes()
    (place / f"{sop}.partial").write_bytes(whole[: len(whole) // 2])
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        assert not pacs.has_instance(study, series, sop)
        pacs.store([result])
        assert pacs.has_instance(study, series, sop)
    assert [path.name for path in place.iterdir()] == [sop]


def test_a_file_taken_for_abandoned_before_it_was_locked_is_written_anew(tmp_path: Path) -> None:
    """Another process opens the folder between the making of a file and its lock."""
    written = write_slide(tmp_path)
    result = result_of(written)
    study, series, sop = uids_of(result)
    place = tmp_path / "studies" / study / "series" / series / "instances"
    place.mkdir(parents=True)
    passing = place / f"{sop}.partial"
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs, ThreadPoolExecutor(1) as writing:
        with passing.open("wb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            stored = writing.submit(pacs.store, [result])
            number = str(passing.stat().st_ino)
            while not any("-> " in line and number in line for line in locks()):
                assert not stored.done()
                time.sleep(0.01)
            passing.unlink()
        stored.result(10)
        assert pacs.has_instance(study, series, sop)
    assert [path.name for path in place.iterdir()] == [sop]


def locks() -> list[str]:
    """Locks on files, those that are waited for with an arrow (proc(5), locks)."""
    return Path("/proc/locks").read_text().splitlines()


def test_headers_are_metadata_without_per_frame_items(
    archive: Callable[[WrittenSlide], Pacs], tmp_path: Path
) -> None:
    written = write_slide(tmp_path, organization="TILED_SPARSE")
    uids = (written.study_uid, written.series_uid)
    pacs = archive(written)
    whole = pacs.series_metadata(*uids)
    assert all(item.pop(PER_FRAME) for item in whole)
    assert pacs.series_headers(*uids) == whole


def test_uid_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pacs"
    written = write_slide(folder)
    result = result_of(written)
    result.StudyInstanceUID = "../../../outside"
    with open_pacs(f"file://{folder}", QUICK) as pacs, pytest.raises(PacsRefused, match="outside"):
        pacs.store([result])
    assert not (tmp_path / "outside").exists()
    assert {path.name for path in folder.iterdir()} == {path.name for path in written.paths}


def test_frames_of_an_unknown_kind(tmp_path: Path) -> None:
    def film(ds: Dataset, level: int) -> None:
        ds.PixelData = encapsulate([b"\0\0\0\x18ftypmp42" + bytes(999)] * 48)

    written = write_slide(tmp_path, levels=1, change=film)
    with (
        open_pacs(f"file://{tmp_path}", QUICK) as pacs,
        pytest.raises(PixelsUnsupported, match="unknown kind"),
    ):
        open_slide(pacs, written.study_uid, written.series_uid)


FAULTS: dict[str, tuple[Fault, type[PacsError], bool]] = {
    "401": (Fault(status=401), PacsUnauthorized, False),
    "403": (Fault(status=403), PacsUnauthorized, False),
    "404": (Fault(status=404), PacsNotFound, False),
    "406": (Fault(status=406), PacsRefused, False),
    "429": (Fault(status=429), PacsBusy, True),
    "500": (Fault(status=500), PacsBusy, True),
    "503": (Fault(status=503), PacsBusy, True),
    "HTML": (Fault(html=True), PacsAnswerInvalid, False),
    "HTML 500": (Fault(html=True, status=500), PacsBusy, True),
    "not a list": (Fault(body=b'"hello"'), PacsAnswerInvalid, False),
    "slow": (Fault(delay_s=1.5), PacsTimeout, True),
    "cut": (Fault(cut=True), PacsUnreachable, True),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("at", ["/instances", "/metadata", "/frames/"])
def test_fault_is_told_in_one_sentence(
    proxy: Proxy, orthanc: Orthanc, tmp_path: Path, name: str, at: str
) -> None:
    fault, error, transient = FAULTS[name]
    written = write_slide(tmp_path, levels=1)
    orthanc.add(*written.paths)
    settings = PacsSettings(timeout_s=0.4, retries=1, retry_wait_s=0.01)
    # Frames that are refused are looked for in the whole instance, so that fails as well.
    path = {"/instances": "/instances$", "/frames/": r"/instances/[\d.]+(/frames/.*)?$"}.get(at, at)
    proxy.fault = Fault(**{**vars(fault), "path": path})
    with open_pacs(proxy.url, settings) as pacs:
        calls: dict[str, Callable[[], object]] = {
            "/instances": lambda: pacs.search_instances(written.study_uid, written.series_uid),
            "/metadata": lambda: pacs.series_metadata(written.study_uid, written.series_uid),
            "/frames/": lambda: list(pacs.frames(reference_to(written.paths[0]), [0])),
        }
        with pytest.raises(PacsError) as caught:
            calls[at]()
    assert type(caught.value) is error
    assert caught.value.transient is transient
    message = str(caught.value)
    assert proxy.url.removeprefix("http://") in message
    uid = reference_to(written.paths[0]).sop_uid if at == "/frames/" else written.series_uid
    assert uid in message
    assert message.endswith(".")
    touched = sum(at in path for _, path in proxy.requests)
    assert touched == (2 if transient else 1)


def test_transient_fault_passes_unnoticed(proxy: Proxy, orthanc: Orthanc, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    orthanc.add(*written.paths)
    proxy.fault = Fault(status=503, times=2)
    settings = PacsSettings(retries=2, retry_wait_s=0.01)
    with open_pacs(proxy.url, settings) as pacs:
        assert len(pacs.search_instances(written.study_uid, written.series_uid)) == 1
    assert len(proxy.requests) == 3


def test_archive_that_is_down() -> None:
    port = free_port()
    with (
        open_pacs(f"http://127.0.0.1:{port}/dicom-web", QUICK) as pacs,
        pytest.raises(PacsUnreachable, match=f"127.0.0.1:{port}"),
    ):
        pacs.search_instances("1.2.3", "1.2.4")


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PacsUnreachable, match="nowhere"):
        open_pacs(f"file://{tmp_path}/nowhere", QUICK)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "dicom-web",
        "file://host/folder",
        "https://user:secret@host/dicom-web",
        "http://[::1/rs",
    ],
)
def test_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        open_pacs(url, QUICK)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 409, 500])
def test_store_is_sent_once_and_its_refusal_named(
    proxy: Proxy, orthanc: Orthanc, tmp_path: Path, status: int
) -> None:
    written = write_slide(tmp_path)
    result = result_of(written)
    proxy.fault = Fault(path="/studies$", status=status)
    with open_pacs(proxy.url, QUICK) as pacs, pytest.raises(PacsError, match=result.SOPInstanceUID):
        pacs.store([result])
    assert [method for method, _ in proxy.requests] == ["POST"]


def test_store_that_the_archive_fails(proxy: Proxy, orthanc: Orthanc, tmp_path: Path) -> None:
    result = result_of(write_slide(tmp_path))
    answer = stow_answer(result.SOPInstanceUID, "00081198", "00081197", 0x0122)
    proxy.fault = Fault(path="/studies$", body=answer)
    with open_pacs(proxy.url, QUICK) as pacs, pytest.raises(PacsRefused) as caught:
        pacs.store([result])
    assert result.SOPInstanceUID in str(caught.value)
    assert "SOP class not supported" in str(caught.value)


@pytest.mark.parametrize("status", [200, 202, 409])
def test_an_archive_that_says_it_has_the_instance_has_not_failed(
    proxy: Proxy, orthanc: Orthanc, tmp_path: Path, status: int
) -> None:
    result = result_of(write_slide(tmp_path))
    answer = stow_answer(result.SOPInstanceUID, "00081198", "00081197", 0x0111)
    proxy.fault = Fault(path="/studies$", status=status, body=answer)
    with open_pacs(proxy.url, QUICK) as pacs:
        assert "had the instance already" in pacs.store([result])


def test_store_with_a_warning(proxy: Proxy, orthanc: Orthanc, tmp_path: Path) -> None:
    result = result_of(write_slide(tmp_path))
    answer = stow_answer(result.SOPInstanceUID, "00081199", "00081196", 0xB000)
    proxy.fault = Fault(path="/studies$", status=202, body=answer)
    with open_pacs(proxy.url, QUICK) as pacs:
        assert pacs.store([result]) == "the archive warns: it coerced data elements (0xB000)"


def test_store_while_the_archive_is_out_of_resources(
    proxy: Proxy, orthanc: Orthanc, tmp_path: Path
) -> None:
    result = result_of(write_slide(tmp_path))
    answer = stow_answer(result.SOPInstanceUID, "00081198", "00081197", 0xA700)
    proxy.fault = Fault(path="/studies$", status=202, body=answer)
    with open_pacs(proxy.url, QUICK) as pacs, pytest.raises(PacsBusy) as caught:
        pacs.store([result])
    assert result.SOPInstanceUID in str(caught.value)


def stow_answer(uid: str, sequence: str, reason: str, code: int) -> bytes:
    item = {"00081155": {"vr": "UI", "Value": [uid]}, reason: {"vr": "US", "Value": [code]}}
    return json.dumps({sequence: {"vr": "SQ", "Value": [item]}}).encode()


def test_store_answered_by_a_page(proxy: Proxy, orthanc: Orthanc, tmp_path: Path) -> None:
    result = result_of(write_slide(tmp_path))
    proxy.fault = Fault(path="/studies$", html=True)
    with (
        open_pacs(proxy.url, QUICK) as pacs,
        pytest.raises(PacsAnswerInvalid, match=result.SOPInstanceUID),
    ):
        pacs.store([result])


def test_credentials_come_from_environment_and_file_and_stay_unseen(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("MARROW_TOKEN", "top-secret-token")
    (tmp_path / "key").write_text("file-secret\n")
    settings = PacsSettings(
        bearer_token="env:MARROW_TOKEN",  # noqa: S106 - where it lies, not what it is
        headers={"X-Api-Key": f"file:{tmp_path / 'key'}"},
    )
    with open_pacs(proxy.url, settings) as pacs:
        pacs.search_instances("1.2.3", "1.2.4")
        proxy.fault = Fault(status=401)
        with pytest.raises(PacsUnauthorized) as caught:
            pacs.search_instances("1.2.3", "1.2.4")
    assert proxy.headers["Authorization"] == "Bearer top-secret-token"
    assert proxy.headers["X-Api-Key"] == "file-secret"
    for text in (caplog.text, str(caught.value), repr(settings)):
        assert "top-secret" not in text
        assert "file-secret" not in text


def test_basic_authentication(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARROW_PASSWORD", "word")
    settings = PacsSettings(username="node", password="env:MARROW_PASSWORD")  # noqa: S106
    with open_pacs(proxy.url, settings) as pacs:
        pacs.search_instances("1.2.3", "1.2.4")
    assert proxy.headers["Authorization"] == "Basic bm9kZTp3b3Jk"


def test_secret_in_the_settings_is_refused() -> None:
    settings = PacsSettings(bearer_token="in-plain-sight")  # noqa: S106
    with pytest.raises(ConfigurationInvalid) as caught:
        open_pacs("http://127.0.0.1:1/dicom-web", settings)
    assert "in-plain-sight" not in str(caught.value)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_truncated_file_of_a_folder_is_named(tmp_path: Path, share: float) -> None:
    written = write_slide(tmp_path, levels=1)
    whole = written.paths[0].read_bytes()
    reference = reference_to(written.paths[0])
    written.paths[0].write_bytes(whole[: int(len(whole) * share)])
    with (
        pytest.raises((FrameInvalid, PacsAnswerInvalid)) as caught,
        open_pacs(f"file://{tmp_path}", QUICK) as pacs,
    ):
        list(pacs.frames(reference, range(48)))
    assert reference.sop_uid in str(caught.value) or written.paths[0].name in str(caught.value)
    assert not caught.value.transient


def test_files_that_are_not_dicom_do_not_matter(tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    (tmp_path / "truth.json").write_text('{"cells": []}')
    (tmp_path / "empty").touch()
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        assert len(pacs.search_instances(written.study_uid, written.series_uid)) == 1


@pytest.mark.parametrize("where", ["env:MARROW_NOT_SET", "file:/nowhere/key"])
def test_secret_that_cannot_be_read(where: str) -> None:
    assert "MARROW_NOT_SET" not in os.environ
    with pytest.raises(ConfigurationInvalid, match=where.partition(":")[2]):
        open_pacs("http://127.0.0.1:1/dicom-web", PacsSettings(bearer_token=where))


def test_a_secret_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe\x00secret")
    with pytest.raises(ConfigurationInvalid, match="UTF-8"):
        secret(f"file:{tmp_path / 'key'}")


def test_blanks_around_a_secret_are_not_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MARROW_KEY", " se cret\n")
    (tmp_path / "key").write_text(" se cret\n")
    assert secret("env:MARROW_KEY") == secret(f"file:{tmp_path / 'key'}") == "se cret"


def test_connections_are_reused_and_bounded(proxy: Proxy, orthanc: Orthanc, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    orthanc.add(*written.paths)
    proxy.fault = Fault(path="/frames/", delay_s=0.1)
    settings = PacsSettings(connections=4, frames_per_request=6)
    with open_pacs(proxy.url, settings) as pacs:
        start = time.monotonic()
        assert len(list(pacs.frames(reference_to(written.paths[0]), range(48)))) == 48
        seconds = time.monotonic() - start
    assert len(proxy.requests) == 8
    assert seconds < 0.7  # one after another they would wait 0.8 s
    assert threading.active_count() < 30


def test_a_wild_card_finds_what_it_stands_for(orthanc: Orthanc, tmp_path: Path) -> None:
    """Orthanc finds nothing where the wild card is percent-encoded, as requests would send it."""
    source = write_slide(tmp_path / "slide")
    copies = copied_slides(source.paths[:1], tmp_path / "copies", ("20200101", "20200102"))
    orthanc.add(*(path for slide in copies for path in slide))
    with open_pacs(orthanc.dicomweb_url, QUICK) as pacs:
        for wanted in ({"AccessionNumber": "COPY-*"}, {"AccessionNumber": "COPY-?"}):
            assert len(pacs.search_studies(wanted)) == 2
            assert len(list(pacs.search_slide_studies(Search("studies", wanted)))) == 2
