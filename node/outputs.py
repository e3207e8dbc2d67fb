"""What an analysis is turned into: one row per document.

Adding an output is one encode function and one row here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from dicom_io.analysis import Analysis, Decision
from dicom_io.annotation import encode_annotation
from dicom_io.parametric_map import encode_parametric_map
from dicom_io.rendition import encode_capture, encode_pdf
from dicom_io.report import encode_report
from dicom_io.segmentation import encode_segmentation
from models.records import UInt8
from node.config import OutputSettings

DICOM_MEDIA_TYPE = "application/dicom"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One document of a result, as it lies in the work files.

    Attributes
    ----------
    kind
        A key of ``OUTPUTS``, ``FHIR``, or the name of a picture or a PDF.
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


@dataclass(frozen=True, slots=True)
class Renditions:
    """The report as people see it; empty where it was not drawn.

    Attributes
    ----------
    pdf
        The file.
    pictures
        Name → RGB (H, W, 3).
    """

    pdf: bytes = b""
    pictures: Mapping[str, UInt8] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Making:
    """What a document is made from: the analysis, those made before it, how and from what.

    `predecessors` are the reports that this one replaces.
    """

    analysis: Analysis
    made: Documents
    settings: OutputSettings
    renditions: Renditions
    predecessors: Sequence[Dataset]


def _annotation(making: _Making) -> Dataset | None:
    """An ANN needs at least one group (PS3.3 C.37.1.2): a slide without cells has none."""
    if not len(making.analysis.cells):
        return None
    how = making.settings
    return encode_annotation(
        making.analysis, how.graphic_type, how.coordinates, how.cells_per_group
    )


def _segmentation(making: _Making) -> Dataset | None:
    """A SEG needs at least one region."""
    if not len(making.analysis.regions.box_px):
        return None
    return encode_segmentation(making.analysis)


def _report(making: _Making) -> Dataset | None:
    return encode_report(
        making.analysis, making.made.get("ANN"), making.made.get("SEG"), making.predecessors
    )


def _pdf(making: _Making) -> Dataset | None:
    if not making.settings.pdf or not making.renditions.pdf:
        return None
    return encode_pdf(making.analysis, making.renditions.pdf, making.made["SR"])


def _capture(name: str, number: int, making: _Making) -> Dataset | None:
    rgb = making.renditions.pictures.get(name)
    if not making.settings.captures or rgb is None:
        return None
    return encode_capture(making.analysis, rgb, name, number)


def _parametric_map(making: _Making) -> Dataset | None:
    if not making.settings.parametric_map or not len(making.analysis.regions.box_px):
        return None
    return encode_parametric_map(making.analysis)


# In the order of making: the report refers to the two before it, its PDF to the report.
OUTPUTS: dict[str, Callable[[_Making], Dataset | None]] = {
    "ANN": _annotation,
    "SEG": _segmentation,
    "SR": _report,
    "PDF": _pdf,
    "SC overview": partial(_capture, "overview", 1),
    "SC differential": partial(_capture, "differential", 2),
    "PM": _parametric_map,
}
# What a revision of each decision refers to instead of writing it anew: what it did not change.
KEPT: Mapping[Decision, tuple[str, ...]] = {
    "confirmed": ("ANN", "SEG", "SC overview", "SC differential", "PM"),
    "corrected": ("SEG", "PM"),
    "withdrawn": (),
}
# What a withdrawn result is written as: what shows cells or numbers is left out.
OF_WITHDRAWN = ("SR", "PDF")


def encode_documents(
    analysis: Analysis,
    settings: OutputSettings | None = None,
    renditions: Renditions | None = None,
    kept: Documents | None = None,
    predecessors: Sequence[Dataset] = (),
) -> dict[str, Dataset]:
    """Every DICOM document of an analysis that the settings ask for, by its kind.

    Parameters
    ----------
    analysis, settings, renditions
    kept
        Documents of the revision before that still hold: referred to, and not written anew.
    predecessors
        Reports that this revision's replaces.
    """
    made: dict[str, Dataset] = {}
    settings, renditions = settings or OutputSettings(), renditions or Renditions()
    kinds = OF_WITHDRAWN if analysis.standing == "withdrawn" else tuple(OUTPUTS)
    for kind in kinds:
        document = (kept or {}).get(kind) or OUTPUTS[kind](
            _Making(analysis, made, settings, renditions, predecessors)
        )
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
