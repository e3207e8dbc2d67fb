"""Reviews in a real archive and a real FHIR server: chains, histories, crashes, races."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hl7
import numpy as np
import pytest
import requests
from click.testing import CliRunner
from highdicom import UID
from highdicom.ann import (
    AnnotationGroup,
    AnnotationGroupGenerationTypeValues,
    MicroscopyBulkSimpleAnnotations,
)
from pydicom import dcmread
from pydicom.dataset import Dataset

from conformance.check import check
from conformance.result_set import ResultSet
from dicom_io.annotation import annotated_types, decode_annotation
from dicom_io.codes import cell_category_code, cell_type_code
from dicom_io.pacs import open_pacs
from dicom_io.report import decode_report
from models.errors import ReviewInvalid, ReviewRefused
from node.cli import main
from node.config import Settings, load_settings
from node.delivery import now_utc
from node.outputs import DICOM_MEDIA_TYPE
from node.pipeline import SlideReference, analyse
from node.review import review_from
from node.review_way import review_result
from node.revisions import revisions
from node.workplace import ReviewPlace, Workplace
from tests.fhir_fixture import FhirServer
from tests.mllp_server import mllp_server
from tests.servers import Orthanc
from tests.smears import Smear, small_smear
from tests.validators import dciodvfy, dsrdump, written

Result = Mapping[str, Any]
RETYPE_ONE = {"retyped": [{"group": 1, "index": 1, "type": "plasma_cell"}]}
DELETE_ONE = {"deleted": [{"group": 1, "index": 1}]}


@dataclass(frozen=True)
class Node:
    """A slide that was analysed, and what may be done with its result."""

    smear: Smear
    settings: Settings

    def analyse(self) -> Result:
        slide = SlideReference(self.smear.slide.study_uid, self.smear.slide.series_uid, "test")
        return analyse(Workplace.open(self.settings, lambda _: None), slide, at_once)

    def review(
        self, result: Result, revision: int, decision: str, step: Any = None, **more: Any
    ) -> Result:
        asked = {
            "revision": revision,
            "decision": decision,
            "name": "Lee^Anna^^Dr.",
            "organization": "Haematology",
            "at": now_utc(),
        }
        return review_result(
            ReviewPlace.open(self.settings, lambda _: None),
            result["identity"],
            review_from(asked | more),
            step or at_once,
        )

    def revisions(self, result: Result) -> list[dict[str, Any]]:
        return revisions(self.settings, result["identity"])

    def fetched(self, written: Mapping[str, Any]) -> dict[str, Dataset]:
        """Every DICOM object of a revision, as the archive has it."""
        with open_pacs(self.settings.pacs_url, self.settings.pacs) as pacs:
            return {
                kind: pacs.retrieve_instance(each["study_uid"], each["series_uid"], each["uid"])
                for kind, each in written["artifacts"].items()
                if each["media_type"] == DICOM_MEDIA_TYPE
            }


def at_once(name: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """As a job does it: results go through JSON."""
    answer: dict[str, Any] = json.loads(json.dumps(stage()))
    return answer


@pytest.fixture(scope="module")
def analysed_once(tmp_path_factory: pytest.TempPathFactory) -> Smear:
    """A smear that the command line has analysed, into folders."""
    smear = small_smear(tmp_path_factory.mktemp("analysed"))
    code, _, said = smear.analyse()
    assert code == 0, said
    return smear


@pytest.fixture
def smear(tmp_path: Path) -> Smear:
    """Not analysed."""
    return small_smear(tmp_path)


@pytest.fixture
def node(analysed_once: Smear, tmp_path: Path) -> Node:
    """With folders for archive and EHR; its work folder has the analysis."""
    copy = tmp_path / "copy"
    shutil.copytree(analysed_once.folder, copy)
    paths = tuple(
        copy / path.relative_to(analysed_once.folder) for path in analysed_once.slide.paths
    )
    smear = Smear(replace(analysed_once.slide, paths=paths), copy)
    settings = load_settings(smear.settings(), {})
    return Node(smear, replace(settings, pacs_url=smear.pacs_url, ehr_url=smear.ehr_url))


@pytest.fixture
def servers(smear: Smear, orthanc: Orthanc, fhir_server: FhirServer) -> Node:
    """With a real archive, and a real FHIR server that knows the patient."""
    orthanc.add(*smear.slide.paths)
    settings = load_settings(smear.settings(), {})
    patient = {
        "resourceType": "Patient",
        "identifier": [{"system": "urn:test:mrn", "value": "DEMO-MARROW-1"}],
    }
    requests.post(f"{fhir_server.url}/Patient", json=patient, timeout=10).raise_for_status()
    ehr = replace(settings.ehr, patient_system="urn:test:mrn")
    output = replace(settings.output, pdf=True, captures=True)
    return Node(
        smear,
        replace(
            settings,
            pacs_url=orthanc.dicomweb_url,
            ehr_url=fhir_server.url,
            ehr=ehr,
            output=output,
        ),
    )


def reports_of_the_patient(server: FhirServer) -> list[dict[str, Any]]:
    (patient,) = found(server, "Patient?identifier=urn:test:mrn|DEMO-MARROW-1")
    return found(server, f"DiagnosticReport?subject=Patient/{patient['id']}")


def found(server: FhirServer, query: str) -> list[dict[str, Any]]:
    answer = requests.get(f"{server.url}/{query}", timeout=10).json()
    return [entry["resource"] for entry in answer.get("entry", [])]


def history(server: FhirServer, reference: str) -> list[str]:
    """Status of every version, oldest first."""
    versions = found(server, f"{reference}/_history")
    ordered = sorted(versions, key=lambda each: str(each["meta"]["lastUpdated"]))
    return [each["status"] for each in ordered]


def edited_annotation(node: Node, document: Dataset) -> Dataset:
    """As a viewer stores it: polygons; one cell of another type, one taken out, one put in."""
    with open_pacs(node.settings.pacs_url, node.settings.pacs) as pacs:
        header = dcmread(max(node.smear.slide.paths, key=lambda path: path.stat().st_size))
        cells = decode_annotation(document)
        keys = [cells.classes[label] for label in cells.label]
        keys[0] = "plasma_cell"
        boxes = [*cells.box_px[:-1], cells.box_px[2] + 3.0]  # beside the third
        types = [*keys[:-1], "eosinophil"]
        groups = [
            AnnotationGroup(
                number=number,
                uid=UID(),
                label=key,
                annotated_property_category=cell_category_code(key),
                annotated_property_type=cell_type_code(key),
                graphic_type="POLYGON",
                graphic_data=[
                    np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32)
                    for (x0, y0, x1, y1), type_ in zip(boxes, types, strict=True)
                    if type_ == key
                ],
                algorithm_type=AnnotationGroupGenerationTypeValues.MANUAL,
            )
            for number, key in enumerate(dict.fromkeys(types), start=1)
        ]
        edited = MicroscopyBulkSimpleAnnotations(
            source_images=[header],
            annotation_coordinate_type="2D",
            pixel_origin_interpretation="VOLUME",
            annotation_groups=groups,
            series_instance_uid=UID(),
            series_number=77,
            sop_instance_uid=UID(),
            instance_number=1,
            manufacturer="a viewer",
            manufacturer_model_name="a viewer",
            software_versions="1",
            device_serial_number="1",
        )
        pacs.store([edited])
    return edited


def test_confirmed_corrected_withdrawn(
    servers: Node, fhir_server: FhirServer, tmp_path: Path
) -> None:
    node = servers
    first = node.analyse()
    assert (first["revision"], first["standing"]) == (1, "unreviewed")
    (report,) = reports_of_the_patient(fhir_server)
    resources = [f"DiagnosticReport/{report['id']}", *(r["reference"] for r in report["result"])]

    confirmed = node.review(first, 1, "confirmed")
    assert (confirmed["revision"], confirmed["standing"]) == (2, "final")
    assert confirmed["ann"] == first["ann"]
    assert confirmed["seg"] == first["seg"]
    assert confirmed["sr"] != first["sr"]
    assert confirmed["differential"] == first["differential"]

    before = node.fetched(node.revisions(first)[1])["ANN"]
    edited = edited_annotation(node, before)
    corrected = node.review(first, 2, "corrected", annotation_uid=str(edited.SOPInstanceUID))
    assert (corrected["revision"], corrected["standing"]) == (3, "corrected")
    counts = {key: row["count"] for key, row in corrected["differential"].items() if row["count"]}
    assert counts == dict(annotated_types(edited))
    assert corrected["cells"] == first["cells"]
    assert node.revisions(first)[2]["review"]["changes"] == {"retyped": 1, "deleted": 1, "added": 1}

    withdrawn = node.review(first, 3, "withdrawn", reason="Slide of another patient")
    assert (withdrawn["revision"], withdrawn["standing"]) == (4, "withdrawn")
    assert withdrawn["differential"] == {}

    _chain_leads_back(node, first, tmp_path)
    _every_revision_conforms(node, first, tmp_path)
    _annotations_of_both_are_there(node, first)

    # One report and the same resources, through all that was decided.
    (same,) = reports_of_the_patient(fhir_server)
    assert same["id"] == report["id"]
    assert history(fhir_server, resources[0]) == [
        "partial",
        "final",
        "corrected",
        "entered-in-error",
    ]
    for reference in resources[1:]:
        assert history(fhir_server, reference) == [
            "preliminary",
            "final",
            "corrected",
            "entered-in-error",
        ]
    provenances = found(fhir_server, f"Provenance?target={resources[0]}")
    people = [
        agent["who"]["display"]
        for each in provenances
        for agent in each["agent"]
        if agent["type"]["coding"][0]["code"] == "verifier"
    ]
    assert len(provenances) == 4
    assert people == ["Lee, Anna Dr."] * 3
    named = {e["what"]["identifier"]["value"] for p in provenances for e in p["entity"]}
    assert f"urn:oid:{edited.SOPInstanceUID}" in named


def _chain_leads_back(node: Node, result: Result, folder: Path) -> None:
    """From the newest report by predecessors to the first, each found in the archive by its UID."""
    uids = [each["artifacts"]["SR"]["uid"] for each in node.revisions(result)]
    with open_pacs(node.settings.pacs_url, node.settings.pacs) as pacs:
        artifact = node.revisions(result)[-1]["artifacts"]["SR"]
        place = (artifact["study_uid"], artifact["series_uid"], artifact["uid"])
        walked = []
        while place is not None:
            document = pacs.retrieve_instance(*place)
            walked.append(str(document.SOPInstanceUID))
            place = _predecessor(document)
            if place is None:
                assert (document.VerificationFlag, document.PreliminaryFlag) == (
                    "UNVERIFIED",
                    "PRELIMINARY",
                )
                continue
            (observer,) = document.VerifyingObserverSequence
            assert document.VerificationFlag == "VERIFIED"
            assert str(observer.VerifyingObserverName) == "Lee^Anna^^Dr."
            assert observer.VerifyingOrganization == "Haematology"
    assert walked == uids[::-1]


def _predecessor(document: Dataset) -> tuple[str, str, str] | None:
    for study in document.get("PredecessorDocumentsSequence", []):
        (series,) = study.ReferencedSeriesSequence
        (instance,) = series.ReferencedSOPSequence
        return (
            study.StudyInstanceUID,
            series.SeriesInstanceUID,
            instance.ReferencedSOPInstanceUID,
        )
    return None


def _every_revision_conforms(node: Node, result: Result, folder: Path) -> None:
    """By the kit, alone and all together, by dicom3tools, and by DCMTK."""
    levels = [dcmread(path, stop_before_pixels=True) for path in node.smear.slide.paths]
    everything: dict[str, Dataset] = {}
    kinds = []
    for written_ in node.revisions(result):
        documents = node.fetched(written_)
        kinds.append(set(documents))
        everything |= {str(each.SOPInstanceUID): each for each in documents.values()}
        bundle = json.loads(
            (
                node.settings.work_folder
                / "files"
                / written_["artifacts"]["FHIR"]["sha256"][:2]
                / written_["artifacts"]["FHIR"]["sha256"]
            ).read_bytes()
        )
        checked = check(ResultSet((*documents.values(), *levels), (bundle,)))
        assert checked.findings == (), written_["revision"]
    assert check(ResultSet((*everything.values(), *levels), (bundle,))).findings == ()
    assert kinds == [
        {"ANN", "SEG", "SR", "PDF", "SC overview", "SC differential"},
        {"ANN", "SEG", "SR", "PDF", "SC overview", "SC differential"},
        {"ANN", "SEG", "SR", "PDF", "SC overview", "SC differential"},
        {"SR", "PDF"},
    ]
    for uid, document in everything.items():
        path = written(document, folder / f"{uid}.dcm")
        assert [line for line in dciodvfy(path) if line.startswith("Error")] == []
        if document.Modality == "SR":
            assert dsrdump(path)[1] == ""


def _annotations_of_both_are_there(node: Node, result: Result) -> None:
    first, confirmed, corrected, withdrawn = map(node.fetched, node.revisions(result))
    types = [
        {group.AnnotationGroupGenerationType for group in each["ANN"].AnnotationGroupSequence}
        for each in (first, confirmed, corrected)
    ]
    assert types == [{"AUTOMATIC"}, {"AUTOMATIC"}, {"SEMIAUTOMATIC"}]
    assert confirmed["ANN"].SOPInstanceUID == first["ANN"].SOPInstanceUID
    assert corrected["ANN"].SOPInstanceUID != first["ANN"].SOPInstanceUID
    assert str(corrected["ANN"].ContentCreatorName) == "Lee^Anna^^Dr."
    assert decode_report(withdrawn["SR"]).withdrawn


def test_a_first_review_that_corrects_makes_it_final(
    servers: Node, fhir_server: FhirServer
) -> None:
    """R4: corrected is a change of what was final."""
    first = servers.analyse()
    reviewed = servers.review(first, 1, "corrected", corrections=RETYPE_ONE)
    assert reviewed["standing"] == "final"
    (report,) = reports_of_the_patient(fhir_server)
    assert history(fhir_server, f"DiagnosticReport/{report['id']}") == ["partial", "final"]
    assert reviewed["differential"]["plasma_cell"]["count"] == 1
    groups = servers.fetched(servers.revisions(first)[1])["ANN"].AnnotationGroupSequence
    assert {each.AnnotationGroupGenerationType for each in groups} == {"SEMIAUTOMATIC"}


def test_an_analysis_asked_for_again_does_not_undo_a_review(
    servers: Node, orthanc: Orthanc, fhir_server: FhirServer
) -> None:
    # A PDF tells when it was made: made anew it is another file.
    output = replace(servers.settings.output, pdf=False)
    servers = replace(servers, settings=replace(servers.settings, output=output))
    first = servers.analyse()
    servers.review(first, 1, "confirmed")
    corrected = servers.review(first, 2, "corrected", corrections=RETYPE_ONE)
    (report,) = reports_of_the_patient(fhir_server)
    count = instances(orthanc)
    again = servers.analyse()
    assert (again["revision"], again["sr"]) == (3, corrected["sr"])
    assert {each["status"] for each in again["receipts"]} == {"already there"}
    assert reports_of_the_patient(fhir_server) == [report]
    assert instances(orthanc) == count
    # Also where the work files are gone, and the archive is asked for what it has.
    for path in (servers.settings.work_folder / "files").rglob("*"):
        if path.is_file():
            path.unlink()
    anew = servers.analyse()
    assert anew["revision"] == 1
    assert {each["status"] for each in anew["receipts"]} == {"already there"}
    assert reports_of_the_patient(fhir_server) == [report]
    assert instances(orthanc) == count


def instances(orthanc: Orthanc) -> int:
    answer = requests.get(f"{orthanc.rest_url}/statistics", timeout=10).json()
    return int(answer["CountInstances"])


def test_a_late_delivery_of_an_older_revision_changes_nothing(
    servers: Node, fhir_server: FhirServer
) -> None:
    """The second revision comes again after the third, for example after a crash."""
    first = servers.analyse()
    servers.review(first, 1, "confirmed")
    servers.review(first, 2, "corrected", corrections=RETYPE_ONE)
    (report,) = reports_of_the_patient(fhir_server)
    late = servers.review(first, 1, "confirmed")
    assert (late["revision"], late["standing"]) == (2, "final")
    assert reports_of_the_patient(fhir_server) == [report]


def test_hl7_v2_is_final_corrected_deleted_and_never_preliminary_again(node: Node) -> None:
    with mllp_server() as receiver:
        node = replace(node, settings=replace(node.settings, ehr_url=receiver.url()))
        first = node.analyse()
        node.review(first, 1, "confirmed")
        node.analyse()
        node.review(first, 2, "corrected", corrections=RETYPE_ONE)
        node.review(first, 3, "corrected", corrections=DELETE_ONE)
        node.analyse()
        node.review(first, 4, "withdrawn", reason="Wrong slide")
        node.analyse()
        node.review(first, 1, "confirmed")  # late: not sent
        messages = [hl7.parse(message) for message in receiver.messages]
    told = [str(message.segment("OBR")[25]) for message in messages]
    assert told == ["P", "F", "F", "C", "C", "C", "C", "C"]
    results = [{str(each[11]) for each in message.segments("OBX")} for message in messages]
    assert all({"D"} == each for each in results[-2:])
    assert not any({"P", "D"} & each for each in results[1:-2])
    identifiers = [str(message.segment("MSH")[10]) for message in messages]
    # What says the same has the same identifier, what says another thing another.
    assert [identifiers.index(each) for each in identifiers] == [0, 1, 1, 3, 4, 4, 6, 6]
    assert len({str(message.segment("OBR")[3]) for message in messages}) == 1


def test_twice_the_same_is_once(node: Node) -> None:
    first = node.analyse()
    one = node.review(first, 1, "corrected", corrections=RETYPE_ONE)
    files = sorted(Path(node.smear.folder, "pacs").rglob("*"))
    two = node.review(first, 1, "corrected", corrections=RETYPE_ONE)
    assert (one["sr"], one["ann"]) == (two["sr"], two["ann"])
    assert {each["status"] for each in two["receipts"]} == {"already there"}
    assert sorted(Path(node.smear.folder, "pacs").rglob("*")) == files
    assert len(node.revisions(first)) == 2


@pytest.mark.parametrize(
    ("revision", "decision", "more", "said"),
    [
        (1, "confirmed", {}, "Revision 1 is no longer the newest: revision 2 is there, final"),
        (1, "withdrawn", {"reason": "x"}, "no longer the newest"),
        (3, "confirmed", {}, "There is no revision 3: the newest is 2"),
        (2, "corrected", {"corrections": {}}, "changes nothing of revision 2"),
        (2, "corrected", {"annotation_uid": "1.2.3"}, "has no annotations 1.2.3"),
        (2, "corrected", {"annotation_uid": "../x"}, r"has no annotations \.\./x"),
        (
            2,
            "corrected",
            {"corrections": {"added": [{"box_px": [-9, -9, -1, -1], "type": "blast"}]}},
            "outside the regions that were counted",
        ),
    ],
)
def test_what_is_refused_leaves_nothing(
    node: Node, revision: int, decision: str, more: dict[str, Any], said: str
) -> None:
    first = node.analyse()
    node.review(first, 1, "confirmed", name="Kim^Bo")
    files = sorted(Path(node.smear.folder, "pacs").rglob("*"))
    with pytest.raises(ReviewRefused, match=said):
        node.review(first, revision, decision, **more)
    assert len(node.revisions(first)) == 2
    assert sorted(Path(node.smear.folder, "pacs").rglob("*")) == files


def test_nothing_follows_on_a_withdrawal(node: Node) -> None:
    first = node.analyse()
    node.review(first, 1, "withdrawn", reason="Wrong slide")
    for decision, more in (
        ("confirmed", {}),
        ("corrected", {"corrections": RETYPE_ONE}),
        ("withdrawn", {"reason": "Again"}),
    ):
        with pytest.raises(ReviewRefused, match="is withdrawn and cannot be"):
            node.review(first, 2, decision, **more)


def test_annotations_about_another_image_are_refused(node: Node) -> None:
    first = node.analyse()
    edited = edited_annotation(node, node.fetched(node.revisions(first)[0])["ANN"])
    for change in (
        lambda ann: setattr(ann.ReferencedImageSequence[0], "ReferencedSOPInstanceUID", "1.2.3"),
        lambda ann: setattr(
            ann.AnnotationGroupSequence[0].AnnotationPropertyTypeCodeSequence[0], "CodeValue", "1"
        ),
        lambda ann: setattr(
            ann.AnnotationGroupSequence[0],
            "PointCoordinatesData",
            (
                np.frombuffer(ann.AnnotationGroupSequence[0].PointCoordinatesData, np.float32) + 1e6
            ).tobytes(),
        ),
    ):
        broken = dcmread(
            next(path for path in Path(node.smear.folder, "pacs").rglob(str(edited.SOPInstanceUID)))
        )
        broken.SOPInstanceUID = broken.file_meta.MediaStorageSOPInstanceUID = UID()
        change(broken)
        with open_pacs(node.settings.pacs_url, node.settings.pacs) as pacs:
            pacs.store([broken])
        with pytest.raises(
            ReviewInvalid, match=r"not about the base level|do not serve|outside of"
        ):
            node.review(first, 1, "corrected", annotation_uid=str(broken.SOPInstanceUID))
    assert len(node.revisions(first)) == 1


def test_a_report_that_is_not_in_the_archive_has_no_successor(node: Node) -> None:
    first = node.analyse()
    _, series, uid = first["sr"][0]
    (path,) = Path(node.smear.folder, "pacs").rglob(f"{series}/instances/{uid}")
    path.unlink()
    with pytest.raises(ReviewRefused, match="does not have the report of revision 1"):
        node.review(first, 1, "confirmed")


def test_of_two_at_the_same_time_one_is_refused(node: Node) -> None:
    """Both have looked at the revision before either wrote the next."""
    first = node.analyse()
    together = threading.Barrier(2)
    ended: dict[str, str] = {}

    def step(name: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        answer = at_once(name, stage)
        if name == "open review":
            together.wait(60)
        return answer

    def decide(name: str) -> None:
        try:
            node.review(first, 1, "confirmed", step, name=name)
            ended[name] = "done"
        except ReviewRefused as refusal:
            ended[name] = str(refusal)

    threads = [threading.Thread(target=decide, args=(name,)) for name in ("Lee^A", "Kim^B")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(word.split()[0] for word in ended.values()) == ["Revision", "done"]
    assert len(node.revisions(first)) == 2
    reports = [path for path in Path(node.smear.folder, "pacs").rglob("*") if is_report(path)]
    assert len(reports) == 2


def is_report(path: Path) -> bool:
    return path.is_file() and dcmread(path, specific_tags=["Modality"]).Modality == "SR"


@pytest.fixture
def analysed(smear: Smear) -> tuple[Smear, str]:
    """By the command line, whose reviews go where the analysis went; the job's identifier."""
    code, result, said = smear.analyse()
    assert code == 0, said
    return smear, result["job"]


def review_command(smear: Smear, job: str, *decision: str) -> list[str]:
    command = [sys.executable, "-m", "node", "--config", str(smear.folder / "node.toml")]
    by = ("--by", "Lee^Anna^^Dr.", "--organization", "Haematology")
    return [*command, "review", job, "--json", *by, *decision]


def test_killed_three_times_one_revision(analysed: tuple[Smear, str]) -> None:
    smear, job = analysed
    (smear.folder / "cells.json").write_text(json.dumps(RETYPE_ONE))
    decision = ("--revision", "1", "--corrections", str(smear.folder / "cells.json"))
    command = review_command(smear, job, *decision)
    for stage in ("correct", "write review", "deliver to EHR"):
        assert killed_at(smear, command, stage)
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert (result["revision"], result["standing"]) == (2, "final")
    files = [path for path in Path(smear.folder, "pacs", "studies").rglob("*") if path.is_file()]
    modalities = sorted(dcmread(path, specific_tags=["Modality"]).Modality for path in files)
    assert modalities == ["ANN", "ANN", "SEG", "SR", "SR"]
    (report,) = (smear.folder / "ehr" / "DiagnosticReport").glob("*.json")
    assert json.loads(report.read_bytes())["status"] == "final"
    assert len(list((smear.work / "results").glob("*.json"))) == 2


def killed_at(smear: Smear, command: list[str], stage: str) -> bool:
    """Start a review and SIGKILL it in `stage`; whether it died there."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        for path in (smear.work / "progress").glob("*.json"):
            try:
                if json.loads(path.read_bytes())["stage"] == stage:
                    process.send_signal(signal.SIGKILL)
            except FileNotFoundError:  # replaced between listing and reading
                continue
        time.sleep(0.001)
    return process.wait() == -signal.SIGKILL


def test_the_command_confirms_and_refuses(analysed: tuple[Smear, str]) -> None:
    smear, job = analysed
    for decision, code, said in (
        (("--revision", "1", "--confirm"), 0, ""),
        (("--revision", "1", "--confirm"), 0, ""),
        (("--revision", "1", "--withdraw", "Wrong slide"), 70, "no longer the newest"),
    ):
        ended = subprocess.run(
            review_command(smear, job, *decision),
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert ended.returncode == code, ended.stderr
        assert said in ended.stderr
    assert len(list((smear.work / "results").glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ((), "one of --confirm"),
        (("--confirm", "--withdraw", "x"), "one of --confirm"),
        (("--withdraw", ""), "has a reason"),
        (("--corrections", "none.json"), "cannot be read"),
        (("--corrections", "list.json"), "not usable"),
    ],
)
def test_the_command_needs_one_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decision: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    by = ("--by", "Lee^Anna", "--organization", "Haematology", "--revision", "1")
    done = CliRunner().invoke(main, ["review", "job", *by, *decision])
    assert done.exit_code == 71
    assert said in done.output


def test_what_a_review_needs_of_an_analysis(node: Node) -> None:
    """Neither the model package nor the settings of today: both may be others by then."""
    first = node.analyse()
    later = replace(
        node.settings,
        model=replace(node.settings.model, name="another", folders=()),
        output=replace(node.settings.output, cells_per_group=1, coordinates="3D"),
    )
    reviewed = Node(node.smear, later).review(first, 1, "corrected", corrections=RETYPE_ONE)
    ann = node.fetched(node.revisions(first)[1])["ANN"]
    assert ann.AnnotationCoordinateType == "2D"
    assert reviewed["model"] == first["model"]
    assert reviewed["report"] == first["report"]


def test_a_result_that_this_folder_does_not_have(node: Node) -> None:
    with pytest.raises(ReviewRefused, match="nothing to review"):
        node.review({"identity": "0" * 64}, 1, "confirmed")


def test_work_files_that_are_gone_are_told(node: Node) -> None:
    first = node.analyse()
    digest = node.revisions(first)[0]["analysis"]["cells"]
    (node.settings.work_folder / "files" / digest[:2] / digest).unlink()
    with pytest.raises(ReviewRefused, match="work files of revision 1 are gone"):
        node.review(first, 1, "confirmed")


def test_a_clock_that_stands_before_the_result_is_told(node: Node) -> None:
    first = node.analyse()
    with pytest.raises(ReviewRefused, match="correct the clock"):
        node.review(first, 1, "confirmed", at="2020-01-01T00:00:00+00:00")
