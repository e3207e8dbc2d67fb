"""What an instance says of itself in DICOM JSON (PS3.18 annex F), and where its bulk data lie.

Bulk data stay in the file: known are only their offsets, so that a million annotations are parsed
once and then served from the disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

from dicom_io.dicom_json import Json

# Always elsewhere: viewers look for coordinates there and nowhere else.
ALWAYS_BULK = frozenset({"OF", "OD", "OL", "OV"})
BULK_ABOVE = {"OB": 1024, "OW": 1024, "UN": 1024}
"""Bytes up to which a value stands in the metadata itself (InlineBinary)."""


@dataclass(frozen=True, slots=True)
class BulkValue:
    """One value that metadata name by address.

    Attributes
    ----------
    vr
    offset, length
        Bytes in the file. The node writes Explicit VR Little Endian, uncompressed, which is what
        PS3.18 section 8.7.3.3 asks of application/octet-stream.
    """

    vr: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class InstanceContent:
    """An instance as metadata tell it.

    Attributes
    ----------
    attributes
        DICOM JSON; a BulkDataURI in it is the value's path.
    bulk
        Path → value; a path is tags and 1-based item numbers: ``006A0002/1/00660016``.
    transfer_syntax_uid
    """

    attributes: Json
    bulk: Mapping[str, BulkValue]
    transfer_syntax_uid: str


def read_content(path: Path) -> InstanceContent:
    """Parse a whole file of the node's own.

    Parameters
    ----------
    path
        A DICOM file (PS3.10), uncompressed.
    """
    content = path.read_bytes()
    dataset = dcmread(DicomBytesIO(content))
    bulk: dict[str, BulkValue] = {}
    at = 0
    for where, vr, held in _without_bulk(dataset, ()):
        # Values come in the order of the file; equal bytes before this place serve as well.
        at = content.index(held, at)
        bulk[where] = BulkValue(vr, at, len(held))
        at += len(held)
    attributes = in_utf8(dataset.to_json_dict())
    for where, value in bulk.items():
        _insert(attributes, where, value)
    return InstanceContent(attributes, bulk, str(dataset.file_meta.TransferSyntaxUID))


def read_header(path: Path, keywords: tuple[str, ...]) -> Json:
    """Some top-level attributes of a file, in DICOM JSON; other values are passed over."""
    wanted = ["SpecificCharacterSet", *keywords]
    return in_utf8(dcmread(path, specific_tags=list(wanted)).to_json_dict())


def in_utf8(attributes: Json) -> Json:
    """DICOM JSON is UTF-8, whatever the file's character set was (PS3.18 annex F)."""
    if "00080005" in attributes:
        attributes["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    return attributes


def with_addresses(attributes: Json, base: str) -> Json:
    """The metadata with absolute addresses: every BulkDataURI below `base` (PS3.18 F.2.6)."""
    metadata: Json = _addressed(attributes, base)
    return metadata


def _addressed(value: Any, base: str) -> Any:
    if isinstance(value, dict):
        return {
            key: f"{base}/{held}" if key == "BulkDataURI" else _addressed(held, base)
            for key, held in value.items()
        }
    return [_addressed(held, base) for held in value] if isinstance(value, list) else value


def _without_bulk(dataset: Dataset, above: tuple[str, ...]) -> Iterator[tuple[str, str, bytes]]:
    """Take the bulk values out of a dataset: (path, VR, bytes) in the order of the file."""
    for tag in sorted(dataset.keys()):
        element = dataset[tag]
        here = (*above, f"{tag:08X}")
        if element.VR == "SQ":
            for number, item in enumerate(element.value, start=1):
                yield from _without_bulk(item, (*here, str(number)))
        elif _is_bulk(element.VR, element.value):
            yield "/".join(here), element.VR, element.value
            del dataset[tag]


def _is_bulk(vr: str, value: Any) -> bool:
    if not isinstance(value, bytes) or not value:
        return False
    return vr in ALWAYS_BULK or len(value) > BULK_ABOVE.get(vr, len(value))


def _insert(attributes: Json, where: str, value: BulkValue) -> None:
    """Put a relative address where the value was, tags in ascending order (PS3.18 F.2.2)."""
    *above, tag = where.split("/")
    item = attributes
    for sequence, number in zip(above[::2], above[1::2], strict=True):
        item = item[sequence]["Value"][int(number) - 1]
    held = {**item, tag: {"vr": value.vr, "BulkDataURI": where}}
    item.clear()
    item.update(sorted(held.items()))
