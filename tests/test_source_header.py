"""Names in every script, and patient modules of every kind, reach the results."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import Slide, open_slide
from node.outputs import encode_documents
from tests.analyses import some_analysis
from tests.servers import Orthanc
from tests.slides import write_slide
from tests.validators import dciodvfy, dsrdump, written

# PS3.5 annexes H, I, J and PS3.3 C.12.1.1.2: names in the character sets that slides come in.
NAMES: dict[str, tuple[str | list[str], str]] = {
    "greek": ("ISO_IR 126", "Διονυσιος^Παπαδόπουλος"),
    "japanese, kanji": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "japanese, half width": (
        ["ISO 2022 IR 13", "ISO 2022 IR 87"],
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    "korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "arabic": ("ISO_IR 127", "قباني^لنزار"),
    "hebrew": ("ISO_IR 138", "שרון^דבורה"),
    "russian": ("ISO_IR 144", "Люкceмбypг"),
    "chinese, GB18030": ("GB18030", "Wang^XiaoDong=王^小东"),
    "chinese, UTF-8": ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
    "western": ("ISO_IR 100", "Müller-Lüdenscheidt^Jürgen^^Dr."),
    "ascii": ("", "Adams^John Robert Quincy^^Rev.^B.A. M.Div."),
}
KNOWN = "SegmentIdentificationSequence"  # as in test_segmentation.py
Change = Callable[[Dataset], None]


def slide_with(folder: Path, change: Change) -> Slide:
    made = write_slide(folder, change=lambda dataset, level: change(dataset))
    with open_pacs(folder.as_uri(), PacsSettings()) as pacs:
        return open_slide(pacs, made.study_uid, made.series_uid)


def documents(slide: Slide) -> dict[str, Dataset]:
    return encode_documents(some_analysis(slide, 40))


def errors(path: Path) -> list[str]:
    return [line for line in dciodvfy(path) if line.startswith("Error")]


def named(name: str, character_set: str | list[str]) -> Change:
    def change(dataset: Dataset) -> None:
        if character_set:
            dataset.SpecificCharacterSet = character_set
        dataset.PatientName = name

    return change


@pytest.mark.parametrize("script", NAMES)
def test_a_name_stays_the_same_text(tmp_path: Path, script: str) -> None:
    character_set, name = NAMES[script]
    slide = slide_with(tmp_path / "slide", named(name, character_set))
    for kind, document in documents(slide).items():
        path = written(document, tmp_path / f"{kind}.dcm")
        again = dcmread(path)
        assert str(again.PatientName) == name
        assert again.get("SpecificCharacterSet") == (None if name.isascii() else "ISO_IR 192")
        assert errors(path) == []


@pytest.mark.parametrize("script", ["greek", "japanese, kanji", "arabic"])
def test_dcmtk_reads_the_same_name(tmp_path: Path, script: str) -> None:
    character_set, name = NAMES[script]
    slide = slide_with(tmp_path / "slide", named(name, character_set))
    path = written(documents(slide)["SR"], tmp_path / "sr.dcm")
    printed, complaints = dsrdump(path)
    assert complaints == ""
    # It prints the name as people read it: last name, first name.
    assert all(part in printed for part in name.partition("=")[0].split("^"))
    dumped = subprocess.run(["dcmdump", "+P", "0010,0010", path], capture_output=True, check=True)
    assert name in dumped.stdout.decode()


@pytest.mark.parametrize("script", ["greek", "japanese, kanji", "arabic"])
def test_an_archive_hands_on_the_same_name(tmp_path: Path, orthanc: Orthanc, script: str) -> None:
    """Slide in the archive → metadata → results → archive → metadata."""
    character_set, name = NAMES[script]
    change = named(name, character_set)
    made = write_slide(tmp_path / "slide", change=lambda dataset, level: change(dataset))
    orthanc.add(*made.paths)
    with open_pacs(orthanc.dicomweb_url, PacsSettings()) as pacs:
        slide = open_slide(pacs, made.study_uid, made.series_uid)
        for document in documents(slide).values():
            pacs.store([document])
            again = pacs.retrieve_instance(
                document.StudyInstanceUID, document.SeriesInstanceUID, document.SOPInstanceUID
            )
            assert str(again.PatientName) == name


def without(*keywords: str) -> Change:
    def change(dataset: Dataset) -> None:
        for keyword in keywords:
            if keyword in dataset:
                delattr(dataset, keyword)

    return change


def holding(**values: Any) -> Change:
    def change(dataset: Dataset) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


PATIENTS: dict[str, Change] = {
    "nothing said": without(
        "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber",
        "ReferringPhysicianName", "StudyDate", "StudyTime",
    ),
    "all empty": holding(
        PatientID="", PatientName="", StudyDate="", StudyTime="", AccessionNumber=""
    ),
    "sex in words": holding(PatientSex="FEMALE"),
    "a year for a birth date": holding(PatientBirthDate="1954"),
    "a time that is none": holding(StudyTime="nine"),
    "an old date": holding(StudyDate="2026.01.02"),
    "only carets": holding(PatientName="^^^^"),
    "one word": holding(PatientName="Mononymous"),
    "a long name": holding(PatientName="^".join(["Wolfeschlegelsteinhausenbergerdorff"] * 2)),
    "a long number": holding(PatientID="9" * 70),
    "other numbers and a comment": holding(
        PatientComments="none", EthnicGroup="n", PatientAge="045Y", PatientWeight="70.5"
    ),
    "a pseudonym": holding(PatientIdentityRemoved="YES", DeidentificationMethod="by hand"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PATIENTS)
@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")
def test_unusual_patient_modules_make_valid_results(tmp_path: Path, kind: str) -> None:
    slide = slide_with(tmp_path / "slide", PATIENTS[kind])
    made = documents(slide)
    assert {"ANN", "SEG", "SR"} <= made.keys()
    for name, document in made.items():
        found = errors(written(document, tmp_path / f"{name}.dcm"))
        # What a slide carries too long goes on as it is: half a number would be another patient's.
        assert [line for line in found if "ength invalid for this VR" not in line] == []
        assert str(document.PatientID or "") == str(slide.header.get("PatientID") or "")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_value_left_empty_is_named_without_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slide = slide_with(tmp_path / "slide", holding(PatientBirthDate="SECRET-9"))
    with caplog.at_level(logging.WARNING, "dicom_io.source_header"):
        made = documents(slide)
    assert made["ANN"].PatientBirthDate in (None, "")
    said = [each.getMessage() for each in caplog.records if each.name == "dicom_io.source_header"]
    assert any("PatientBirthDate" in sentence for sentence in said)
    assert not any("SECRET" in sentence for sentence in said)  # pydicom's own: test_log.py


def test_a_container_without_a_specimen_is_left_out(tmp_path: Path) -> None:
    """PS3.3 C.7.6.22: Container Identifier needs a Specimen Description."""
    slide = slide_with(tmp_path / "slide", without("SpecimenDescriptionSequence"))
    assert slide.header.ContainerIdentifier == "CONTAINER-1"
    for kind, document in documents(slide).items():
        assert "ContainerIdentifier" not in document
        assert errors(written(document, tmp_path / f"{kind}.dcm")) == []


def test_a_specimen_is_carried_and_completed(tmp_path: Path) -> None:
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "S-1", "2.25.77"
    change = holding(SpecimenDescriptionSequence=[specimen])
    for kind, document in documents(slide_with(tmp_path / "slide", change)).items():
        assert errors(written(document, tmp_path / f"{kind}.dcm")) == []
        if kind != "SR":  # whose IOD has no Specimen module (PS3.3 A.35.13)
            assert document.ContainerIdentifier == "CONTAINER-1"
            assert document.SpecimenDescriptionSequence[0].SpecimenIdentifier == "S-1"


def test_a_specimen_without_a_uid_is_not_made_up(tmp_path: Path) -> None:
    specimen = Dataset()
    specimen.SpecimenIdentifier = "S-1"
    slide = slide_with(tmp_path / "slide", holding(SpecimenDescriptionSequence=[specimen]))
    assert "SpecimenDescriptionSequence" not in documents(slide)["ANN"]
