"""The report for people: PDF and pictures, as files and as DICOM objects."""

from __future__ import annotations

import io
import subprocess
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pypdf import PdfReader

from dicom_io.analysis import Analysis
from dicom_io.slide import Slide
from models.cell_types import CELL_TYPES
from models.records import UInt8
from node.config import OutputSettings
from node.fhir import conclusion_text
from node.outputs import Renditions, encode_documents, to_bytes
from node.pictures import EHR_BYTES, draw_differential, smaller
from node.report_pdf import draw_report, printable_name
from tests.analyses import small_slide, some_analysis
from tests.validators import dciodvfy, written

ALL = OutputSettings(pdf=True, captures=True, parametric_map=True)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return small_slide(tmp_path_factory.mktemp("slide"))


@pytest.fixture(scope="module")
def analysis(slide: Slide) -> Analysis:
    return some_analysis(slide)


@pytest.fixture(scope="module")
def renditions(analysis: Analysis) -> Renditions:
    rgb = draw_differential(analysis)
    return Renditions(pdf_of(analysis, rgb), {"overview": rgb, "differential": rgb})


@pytest.fixture(scope="module")
def documents(analysis: Analysis, renditions: Renditions) -> dict[str, Dataset]:
    return encode_documents(analysis, ALL, renditions)


def pdf_of(analysis: Analysis, rgb: UInt8 | None = None) -> bytes:
    pictures = {} if rgb is None else {"Differential": smaller(rgb, [EHR_BYTES])[EHR_BYTES]}
    return draw_report(analysis, conclusion_text(analysis), pictures)


def text_of(pdf: bytes) -> str:
    words = " ".join(page.extract_text() for page in PdfReader(io.BytesIO(pdf)).pages).split()
    return " ".join(words)


def test_the_pdf_says_what_was_counted(analysis: Analysis) -> None:
    said, differential = text_of(pdf_of(analysis)), analysis.differential
    for row, key in enumerate(differential.classes):
        assert f"{CELL_TYPES[key].name} {differential.count[row]}" in said
        if differential.in_ndc[row]:
            assert f"{differential.count[row]} {100 * differential.share[row]:.1f}" in said
    assert f"Cells in the count {differential.total}" in said
    assert f"M:E ratio {differential.me_ratio:.2f}" in said
    for fact in (
        analysis.slide.study_uid,
        analysis.slide.series_uid,
        analysis.model.digest,
        analysis.configuration_digest,
        "2026-11-20 12:01 UTC",
        "DEMONSTRATION, MARROW",
        "DEMO-MARROW-1",
        "Unreviewed result of an algorithm.",
        "not for clinical use",
    ):
        assert fact in said


def test_a_count_that_does_not_suffice_has_no_percentages(slide: Slide) -> None:
    few = some_analysis(slide, 40)
    said = text_of(pdf_of(few))
    assert few.differential.reasons[0].split(":")[1] in said
    assert "M:E ratio" not in said
    assert f"{100 * few.differential.share[5]:.1f} " not in said.partition("Method")[0]


def test_an_empty_slide_has_a_pdf(slide: Slide) -> None:
    assert "Cells in the count 0" in text_of(pdf_of(some_analysis(slide, 0)))


def test_same_analysis_gives_the_same_pdf(analysis: Analysis, renditions: Renditions) -> None:
    assert pdf_of(analysis, renditions.pictures["differential"]) == renditions.pdf


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("Adams^John Robert Quincy^^Rev.", "Adams, John Robert Quincy Rev."),
        ("Διονυσιος^Α", "Διονυσιος, Α"),
        ("Люкceмбypг", "Люкceмбypг"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou"),
        ("=山田^太郎", "in a script that this page cannot show: see the patient ID"),
        ("قباني^لنزار", "in a script that this page cannot show: see the patient ID"),
        ("שרון^דבורה", "in a script that this page cannot show: see the patient ID"),
        ("^^^^", ""),
        ("", ""),
    ],
)
def test_a_name_is_printed_right_or_not_at_all(analysis: Analysis, name: str, printed: str) -> None:
    assert printable_name(name) == printed
    header = deepcopy(analysis.slide.header)
    header.PatientName = name
    said = text_of(pdf_of(replace(analysis, slide=replace(analysis.slide, header=header))))
    assert printed == "" or f"Patient {printed}" in said


def test_long_texts_do_not_break_the_page(analysis: Analysis) -> None:
    header = deepcopy(analysis.slide.header)
    header.PatientName, header.PatientID = "A" * 64, "9" * 64
    model = replace(analysis.model, intended_use="<b>Counting & measuring</b> " * 40)
    pdf = pdf_of(replace(analysis, model=model, slide=replace(analysis.slide, header=header)))
    assert "<b>Counting & measuring</b>" in text_of(pdf)


def test_settings_choose_the_objects(analysis: Analysis, renditions: Renditions) -> None:
    assert list(encode_documents(analysis, OutputSettings(), renditions)) == ["ANN", "SEG", "SR"]
    assert list(encode_documents(analysis, ALL, renditions)) == [
        "ANN", "SEG", "SR", "PDF", "SC overview", "SC differential", "PM",
    ]  # fmt: skip


def test_validator_finds_no_error(documents: dict[str, Dataset], tmp_path: Path) -> None:
    for kind in ("PDF", "SC overview", "SC differential", "PM"):
        assert dciodvfy(written(documents[kind], tmp_path / f"{kind}.dcm")) == []


def test_each_object_is_of_its_own_series_and_study(
    documents: dict[str, Dataset], analysis: Analysis
) -> None:
    assert {each.StudyInstanceUID for each in documents.values()} == {analysis.slide.study_uid}
    assert len({each.SOPInstanceUID for each in documents.values()}) == len(documents)
    # A rule that routes slides to the node must not route its own results.
    assert "SM" not in {each.Modality for each in documents.values()}
    # The two pictures share a series.
    assert len({each.SeriesInstanceUID for each in documents.values()}) == len(documents) - 1
    assert len({each.PatientID for each in documents.values()}) == 1


def test_dcmtk_takes_the_pdf_out_again(
    documents: dict[str, Dataset], renditions: Renditions, tmp_path: Path
) -> None:
    path = written(documents["PDF"], tmp_path / "pdf.dcm")
    subprocess.run(["dcm2pdf", path, tmp_path / "out.pdf"], check=True, capture_output=True)
    assert (tmp_path / "out.pdf").read_bytes().rstrip(b"\0") == renditions.pdf
    document = dcmread(path)
    assert document.EncapsulatedDocumentLength == len(renditions.pdf)
    assert document.BurnedInAnnotation == "YES"
    assert document.VerificationFlag == "UNVERIFIED"
    assert [item.ReferencedSOPInstanceUID for item in document.SourceInstanceSequence] == [
        documents["PDF"].SourceInstanceSequence[0].ReferencedSOPInstanceUID,
        documents["SR"].SOPInstanceUID,
    ]


def test_the_picture_has_the_same_pixels(
    documents: dict[str, Dataset], renditions: Renditions, tmp_path: Path
) -> None:
    path = written(documents["SC overview"], tmp_path / "sc.dcm")
    assert np.array_equal(dcmread(path).pixel_array, renditions.pictures["overview"])
    # DCMTK decodes its run lengths as well.
    subprocess.run(["dcm2pnm", "+on", path, tmp_path / "o.png"], check=True, capture_output=True)
    seen = np.asarray(Image.open(tmp_path / "o.png").convert("RGB"))
    assert np.array_equal(seen, renditions.pictures["overview"])


def test_the_map_holds_the_probability_of_each_region(
    documents: dict[str, Dataset], analysis: Analysis, tmp_path: Path
) -> None:
    document = dcmread(written(documents["PM"], tmp_path / "pm.dcm"))
    values = np.frombuffer(document.FloatPixelData, np.float32).reshape(
        document.Rows, document.Columns
    )
    width, height = analysis.slide.base.tile_size_px
    expected = np.full_like(values, -1)
    for (x0, y0, _, _), score in zip(analysis.regions.box_px, analysis.regions.score, strict=True):
        expected[int(y0) // height, int(x0) // width] = score
    assert np.array_equal(values, expected)
    assert 0 < (values >= 0).sum() < values.size
    assert document.FloatPixelPaddingValue == -1
    segmentation = documents["SEG"]
    for keyword in ("TotalPixelMatrixOriginSequence", "ImageOrientationSlide"):
        assert document[keyword].value == segmentation[keyword].value
    spacing = [
        each.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        for each in (document, segmentation)
    ]
    assert spacing[0] == spacing[1]


def test_same_analysis_gives_the_same_bytes(
    documents: dict[str, Dataset], analysis: Analysis, renditions: Renditions
) -> None:
    again = encode_documents(analysis, ALL, renditions)
    for kind, document in documents.items():
        assert to_bytes(document) == to_bytes(again[kind])
