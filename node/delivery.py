"""Results into the archive and the EHR: ask first, send, read back, reconcile.

Some archives delete, refuse or duplicate on a second STOW, so an object that is there is never sent
again. A job is done only when what was read back says the same in ANN, SR and FHIR as was computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from pydicom.dataset import Dataset

from conformance.agreement import check_agreement, check_standing
from dicom_io.dimse import DimseArchive, open_dimse
from dicom_io.errors import PacsReadBackDiffers, ResultsDisagree
from dicom_io.pacs import Pacs, open_pacs
from dicom_io.segmentation import decode_segmentation
from node.config import Settings
from node.outputs import Artifact

CONTENT_NOT_READ = "listed by C-FIND, content not read back"
ALREADY_THERE = "already there"
CONTENT_NOT_READABLE = "acknowledged by MLLP, which cannot be asked for what it holds"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one artifact at one target.

    Attributes
    ----------
    target
        ``PACS`` or ``EHR``.
    kind, uid
        Of the artifact.
    status
        ``stored``, or ``already there`` when asking showed that nothing had to be sent.
    at
        UTC, ISO 8601.
    note
        What an archive without STOW-RS remarked: warnings, storage commitment; or that an EHR
        cannot be asked.
    """

    target: Literal["PACS", "EHR"]
    kind: str
    uid: str
    status: str
    at: str
    note: str = ""


def now_utc() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def open_destination(settings: Settings) -> Pacs | DimseArchive:
    """Open the archive that results go to.

    Raises
    ------
    ConfigurationInvalid
        Its URL, or what the settings say of it, is not usable.
    """
    url = settings.results_url or settings.pacs_url
    if not url.startswith("dimse:"):
        return open_pacs(url, settings.pacs)
    commitments = settings.work_folder / "commitments"
    return open_dimse(url, settings.dimse, settings.pacs_url, settings.pacs, commitments)


def deliver_to_pacs(pacs: Pacs | DimseArchive, artifact: Artifact, document: Dataset) -> Receipt:
    """Store one object unless the archive already has it.

    Raises
    ------
    PacsError
        When the archive cannot be asked, or refuses the object.
    """
    there = pacs.has_instance(artifact.study_uid, artifact.series_uid, artifact.uid)
    remark = "" if there else pacs.store([document])
    status = ALREADY_THERE if there else "stored"
    notes = [remark]
    if isinstance(pacs, DimseArchive):
        notes += [pacs.commitment(document), "" if pacs.reads_back else CONTENT_NOT_READ]
    note = "; ".join(filter(None, notes))
    return Receipt("PACS", artifact.kind, artifact.uid, status, now_utc(), note)


def read_back(
    pacs: Pacs | DimseArchive, artifacts: Mapping[str, Artifact], sent: Mapping[str, Dataset]
) -> dict[str, Dataset]:
    """Retrieve every DICOM artifact from the archive, by kind.

    An archive that can only be asked by C-FIND has to list each; then `sent` stands for what it
    holds, and the receipts say so.

    Raises
    ------
    PacsReadBackDiffers
        When such an archive does not list an object.
    """
    places = {
        kind: (artifact.study_uid, artifact.series_uid, artifact.uid)
        for kind, artifact in artifacts.items()
        if artifact.uid
    }
    if not isinstance(pacs, DimseArchive) or pacs.reads_back:
        return {kind: pacs.retrieve_instance(*place) for kind, place in places.items()}
    for kind, place in places.items():
        if not pacs.has_instance(*place):
            raise PacsReadBackDiffers(
                f"{pacs.name} took {kind} {place[2]} and does not list it: look for it there and"
                " submit the slide again."
            )
    return {kind: sent[kind] for kind in places}


def reconcile(
    sent: Mapping[str, Dataset],
    returned: Mapping[str, Dataset],
    fhir: Sequence[Mapping[str, Any]],
) -> None:
    """Compare what came back with what was sent, then ANN, SR and FHIR with each other.

    Parameters
    ----------
    sent, returned
        The DICOM documents as they were made and as the archive returned them, by kind.
    fhir
        The report's resources as the EHR returned them.

    Raises
    ------
    PacsReadBackDiffers
        When an object came back with other content.
    ResultsDisagree
        When counts, percentages, references or standing differ between the documents.
    """
    same_objects(sent, returned)
    bundle = {"resourceType": "Bundle", "entry": [{"resource": dict(each)} for each in fhir]}
    findings = check_agreement(returned.get("ANN"), returned["SR"], bundle)
    findings += check_standing(returned["SR"], bundle)
    if findings:
        first = findings[0]
        raise ResultsDisagree(
            f"The documents as read back do not agree ({len(findings)} findings); the first: "
            f"{first.sentence} Withdraw the report of SR {returned['SR'].SOPInstanceUID} and "
            "look for what changed an object on its way."
        )


def same_objects(sent: Mapping[str, Dataset], returned: Mapping[str, Dataset]) -> None:
    """Compare cells, regions, PDF and pictures with what the archive has.

    What reports say is compared with the others by :func:`reconcile`.

    Raises
    ------
    PacsReadBackDiffers
        When an object came back with other content.
    """
    if "ANN" in sent:
        _same_cells(sent["ANN"], returned["ANN"])
    if "SEG" in sent:
        _same_mask(sent["SEG"], returned["SEG"])
    for kind in sent.keys() - {"ANN", "SEG", "SR"}:
        _same_payload(kind, sent[kind], returned[kind])


def _same_cells(sent: Dataset, returned: Dataset) -> None:
    if _drawn(sent) != _drawn(returned):
        raise PacsReadBackDiffers(
            f"ANN {sent.SOPInstanceUID} came back from the PACS with other coordinates, types or "
            "values: do not use it, and check whether the archive alters bulk annotations."
        )


def _drawn(annotation: Dataset) -> list[tuple[str | bytes, ...]]:
    """Of each group its type, its graphic, and every number that places or measures it."""
    groups = []
    for group in annotation.AnnotationGroupSequence:
        kind = group.AnnotationPropertyTypeCodeSequence[0]
        groups.append(
            (
                kind.CodingSchemeDesignator,
                kind.CodeValue,
                group.GraphicType,
                bytes(group.get("PointCoordinatesData", b"")),
                bytes(group.get("DoublePointCoordinatesData", b"")),
                str(group.get("CommonZCoordinateValue", "")),
                bytes(group.get("LongPrimitivePointIndexList", b"")),
                *(
                    bytes(values.FloatingPointValues)
                    for measurement in group.get("MeasurementsSequence", [])
                    for values in measurement.MeasurementValuesSequence
                ),
            )
        )
    return groups


def _same_payload(kind: str, sent: Dataset, returned: Dataset) -> None:
    """Of a PDF its bytes, of an image its pixels, which an archive may hold compressed."""
    if "EncapsulatedDocument" in sent:
        same = bytes(sent.EncapsulatedDocument) == bytes(returned.EncapsulatedDocument)
    else:
        same = np.array_equal(sent.pixel_array, returned.pixel_array)
    if not same:
        raise PacsReadBackDiffers(
            f"{kind} {sent.SOPInstanceUID} came back from the PACS with other content: "
            "do not use it, and check whether the archive alters such objects."
        )


def _same_mask(sent: Dataset, returned: Dataset) -> None:
    if not np.array_equal(decode_segmentation(sent).mask, decode_segmentation(returned).mask):
        raise PacsReadBackDiffers(
            f"SEG {sent.SOPInstanceUID} came back from the PACS with other pixels: "
            "do not use it, and check whether the archive transcodes segmentations."
        )
