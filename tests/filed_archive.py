"""DICOMweb over the files of one slide, by pydicom alone, and what archives make of metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from dicom_io.dicom_json import PER_FRAME, Json, attributes, key, value
from dicom_io.pacs import InstanceReference
from tests.encodings import NATIVE
from tests.in_process import Answer

BOUNDARY = "no-frame-holds-this"
PIXEL_GROUP = 0x7FE0

Told = Callable[[Sequence[Json], str], object]
"""Metadata of the instances as they are, their transfer syntax → what the archive tells."""


@dataclass(frozen=True)
class Filed:
    """One instance.

    Attributes
    ----------
    path
    syntax
        UID of its transfer syntax.
    metadata
    frames
        As they are stored.
    """

    path: Path
    syntax: str
    metadata: Json
    frames: list[bytes]


def filed(path: Path) -> Filed:
    """Read an instance."""
    ds = dcmread(path)
    header = Dataset({e.tag: e for e in ds if e.tag.group != PIXEL_GROUP})
    syntax = str(ds.file_meta.TransferSyntaxUID)
    return Filed(path, syntax, header.to_json_dict(), frames_of(ds))


def answers(files: Sequence[Filed], told: Told) -> Callable[[str], Answer]:
    """Metadata, stored frames and whole instances; a function from a path to the answer."""
    by_uid = {value(file.metadata, "SOPInstanceUID"): file for file in files}
    metadata = json.dumps(told([file.metadata for file in files], files[0].syntax)).encode()

    def answer(path: str) -> Answer:
        if path.endswith("/metadata"):
            return 200, "application/dicom+json", metadata
        asked = re.search(r"/instances/([\d.]+)(?:/frames/([\d,]+))?$", path)
        if asked is None or asked[1] not in by_uid:
            return 404, "text/plain", b"no such thing"
        file = by_uid[asked[1]]
        if asked[2] is None:
            return _multipart("application/dicom", [file.path.read_bytes()])
        numbers = [int(number) for number in asked[2].split(",")]
        return _multipart(
            "application/octet-stream", [file.frames[number - 1] for number in numbers]
        )

    return answer


def _multipart(kind: str, contents: Iterable[bytes]) -> Answer:
    head = f"--{BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n".encode()
    body = b"".join(head + content + b"\r\n" for content in contents)
    whole = body + f"--{BOUNDARY}--\r\n".encode()
    return 200, f'multipart/related; type="{kind}"; boundary={BOUNDARY}', whole


def frames_of(ds: Dataset) -> list[bytes]:
    """Frames as they are stored."""
    count = int(ds.NumberOfFrames)
    if ds.file_meta.TransferSyntaxUID not in NATIVE:
        return list(generate_frames(ds.PixelData, number_of_frames=count))
    size = len(ds.PixelData) // count
    return [ds.PixelData[i * size : (i + 1) * size] for i in range(count)]


def stored_frames(path: Path) -> tuple[InstanceReference, str, list[bytes]]:
    """Of a file: which instance it is, its transfer syntax, its frames as they are stored."""
    ds = dcmread(path)
    uids = (str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID))
    return InstanceReference(*uids), str(ds.file_meta.TransferSyntaxUID), frames_of(ds)


def _as_it_is(instances: Sequence[Json], syntax: str) -> object:
    return instances


def _reversed(instances: Sequence[Json], syntax: str) -> object:
    return instances[::-1]


def _twice(instances: Sequence[Json], syntax: str) -> object:
    return [*instances, *instances[::-1]]


def _alone(instances: Sequence[Json], syntax: str) -> object:
    """One dataset without the list around it, as some archives send it."""
    return instances[0] if len(instances) == 1 else instances


def _other_series(instances: Sequence[Json], syntax: str) -> object:
    """An archive that does not look at the path."""
    other = attributes(SeriesInstanceUID="1.2.3.100", SOPInstanceUID="1.2.3.100.1")
    return [instances[0] | other, *instances]


def _syntax(instances: Sequence[Json], syntax: str) -> object:
    return [each | attributes(AvailableTransferSyntaxUID=syntax) for each in instances]


def _syntaxes(instances: Sequence[Json], syntax: str) -> object:
    """What it could send."""
    could = ["1.2.840.10008.1.2.1", syntax, "1.2.840.10008.1.2.4.50"]
    return [each | attributes(AvailableTransferSyntaxUID=could) for each in instances]


def _numbers_as_text(instances: Sequence[Json], syntax: str) -> object:
    """DS and IS as strings (PS3.18 table F.2.3-1)."""
    return [_as_text(each) for each in instances]


def _as_text(item: Json) -> Json:
    text: dict[str, Callable[[Any], object]] = {"SQ": _as_text, "DS": str, "IS": str}
    return {
        tag: element | {"Value": [text[element["vr"]](each) for each in element["Value"]]}
        if "Value" in element and element["vr"] in text
        else element
        for tag, element in item.items()
    }


def _without(*keywords: str) -> Told:
    left_out = {key(keyword) for keyword in keywords}
    return lambda instances, syntax: [
        {tag: element for tag, element in each.items() if tag not in left_out} for each in instances
    ]


def _ones_left_out(instances: Sequence[Json], syntax: str) -> object:
    """One path and one plane need not be said."""
    counts = ("NumberOfOpticalPaths", "TotalPixelMatrixFocalPlanes")
    return [
        {k: e for k, e in each.items() if k not in {key(c) for c in counts if value(each, c) == 1}}
        for each in instances
    ]


def _kind_elsewhere(instances: Sequence[Json], syntax: str) -> object:
    """As a converter tells it that leaves ImageType out."""
    without = _without("ImageType")(instances, syntax)
    return [each | attributes(VolumetricProperties="VOLUME") for each in without]


def _empty_and_elsewhere(instances: Sequence[Json], syntax: str) -> object:
    """Empty attributes, nulls, private ones, and bulk data that lies elsewhere."""
    more = {
        key("PyramidUID"): {"vr": "UI"},
        key("StudyDescription"): {"vr": "LO", "Value": [None]},
        key("SpecimenDescriptionSequence"): {"vr": "SQ", "Value": [None]},
        "00091010": {"vr": "UN", "InlineBinary": "AAEC"},
        key("PixelData"): {"vr": "OW", "BulkDataURI": "bulk/7FE00010"},
    }
    return [more | each for each in instances]


def _places_first(instances: Sequence[Json], syntax: str) -> object:
    """Per-frame items before all else: the order of names in JSON means nothing."""
    return [dict(sorted(each.items(), key=lambda item: item[0] != PER_FRAME)) for each in instances]


# Metadata as archives tell them: each must give the same slide.
TOLD: dict[str, Told] = {
    "as it is": _as_it_is,
    "last instance first": _reversed,
    "each instance twice": _twice,
    "one dataset without a list": _alone,
    "another series too": _other_series,
    "transfer syntax named": _syntax,
    "several transfer syntaxes named": _syntaxes,
    "numbers as text": _numbers_as_text,
    "no frame of reference, no origin": _without(
        "FrameOfReferenceUID", "TotalPixelMatrixOriginSequence"
    ),
    "no organization of dimensions": _without("DimensionOrganizationType"),
    "numbers that are one left out": _ones_left_out,
    "kind of image said elsewhere": _kind_elsewhere,
    "empty, null, private and elsewhere": _empty_and_elsewhere,
    "per-frame items first": _places_first,
}
