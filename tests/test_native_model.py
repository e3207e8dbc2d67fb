"""The Native DICOM Model, beside DCMTK's."""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_has_tag, dictionary_is_retired

from dicom_io.dicom_json import Json
from dicom_io.native_model import NAMESPACE, NativeModelInvalid, from_xml, to_xml
from tests.servers import program

NAMES = ("reportsi.dcm", "CT_small.dcm", "test-SR.dcm", "rtplan.dcm")
# DCMTK writes numbers as they are stored, pydicom's JSON as numbers; both write bulk their own way.
OTHERWISE = frozenset({"DS", "FD", "FL", "IS", "OB", "OW", "UN"})


def dataset_of(name: str) -> Dataset:
    dataset = dcmread(get_testdata_file(name))
    dataset.pop("PixelData", None)
    return dataset


def by_dcmtk(dataset: Dataset, folder: Path) -> bytes:
    """The same dataset by an independent writer."""
    dataset.save_as(folder / "file.dcm")
    convert = [program("dcm2xml", "dcmtk"), "+Xn", "-nat", "+Eb", folder / "file.dcm"]
    return subprocess.run(convert, capture_output=True, check=True).stdout


def told(element: ElementTree.Element) -> list[object]:
    """Tag, attributes, text and children, without what is written otherwise."""
    named = dict(element.attrib)
    tag = int(named.get("tag", "00100010"), 16)
    if dictionary_has_tag(tag) and dictionary_is_retired(tag):
        named.pop("keyword", None)  # DCMTK has none for them
    if element.get("vr") in OTHERWISE:
        return [element.tag, named]
    text = (element.text or "").strip()
    return [element.tag, named, text, [told(child) for child in element]]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_written_as_dcmtk_does(name: str, tmp_path: Path) -> None:
    dataset = dataset_of(name)
    ours = ElementTree.fromstring(to_xml(dataset.to_json_dict()))  # noqa: S314 - our own
    theirs = ElementTree.fromstring(by_dcmtk(dataset, tmp_path))  # noqa: S314 - DCMTK's
    assert ours.tag == theirs.tag == f"{{{NAMESPACE}}}NativeDicomModel"
    assert [told(each) for each in ours] == [told(each) for each in theirs]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_is_what_was_written(name: str, tmp_path: Path) -> None:
    wanted = without_empty(dataset_of(name).to_json_dict())
    assert from_xml(to_xml(wanted)) == wanted
    read = Dataset.from_json(from_xml(by_dcmtk(dataset_of(name), tmp_path)))
    # Of private attributes without a creator DCMTK leaves the block out.
    assert tags(read) == tags(dataset_of(name))
    assert [each.value for each in read.iterall() if each.VR == "UI"] == [
        each.value for each in dataset_of(name).iterall() if each.VR == "UI"
    ]


def without_empty(dataset: Json) -> Json:
    """DICOM JSON without the empty lists that pydicom writes for empty sequences."""
    for held in dataset.values():
        if held["vr"] == "SQ":
            held["Value"] = [without_empty(item) for item in held["Value"]]
        if not held.get("Value", True):
            del held["Value"]
    return dataset


def tags(dataset: Dataset) -> set[int]:
    return {each.tag for each in dataset if not each.tag.is_private}


def document(content: str) -> bytes:
    return f"<NativeDicomModel>{content}</NativeDicomModel>".encode()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"{}", "no XML"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><NativeDicomModel/>", "DTD"),
        (b"<Other/>", "no NativeDicomModel"),
        (document("<Value number='1'>x</Value>"), "no Value in a dataset"),
        (document("<DicomAttribute tag='12' vr='LO'/>"), "eight hexadecimal"),
        (document("<DicomAttribute tag='00100020' vr='LO'/>" * 2), "twice"),
        (document("<DicomAttribute tag='00100020' vr='XX'/>"), "VR"),
        (
            document("<DicomAttribute tag='00100020' vr='LO'><Item number='1'/></DicomAttribute>"),
            "holds no Item",
        ),
        (
            document(
                "<DicomAttribute tag='00180050' vr='DS'><Value number='1'>NaN</Value>"
                "</DicomAttribute>"
            ),
            "no finite number",
        ),
        (
            document("<DicomAttribute tag='00280010' vr='US'><Value number='1'/></DicomAttribute>"),
            "number",
        ),
        (
            document("<DicomAttribute tag='00100020' vr='LO'><Value>x</Value></DicomAttribute>"),
            "from 1",
        ),
        (
            document(
                "<DicomAttribute tag='00100020' vr='LO'><Value number='9999'/></DicomAttribute>"
            ),
            "list",
        ),
        (
            document(
                "<DicomAttribute tag='00081115' vr='SQ'><Item number='1'>" * 100
                + "</Item></DicomAttribute>" * 100
            ),
            "nested",
        ),
    ],
)
def test_what_is_no_model_is_refused(text: bytes, named: str) -> None:
    with pytest.raises(NativeModelInvalid, match=named):
        from_xml(text)


def test_empty_values_keep_their_places() -> None:
    held = {"00080008": {"vr": "CS", "Value": ["A", None, "C"]}}
    assert from_xml(to_xml(held)) == held
