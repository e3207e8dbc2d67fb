"""Rules that hold for every DICOM object."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, MutableSequence
from datetime import datetime

from pydicom import config
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VM
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pydicom.valuerep import validate_value

from conformance.finding import Fault, Rule
from conformance.known_codes import is_ucum, wrong_code
from conformance.reading import (
    code,
    elements,
    items,
    name_of,
    sequence,
    text,
    texts,
    whole,
)
from conformance.standard_tables import Attribute, Module, modules_of
from conformance.value_sets import ENUMERATED, SINGLE_ITEM, Enumerated

_CODE_VALUES = ("CodeValue", "LongCodeValue", "URNCodeValue")
# Values that are one text, whatever it holds, or bytes.
_ONE_VALUE = frozenset({"LT", "ST", "UT", "UR", "OB", "OD", "OF", "OL", "OV", "OW", "UN", "SQ"})
_TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})


def _types(document: Dataset, wanted: str) -> Iterator[Fault]:
    modules = modules_of(text(document, "SOPClassUID"))
    holders = Counter(keyword for each in modules for keyword in each.attributes)
    told: set[str] = set()
    for module in modules:
        if not module.mandatory and not _is_used(module, document, holders):
            continue
        for fault in _missing(document, module.attributes, "", wanted, module.name):
            if fault.path not in told:
                told.add(fault.path)
                yield fault


def _is_used(module: Module, document: Dataset, holders: Counter[str]) -> bool:
    """Whether an attribute that no other module has is there: some modules exclude each other."""
    return any(keyword in document and holders[keyword] == 1 for keyword in module.attributes)


def _missing(
    item: Dataset, attributes: Mapping[str, Attribute], path: str, wanted: str, module: str
) -> Iterator[Fault]:
    for keyword, attribute in attributes.items():
        here = f"{path}{keyword}"
        present = keyword in item
        if wanted == "1" and attribute.type == "1" and not (present and _has_value(item, keyword)):
            state = "is empty" if present else "is missing"
            yield Fault(here, f"{keyword} {state}: the module {module} asks for a value.")
        elif wanted == "1" and attribute.type == "1C" and present and not _has_value(item, keyword):
            yield Fault(here, f"{keyword} is there without a value (type 1C, module {module}).")
        elif wanted == "2" and attribute.type == "2" and not present:
            yield Fault(
                here, f"{keyword} is missing: the module {module} asks for it, if only empty."
            )
        for number, each in enumerate(sequence(item, keyword), start=1):
            yield from _missing(each, attribute.items, f"{here}[{number}]/", wanted, module)


def _has_value(item: Dataset, keyword: str) -> bool:
    element = item[keyword]
    return len(element.value) > 0 if element.VR == "SQ" else not element.is_empty


def _type_1(document: Dataset) -> Iterator[Fault]:
    return _types(document, "1")


def _type_2(document: Dataset) -> Iterator[Fault]:
    return _types(document, "2")


def _values(document: Dataset) -> Iterator[Fault]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pydicom warns of some values instead of refusing them
        faulty = [
            (path, element.VR)
            for path, element in elements(document)
            if element.VR not in {"UI", "SQ"}
            and not element.is_empty
            and not all(_is_valid(element.VR, each) for each in _each(element))
        ]
    for path, vr in faulty:
        yield Fault(path, f"The value is not one of representation {vr}.")


def _each(element: DataElement) -> list[object]:
    value = element.value
    return list(value) if isinstance(value, MutableSequence) else [value]


def _is_valid(vr: str, value: object) -> bool:
    written = getattr(value, "original_string", "") or value
    if vr in {"DS", "IS", "DA", "TM", "DT", "AS"}:
        written = str(written)
    try:
        validate_value(vr, written, config.RAISE)
        if vr == "DA" and written:
            datetime.strptime(str(written), "%Y%m%d")
    except (ValueError, UserWarning):
        return False
    return True


def _multiplicity(document: Dataset) -> Iterator[Fault]:
    for path, element in elements(document):
        if element.VR in _ONE_VALUE or element.is_empty or not dictionary_has_tag(element.tag):
            continue
        allowed = dictionary_VM(element.tag)
        if not _fits(element.VM, allowed):
            yield Fault(path, f"There are {element.VM} values where {allowed} are asked for.")


def _fits(count: int, allowed: str) -> bool:
    """Whether a count is one of ``1``, ``1-3``, ``2-2n`` or ``1-n`` (PS3.6 section 6)."""
    low, _, high = allowed.partition("-")
    if not high:
        return count == int(low)
    if high.endswith("n"):
        step = int(high[:-1] or 1)
        return count >= int(low) and count % step == 0
    return int(low) <= count <= int(high)


def _uids(document: Dataset) -> Iterator[Fault]:
    for path, element in elements(document):
        if element.VR != "UI" or element.is_empty:
            continue
        if not all(UID(str(each)).is_valid for each in _each(element)):
            yield Fault(
                path,
                "The UID is not valid: at most 64 characters, components without leading zeros.",
            )


def _enumerated(document: Dataset) -> Iterator[Fault]:
    sop_class = text(document, "SOPClassUID")
    for path, item in items(document):
        for keyword in ENUMERATED.keys() & set(item.dir()):
            for allowed in ENUMERATED[keyword]:
                if not allowed.only or sop_class in allowed.only:
                    yield from _outside(f"{path}{keyword}", texts(item, keyword), allowed)


def _outside(path: str, values: list[str], allowed: Enumerated) -> Iterator[Fault]:
    looked_at = values if not allowed.number else values[allowed.number - 1 : allowed.number]
    if not set(looked_at) <= allowed.values:
        which = f"Value {allowed.number}" if allowed.number else "The value"
        yield Fault(
            path, f"{which} is none of {', '.join(sorted(allowed.values))} ({allowed.source})."
        )


def _character_set(document: Dataset) -> Iterator[Fault]:
    terms = texts(document, "SpecificCharacterSet")
    unknown = [term for term in terms if term not in python_encoding]
    if unknown:
        yield Fault(
            "SpecificCharacterSet", "A character set is not one of the standard's defined terms."
        )
    if terms and terms != [""]:
        return
    for path, element in elements(document):
        if element.VR in _TEXT and not str(element.value).isascii():
            yield Fault(
                path, "The text needs more than ASCII, and no Specific Character Set is given."
            )


def _private(document: Dataset) -> Iterator[Fault]:
    for path, item in items(document):
        for element in item:
            tag = element.tag
            if not tag.is_private or tag.elem < 0x1000:
                continue
            if (tag.group, tag.elem >> 8) not in item:
                yield Fault(
                    f"{path}{name_of(tag)}",
                    "The private attribute lies in a block without a Private Creator.",
                )


def _file_meta(document: Dataset) -> Iterator[Fault]:
    meta = getattr(document, "file_meta", None)
    if not meta:
        return
    for ours, theirs in (
        ("MediaStorageSOPClassUID", "SOPClassUID"),
        ("MediaStorageSOPInstanceUID", "SOPInstanceUID"),
    ):
        if text(meta, ours) != text(document, theirs):
            yield Fault(ours, f"The file meta information and {theirs} of the data set differ.")
    if not text(meta, "TransferSyntaxUID"):
        yield Fault("TransferSyntaxUID", "The file meta information names no transfer syntax.")


def _sop_class(document: Dataset) -> Iterator[Fault]:
    uid = UID(text(document, "SOPClassUID"))
    # pydicom's list and the tables' are of different years: what either knows is in use.
    if not modules_of(uid) and (uid.type != "SOP Class" or uid.is_retired):
        yield Fault("SOPClassUID", "The SOP class is not one of the standard, or is retired.")


def _codes(document: Dataset) -> Iterator[Fault]:
    for path, item in _code_items(document):
        values = [keyword for keyword in _CODE_VALUES if text(item, keyword)]
        if len(values) != 1:
            yield Fault(path, f"The code has {len(values)} values: it needs exactly one.")
        if not text(item, "CodingSchemeDesignator") and values != ["URNCodeValue"]:
            yield Fault(path, "The code names no coding scheme.")
        if not text(item, "CodeMeaning"):
            yield Fault(path, "The code has no meaning.")


def _code_items(document: Dataset) -> Iterator[tuple[str, Dataset]]:
    """(path, item) of every code; functional codes of other kinds of sequences count too."""
    for path, item in items(document):
        coded = any(keyword in item for keyword in (*_CODE_VALUES, "CodeMeaning"))
        if coded or path.split("/")[-2:][0].partition("[")[0].endswith("CodeSequence"):
            yield path.rstrip("/"), item


def _known_codes(document: Dataset) -> Iterator[Fault]:
    for path, item in _code_items(document):
        value = text(item, "CodeValue") or text(item, "LongCodeValue")
        why = wrong_code(value, text(item, "CodingSchemeDesignator"))
        if value and why:
            yield Fault(path, f"{value} {why}.")


def _units(document: Dataset) -> Iterator[Fault]:
    for path, item in items(document):
        if "MeasurementUnitsCodeSequence" not in item:
            continue
        value, scheme = code(item, "MeasurementUnitsCodeSequence")
        here = f"{path}MeasurementUnitsCodeSequence"
        if scheme != "UCUM":
            yield Fault(here, "The unit is not coded in UCUM.")
        elif not is_ucum(value):
            yield Fault(here, f"{value!r} is not a unit of UCUM.")


def _single_items(document: Dataset) -> Iterator[Fault]:
    for path, item in items(document):
        for keyword in SINGLE_ITEM & set(item.dir()):
            if len(sequence(item, keyword)) > 1:
                yield Fault(
                    f"{path}{keyword}",
                    f"There are {len(sequence(item, keyword))} items where one is allowed.",
                )


def _pixels(document: Dataset) -> Iterator[Fault]:
    allocated, stored, high = (
        whole(document, keyword) for keyword in ("BitsAllocated", "BitsStored", "HighBit")
    )
    if allocated is None or stored is None or high is None:
        return
    if stored > allocated:
        yield Fault("BitsStored", f"{stored} bits are stored in {allocated}.")
    if high != stored - 1:
        yield Fault("HighBit", f"The high bit is {high} where {stored} bits are stored.")
    samples = whole(document, "SamplesPerPixel")
    photometric = text(document, "PhotometricInterpretation")
    grey = photometric in {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"}
    if samples is not None and photometric and grey != (samples == 1):
        yield Fault("SamplesPerPixel", f"{photometric} does not have {samples} samples a pixel.")
    yield from _pixel_length(document, allocated, samples or 1)


def _pixel_length(document: Dataset, allocated: int, samples: int) -> Iterator[Fault]:
    syntax = getattr(getattr(document, "file_meta", None), "TransferSyntaxUID", "")
    rows, columns = whole(document, "Rows"), whole(document, "Columns")
    if "PixelData" not in document or not syntax or UID(syntax).is_compressed:
        return
    if rows is None or columns is None:
        return
    frames = whole(document, "NumberOfFrames") or 1
    if text(document, "PhotometricInterpretation") == "YBR_FULL_422":
        samples = 2
    needed = -(-frames * rows * columns * samples * allocated // 8)
    there = len(document.PixelData)
    if there not in {needed, needed + needed % 2}:
        yield Fault("PixelData", f"The pixel data have {there} bytes where {needed} are needed.")


def is_tiled_full(document: Dataset) -> bool:
    return text(document, "DimensionOrganizationType") == "TILED_FULL"


def _tiles(document: Dataset) -> Iterator[Fault]:
    sizes = [
        whole(document, keyword)
        for keyword in ("TotalPixelMatrixColumns", "Columns", "TotalPixelMatrixRows", "Rows")
    ]
    if not is_tiled_full(document) or not all(sizes) or text(document, "ConcatenationUID"):
        return
    across, tile_width, down, tile_height = (size or 1 for size in sizes)
    planes = (whole(document, "TotalPixelMatrixFocalPlanes") or 1) * _channels(document)
    needed = -(-across // tile_width) * -(-down // tile_height) * planes
    there = whole(document, "NumberOfFrames") or 1
    if there != needed:
        yield Fault("NumberOfFrames", f"There are {there} frames where {needed} fill the matrix.")


def _channels(document: Dataset) -> int:
    """How often the matrix is there: once a segment, or once an optical path."""
    if text(document, "SegmentationType") == "LABELMAP":
        return 1
    segments = len(sequence(document, "SegmentSequence"))
    return segments or whole(document, "NumberOfOpticalPaths") or 1


def _frames_described(document: Dataset) -> Iterator[Fault]:
    groups = document.get("PerFrameFunctionalGroupsSequence")
    frames = whole(document, "NumberOfFrames") or 1
    if groups is not None and len(groups) != frames:
        yield Fault(
            "PerFrameFunctionalGroupsSequence", f"{len(groups)} items describe {frames} frames."
        )
    described = groups is not None or "SharedFunctionalGroupsSequence" in document
    if described and whole(document, "NumberOfFrames") is None:
        yield Fault("NumberOfFrames", "Frames are described and their number is not said.")


GENERAL_RULES: tuple[Rule[Dataset], ...] = (
    Rule("dicom-type-1", "error", "PS3.5 7.4.1", "Attributes of type 1 have a value.", _type_1),
    Rule("dicom-type-2", "error", "PS3.5 7.4.3", "Attributes of type 2 are there.", _type_2),
    Rule("dicom-value", "error", "PS3.5 6.2", "Values are of their representation.", _values),
    Rule("dicom-multiplicity", "error", "PS3.6 6", "As many values as allowed.", _multiplicity),
    Rule("dicom-uid", "error", "PS3.5 9.1", "UIDs are well formed.", _uids),
    Rule("dicom-enumerated", "error", "PS3.3", "Enumerated values are as listed.", _enumerated),
    Rule(
        "dicom-character-set",
        "error",
        "PS3.3 C.12.1.1.2",
        "The character set is a defined term and is named where text needs it.",
        _character_set,
    ),
    Rule("dicom-private", "error", "PS3.5 7.8.1", "Private blocks are reserved.", _private),
    Rule("dicom-file-meta", "error", "PS3.10 7.1", "A file says what is in it.", _file_meta),
    Rule("dicom-sop-class", "error", "PS3.4 B.5", "The SOP class is in use.", _sop_class),
    Rule("dicom-code", "error", "PS3.3 8.8", "Codes have value, scheme and meaning.", _codes),
    Rule("dicom-code-known", "error", "PS3.16 D", "Codes can be of their scheme.", _known_codes),
    Rule("dicom-units", "error", "PS3.16 CID 82", "Units are UCUM's.", _units),
    Rule("dicom-single-item", "error", "PS3.3", "Where one item is allowed, one.", _single_items),
    Rule("dicom-pixels", "error", "PS3.3 C.7.6.3", "Pixel description and data fit.", _pixels),
    Rule("tiles-full", "error", "PS3.3 C.7.6.17.3", "Tiles of TILED_FULL are all there.", _tiles),
    Rule(
        "frames-described",
        "error",
        "PS3.3 C.7.6.16.1",
        "Each frame has its functional groups.",
        _frames_described,
    ),
)
