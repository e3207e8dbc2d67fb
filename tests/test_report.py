"""The structured report says what was counted, to the node, to DCMTK and to highdicom."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from highdicom.sr import Comprehensive3DSR
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_io.analysis import Analysis
from dicom_io.annotation import encode_annotation
from dicom_io.codes import CELLS_IN_NDC, INTENDED_USE, ME_NUMERATOR
from dicom_io.errors import InputError
from dicom_io.report import decode_report, encode_report
from dicom_io.segmentation import encode_segmentation
from dicom_io.slide import Slide
from models.cell_types import CELL_TYPES
from node.outputs import encode_documents, to_bytes
from tests.analyses import small_slide, some_analysis
from tests.validators import dciodvfy, dsrdump, written


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
