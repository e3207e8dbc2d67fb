"""One revision as documents: DICOM, FHIR, HL7 v2, PDF and pictures in the work files."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from pydicom.dataset import Dataset

from dicom_io.analysis import Analysis
from dicom_io.provenance import load_tables
from models.records import UInt8
from node.config import OutputSettings
from node.fhir import build_bundle, conclusion_text, load_classes
from node.hl7v2 import MEDIA_TYPE as HL7_V2
from node.hl7v2 import encode_oru
from node.outputs import (
    DICOM_MEDIA_TYPE,
    Artifact,
    Renditions,
    encode_documents,
    from_bytes,
    to_bytes,
)
from node.pictures import EHR_BYTES, as_png, load_plotting, smaller
from node.report_pdf import draw_report, register_fonts
from node.work_files import WorkFiles

PNG = "image/png"
PDF_MEDIA_TYPE = "application/pdf"
FHIR_JSON = "application/fhir+json"
# Of each picture in the PDF, so that the whole file stays below a megabyte of base64.
PDF_PICTURE_BYTES = 300_000
# A thread that has decoded a tile waits so long at most for one that computes. Python's 5 ms leave
# an eighth of two cores idle while tiles are read, these a tenth.
SWITCH_S = 0.0001


@dataclass(frozen=True, slots=True)
class Before:
    """What a revision takes over from the one before.

    Attributes
    ----------
    kept
        Kind → artifact that still holds.
    predecessors
        Reports that the revision's replaces.
    sources
        Instance UID → what it is, of all that the review was made from.
    """

    kept: Mapping[str, Artifact] = field(default_factory=dict)
    predecessors: Sequence[Dataset] = ()
    sources: Mapping[str, str] = field(default_factory=dict)


def load_ahead() -> None:
    """Make this process, and those forked from it, ready for slides.

    What the first documents would wait for is loaded, and decoders give way to each other soon.

    The standard's tables, FHIR's classes, and what draws: some 400 000 objects that stay. The
    garbage collector does not look at them again, which takes it a tenth of a second every time,
    and would copy the memory that processes forked from this one share with it.
    """
    load_tables()
    load_classes()
    load_plotting()
    register_fonts()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_S)


def write_documents(
    work: WorkFiles,
    analysis: Analysis,
    output: OutputSettings,
    drawn: Iterable[tuple[str, UInt8]],
    before: Before | None = None,
    made: Mapping[str, Dataset] | None = None,
) -> dict[str, Any]:
    """Encode every document of a revision and put it into the work files.

    Parameters
    ----------
    work
    analysis
    output
        Which documents, and in what form.
    drawn
        Name and RGB (H, W, 3) of its pictures; each is encoded while the next is drawn.
    before
        None for a first revision.
    made
        Documents of this revision that were encoded before its pictures were drawn, by kind.

    Returns
    -------
    dict
        Kind → fields of its :class:`node.outputs.Artifact`.
    """
    before = before or Before()
    kept = {kind: from_bytes(work.get(each.sha256)) for kind, each in before.kept.items()}
    shown: dict[str, UInt8] = {}
    with ThreadPoolExecutor() as pool:
        # Pillow works beside Python's own threads; what holds no PNG is made meanwhile.
        encoding = {}
        for title, rgb in drawn:
            shown[title] = rgb
            encoding[title] = (
                pool.submit(smaller, rgb, (PDF_PICTURE_BYTES, EHR_BYTES)),
                pool.submit(as_png, rgb),
            )
        without = encode_documents(
            analysis, output, None, {**kept, **(made or {})}, before.predecessors
        )
        stored = _stored(work, without, before)
        pictures = {title: jpegs.result() for title, (jpegs, _) in encoding.items()}
        pdf = draw_report(
            analysis,
            conclusion_text(analysis),
            {title: jpegs[PDF_PICTURE_BYTES] for title, jpegs in pictures.items()},
        )
        documents = encode_documents(
            analysis, output, Renditions(pdf, shown), {**kept, **without}, before.predecessors
        )
        left = {kind: document for kind, document in documents.items() if kind not in stored}
        stored |= _stored(work, left, before)
        artifacts = {kind: stored[kind] for kind in documents}
        bundle = build_bundle(
            analysis,
            {kind: (each.study_uid, each.series_uid, each.uid) for kind, each in artifacts.items()},
            {title: jpegs[EHR_BYTES] for title, jpegs in pictures.items()},
            output.loinc,
            pdf,
            output.fhir,
            before.sources,
        )
    artifacts["FHIR"] = Artifact("FHIR", FHIR_JSON, work.put_json(bundle))
    for kind, (_, png) in encoding.items():
        artifacts[kind] = Artifact(kind, PNG, work.put(png.result()))
    artifacts["report"] = Artifact("report", PDF_MEDIA_TYPE, work.put(pdf))
    message = encode_oru(analysis, bundle, pdf).encode()
    artifacts["HL7"] = Artifact("HL7", HL7_V2, work.put(message))
    return {kind: asdict(artifact) for kind, artifact in artifacts.items()}


def _stored(
    work: WorkFiles, documents: Mapping[str, Dataset], before: Before
) -> dict[str, Artifact]:
    return {
        kind: before.kept.get(kind)
        or Artifact(
            kind,
            DICOM_MEDIA_TYPE,
            work.put(to_bytes(document)),
            document.StudyInstanceUID,
            document.SeriesInstanceUID,
            document.SOPInstanceUID,
        )
        for kind, document in documents.items()
    }
