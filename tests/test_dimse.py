"""Results to archives without STOW-RS: Orthanc, DCMTK, and one that answers as told."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.events import Event

from dicom_io.commitment import STORAGE_COMMITMENT, VERIFICATION, Commitments, listening
from dicom_io.dimse import STUDY_ROOT_FIND, DimseArchive, open_dimse
from dicom_io.dimse_association import DimsePeer
from dicom_io.dimse_settings import DimseSettings, ReceiveSettings
from dicom_io.errors import (
    ConfigurationInvalid,
    PacsBusy,
    PacsError,
    PacsReadBackDiffers,
    PacsRefused,
    PacsTimeout,
    PacsUnauthorized,
    PacsUnreachable,
)
from dicom_io.pacs import PacsSettings
from dicom_io.receiver import Receiver
from node.delivery import deliver_to_pacs, read_back
from node.outputs import encode_documents, from_bytes, to_bytes
from tests.analyses import small_slide, some_analysis
from tests.servers import (
    Orthanc,
    free_port,
    running_orthanc,
    wait_for_port,
)
from tests.test_delivery import artifacts_of, reference
from tests.test_receiver import until

QUICK = DimseSettings(timeout_s=5, retries=1, retry_wait_s=0.01, commitment_wait_s=10)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    return encode_documents(some_analysis(small_slide(tmp_path_factory.mktemp("slide"))))


@pytest.fixture(scope="module")
def node_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def orthanc_with_dimse(
    tmp_path_factory: pytest.TempPathFactory, node_port: int
) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), node_port) as server:
        yield server


@pytest.fixture
def archive(orthanc_with_dimse: Orthanc) -> Orthanc:
    orthanc_with_dimse.clear()
    return orthanc_with_dimse


def opened(
    port: int | None, folder: Path, settings: DimseSettings = QUICK, title: str = "ORTHANC"
) -> DimseArchive:
    url = f"dimse://{title}@localhost:{port}"
    return open_dimse(url, settings, "file:///", PacsSettings(), folder / "commitments")


@pytest.mark.parametrize("over_dicomweb", [True, False])
def test_results_are_stored_committed_and_asked_for(
    archive: Orthanc,
    documents: dict[str, Dataset],
    tmp_path: Path,
    node_port: int,
    over_dicomweb: bool,
) -> None:
    ask_url = archive.dicomweb_url if over_dicomweb else ""
    settings = replace(QUICK, commitment_port=node_port, ask_url=ask_url)
    artifacts = artifacts_of(documents)
    with opened(archive.dicom_port, tmp_path, settings) as pacs:
        for status in ("stored", "already there"):
            for kind, document in documents.items():
                receipt = deliver_to_pacs(pacs, artifacts[kind], document)
                assert receipt.status == status
                assert "storage committed" in receipt.note
                assert ("content not read back" in receipt.note) is not over_dicomweb
        returned = read_back(pacs, artifacts, documents)
    for kind, document in documents.items():
        assert reference(returned[kind]) == reference(document)
        assert (returned[kind] is document) is not over_dicomweb
    assert list((tmp_path / "commitments").iterdir()) == []


def test_an_object_that_went_missing_is_named(
    archive: Orthanc, documents: dict[str, Dataset], tmp_path: Path, node_port: int
) -> None:
    settings = replace(QUICK, commitment_port=node_port)
    with opened(archive.dicom_port, tmp_path, settings) as pacs:
        with pytest.raises(PacsRefused, match=f"{documents['SR'].SOPInstanceUID}: it has no such"):
            pacs.commitment(documents["SR"])
        with pytest.raises(PacsReadBackDiffers, match=str(documents["ANN"].SOPInstanceUID)):
            read_back(pacs, artifacts_of(documents), documents)


def test_a_report_that_never_comes_is_in_the_receipt(
    archive: Orthanc, documents: dict[str, Dataset], tmp_path: Path
) -> None:
    with opened(archive.dicom_port, tmp_path, replace(QUICK, commitment_wait_s=0.2)) as pacs:
        pacs.store([documents["SR"]])
        assert "no report within 0.2 s" in pacs.commitment(documents["SR"])


def test_the_receiver_of_this_node_hears_reports_too(
    archive: Orthanc, documents: dict[str, Dataset], tmp_path: Path, node_port: int
) -> None:
    receiver = Receiver(
        ReceiveSettings(folder=tmp_path / "received", port=node_port),
        Commitments(tmp_path / "commitments"),
        lambda arrival, association: None,
        lambda association: None,
    )
    settings = replace(QUICK, commitment_port=node_port)
    with receiver.listening(), opened(archive.dicom_port, tmp_path, settings) as pacs:
        pacs.store([documents["SR"]])
        assert pacs.commitment(documents["SR"]) == "storage committed"


def test_addresses_that_do_not_work(
    archive: Orthanc, documents: dict[str, Dataset], tmp_path: Path
) -> None:
    with (
        opened(archive.dicom_port, tmp_path, title="WRONG") as pacs,
        pytest.raises(PacsUnauthorized, match="Called AE title not recognised"),
    ):
        pacs.store([documents["SR"]])
    with opened(free_port(), tmp_path) as pacs, pytest.raises(PacsUnreachable):
        pacs.store([documents["SR"]])


@pytest.mark.parametrize(
    "url",
    [
        "dimse://host:104",
        "dimse://AE@host",
        "dimse://AE@host:port",
        "dimse://AE@:104",
        "dimse://A_TITLE_OF_MORE_THAN_16@host:104",
    ],
)
def test_urls_that_cannot_be_used(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationInvalid):
        open_dimse(url, QUICK, "", PacsSettings(), tmp_path)


@pytest.mark.skipif(shutil.which("storescp") is None, reason="no DCMTK: apt-get install dcmtk")
def test_an_archive_that_can_do_nothing_but_store(
    documents: dict[str, Dataset], tmp_path: Path
) -> None:
    port = free_port()
    process = subprocess.Popen(["storescp", "-od", str(tmp_path), "+B", "+xe", str(port)])
    try:
        wait_for_port(port)
        with opened(port, tmp_path) as pacs:
            assert pacs.store([documents["SR"]]) == ""
            assert pacs.commitment(documents["SR"]) == "storage commitment not offered"
            with pytest.raises(PacsRefused, match="offers no C-FIND"):
                pacs.has_instance(*reference(documents["SR"]))
    finally:
        process.terminate()
        process.wait(10)
    (path,) = tmp_path.glob("SR*")
    assert dcmread(path) == from_bytes(to_bytes(documents["SR"]))


Statuses = Sequence[int | None]


@contextmanager
def told_archive(
    document: Dataset,
    statuses: Statuses = (0,),
    failed: dict[str, int] | None = None,
    syntax: str = ImplicitVRLittleEndian,
    kept: Sequence[str] | None = None,
) -> Iterator[tuple[int, list[Dataset]]]:
    """An archive that answers C-STORE with `statuses`, None for none; gives port and data sets.

    It reports storage commitment on the association that asked, with `failed` instances; the others
    that it was asked for are kept, or those of `kept`.
    """
    came: list[Dataset] = []
    answers = iter(statuses)

    def store(event: Event) -> int:
        came.append(event.dataset)
        status = next(answers)
        if status is None:
            event.assoc.abort()
            return 0x0110
        return status

    def act(event: Event) -> tuple[int, None]:
        report = Dataset()
        report.TransactionUID = event.action_information.TransactionUID
        asked = event.action_information.ReferencedSOPSequence
        named = [str(item.ReferencedSOPInstanceUID) for item in asked] if kept is None else kept
        report.ReferencedSOPSequence = []
        for uid in named:
            if uid not in (failed or {}):
                item = Dataset()
                item.ReferencedSOPInstanceUID = uid
                report.ReferencedSOPSequence.append(item)
        report.FailedSOPSequence = []
        for uid, reason in (failed or {}).items():
            item = Dataset()
            item.ReferencedSOPInstanceUID, item.FailureReason = uid, reason
            report.FailedSOPSequence.append(item)
        reports.append(report)
        return 0x0000, None

    reports: list[Dataset] = []

    def report_after(event: Event) -> None:
        if reports:
            kind = 2 if failed else 1
            uids = (STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1")
            event.assoc.send_n_event_report(reports.pop(), kind, *uids)

    ae = AE("TOLD")
    ae.add_supported_context(VERIFICATION)
    ae.add_supported_context(document.SOPClassUID, syntax)
    ae.add_supported_context(STORAGE_COMMITMENT)
    handlers = [
        (evt.EVT_C_STORE, store),
        (evt.EVT_N_ACTION, act),
        (evt.EVT_DIMSE_SENT, report_after),
    ]
    port = free_port()
    ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield port, came
    finally:
        ae.shutdown()


@pytest.mark.parametrize(
    ("statuses", "error", "said"),
    [
        ([0x0122], PacsRefused, "SOP class not supported"),
        ([0x0124], PacsUnauthorized, "not authorised"),
        ([0xA900], PacsRefused, "does not match SOP class"),
        ([0xC123], PacsRefused, "cannot understand"),
        ([0xA700, 0xA701], PacsBusy, "out of resources"),
        ([0xA700, 0x0122], PacsRefused, "SOP class not supported"),
    ],
)
def test_refusals_are_named_and_only_transient_ones_tried_again(
    documents: dict[str, Dataset],
    tmp_path: Path,
    statuses: Statuses,
    error: type[PacsError],
    said: str,
) -> None:
    document = documents["SR"]
    with told_archive(document, statuses) as (port, came):
        pacs = open_told(port, tmp_path)
        with pytest.raises(error, match=said) as raised:
            pacs.store([document])
    assert str(document.SOPInstanceUID) in str(raised.value)
    assert f"0x{statuses[-1]:04X}" in str(raised.value)
    assert len(came) == len(statuses)


@pytest.mark.parametrize(
    ("statuses", "remark"),
    [
        ([0x0000], ""),
        ([0xA700, 0x0000], ""),
        ([None, 0x0000], ""),
        ([0xB000], "coerced data elements"),
        ([0xB006], "discarded data elements"),
        ([0xB007], "does not match its SOP class"),
        ([0x0111], "had the instance already"),
    ],
)
def test_what_was_taken_is_remarked_and_logged(
    documents: dict[str, Dataset],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    statuses: Statuses,
    remark: str,
) -> None:
    document = documents["ANN"]
    with told_archive(document, statuses) as (port, came):
        said = open_told(port, tmp_path).store([document])
    assert (remark in said) if remark else said == ""
    logged = [each.message for each in caplog.records if each.levelno >= logging.WARNING]
    assert any(str(document.SOPInstanceUID) in each for each in logged) is bool(remark)
    assert len(came) == len(statuses)
    # This archive takes Implicit VR alone: the same data set in another encoding.
    groups = came[-1].AnnotationGroupSequence
    assert [bytes(each.PointCoordinatesData) for each in groups] == [
        bytes(each.PointCoordinatesData) for each in document.AnnotationGroupSequence
    ]


@pytest.mark.parametrize("reason", [0x0110, 0x0112, 0x0119, 0x0122, 0x0131, 0x0213, 0x7777])
def test_a_report_on_the_same_association(
    documents: dict[str, Dataset], tmp_path: Path, reason: int
) -> None:
    document = documents["SR"]
    uid = str(document.SOPInstanceUID)
    with told_archive(document) as (port, _):
        assert open_told(port, tmp_path).commitment(document) == "storage committed"
    with told_archive(document, failed={str(generate_uid()): reason}) as (port, _):
        assert open_told(port, tmp_path).commitment(document) == "storage committed"
    with told_archive(document, failed={uid: reason}) as (port, _):
        pacs = open_told(port, tmp_path)
        with pytest.raises(PacsRefused, match=f"{uid}: .*0x{reason:04X}"):
            pacs.commitment(document)


def test_waits_are_doubled_with_jitter(
    documents: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits_s: list[float] = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waits_s.append))
    settings = replace(QUICK, retries=3, retry_wait_s=10, ask_url=tmp_path.as_uri())
    with told_archive(documents["SR"], [0xA700] * 4) as (port, _):
        pacs = opened(port, tmp_path, settings, title="TOLD")
        with pytest.raises(PacsBusy):
            pacs.store([documents["SR"]])
    assert [wait_s // 10 for wait_s in waits_s] == [1, 2, 4]
    assert all(0 < wait_s % 10 < 5 for wait_s in waits_s)


@pytest.mark.parametrize("kept", [[], ["1.2.3"]])
def test_a_report_that_does_not_name_the_instance_commits_nothing(
    documents: dict[str, Dataset], tmp_path: Path, kept: Sequence[str]
) -> None:
    with told_archive(documents["SR"], kept=kept) as (port, _):
        said = open_told(port, tmp_path).commitment(documents["SR"])
    assert said == "storage commitment asked for, the report does not name the instance"


def reported(port: int, transaction: str, failed: bool = False) -> int | None:
    """Status that an archive gets for its report of one instance; None where nobody listens."""
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3"
    if failed:
        item.FailureReason = 0x0112
    report = Dataset()
    report.TransactionUID = transaction
    setattr(report, "FailedSOPSequence" if failed else "ReferencedSOPSequence", [item])
    ae = AE("TOLD")
    ae.add_requested_context(STORAGE_COMMITMENT)
    role = build_role(STORAGE_COMMITMENT, scp_role=True)
    association = ae.associate("127.0.0.1", port, ae_title="MARROW_NODE", ext_neg=[role])
    if not association.is_established:
        return None
    uids = (STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1")
    status, _ = association.send_n_event_report(report, 2 if failed else 1, *uids)
    association.release()
    code: int = status.Status
    return code


def test_reports_are_heard_by_the_next_one_when_the_ports_owner_leaves(
    tmp_path: Path, node_port: int
) -> None:
    first, second = Commitments(tmp_path), Commitments(tmp_path)
    transaction = second.expect()
    with ExitStack() as owner:
        owner.enter_context(listening(first, "MARROW_NODE", node_port, None))
        with listening(second, "MARROW_NODE", node_port, None):
            owner.close()
            assert until(lambda: reported(node_port, transaction) == 0)
            report = second.wait(transaction, 5)
    assert report is not None
    assert report.kept == ("1.2.3",)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_that_is_reported_late_stands_in_the_log(
    tmp_path: Path, node_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    commitments = Commitments(tmp_path)
    transaction = commitments.expect()
    assert commitments.wait(transaction, 0) is None
    with listening(commitments, "MARROW_NODE", node_port, None):
        assert reported(node_port, transaction, failed=True) == 0
    assert "does not keep instance 1.2.3: it has no such instance (0x0112)" in caplog.text


def test_a_report_is_not_awaited_for_ever(tmp_path: Path) -> None:
    commitments = Commitments(tmp_path)
    for _ in range(2):
        transaction = commitments.expect()
        (noted,) = tmp_path.iterdir()
        assert noted.stem == transaction
        os.utime(noted, (0, 0))


def test_an_association_that_ends_too_early_is_the_archives_error(
    documents: dict[str, Dataset],
) -> None:
    sends: list[Callable[[Association], object]] = [
        lambda a: a.send_c_store(documents["SR"]),
        lambda a: a.send_n_action(Dataset(), 1, STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1"),
        lambda a: a.send_c_find(Dataset(), STUDY_ROOT_FIND),
    ]
    with told_archive(documents["SR"]) as (port, _):
        peer = DimsePeer(f"dimse://TOLD@localhost:{port}", QUICK)

        def sent_too_late(send: Callable[[Association], object]) -> None:
            with peer.association("the test", []) as association:
                association.abort()
                send(association)

        for send in sends:
            with pytest.raises(PacsUnreachable, match=r"TOLD .* broke off .* during the test"):
                sent_too_late(send)


def open_told(port: int, folder: Path) -> DimseArchive:
    """The told archive has no C-FIND; it is asked in an empty folder."""
    (folder / "empty").mkdir(exist_ok=True)
    settings = replace(QUICK, ask_url=(folder / "empty").as_uri())
    return opened(port, folder, settings, title="TOLD")


def test_an_archive_that_takes_another_class_only(
    documents: dict[str, Dataset], tmp_path: Path
) -> None:
    with told_archive(documents["SR"]) as (port, came):
        pacs = open_told(port, tmp_path)
        with pytest.raises(PacsRefused, match="Microscopy Bulk Simple Annotations"):
            pacs.store([documents["ANN"]])
    assert came == []


def test_an_archive_that_never_answers(documents: dict[str, Dataset], tmp_path: Path) -> None:
    with told_archive(documents["SR"], [None, None]) as (port, came):
        pacs = open_told(port, tmp_path)
        with pytest.raises(PacsTimeout, match=str(documents["SR"].SOPInstanceUID)):
            pacs.store([documents["SR"]])
    assert len(came) == 2
