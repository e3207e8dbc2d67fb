"""What an analysis is turned into: one row per document.

Adding an output is one encode function and one row here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from dicom_io.analysis import Analysis
from dicom_io.annotation import GraphicType, encode_annotation
from dicom_io.report import encode_report
from dicom_io.segmentation import encode_segmentation

DICOM_MEDIA_TYPE = "application/dicom"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One document of a result, as it lies in the work files.

    Attributes
    ----------
    kind
        ``ANN``, ``SEG``, ``SR``, ``FHIR`` or the name of a picture.
    media_type
    sha256
        Digest and work-file name of the payload.
    study_uid, series_uid, uid
        Of a DICOM object; empty for others.
    """

    kind: str
    media_type: str
    sha256: str
    study_uid: str = ""
    series_uid: str = ""
    uid: str = ""


Documents = Mapping[str, Dataset]


def _annotation(analysis: Analysis, made: Documents, graphic_type: GraphicType) -> Dataset | None:
    """An ANN needs at least one group (PS3.3 C.37.1.2): a slide without cells has none."""
    if not len(analysis.cells):
        return None
    return encode_annotation(analysis, graphic_type)


def _segmentation(analysis: Analysis, made: Documents, graphic_type: GraphicType) -> Dataset | None:
    """A SEG needs at least one region."""
    if not len(analysis.regions.box_px):
        return None
    return encode_segmentation(analysis)


def _report(analysis: Analysis, made: Documents, graphic_type: GraphicType) -> Dataset | None:
    return encode_report(analysis, made.get("ANN"), made.get("SEG"))


# In the order of making: the report refers to the two before it.
OUTPUTS: dict[str, Callable[[Analysis, Documents, GraphicType], Dataset | None]] = {
    "ANN": _annotation,
    "SEG": _segmentation,
    "SR": _report,
}


def encode_documents(analysis: Analysis, graphic_type: GraphicType) -> dict[str, Dataset]:
    """Every DICOM document of an analysis by its kind."""
    made: dict[str, Dataset] = {}
    for kind, encode in OUTPUTS.items():
        document = encode(analysis, made, graphic_type)
        if document is not None:
            made[kind] = document
    return made


def to_bytes(document: Dataset) -> bytes:
    """A DICOM file (PS3.10) with preamble and meta information."""
    stream = io.BytesIO()
    dcmwrite(stream, document, enforce_file_format=True)
    return stream.getvalue()


def from_bytes(content: bytes) -> Dataset:
    return dcmread(io.BytesIO(content))


def references(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Kind → [study, series, instance] UIDs of the DICOM artifacts."""
    return {
        kind: [artifact.study_uid, artifact.series_uid, artifact.uid]
        for kind, artifact in artifacts.items()
        if artifact.media_type == DICOM_MEDIA_TYPE
    }
