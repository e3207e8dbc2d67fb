"""Received over DIMSE from real senders: whole or not at all, whatever ends in between."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import requests
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid
from pynetdicom import AE

from dicom_io.arrival import Arrival
from dicom_io.commitment import Commitments
from dicom_io.dimse_settings import ReceiveSettings
from dicom_io.errors import ConfigurationInvalid
from dicom_io.incoming import IncomingFile
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.receiver import Receiver, remove_slide
from dicom_io.slide import open_slide
from tests.servers import free_port, running_orthanc
from tests.slides import ENCODERS, write_slide
from tests.smears import small_smear

STORESCU = shutil.which("storescu")
needs_dcmtk = pytest.mark.skipif(STORESCU is None, reason="no DCMTK: apt-get install dcmtk")


class Received:
    """A receiver that runs, and what it told of."""

    def __init__(self, settings: ReceiveSettings) -> None:
        self.settings = settings
        self.arrivals: list[Arrival] = []
        self.associations: list[int | None] = []
        self.ended: list[int] = []
        self.receiver = Receiver(
            settings,
            Commitments(settings.folder / "commitments"),
            self._arrived,
            self.ended.append,
        )

    def _arrived(self, arrival: Arrival, association: int | None) -> None:
        self.arrivals.append(arrival)
        self.associations.append(association)

    @property
    def files(self) -> dict[str, Path]:
        return {path.name: path for path in self.settings.archive.rglob("*") if path.is_file()}

    @property
    def unfinished(self) -> list[Path]:
        return list((self.settings.folder / "incoming").iterdir())


@pytest.fixture
def receiving(tmp_path: Path) -> Iterator[Callable[..., Received]]:
    with ExitStack() as stack:

        def start(**changes: object) -> Received:
            settings = ReceiveSettings(folder=tmp_path / "received", port=free_port(), timeout_s=5)
            received = Received(replace(settings, **changes))
            stack.enter_context(received.receiver.listening())
            return received

        yield start


def until(holds: Callable[[], object], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def storescu(port: int, *paths: Path, syntax: str = "-xy", aec: str = "MARROW_NODE") -> list[str]:
    return [
        *(str(STORESCU), "-R", syntax, "-aet", "SCANNER", "-aec", aec),
        *("127.0.0.1", str(port), *map(str, paths)),
    ]


def status_of(received: Received, *datasets: Dataset, title: str = "SCANNER") -> list[int | None]:
    """Statuses that pynetdicom gets for data sets sent on one association."""
    ae = AE(title)
    for dataset in datasets:
        ae.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", received.settings.port, ae_title="MARROW_NODE")
    if not association.is_established:
        return [None]
    statuses = [association.send_c_store(dataset).get("Status") for dataset in datasets]
    association.release()
    return statuses


def large_object(mb: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = Dataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(dataset, keyword, generate_uid())
    dataset.PixelData = bytes(mb * 1_000_000)
    dataset["PixelData"].VR = "OB"
    return dataset


@needs_dcmtk
def test_a_slide_from_dcmtk_can_be_opened(
    receiving: Callable[..., Received], tmp_path: Path
) -> None:
    slide = write_slide(tmp_path / "slide", parts=2)
    received = receiving()
    subprocess.run(storescu(received.settings.port, *slide.paths), check=True, timeout=60)
    assert until(lambda: received.ended)
    assert len(received.arrivals) == len(received.files) == len(slide.paths)
    assert not received.unfinished
    for path in slide.paths:
        sent = dcmread(path)
        kept = dcmread(received.files[sent.SOPInstanceUID])
        assert kept == sent
        assert kept.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    with open_pacs(received.settings.archive.as_uri(), PacsSettings()) as pacs:
        assert open_slide(pacs, slide.study_uid, slide.series_uid).base.size_px == (500, 380)


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_slide_that_orthanc_routes_comes_as_it_is_stored(
    receiving: Callable[..., Received], tmp_path: Path, encoding: str
) -> None:
    slide = write_slide(tmp_path / "slide", encoding=encoding, levels=2)
    received = receiving()
    with running_orthanc(tmp_path / "orthanc", received.settings.port) as orthanc:
        orthanc.add(*slide.paths)
        series = requests.get(f"{orthanc.rest_url}/series", timeout=5).json()
        url = f"{orthanc.rest_url}/modalities/node/store"
        requests.post(url, data=series[0], timeout=60).raise_for_status()
        requests.post(f"{orthanc.rest_url}/modalities/node/echo", data="", timeout=5)
    for path in slide.paths:
        sent = dcmread(path)
        kept = dcmread(received.files[sent.SOPInstanceUID])
        assert kept.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
        assert kept.PixelData == sent.PixelData


@needs_dcmtk
def test_a_sender_that_is_killed_leaves_nothing(
    receiving: Callable[..., Received], tmp_path: Path
) -> None:
    large_object(200).save_as(tmp_path / "large.dcm", enforce_file_format=True)
    received = receiving()
    sender = subprocess.Popen(
        storescu(received.settings.port, tmp_path / "large.dcm", syntax="-xe")
    )
    assert until(lambda: any(path.stat().st_size > 1_000_000 for path in received.unfinished))
    sender.kill()
    sender.wait()
    assert until(lambda: received.ended)
    assert (received.unfinished, received.files, received.arrivals) == ([], {}, [])


def test_a_sender_that_leaves_while_its_object_is_written_is_not_waited_for(
    receiving: Callable[..., Received], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, gone = threading.Event(), threading.Event()

    def slow(folder: Path) -> None:
        written.set()
        assert gone.wait(20)

    monkeypatch.setattr("dicom_io.receiver._to_disk", slow)
    received, dataset = receiving(), large_object(1)
    ae = AE("SCANNER")
    ae.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", received.settings.port, ae_title="MARROW_NODE")
    sending = threading.Thread(target=association.send_c_store, args=(dataset,), daemon=True)
    sending.start()
    assert written.wait(20)
    association.abort()
    assert until(lambda: received.ended)
    gone.set()
    assert until(lambda: received.arrivals)
    assert received.associations == [None]


def test_twice_is_once_and_a_changed_one_is_refused(receiving: Callable[..., Received]) -> None:
    received = receiving()
    dataset = large_object(1)
    assert status_of(received, dataset, dataset) == [0x0000, 0x0000]
    (path,) = received.files.values()
    first = path.read_bytes()
    dataset.PixelData = b"\1" + dataset.PixelData[1:]
    assert status_of(received, dataset) == [0x0111]
    assert received.files == {dataset.SOPInstanceUID: path}
    assert path.read_bytes() == first


@pytest.mark.parametrize("uid", ["../../../escaped", "1.2.03", "", "1." * 40 + "1"])
def test_a_malformed_uid_never_becomes_a_path(
    receiving: Callable[..., Received], tmp_path: Path, uid: str
) -> None:
    received = receiving()
    dataset = large_object(1)
    dataset.SeriesInstanceUID = uid
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert status_of(received, dataset) == [0xC000]
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


def test_who_may_send(receiving: Callable[..., Received], tmp_path: Path) -> None:
    dataset = large_object(1)
    named = receiving(allowed_ae_titles=("SCANNER",))
    assert status_of(named, dataset, title="STRANGER") == [None]
    assert status_of(named, dataset) == [0x0000]
    elsewhere = receiving(allowed_addresses=("192.0.2.0/24",), folder=tmp_path / "elsewhere")
    assert status_of(elsewhere, dataset) == [None]


def test_two_receivers_share_neither_folder_nor_port(
    receiving: Callable[..., Received], tmp_path: Path
) -> None:
    port = receiving().settings.port
    with pytest.raises(ConfigurationInvalid, match="Another receiver"):
        receiving()
    with pytest.raises(ConfigurationInvalid, match=str(port)):
        receiving(port=port, folder=tmp_path / "elsewhere")


_STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """A test that fails leaves no receiver behind."""
    yield
    while _STARTED:
        _STARTED.pop().kill()


def receive_process(
    folder: Path,
    port: int,
    *arguments: str,
    ehr_url: str = "",
    model: Mapping[str, object] = MappingProxyType({}),
    jobs: Mapping[str, object] = MappingProxyType({}),
    largest_file_bytes: int | None = None,
) -> subprocess.Popen[str]:
    """``marrow-node receive`` that listens."""
    tables = {
        "": {"work_folder": str(folder / "work"), "ehr_url": ehr_url},
        "[receive]": {"folder": str(folder / "received"), "port": port, "settle_s": 1.0},
        "[model]": model,
        "[jobs]": jobs,
    }
    lines = [
        line
        for head, table in tables.items()
        for line in (head, *(f"{key} = {json.dumps(value)}" for key, value in table.items()))
    ]
    (folder / "node.toml").write_text("\n".join(lines))
    command = [sys.executable, "-m", "node", "--config", str(folder / "node.toml"), "receive"]
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
    _STARTED.append(process)
    if largest_file_bytes is not None:
        # A file system that takes no more of a file stands for a full one.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_file_bytes,) * 2)
    assert process.stderr is not None
    assert "receiving as MARROW_NODE" in process.stderr.readline()
    return process


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    port = free_port()
    process = receive_process(tmp_path, port, "--no-analyse", largest_file_bytes=2_000_000)
    there = Received(ReceiveSettings(folder=tmp_path / "received", port=port))
    small, large = large_object(1), large_object(5)
    assert status_of(there, small, large, small) == [0x0000, 0xA700, 0x0000]
    assert list(there.files) == [small.SOPInstanceUID]
    assert not there.unfinished
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "could not be written" in (process.stderr.read() if process.stderr else "")


def test_some_of_the_disk_stays_free_whatever_a_sender_sends(
    receiving: Callable[..., Received], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = receiving()
    with monkeypatch.context() as short:
        short.setattr("dicom_io.incoming.RESERVED_BYTES", 2**60)
        assert status_of(received, large_object(1)) == [0xA700]
    assert (received.files, received.unfinished) == ({}, [])
    assert status_of(received, large_object(1)) == [0x0000]

    endless = IncomingFile(tmp_path / "endless")
    endless.write(bytes(1_000_000))
    assert endless.path.exists()
    monkeypatch.setattr("dicom_io.incoming.RESERVED_BYTES", 2**60)
    for _ in range(3):
        assert endless.write(bytes(1_000_000)) == 1_000_000
        assert not endless.path.exists(), "what is not kept takes no room while more comes"
    with pytest.raises(OSError, match="No space left"):
        endless.finish()


def test_a_disk_that_takes_nothing_is_told_of_at_the_end(tmp_path: Path) -> None:
    """Raised where it is met, it would end the thread that has to tell the sender."""
    (tmp_path / "file").write_bytes(b"")
    nowhere = IncomingFile(tmp_path / "file" / "object")  # can be neither written nor deleted
    assert nowhere.write(b"1234") == 4
    with pytest.raises(NotADirectoryError):
        nowhere.finish()


@needs_dcmtk
def test_a_large_object_is_not_held_in_memory(tmp_path: Path) -> None:
    large_object(300).save_as(tmp_path / "large.dcm", enforce_file_format=True)
    port = free_port()
    process = receive_process(tmp_path, port, "--no-analyse")

    def peak_mb() -> float:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1000

    before = peak_mb()
    subprocess.run(storescu(port, tmp_path / "large.dcm", syntax="-xe"), check=True, timeout=120)
    print(f"peak memory {before:.0f} MB before, {peak_mb():.0f} MB after 300 MB")
    assert peak_mb() - before < 60
    process.terminate()
    assert process.wait(60) == 0


@needs_dcmtk
def test_a_slide_that_is_sent_here_is_analysed(tmp_path: Path) -> None:
    smear = small_smear(tmp_path)
    port = free_port()
    paths = list((tmp_path / "pacs").rglob("*.dcm"))
    process = receive_process(
        tmp_path,
        port,
        ehr_url=smear.ehr_url,
        model={"name": "tiny", "folders": [str(tmp_path / "packages")]},
    )
    subprocess.run(storescu(port, *paths), check=True, timeout=60)
    assert process.stderr is not None
    said = [process.stderr.readline() for _ in range(2)]
    assert f"series {smear.slide.series_uid} is complete" in said[0]
    assert "completed" in said[1], said[1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    archive = tmp_path / "received" / "archive"
    modalities = [dcmread(path).Modality for path in archive.rglob("*") if path.is_file()]
    assert sorted(modalities) == ["ANN", "SEG", *["SM"] * len(paths), "SR"]
    assert list((tmp_path / "ehr").rglob("*.json"))


@needs_dcmtk
def test_what_came_before_a_kill_is_analysed_after_it(tmp_path: Path) -> None:
    smear = small_smear(tmp_path)
    port = free_port()
    paths = list((tmp_path / "pacs").rglob("*.dcm"))
    first = receive_process(tmp_path, port, "--no-analyse")
    subprocess.run(storescu(port, *paths), check=True, timeout=60)
    first.kill()
    first.wait()
    settings: dict[str, Any] = {
        "ehr_url": smear.ehr_url,
        "model": {"name": "tiny", "folders": [str(tmp_path / "packages")]},
    }
    process = receive_process(tmp_path, port, **settings)
    assert process.stderr is not None
    assert "is complete" in process.stderr.readline()
    process.terminate()  # in the middle of the analysis
    assert process.wait(60) == 0
    assert not list((tmp_path / "ehr").rglob("*.json"))
    process = receive_process(tmp_path, port, **settings)
    assert process.stderr is not None
    assert "completed" in process.stderr.readline()
    process.terminate()
    assert process.wait(60) == 0
    assert process.stderr.readline() == "marrow-node: receiver stopped\n"
    assert list((tmp_path / "ehr").rglob("*.json"))


def test_a_series_begins_anew_where_nothing_of_it_is_left(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "slide", parts=2)
    began: list[tuple[str, str]] = []
    settings = ReceiveSettings(folder=tmp_path / "received", port=free_port(), timeout_s=5)
    receiver = Receiver(
        settings,
        Commitments(tmp_path / "commitments"),
        lambda arrival, association: None,
        lambda association: None,
        lambda *series: began.append(series),
    )
    received = SimpleNamespace(settings=settings)
    instances = [dcmread(path) for path in slide.paths]
    assert len(instances) > 1
    with receiver.listening():
        for times in (1, 2):
            for _ in range(2):
                assert set(status_of(received, *instances)) == {0}  # type: ignore[arg-type]
                assert began == [(slide.study_uid, slide.series_uid)] * times
            remove_slide(settings.folder, slide.study_uid, slide.series_uid, time.time() + 60)
            assert not list(settings.archive.glob("studies/*"))


@needs_dcmtk
def test_what_is_old_goes_while_a_receiver_runs(tmp_path: Path) -> None:
    """It came, and was analysed, a moment ago: kept for less than a second, at the next start."""
    smear, port = small_smear(tmp_path), free_port()
    settings: dict[str, Any] = {
        "ehr_url": smear.ehr_url,
        "model": {"name": "tiny", "folders": [str(tmp_path / "packages")]},
    }
    process = receive_process(tmp_path, port, **settings)
    paths = list((tmp_path / "pacs").rglob("*.dcm"))
    subprocess.run(storescu(port, *paths), check=True, timeout=60)
    assert process.stderr is not None
    assert "completed" in [process.stderr.readline() for _ in range(2)][1]
    process.terminate()
    assert process.wait(60) == 0
    archive = tmp_path / "received" / "archive"

    def modalities() -> set[str]:
        """Of all instances; none while some are being deleted."""
        try:
            return {dcmread(path).Modality for path in archive.rglob("*") if path.is_file()}
        except FileNotFoundError:
            return set()

    assert modalities() == {"ANN", "SEG", "SM", "SR"}
    process = receive_process(tmp_path, port, **settings, jobs={"keep_days": 1e-6})
    assert until(lambda: modalities() == {"ANN", "SEG", "SR"})
    process.terminate()
    assert process.wait(60) == 0
