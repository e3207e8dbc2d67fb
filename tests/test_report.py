"""The structured report says what was counted, to the node, to DCMTK and to highdicom."""

from __future__ import annotations

import io
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from highdicom.sr import Comprehensive3DSR
from pydicom import dcmread
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicom_io.analysis import Analysis
from dicom_io.annotation import encode_annotation
from dicom_io.codes import (
    CELLS_FOUND,
    CELLS_IN_NDC,
    CHI_SQUARE,
    CHI_SQUARE_LIMIT,
    CONVERGED_AFTER,
    INTENDED_USE,
    ME_NUMERATOR,
    ME_RATIO,
    REGION_AREA,
    TILES_COUNTED,
    cell_type_key,
)
from dicom_io.errors import InputError
from dicom_io.report import encode_report
from dicom_io.report_content import decode_report, report_times
from dicom_io.segmentation import encode_segmentation, region_area_mm2
from dicom_io.slide import Slide
from models.cell_types import CELL_TYPES, REFERENCE_SOURCE
from models.differential import count_differential
from node.outputs import encode_documents, to_bytes
from tests.analyses import CLASSES, RULES, signed, small_slide, some_analysis
from tests.validators import dciodvfy, dsr2html, dsrdump, written


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return small_slide(tmp_path_factory.mktemp("slide"))


@pytest.fixture(scope="module")
def analysis(slide: Slide) -> Analysis:
    return some_analysis(slide)


def _report(analysis: Analysis) -> Dataset:
    return encode_documents(analysis)["SR"]


def _stream(document: Dataset) -> io.BytesIO:
    return io.BytesIO(to_bytes(document))


def _items(container: Dataset) -> Iterator[Dataset]:
    for item in container.get("ContentSequence", []):
        yield item
        yield from _items(item)


def _named(document: Dataset, code: str) -> list[Dataset]:
    return [
        item
        for item in _items(document)
        if "ConceptNameCodeSequence" in item and item.ConceptNameCodeSequence[0].CodeValue == code
    ]


@pytest.mark.parametrize("cells", [600, 40, 1, 0])
def test_report_comes_back_as_it_went_in(slide: Slide, tmp_path: Path, cells: int) -> None:
    analysis = some_analysis(slide, cells)
    said = decode_report(dcmread(written(_report(analysis), tmp_path / "sr.dcm")))
    counted = analysis.differential
    assert said.counts == dict(zip(counted.classes, map(int, counted.count), strict=True))
    assert (said.total, said.nucleated) == (counted.total, counted.nucleated)
    assert said.adequate == counted.adequate == (cells == 600)
    assert said.me_ratio == (
        None if counted.me_ratio is None else pytest.approx(counted.me_ratio, abs=1e-6)
    )
    assert said.percentages.keys() == (
        {key for row, key in enumerate(counted.classes) if counted.in_ndc[row]}
        if counted.total
        else set()
    )
    for key, (value, low, high) in said.percentages.items():
        row = counted.classes.index(key)
        assert value == pytest.approx(100 * counted.share[row], abs=1e-6)
        assert (low, high) == pytest.approx(tuple(100 * counted.interval[row]), abs=1e-6)
    assert (said.study_uid, said.series_uid) == (slide.study_uid, slide.series_uid)
    assert (said.model_name, said.model_version) == ("demo-smear", "1.0.0")
    assert said.model_digest == analysis.model.digest
    assert said.verification == "UNVERIFIED"


@pytest.mark.parametrize("cells", [600, 40, 0])
def test_validators_find_nothing(slide: Slide, tmp_path: Path, cells: int) -> None:
    path = written(_report(some_analysis(slide, cells)), tmp_path / "sr.dcm")
    assert dciodvfy(path) == []
    printed, complaints = dsrdump(path)
    assert complaints == ""
    assert "Nucleated differential count of a bone marrow smear" in printed
    assert f'"{sum(some_analysis(slide, cells).differential.count)}" ({{cells}}' in printed
    page, complaints = dsr2html(path)
    assert complaints == ""
    assert "Nucleated differential count of a bone marrow smear" in page


def test_every_number_of_the_issue_is_there_with_its_unit(analysis: Analysis) -> None:
    """Totals, M:E, convergence, area: concept, value and UCUM unit."""
    counted = analysis.differential
    report = _report(analysis)
    for code, value, unit in (
        (CELLS_IN_NDC, counted.total, "{cells}"),
        (CELLS_FOUND, counted.nucleated, "{cells}"),
        (ME_RATIO, counted.me_ratio, "{ratio}"),
        (TILES_COUNTED, counted.tiles, "{tiles}"),
        (REGION_AREA, region_area_mm2(analysis), "mm2"),
        (CHI_SQUARE, counted.chi_square[-1], "1"),
        (CHI_SQUARE_LIMIT, counted.chi_square_threshold, "1"),
    ):
        (item,) = _named(report, code.value)
        (measured,) = item.MeasuredValueSequence
        assert float(measured.NumericValue) == pytest.approx(value, abs=1e-6), code.meaning
        (units,) = measured.MeasurementUnitsCodeSequence
        assert (units.CodeValue, units.CodingSchemeDesignator) == (unit, "UCUM")
    converged = replace(analysis, differential=replace(counted, converged_after=7))
    (item,) = _named(_report(converged), CONVERGED_AFTER.value)
    assert item.MeasuredValueSequence[0].NumericValue == 7


def test_types_stand_in_the_order_of_a_marrow_report(analysis: Analysis) -> None:
    """Whatever order the model package has."""
    turned = _turned(analysis)
    counts = [
        [
            item.ConceptNameCodeSequence[0].CodeValue
            for item in _items(_report(each))
            if item.ValueType == "NUM"
            and any(
                child.get("ConceptCodeSequence", [Dataset()])[0].get("CodeValue") == "count"
                for child in item.get("ContentSequence", [])
            )
        ]
        for each in (analysis, turned)
    ]
    assert counts[0] == counts[1]
    assert counts[0] == [CELL_TYPES[key].snomed for key in CELL_TYPES if key in CLASSES]


def _turned(analysis: Analysis) -> Analysis:
    """The same cells by a package that names its types the other way round."""
    cells = analysis.cells
    turned = replace(
        cells,
        classes=cells.classes[::-1],
        label=(len(cells.classes) - 1 - cells.label).astype(np.int32),
        probability=np.ascontiguousarray(cells.probability[:, ::-1]),
    )
    return replace(analysis, cells=turned, differential=count_differential(turned, 12, RULES))


def test_a_percentage_carries_its_range_and_how_it_lies(analysis: Analysis) -> None:
    counted = analysis.differential
    shares = {
        cell_type_key(*_code(item)): item
        for item in _items(_report(analysis))
        if item.ValueType == "NUM" and _children(item, "121401") == ["ndc-percentage"]
    }
    assert len(shares) == counted.in_ndc.sum()
    for row, key in enumerate(counted.classes):
        if not counted.in_ndc[row]:
            continue
        limits = CELL_TYPES[key].reference_percent
        children = shares[key].ContentSequence
        bounds = [
            float(child.MeasuredValueSequence[0].NumericValue)
            for child in children
            if child.ValueType == "NUM"
        ]
        assert bounds == list(limits or ())
        if limits is None:
            continue
        percent = 100 * counted.share[row]
        expected = (
            "371880002" if percent < limits[0] else "371879000" if percent > limits[1] else
            "17621005"
        )  # fmt: skip
        assert _children(shares[key], "121402") == [expected]
        assert _children(shares[key], "121408") == [REFERENCE_SOURCE]


def _code(item: Dataset) -> tuple[str, str]:
    name = item.ConceptNameCodeSequence[0]
    return name.CodeValue, name.CodingSchemeDesignator


def _children(item: Dataset, code: str) -> list[str]:
    """Values of the coded and text children with a concept name."""
    return [
        child.TextValue if child.ValueType == "TEXT" else child.ConceptCodeSequence[0].CodeValue
        for child in item.get("ContentSequence", [])
        if _code(child)[0] == code
    ]


def test_a_count_that_does_not_suffice_is_held_against_nothing(slide: Slide) -> None:
    assert _named(_report(some_analysis(slide, cells=40)), "121402") == []


def test_quality_findings(slide: Slide, analysis: Analysis) -> None:
    def found(each: Analysis) -> set[str]:
        return {item.ConceptCodeSequence[0].CodeValue for item in _named(_report(each), "111052")}

    plain = replace(
        analysis,
        model=replace(analysis.model, demonstration=False),
        differential=replace(analysis.differential, converged_after=9),
    )
    assert found(plain) == {"no-issue"}
    assert found(analysis) == {"not-converged", "demonstration"}
    assert found(some_analysis(slide, cells=0)) == {
        "insufficient", "not-converged", "no-erythroid", "demonstration",
    }  # fmt: skip
    header = deepcopy(slide.header)
    del header.TotalPixelMatrixOriginSequence
    assert found(replace(plain, slide=replace(slide, header=header))) == {"origin-unknown"}


def test_the_specimen_is_the_subject(analysis: Analysis) -> None:
    report = _report(analysis)
    specimen = analysis.slide.header.SpecimenDescriptionSequence[0]
    (uid,) = _named(report, "121039")
    (identifier,) = _named(report, "121041")
    assert (uid.UID, identifier.TextValue) == (
        specimen.SpecimenUID,
        specimen.SpecimenIdentifier,
    )


def test_a_signed_revision_is_verified_and_names_what_it_replaces(
    analysis: Analysis, tmp_path: Path
) -> None:
    first = _report(analysis)
    name = "Παπαδόπουλος^Άννα^^Δρ."
    second = encode_report(signed(analysis, name=name), encode_annotation(analysis), None, [first])
    path = written(second, tmp_path / "sr.dcm")
    assert dciodvfy(path) == []
    printed, complaints = dsrdump(path)
    assert complaints == ""
    assert "Verification Flag   : VERIFIED" in printed
    document = dcmread(path)
    assert (document.VerificationFlag, document.PreliminaryFlag) == ("VERIFIED", "FINAL")
    (observer,) = document.VerifyingObserverSequence
    assert str(observer.VerifyingObserverName) == name
    assert observer.VerifyingOrganization == "Haematology"
    assert observer.VerificationDateTime == "20261121090200"
    predecessor = (
        document.PredecessorDocumentsSequence[0]
        .ReferencedSeriesSequence[0]
        .ReferencedSOPSequence[0]
    )
    assert predecessor.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert document.SOPInstanceUID != first.SOPInstanceUID
    assert document.ContentDate == "20261121"
    (finding,), (same,) = _named(document, "112040"), _named(first, "112040")
    assert finding.UID == same.UID
    assert decode_report(document).verification == "VERIFIED"


def test_who_changed_cells_is_an_observer(analysis: Analysis, tmp_path: Path) -> None:
    corrected = encode_report(signed(analysis, "corrected"), None, None, [_report(analysis)])
    assert dciodvfy(written(corrected, tmp_path / "sr.dcm")) == []
    (person,) = _named(corrected, "121008")  # Person Observer Name
    assert str(person.PersonName) == "Lee^Anna^^Dr."
    (organization,) = _named(corrected, "121009")
    assert organization.TextValue == "Haematology"
    confirmed = encode_report(signed(analysis), None, None, [_report(analysis)])
    assert _named(confirmed, "121008") == []


@pytest.mark.parametrize("cells", [600, 40])
def test_a_withdrawn_report_holds_no_number(slide: Slide, tmp_path: Path, cells: int) -> None:
    analysis = some_analysis(slide, cells)
    withdrawn = signed(analysis, "withdrawn", "withdrawn", reason="Slide of another patient")
    document = encode_documents(withdrawn, predecessors=[_report(analysis)])["SR"]
    path = written(document, tmp_path / "sr.dcm")
    assert dciodvfy(path) == []
    printed, complaints = dsrdump(path)
    assert complaints == ""
    assert "Result withdrawn by a person" in printed
    assert "Slide of another patient" in printed
    units = {
        item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue
        for item in _items(document)
        if item.ValueType == "NUM"
    }
    assert not units & {"{cells}", "%", "{ratio}"}  # the image library tells the slide's size
    assert " of 500" not in printed
    said = decode_report(dcmread(path))
    assert (said.withdrawn, said.verification, said.counts) == (True, "VERIFIED", {})
    assert not said.adequate
    assert not decode_report(_report(analysis)).withdrawn


def test_dcmtk_prints_every_number(analysis: Analysis, tmp_path: Path) -> None:
    printed, _ = dsrdump(written(_report(analysis), tmp_path / "sr.dcm"))
    for row, key in enumerate(analysis.differential.classes):
        name = CELL_TYPES[key].snomed_meaning
        count = int(analysis.differential.count[row])
        assert f'"{name}")="{count}" ({{cells}},UCUM,"cells")' in printed


def test_highdicom_reads_the_template(analysis: Analysis) -> None:
    report = Comprehensive3DSR.from_dataset(dcmread(_stream(_report(analysis))))
    (group,) = report.content.get_image_measurement_groups()
    measured = group.get_measurements()
    assert {m.unit.value for m in measured} == {
        "{cells}",
        "{tiles}",
        "{ratio}",
        "mm2",
        "%",
        "1",
    }
    (total,) = group.get_measurements(name=CELLS_IN_NDC)
    assert total.value == analysis.differential.total


def test_it_is_preliminary_complete_and_unverified(analysis: Analysis) -> None:
    document = _report(analysis)
    assert (document.CompletionFlag, document.VerificationFlag, document.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert (document.ContentDate, document.ContentTime) == ("20261120", "120102.345000")


def test_evidence_names_everything_that_is_referred_to(analysis: Analysis) -> None:
    annotation, segmentation = encode_annotation(analysis), encode_segmentation(analysis)
    document = encode_report(analysis, annotation, segmentation)
    evidence = {
        sop.ReferencedSOPInstanceUID
        for keyword in (
            "CurrentRequestedProcedureEvidenceSequence",
            "PertinentOtherEvidenceSequence",
        )
        for study in document.get(keyword, [])
        for series in study.ReferencedSeriesSequence
        for sop in series.ReferencedSOPSequence
    }
    referred = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in _items(document)
        if "ReferencedSOPSequence" in item
    }
    assert evidence == referred
    assert evidence == {
        analysis.slide.base.instance_uids[0],
        annotation.SOPInstanceUID,
        segmentation.SOPInstanceUID,
    }


def test_demonstration_model_is_called_one(analysis: Analysis) -> None:
    plain = replace(analysis.model, demonstration=False, intended_use="Counting cells.")
    said = [
        [item.TextValue for item in _named(_report(each), INTENDED_USE.value)]
        for each in (analysis, replace(analysis, model=plain))
    ]
    assert "Demonstration model, not for clinical use." in said[0]
    assert said[1] == ["Counting cells."]
    assert "demonstration" in _report(analysis).SeriesDescription


def test_insufficient_count_says_why(slide: Slide) -> None:
    few = some_analysis(slide, cells=40)
    (reason,) = _named(_report(few), "insuff-reason")
    assert reason.TextValue == few.differential.reasons[0]
    assert _named(_report(some_analysis(slide)), "insuff-reason") == []


def test_members_of_the_ratio_are_listed(analysis: Analysis) -> None:
    members = [
        item.ConceptCodeSequence[0].CodeValue
        for item in _named(_report(analysis), ME_NUMERATOR.value)
    ]
    assert members == [CELL_TYPES[key].snomed for key in analysis.differential.me_numerator]


def test_same_analysis_gives_the_same_bytes(analysis: Analysis) -> None:
    assert to_bytes(_report(analysis)) == to_bytes(_report(analysis))


def test_other_reports_are_refused(analysis: Analysis) -> None:
    document = dcmread(_stream(_report(analysis)))
    (total,) = _named(document, CELLS_IN_NDC.value)
    total.ConceptNameCodeSequence[0].CodeValue = "0000-0"
    with pytest.raises(InputError, match="has no item Total cells counted"):
        decode_report(document)


def test_report_without_evidence_of_a_slide_is_refused(analysis: Analysis) -> None:
    document = _report(analysis)
    for keyword in (
        "CurrentRequestedProcedureEvidenceSequence",
        "PertinentOtherEvidenceSequence",
    ):
        document.pop(keyword, None)
    with pytest.raises(InputError, match="names no slide in its evidence"):
        decode_report(document)


def test_times_are_told_in_the_zone_of_what_is_copied_from_the_slide(slide: Slide) -> None:
    """An offset holds for every time of a document (PS3.3 C.12.1.1.8)."""
    header = deepcopy(slide.header)
    header.StudyDate, header.StudyTime = "20261120", "101500"
    header.TimezoneOffsetFromUTC = "-0330"
    there = some_analysis(replace(slide, header=header))
    here = some_analysis(slide)
    for kind, document in encode_documents(there).items():
        assert document.TimezoneOffsetFromUTC == "-0330", kind
        assert (document.StudyDate, document.StudyTime) == ("20261120", "101500"), kind
    assert report_times(_report(there)) == report_times(_report(here))
    assert _report(there).ContentTime != _report(here).ContentTime
    second = encode_report(signed(there), None, None, [_report(there)])
    (observer,) = second.VerifyingObserverSequence
    assert observer.VerificationDateTime == "20261121053200"


@pytest.mark.parametrize("zone", ["", "Berlin", "+9999"])
def test_a_zone_that_is_none_is_not_told(slide: Slide, zone: str) -> None:
    header = deepcopy(slide.header)
    header.add(DataElement("TimezoneOffsetFromUTC", "SH", zone, validation_mode=IGNORE))
    assert _report(some_analysis(replace(slide, header=header))).TimezoneOffsetFromUTC == "+0000"
