"""Into a real archive, once, and back: what an archive changes on the way is noticed."""

from __future__ import annotations

import copy
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicom_io.dimse import DimseArchive
from dicom_io.errors import PacsError, PacsReadBackDiffers, ResultsDisagree
from dicom_io.pacs import Pacs, open_pacs
from node.config import OutputSettings, load_settings
from node.delivery import check_unchanged, deliver_to_pacs, open_destination, read_back, reconcile
from node.fhir import build_bundle
from node.outputs import DICOM_MEDIA_TYPE, Artifact, Renditions, encode_documents
from node.performer import retrieval
from node.pictures import draw_differential
from node.receive import received_settings
from node.rules import settings_by
from tests.analyses import small_slide, some_analysis
from tests.loopback_host import Host, running_host
from tests.slides import WrittenSlide

Archive = Callable[[WrittenSlide | None], Pacs]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Dataset], list[Dataset]]:
    analysis = some_analysis(small_slide(tmp_path_factory.mktemp("slide")))
    rgb = draw_differential(analysis)
    renditions = Renditions(b"%PDF-1.4 not empty", {"overview": rgb, "differential": rgb})
    documents = encode_documents(
        analysis, OutputSettings(pdf=True, captures=True, parametric_map=True), renditions
    )
    bundle = build_bundle(
        analysis, {kind: reference(document) for kind, document in documents.items()}, {}
    )
    return documents, [entry["resource"] for entry in bundle["entry"]]


def reference(document: Dataset) -> tuple[str, str, str]:
    return document.StudyInstanceUID, document.SeriesInstanceUID, document.SOPInstanceUID


def artifacts_of(documents: dict[str, Dataset]) -> dict[str, Artifact]:
    return {
        kind: Artifact(kind, DICOM_MEDIA_TYPE, "", *reference(document))
        for kind, document in documents.items()
    }


def test_what_is_there_is_not_sent_again_and_comes_back_equal(
    archive: Archive, made: tuple[dict[str, Dataset], list[Dataset]]
) -> None:
    documents, fhir = made
    pacs, artifacts = archive(None), artifacts_of(documents)
    for status in ("stored", "already there"):
        receipts = [
            deliver_to_pacs(pacs, artifacts[kind], document) for kind, document in documents.items()
        ]
        assert [receipt.kind for receipt in receipts] == [
            "ANN", "SEG", "SR", "PDF", "SC overview", "SC differential", "PM",
        ]  # fmt: skip
        assert {receipt.status for receipt in receipts} == {status}
        assert {receipt.target for receipt in receipts} == {"PACS"}
    assert [receipt.uid for receipt in receipts] == [d.SOPInstanceUID for d in documents.values()]
    for artifact in artifacts.values():
        found = pacs.search_instances(artifact.study_uid, artifact.series_uid)
        assert len(found) == (2 if artifact.kind.startswith("SC") else 1)
    reconcile(documents, read_back(pacs, artifacts, documents), fhir)


def moved_coordinates(returned: dict[str, Dataset]) -> None:
    group = returned["ANN"].AnnotationGroupSequence[0]
    points = np.frombuffer(group.PointCoordinatesData, np.float32).copy()
    points[0] += 1
    group.PointCoordinatesData = points.tobytes()


def other_type(returned: dict[str, Dataset]) -> None:
    first, second = returned["ANN"].AnnotationGroupSequence[:2]
    first.AnnotationPropertyTypeCodeSequence, second.AnnotationPropertyTypeCodeSequence = (
        second.AnnotationPropertyTypeCodeSequence,
        first.AnnotationPropertyTypeCodeSequence,
    )


def other_mask(returned: dict[str, Dataset]) -> None:
    pixels = bytearray(returned["SEG"].PixelData)
    pixels[len(pixels) // 2] ^= 0xFF
    returned["SEG"].PixelData = bytes(pixels)


def other_certainty(returned: dict[str, Dataset]) -> None:
    measured = returned["ANN"].AnnotationGroupSequence[0].MeasurementsSequence[0]
    values = measured.MeasurementValuesSequence[0]
    values.FloatingPointValues = bytes(len(values.FloatingPointValues))


def moved_millimetres(returned: dict[str, Dataset]) -> None:
    group = returned["ANN"].AnnotationGroupSequence[0]
    group.DoublePointCoordinatesData = bytes(len(group.DoublePointCoordinatesData))


def lost_group(returned: dict[str, Dataset]) -> None:
    del returned["ANN"].AnnotationGroupSequence[-1]


def other_patient(returned: dict[str, Dataset]) -> None:
    returned["SR"].PatientID = "another"


def other_name(returned: dict[str, Dataset]) -> None:
    returned["SEG"].PatientName = "Somebody^Else"


def other_page(returned: dict[str, Dataset]) -> None:
    returned["PDF"].EncapsulatedDocument = b"%PDF-1.4 another one"


def other_picture(returned: dict[str, Dataset]) -> None:
    capture = returned["SC overview"]
    capture.decompress()
    capture.PixelData = bytes(len(capture.PixelData))


def other_probability(returned: dict[str, Dataset]) -> None:
    returned["PM"].FloatPixelData = bytes(len(returned["PM"].FloatPixelData))


def items_of(document: Dataset) -> Iterator[Dataset]:
    for item in document.get("ContentSequence", []):
        yield item
        yield from items_of(item)


def other_count(returned: dict[str, Dataset]) -> None:
    number = next(each for each in items_of(returned["SR"]) if each.ValueType == "NUM")
    number.MeasuredValueSequence[0].NumericValue += 1


def other_reference(returned: dict[str, Dataset]) -> None:
    image = next(each for each in items_of(returned["SR"]) if "ReferencedSOPSequence" in each)
    image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def other_standing(returned: dict[str, Dataset]) -> None:
    returned["SR"].VerificationFlag = "VERIFIED"


ALTERED: dict[Callable[[dict[str, Dataset]], None], str] = {
    moved_coordinates: "ANN",
    other_type: "ANN",
    other_certainty: "ANN",
    lost_group: "ANN",
    other_patient: "SR",
    other_count: "SR",
    other_reference: "SR",
    other_standing: "SR",
    other_name: "SEG",
    other_mask: "SEG",
    other_page: "PDF",
    other_picture: "SC overview",
    other_probability: "PM",
}


@pytest.mark.parametrize("kind", ["ANN", "SEG", "SR"])
def test_an_archive_that_gives_a_part_of_an_object_is_named(
    kind: str, made: tuple[dict[str, Dataset], list[Dataset]]
) -> None:
    """Cut anywhere: where what is left can be read at all, it is not taken for the whole."""
    documents, fhir = made
    with BytesIO() as written:
        documents[kind].save_as(written, enforce_file_format=True)
        whole = written.getvalue()
    read = (part_of(whole, percent) for percent in range(2, 100, 2))
    parts = [part for part in read if part is not None]
    assert parts
    for part in parts:
        with pytest.raises((PacsReadBackDiffers, ResultsDisagree)):
            reconcile(documents, documents | {kind: part}, fhir)


def part_of(whole: bytes, percent: int) -> Dataset | None:
    """What pydicom reads of a file that was cut; None where it reads nothing."""
    try:
        return dcmread(BytesIO(whole[: len(whole) * percent // 100]))
    except (EOFError, InvalidDicomError, KeyError, OSError, ValueError, struct.error):
        return None


def test_an_archive_that_alters_millimetres_is_named(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    analysis = some_analysis(small_slide(tmp_path_factory.mktemp("slide")), 40)
    documents = encode_documents(analysis, OutputSettings(coordinates="3D"))
    returned = copy.deepcopy(documents)
    moved_millimetres(returned)
    with pytest.raises(PacsReadBackDiffers, match=str(documents["ANN"].SOPInstanceUID)):
        reconcile(documents, returned, [])


@pytest.mark.parametrize("change", ALTERED)
def test_an_archive_that_alters_an_object_is_named(
    change: Callable[[dict[str, Dataset]], None],
    made: tuple[dict[str, Dataset], list[Dataset]],
) -> None:
    documents, _ = made
    returned = copy.deepcopy(documents)
    change(returned)
    kind = ALTERED[change]
    with pytest.raises(PacsReadBackDiffers, match=str(documents[kind].SOPInstanceUID)) as raised:
        check_unchanged(documents, returned)
    assert str(documents["SR"].PatientID) not in str(raised.value)


def test_the_patient_may_be_spelt_and_completed_by_the_archive(
    made: tuple[dict[str, Dataset], list[Dataset]],
) -> None:
    documents, fhir = copy.deepcopy(made)
    for document in documents.values():
        document.PatientName, document.PatientBirthDate = "Doe^Jane", ""
    returned = copy.deepcopy(documents)
    for document in returned.values():
        document.PatientName, document.PatientBirthDate = "DOE^JANE^^", "19500101"
    reconcile(documents, returned, fhir)


def test_what_the_archive_gives_only_later_is_waited_for(
    archive: Archive, made: tuple[dict[str, Dataset], list[Dataset]]
) -> None:
    pacs, report = archive(None), {"SR": made[0]["SR"]}
    artifacts = artifacts_of(report)
    with pytest.raises(PacsReadBackDiffers, match=f"took SR {artifacts['SR'].uid}"):
        read_back(pacs, artifacts, report, 0.1)
    storing = threading.Timer(0.3, lambda: pacs.store([report["SR"]]))
    storing.start()
    assert read_back(pacs, artifacts, report, 20.0)["SR"].SOPInstanceUID == artifacts["SR"].uid
    storing.join()


def test_an_ehr_that_alters_a_count_is_named(
    made: tuple[dict[str, Dataset], list[Dataset]],
) -> None:
    documents, fhir = made
    altered = copy.deepcopy(fhir)
    share = next(each for each in altered if "component" in each and "valueQuantity" in each)
    share["component"][0]["valueQuantity"]["value"] += 1
    with pytest.raises(ResultsDisagree, match=str(documents["SR"].SOPInstanceUID)):
        reconcile(documents, documents, altered)


def test_an_ehr_that_files_the_report_under_another_patient_is_named(
    made: tuple[dict[str, Dataset], list[Dataset]],
) -> None:
    documents, fhir = copy.deepcopy(made)
    report = next(each for each in fhir if each["resourceType"] == "DiagnosticReport")
    report["subject"]["identifier"]["value"] = "another"
    with pytest.raises(ResultsDisagree, match="about another patient") as raised:
        reconcile(documents, documents, fhir)
    assert str(documents["SR"].PatientID) not in str(raised.value)


def test_a_slide_without_cells_is_delivered_too(
    archive: Archive, tmp_path_factory: pytest.TempPathFactory
) -> None:
    analysis = some_analysis(small_slide(tmp_path_factory.mktemp("slide")), cells=0)
    documents = encode_documents(analysis)
    assert "ANN" not in documents
    bundle = build_bundle(analysis, {k: reference(d) for k, d in documents.items()}, {})
    pacs, artifacts = archive(None), artifacts_of(documents)
    for kind, document in documents.items():
        deliver_to_pacs(pacs, artifacts[kind], document)
    reconcile(
        documents,
        read_back(pacs, artifacts, documents),
        [entry["resource"] for entry in bundle["entry"]],
    )


def spoken_to(pacs: Pacs | DimseArchive, document: Dataset, hosts: dict[str, Host]) -> set[str]:
    """Which hosts an archive's search, store and retrieve services are asked at."""
    for host in hosts.values():
        host.requests.clear()
    with pacs:
        pacs.has_instance(*reference(document))
        with suppress(PacsError):
            pacs.retrieve_instance(*reference(document))
        if isinstance(pacs, Pacs):
            with suppress(PacsError):
                pacs.store([document])
    return {name for name, host in hosts.items() if host.requests}


@pytest.mark.parametrize("rule", [False, True])
@pytest.mark.parametrize("received", [False, True])
@pytest.mark.parametrize(
    ("results", "asked"),
    [
        ("", {"query", "retrieve", "store"}),
        ("other", {"other"}),
        ("dimse", {"query", "retrieve"}),
    ],
)
def test_services_of_their_own_are_those_of_the_slides_archive(
    made: tuple[dict[str, Dataset], list[Dataset]],
    tmp_path: Path,
    results: str,
    asked: set[str],
    received: bool,
    rule: bool,
) -> None:
    """Results for another archive do not end at the services of that which slides come from."""
    with ExitStack() as stack:
        names = ("slides", "query", "retrieve", "store", "other")
        hosts = {name: stack.enter_context(running_host()) for name in names}
        url = {"": "", "other": f"{hosts['other'].url}/rs", "dimse": "dimse://A@127.0.0.1:9"}
        config = tmp_path / "node.toml"
        config.write_text(
            f'pacs_url = "{hosts["slides"].url}/rs"\nwork_folder = "{tmp_path}"\n'
            + (f'results_url = "{url[results]}"\n' if results and not rule else "")
            + "[pacs]\nretries = 0\n"
            + "".join(f'{name}_url = "{hosts[name].url}/{name}"\n' for name in names[1:4])
            + (f'[[rules]]\nname = "r"\nresults_url = "{url[results]}"\n' if rule else "")
        )
        settings = load_settings(config, {})
        if received:
            settings = received_settings(settings)
        if rule:
            settings = settings_by(settings, settings.rules[0])
        assert spoken_to(open_destination(settings), made[0]["SR"], hosts) == asked
        if results == "other":
            assert retrieval(settings) == {"url": url["other"]}
        if not received:
            slides = open_pacs(settings.pacs_url, settings.pacs)
            assert spoken_to(slides, made[0]["SR"], hosts) == {"query", "retrieve", "store"}
