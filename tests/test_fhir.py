"""Analysis → FHIR R4 bundle."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from fhir.resources.bundle import Bundle as BundleR5
from fhir.resources.R4B.bundle import Bundle
from pydantic import ValidationError
from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    MicroscopyBulkSimpleAnnotationsStorage,
    VLWholeSlideMicroscopyImageStorage,
)

from dicom_io.analysis import Analysis
from dicom_io.codes import LOCAL_SYSTEM_URI
from dicom_io.errors import InputError
from dicom_io.report import tracking_uid
from dicom_io.slide import Slide
from models.cell_types import CELL_TYPES
from models.differential import count_differential
from node.fhir import build_bundle, named_information, report_identifier
from node.fhir_header import context_of, report_context_of
from tests.analyses import CLASSES, RULES, signed, small_slide, some_analysis
from tests.fhir_definitions import outside_definitions

REFERENCES = {"ANN": ("1.2", "1.2.3", "1.2.3.4"), "SR": ("1.2", "1.2.4", "1.2.4.5")}
LOINC, SNOMED = "http://loinc.org", "http://snomed.info/sct"
UCUM = "http://unitsofmeasure.org"
HL7 = "http://terminology.hl7.org/CodeSystem"
# Value sets that R4 binds as required: no validator at hand knows all of them.
REQUIRED = {
    "Bundle.type": {"transaction"},
    "DiagnosticReport.status": {"registered", "partial", "preliminary", "final"},
    "Observation.status": {"registered", "preliminary", "final"},
    "Device.status": {"active", "inactive", "entered-in-error", "unknown"},
    "Device.deviceName.type": {
        "udi-label-name",
        "user-friendly-name",
        "patient-reported-name",
        "manufacturer-name",
        "model-name",
        "other",
    },
    "Provenance.entity.role": {"derivation", "revision", "quotation", "source", "removal"},
    "text.status": {"generated", "extensions", "additional", "empty"},
}
SOP_CLASSES = {
    VLWholeSlideMicroscopyImageStorage,
    MicroscopyBulkSimpleAnnotationsStorage,
    Comprehensive3DSRStorage,
}
DATA_ABSENT_REASONS = {"not-performed", "not-applicable"}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return small_slide(tmp_path_factory.mktemp("slide") / "pacs")


def bundle_of(analysis: Analysis, loinc: bool = False) -> dict[str, Any]:
    return build_bundle(analysis, REFERENCES, {"overview": b"picture"}, loinc)


def resources(bundle: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    found = [entry["resource"] for entry in bundle["entry"]]
    return [each for each in found if each["resourceType"] == kind]


def by_code(analysis: Analysis, loinc: bool = False) -> dict[str, dict[str, Any]]:
    return {
        each["code"]["coding"][0]["code"]: each
        for each in resources(bundle_of(analysis, loinc), "Observation")
    }


def relabelled(analysis: Analysis, into: dict[str, str]) -> Analysis:
    """The same cells, some of them of another type."""
    cells = analysis.cells
    label = cells.label.copy()
    for old, new in into.items():
        label[label == CLASSES.index(old)] = CLASSES.index(new)
    cells = replace(cells, label=label)
    return replace(analysis, cells=cells, differential=count_differential(cells, 12, RULES))


def with_header(slide: Slide, **values: Any) -> Slide:
    header = deepcopy(slide.header)
    for keyword, value in values.items():
        setattr(header, keyword, value)
    return replace(slide, header=header)


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a resource."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from walk(inner)


def test_it_is_r4_and_the_same_every_time(slide: Slide) -> None:
    analysis = some_analysis(slide)
    bundle = bundle_of(analysis)
    Bundle.model_validate(bundle)
    assert json.dumps(bundle) == json.dumps(bundle_of(analysis))


def test_nothing_in_it_is_empty(slide: Slide) -> None:
    for part in walk(bundle_of(some_analysis(slide))):
        assert not [name for name, value in part.items() if value in ("", [], {}, None)]


def test_required_values(slide: Slide) -> None:
    bundle = bundle_of(some_analysis(slide))
    (device,) = resources(bundle, "Device")
    (report,) = resources(bundle, "DiagnosticReport")
    (provenance,) = resources(bundle, "Provenance")
    assert bundle["type"] in REQUIRED["Bundle.type"]
    assert report["status"] in REQUIRED["DiagnosticReport.status"]
    assert report["text"]["status"] in REQUIRED["text.status"]
    assert device["status"] in REQUIRED["Device.status"]
    assert device["deviceName"][0]["type"] in REQUIRED["Device.deviceName.type"]
    for observation in resources(bundle, "Observation"):
        assert observation["status"] in REQUIRED["Observation.status"]
    for entity in provenance["entity"]:
        assert entity["role"] in REQUIRED["Provenance.entity.role"]


def test_only_verified_codes(slide: Slide) -> None:
    known = {
        LOINC: {"47286-0", "38257-2", "11138-5"} | {c.loinc for c in CELL_TYPES.values()},
        SNOMED: {cell.snomed for cell in CELL_TYPES.values()} | {"14016003"},
        UCUM: {"%", "{cells}", "{ratio}"},
        f"{HL7}/v2-0074": {"LAB"},
        f"{HL7}/v2-0203": {"ACSN"},
        f"{HL7}/observation-category": {"laboratory"},
        f"{HL7}/provenance-participant-type": {"assembler"},
        f"{HL7}/v3-ObservationInterpretation": {"L", "H", "N"},
        f"{HL7}/data-absent-reason": DATA_ABSENT_REASONS,
        "http://hl7.org/fhir/uv/dicom-sr/CodeSystem/dicom-identifier-type": {"observation-uid"},
        "http://dicom.nema.org/resources/ontology/DCM": {"SM", "ANN", "SR"},
        "urn:ietf:rfc:3986": {f"urn:oid:{uid}" for uid in SOP_CLASSES},
    }
    for cells in (600, 40):
        bundle = bundle_of(some_analysis(slide, cells), loinc=True)
        coded = [part for part in walk(bundle) if "code" in part and "system" in part]
        assert len(coded) > 50
        for part in coded:
            if part["system"] != LOCAL_SYSTEM_URI:
                assert part["code"] in known[part["system"]] - {""}, part


def test_the_report_is_partial_and_says_what_it_is(slide: Slide) -> None:
    bundle = bundle_of(some_analysis(slide))
    (report,) = resources(bundle, "DiagnosticReport")
    assert report["status"] == "partial"
    assert report["code"]["coding"][0]["code"] == "47286-0"
    assert "Unreviewed" in report["conclusion"]
    assert "not for clinical use" in report["conclusion"]
    assert report["imagingStudy"][0]["identifier"] == study_identifier(slide)
    assert len(report["result"]) == len(resources(bundle, "Observation"))
    assert base64.b64decode(report["presentedForm"][0]["data"]) == b"picture"


def test_a_released_model_is_not_called_a_demonstration(slide: Slide) -> None:
    analysis = some_analysis(slide, demonstration=False)
    analysis = replace(analysis, model=replace(analysis.model, intended_use="Marrow smears."))
    assert "emonstration" not in json.dumps(bundle_of(analysis))


def test_the_narrative_is_xhtml_whatever_the_names(slide: Slide) -> None:
    analysis = some_analysis(slide)
    analysis = replace(analysis, model=replace(analysis.model, intended_use='<b>a & "b"</i>'))
    (report,) = resources(bundle_of(analysis), "DiagnosticReport")
    parsed = ElementTree.fromstring(report["text"]["div"])  # noqa: S314  our own text
    said = " ".join(parsed.itertext())
    assert '<b>a & "b"</i>' in said
    for key in CLASSES:
        assert CELL_TYPES[key].name in said


def test_every_type_is_there_and_zero_is_sent_as_zero(slide: Slide) -> None:
    analysis = relabelled(some_analysis(slide), {"proerythroblast": "myelocyte"})
    differential = analysis.differential
    observations = by_code(analysis)
    for row, key in enumerate(differential.classes):
        component = observations[key]["component"][0]
        assert component["valueQuantity"]["value"] == differential.count[row]
        assert observations[key]["status"] == "preliminary"
    none = observations["proerythroblast"]
    assert none["valueQuantity"] == {"value": 0.0, "unit": "%", "system": UCUM, "code": "%"}
    assert none["component"][0]["valueQuantity"]["value"] == 0
    assert observations["38257-2"]["valueQuantity"]["value"] == differential.total
    assert observations["cells-found"]["valueQuantity"]["value"] == differential.nucleated


def test_a_range_is_given_with_its_source_and_judged(slide: Slide) -> None:
    observations = by_code(some_analysis(slide))
    for key in CLASSES:
        limits = CELL_TYPES[key].reference_percent
        observation = observations[key]
        assert ("referenceRange" in observation) is (limits is not None)
        if limits is None:
            assert "interpretation" not in observation
            continue
        assert observation["referenceRange"][0]["text"]
        value = observation["valueQuantity"]["value"]
        expected = "L" if value < limits[0] else "H" if value > limits[1] else "N"
        assert observation["interpretation"][0]["coding"][0]["code"] == expected


def test_too_few_cells_give_no_percentages(slide: Slide) -> None:
    observations = resources(bundle_of(some_analysis(slide, cells=40)), "Observation")
    assert not [o for o in observations if o.get("valueQuantity", {}).get("code") == "%"]
    assert len([o for o in observations if "dataAbsentReason" in o]) >= 10
    for observation in observations:  # R4 obs-6: a value or why there is none
        assert not ("dataAbsentReason" in observation and "valueQuantity" in observation)
        assert "interpretation" not in observation


def test_without_erythroid_cells_there_is_no_ratio(slide: Slide) -> None:
    erythroid = {key: "myelocyte" for key in CLASSES if CELL_TYPES[key].me == "erythroid"}
    analysis = relabelled(some_analysis(slide), erythroid)
    assert analysis.differential.adequate
    ratio = by_code(analysis)["11138-5"]
    assert ratio["dataAbsentReason"]["coding"][0]["code"] == "not-applicable"
    assert "erythroid" in ratio["dataAbsentReason"]["text"]
    assert np.isclose(np.sum(analysis.differential.share), 1)


def test_loinc_only_where_a_site_wants_it(slide: Slide) -> None:
    analysis = some_analysis(slide)
    plain, mapped = by_code(analysis), by_code(analysis, loinc=True)
    for key in CLASSES:
        systems = [coding["system"] for coding in plain[key]["code"]["coding"]]
        assert systems[0] == LOCAL_SYSTEM_URI
        assert LOINC not in systems
    assert mapped["myelocyte"]["code"]["coding"][-1] == {"system": LOINC, "code": "11114-6"}
    # Unclassified cells are given as a number, which LOINC's share is not.
    assert mapped["unclassified"] == plain["unclassified"]


def test_references_and_identifiers(slide: Slide) -> None:
    bundle = bundle_of(some_analysis(slide))
    urls = [entry["fullUrl"] for entry in bundle["entry"]]
    assert len(set(urls)) == len(urls)
    for url in urls:
        assert uuid.UUID(url.removeprefix("urn:uuid:")).version == 5
    named = {part["reference"] for part in walk(bundle) if "reference" in part}
    assert named <= {*urls, "#study"}
    for entry in bundle["entry"][:-1]:
        value = entry["resource"]["identifier"][0]["value"]
        assert entry["request"]["method"] == "PUT"
        assert entry["request"]["url"].endswith(f"?identifier=urn:ietf:rfc:3986%7C{value}")


def test_provenance_names_what_was_read_and_written(slide: Slide) -> None:
    bundle = bundle_of(some_analysis(slide))
    (provenance,) = resources(bundle, "Provenance")
    uids = {entity["what"]["identifier"]["value"] for entity in provenance["entity"]}
    assert {f"urn:oid:{uid}" for uid in slide.source_instances} < uids
    assert {"urn:oid:1.2.3.4", "urn:oid:1.2.4.5"} < uids
    assert provenance["agent"][0]["who"]["reference"] == bundle["entry"][0]["fullUrl"]


def identifiers(analysis: Analysis) -> set[str]:
    return {
        each["identifier"][0]["value"]
        for kind in ("DiagnosticReport", "Observation", "Device")
        for each in resources(bundle_of(analysis), kind)
    }


def test_another_revision_is_the_same_report(slide: Slide) -> None:
    analysis = some_analysis(slide)
    assert identifiers(analysis) == identifiers(signed(analysis))
    other = replace(analysis, configuration_digest="ef" * 32)
    assert report_identifier(analysis) != report_identifier(other)


@pytest.mark.parametrize(
    ("decision", "standing", "status", "said"),
    [
        ("confirmed", "final", "final", "Confirmed by Lee, Anna Dr. (Haematology), 2026-11-21"),
        ("corrected", "final", "final", "Corrected by Lee, Anna Dr."),
        ("corrected", "corrected", "corrected", "Corrected by Lee, Anna Dr."),
        ("withdrawn", "withdrawn", "entered-in-error", "UTC: another patient's slide. Demo"),
    ],
)
def test_a_review_is_the_status_and_names_the_verifier(
    slide: Slide, decision: Any, standing: Any, status: str, said: str
) -> None:
    reason = "another patient's slide" if decision == "withdrawn" else ""
    analysis = signed(some_analysis(slide), decision, standing, reason=reason)
    bundle = build_bundle(analysis, REFERENCES, {}, sources={"1.2.9": "edited annotations"})
    Bundle.model_validate(bundle)
    (report,) = resources(bundle, "DiagnosticReport")
    assert report["status"] == status
    assert {each["status"] for each in resources(bundle, "Observation")} == {status}
    assert report["issued"] == "2026-11-21T09:02:00.000Z"
    assert report["resultsInterpreter"] == [{"type": "Practitioner", "display": "Lee, Anna Dr."}]
    assert said in report["conclusion"]
    assert ("<table>" in report["text"]["div"]) == (decision != "withdrawn")
    (provenance,) = resources(bundle, "Provenance")
    assert provenance["recorded"] == report["issued"]
    machine, person = provenance["agent"]
    assert machine["type"]["coding"][0]["code"] == "assembler"
    assert person["type"]["coding"][0]["code"] == "verifier"
    assert person["who"]["display"] == "Lee, Anna Dr."
    assert person["onBehalfOf"]["display"] == "Haematology"
    assert {"urn:oid:1.2.9", "urn:oid:1.2.3.4"} < {
        each["what"]["identifier"]["value"] for each in provenance["entity"]
    }


def test_what_the_header_does_not_say_is_not_invented(slide: Slide) -> None:
    bare = {"PatientID": "", "AccessionNumber": "", "AcquisitionDateTime": "", "StudyDate": ""}
    header = with_header(slide, **bare, SpecimenDescriptionSequence=[])
    bundle = bundle_of(some_analysis(header))
    for resource in resources(bundle, "DiagnosticReport") + resources(bundle, "Observation"):
        assert not {"subject", "specimen", "basedOn", "effectiveDateTime"} & resource.keys()
        (extension,) = resource["_effectiveDateTime"]["extension"]
        assert extension["valueCode"] == "unknown"


@pytest.mark.parametrize(
    ("stamp", "zone", "expected"),
    [
        ("20260704101112", "+0200", "2026-07-04T10:11:12+02:00"),
        ("20260704101112.5-0330", "+0200", "2026-07-04T10:11:12-03:30"),
        ("20260704101112", "", "2026-07-04"),
        ("202607041011", "+0200", "2026-07-04"),
        ("20260704", "", "2026-07-04"),
        ("20261340", "", None),
        ("2026", "", None),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR DT")
def test_when_the_slide_was_scanned(stamp: str, zone: str, expected: str | None) -> None:
    header = Dataset()
    header.AcquisitionDateTime, header.TimezoneOffsetFromUTC = stamp, zone
    assert context_of(header).get("effectiveDateTime") == expected


@pytest.mark.parametrize(
    ("issuer", "universal", "expected"),
    [
        ("", "", {"value": "A 1"}),
        ("urn:oid:1.2.3", "", {"system": "urn:oid:1.2.3", "value": "A 1"}),
        ("HOSPITAL: A", "", {"value": "A 1", "assigner": {"display": "HOSPITAL: A"}}),
        ("HOSPITAL", "1.2.3", {"system": "urn:oid:1.2.3", "value": "A 1"}),
        ("HOSPITAL", "a.b", {"value": "A 1", "assigner": {"display": "HOSPITAL"}}),
    ],
)
def test_who_gave_the_patient_its_number(
    issuer: str, universal: str, expected: dict[str, Any]
) -> None:
    header = Dataset()
    header.PatientID, header.IssuerOfPatientID = " A 1 ", issuer
    if universal:
        qualifiers = Dataset()
        qualifiers.UniversalEntityID, qualifiers.UniversalEntityIDType = universal, "ISO"
        header.IssuerOfPatientIDQualifiersSequence = [qualifiers]
    assert context_of(header)["subject"] == {"type": "Patient", "identifier": expected}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Adams^John Robert Quincy^^Rev.^B.A.", "Adams, John Robert Quincy Rev. B.A."),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou (山田, 太郎; やまだ, たろう)"),
        ("=山田^太郎", "山田, 太郎"),
        ("قباني^لنزار", "قباني, لنزار"),
        ("Διονυσιος", "Διονυσιος"),
        ("^^^^", None),
        ("", None),
    ],
)
def test_the_patient_is_named_in_every_script(slide: Slide, name: str, said: str | None) -> None:
    analysis = some_analysis(with_header(slide, PatientName=name))
    bundle = json.loads(json.dumps(bundle_of(analysis)))
    subjects = [part["subject"] for part in walk(bundle) if "subject" in part]
    assert len(subjects) > 10
    assert {subject.get("display") for subject in subjects} == {said}


def study_identifier(slide: Slide) -> dict[str, str]:
    return {"system": "urn:dicom:uid", "value": f"urn:oid:{slide.study_uid}"}


def test_the_contained_study_lists_what_was_read_and_written(slide: Slide) -> None:
    bundle = bundle_of(some_analysis(slide))
    (report,) = resources(bundle, "DiagnosticReport")
    (study,) = report["contained"]
    assert report["imagingStudy"][0]["reference"] == f"#{study['id']}"
    assert study["identifier"] == [study_identifier(slide)]
    listed = {
        (series["uid"], series["modality"]["code"], instance["uid"])
        for series in study["series"]
        for instance in series["instance"]
    }
    read = {(slide.series_uid, "SM", uid) for uid in slide.source_instances}
    assert listed == read | {("1.2.3", "ANN", "1.2.3.4"), ("1.2.4", "SR", "1.2.4.5")}
    for series in study["series"]:
        assert series["numberOfInstances"] == len(series["instance"])


def test_observations_follow_the_mapping_of_sr(slide: Slide) -> None:
    """HL7's DICOM SR to FHIR: the measurement group is an Observation with its tracking UID."""
    analysis = some_analysis(slide)
    for observation in resources(bundle_of(analysis), "Observation"):
        assert observation["partOf"][0]["identifier"] == study_identifier(slide)
        assert observation["performer"] == [
            {"type": "Organization", "display": "marrow-node project"}
        ]
    panel = by_code(analysis)["47286-0"]
    assert panel["identifier"][1]["value"] == f"urn:oid:{tracking_uid(analysis)}"
    assert panel["bodySite"]["coding"][0]["code"] == "14016003"
    assert len(panel["hasMember"]) == len(CLASSES) + 3


def test_types_stand_in_the_order_of_a_marrow_report(slide: Slide) -> None:
    said = [code for code in by_code(some_analysis(slide)) if code in CELL_TYPES]
    assert said == [key for key in CELL_TYPES if key in CLASSES]


def test_provenance_names_inputs_by_digest(slide: Slide) -> None:
    analysis = replace(some_analysis(slide), pixels_sha256="0f" * 32)
    (provenance,) = resources(bundle_of(analysis), "Provenance")
    digests = {
        entity["what"]["display"]: entity["what"]["identifier"]["value"]
        for entity in provenance["entity"]
        if entity["what"]["identifier"]["value"].startswith("ni:")
    }
    assert len(digests) == 3
    assert digests["model package"] == named_information(analysis.model.digest)
    # RFC 6920 section 8.1: the digest of "Hello World!".
    hello = hashlib.sha256(b"Hello World!").hexdigest()
    assert named_information(hello) == "ni:///sha-256;f4OxZX_x_FO5LcGBSKHWXfwtSx-j1ncoSt3SABJtkGk"


def test_the_pdf_comes_first_with_size_and_hash(slide: Slide) -> None:
    bundle = build_bundle(some_analysis(slide), REFERENCES, {"overview": b"picture"}, pdf=b"%PDF")
    (report,) = resources(bundle, "DiagnosticReport")
    pdf, picture = report["presentedForm"]
    assert (pdf["contentType"], picture["contentType"]) == ("application/pdf", "image/jpeg")
    assert base64.b64decode(pdf["data"]) == b"%PDF"
    assert pdf["size"] == 4
    assert base64.b64decode(pdf["hash"]) == hashlib.sha1(b"%PDF").digest()  # noqa: S324  as R4 has it


def test_the_narrative_stands_alone(slide: Slide) -> None:
    analysis = some_analysis(slide)
    (report,) = resources(bundle_of(analysis), "DiagnosticReport")
    parsed = ElementTree.fromstring(report["text"]["div"])  # noqa: S314  our own text
    rows = [
        ["".join(cell.itertext()) for cell in row]
        for row in parsed.iter("{http://www.w3.org/1999/xhtml}tr")
    ]
    counted = analysis.differential
    for row, key in enumerate(counted.classes):
        (said,) = [each for each in rows if each[0] == CELL_TYPES[key].name]
        assert said[1] == str(counted.count[row])
        if counted.in_ndc[row]:
            assert said[2].startswith(f"{100 * counted.share[row]:.1f} % (")
    assert ["M:E ratio", f"{counted.me_ratio:.2f}", "", "2 to 4", ""] in rows
    few = resources(bundle_of(some_analysis(slide, 40)), "DiagnosticReport")[0]["text"]["div"]
    assert "%" not in few.partition("<tbody>")[2].partition("</tbody>")[0]


@pytest.mark.parametrize("cells", [600, 40, 0])
def test_r5_says_the_same(slide: Slide, cells: int) -> None:
    analysis = some_analysis(slide, cells)
    r4 = build_bundle(analysis, REFERENCES, {"overview": b"picture"}, pdf=b"%PDF")
    r5 = build_bundle(analysis, REFERENCES, {"overview": b"picture"}, pdf=b"%PDF", version="R5")
    BundleR5.model_validate(r5)
    with pytest.raises(ValidationError):
        Bundle.model_validate(r5)
    assert resources(r4, "Observation") == resources(r5, "Observation")
    (report,) = resources(r5, "DiagnosticReport")
    assert report["study"][0]["identifier"] == study_identifier(slide)
    assert report["contained"][0]["series"][0]["modality"]["coding"][0]["code"] == "SM"
    (device,) = resources(r5, "Device")
    assert device["name"][0]["value"] == "marrow-node, model demo-smear"
    (provenance,) = resources(r5, "Provenance")
    assert {entity["role"] for entity in provenance["entity"]} == {"source"}


def test_two_numbers_where_one_is_allowed_stay_as_they_were() -> None:
    header = Dataset()
    header.PatientID = "A\\B"
    assert context_of(header)["subject"]["identifier"] == {"value": "A\\B"}


def test_the_order_is_named_by_its_accession_number() -> None:
    header = Dataset()
    header.AccessionNumber = "24-5"
    (order,) = report_context_of(header)["basedOn"]
    assert order["identifier"]["value"] == "24-5"
    assert order["identifier"]["type"]["coding"][0]["code"] == "ACSN"


def test_what_fhir_cannot_carry_is_named_without_its_value(slide: Slide) -> None:
    analysis = some_analysis(with_header(slide, PatientID="SECRET-9"))
    with pytest.raises(InputError) as caught:
        bundle_of(replace(analysis, model=replace(analysis.model, version="")))
    said = str(caught.value)
    assert slide.series_uid in said
    assert "Device.version" in said
    assert "SECRET" not in said
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("version", ["R4", "R5"])
def test_codes_and_targets_are_those_of_the_definitions(slide: Slide, version: str) -> None:
    """Also that a wrong one would be seen."""
    model = Bundle if version == "R4" else BundleR5
    bundle = build_bundle(
        some_analysis(slide), REFERENCES, {"overview": b"picture"}, pdf=b"%PDF", version=version
    )
    types = {entry["fullUrl"]: entry["resource"]["resourceType"] for entry in bundle["entry"]}
    assert list(outside_definitions(model.model_validate(bundle), types)) == []
    (report,) = resources(bundle, "DiagnosticReport")
    report["status"] = "done"
    (device,) = resources(bundle, "Device")
    urls = {entry["resource"]["resourceType"]: entry["fullUrl"] for entry in bundle["entry"]}
    report["result"] = [{"reference": urls["Device"]}]
    found = list(outside_definitions(model.model_validate(bundle), types))
    told = [each.rpartition(".")[2] for each in found]
    assert "result: Device" in told
    assert ("status: done" in told) == (version == "R5")  # R4's list ends in "+" there
    assert device["status"] == "active"


# Of a process: what a report loads after all that is loaded ahead.
FIRST_REPORT = """
import sys
from pathlib import Path
from node.fhir import build_bundle, load_classes
from tests.analyses import small_slide, some_analysis
from tests.test_fhir import REFERENCES

analysis = some_analysis(small_slide(Path(sys.argv[1])))
load_classes()
loaded = {*sys.modules}
build_bundle(analysis, REFERENCES, {"overview": b"picture"}, pdf=b"pdf")
print(*sorted(name for name in {*sys.modules} - loaded if name.startswith("fhir")))
"""


def test_first_report_waits_for_no_class(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_REPORT, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
