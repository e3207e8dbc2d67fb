"""The Native DICOM Model: DICOM JSON as XML, and back (PS3.19 annex A.1, PS3.18 annex F)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from defusedxml import DefusedXmlException  # type: ignore[import-untyped]
from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]
from pydicom.datadict import keyword_for_tag
from pydicom.valuerep import STANDARD_VR

from dicom_io.dicom_json import Json

NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
DEEPEST = 64
MOST_EMPTY = 1000
_XML = "{http://www.w3.org/XML/1998/namespace}"
_NAME_PARTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_HOLDS = {"SQ": "Item", "PN": "PersonName"}
_WHOLE = frozenset({"IS", "SL", "SS", "SV", "UL", "US", "UV"})
_REAL = frozenset({"DS", "FD", "FL"})
_FIRST_BLOCK = 0x10
_NOT_XML = {code: None for code in range(0x20) if chr(code) not in "\t\n\r"}


class NativeModelInvalid(ValueError):
    """The text is no Native DICOM Model."""


def to_xml(dataset: Json) -> bytes:
    """A dataset of DICOM JSON as a document of the Native DICOM Model, UTF-8."""
    root = Element("NativeDicomModel", {"xmlns": NAMESPACE, f"{_XML}space": "preserve"})
    _write(root, dataset)
    document = bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
    return document.replace(b"\r", b"&#13;")  # XML 1.0 §2.11 would make it a line feed


def from_xml(document: bytes) -> Json:
    """DICOM JSON of a document of the Native DICOM Model, with or without its namespace.

    Raises
    ------
    NativeModelInvalid
        It is not well-formed, has a DTD or entities, or holds what the model does not have.
    """
    try:
        root = fromstring(document, forbid_dtd=True)
    except (ElementTree.ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise NativeModelInvalid("The body is no XML without a DTD.") from error
    if _name(root) != "NativeDicomModel":
        raise NativeModelInvalid("The body is no NativeDicomModel.")
    return _read(root, 0)


def _write(parent: Element, dataset: Json) -> None:
    for tag in sorted(dataset):
        held = dataset[tag]
        attribute = SubElement(parent, "DicomAttribute", _named(tag, dataset), vr=held["vr"])
        for number, given in enumerate(held.get("Value", []), start=1):
            if given is None:
                continue
            place = {"number": str(number)}
            if held["vr"] == "SQ":
                _write(SubElement(attribute, "Item", place), given)
            elif held["vr"] == "PN":
                _write_name(SubElement(attribute, "PersonName", place), given)
            else:
                SubElement(attribute, "Value", place).text = str(given).translate(_NOT_XML)
        if "BulkDataURI" in held:
            SubElement(attribute, "BulkData", uri=held["BulkDataURI"])
        elif "InlineBinary" in held:
            SubElement(attribute, "InlineBinary").text = held["InlineBinary"]


def _named(tag: str, dataset: Json) -> dict[str, str]:
    """Tag and keyword, or tag and private creator: then the tag leaves its block out."""
    group, element = tag[:4], tag[4:]
    creators = dataset.get(f"{group}00{element[:2]}", {}).get("Value", [])
    if int(group, 16) % 2 and element[:2] != "00" and creators:
        return {"tag": f"{group}00{element[2:]}", "privateCreator": str(creators[0])}
    keyword = keyword_for_tag(int(tag, 16))
    return {"tag": tag} | ({"keyword": keyword} if keyword else {})


def _write_name(parent: Element, name: Json) -> None:
    for group in _NAME_GROUPS:
        if not name.get(group):
            continue
        written = SubElement(parent, group)
        for part, given in zip(_NAME_PARTS, name[group].split("^"), strict=False):
            if given:
                SubElement(written, part).text = given.translate(_NOT_XML)


def _read(parent: Element, depth: int) -> Json:
    if depth > DEEPEST:
        raise NativeModelInvalid(f"The dataset is nested more than {DEEPEST} deep.")
    blocks: dict[tuple[str, str], int] = {}
    dataset: Json = {}
    for attribute in parent:
        if _name(attribute) != "DicomAttribute":
            raise NativeModelInvalid(f"There is no {_name(attribute)[:40]} in a dataset.")
        tag, held = _tag(attribute, blocks), _attribute(attribute, depth)
        if tag in dataset:
            raise NativeModelInvalid(f"Attribute {tag} is there twice.")
        dataset[tag] = held
        if int(tag[:4], 16) % 2 and tag[4:6] == "00" and held.get("Value"):
            blocks[tag[:4], str(held["Value"][0])] = int(tag[6:], 16)
    return dataset


def _tag(attribute: Element, blocks: dict[tuple[str, str], int]) -> str:
    tag = attribute.get("tag", "").upper()
    if len(tag) != 8 or set(tag) - set("0123456789ABCDEF"):
        raise NativeModelInvalid("A DicomAttribute has no tag of eight hexadecimal digits.")
    creator = attribute.get("privateCreator")
    if creator is None:
        return tag
    group = tag[:4]
    taken = {block for (owner, _), block in blocks.items() if owner == group}
    block = blocks.setdefault((group, creator), max(taken, default=_FIRST_BLOCK - 1) + 1)
    return f"{group}{block:02X}{tag[6:]}"


def _attribute(attribute: Element, depth: int) -> Json:
    vr = attribute.get("vr", "")
    if vr not in STANDARD_VR:
        raise NativeModelInvalid("A DicomAttribute has no VR that DICOM knows.")
    values = list(_values(attribute, vr, depth))
    held: Json = {"vr": vr} | ({"Value": values} if values else {})
    for child in attribute:
        if _name(child) == "BulkData":
            held["BulkDataURI"] = child.get("uri", "")
        elif _name(child) == "InlineBinary":
            held["InlineBinary"] = "".join((child.text or "").split())
    return held


def _values(attribute: Element, vr: str, depth: int) -> Iterator[Any]:
    """Values in the order of their numbers; what was left out between them is None."""
    numbered = {}
    fitting = _HOLDS.get(vr, "Value")
    for child in attribute:
        kind = _name(child)
        if kind == fitting:
            numbered[_number(child)] = _value(child, kind, vr, depth)
        elif kind not in ("BulkData", "InlineBinary"):
            raise NativeModelInvalid(f"An attribute of VR {vr} holds no {kind[:40]}.")
    last = max(numbered, default=0)
    if last > len(numbered) + MOST_EMPTY:
        raise NativeModelInvalid("The numbers of values are not those of a list.")
    for number in range(1, last + 1):
        yield numbered.get(number)


def _value(child: Element, kind: str, vr: str, depth: int) -> Any:
    if kind == "Item":
        return _read(child, depth + 1)
    if kind == "PersonName":
        return {
            _name(group): "^".join(_parts(group)).rstrip("^")
            for group in child
            if _name(group) in _NAME_GROUPS
        }
    text = child.text or ""
    if vr not in _WHOLE | _REAL:
        return text
    try:
        number = int(text) if vr in _WHOLE else float(text)
    except ValueError as error:
        raise NativeModelInvalid(f"A value of {vr} is no number.") from error
    if not math.isfinite(number):  # JSON has no such numbers
        raise NativeModelInvalid(f"A value of {vr} is no finite number.")
    return number


def _parts(group: Element) -> list[str]:
    given = {_name(part): part.text or "" for part in group}
    return [given.get(part, "") for part in _NAME_PARTS]


def _number(child: Element) -> int:
    number = child.get("number", "")
    if not (number.isascii() and number.isdigit() and len(number) < 10 and int(number)):
        raise NativeModelInvalid("A value has no number from 1.")
    return int(number)


def _name(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]
