"""Results into the archive and the EHR: ask first, send, read back, reconcile.

Some archives delete, refuse or duplicate on a second STOW, so an object that is there is never sent
again. A job is done only when what was read back says the same in ANN, SR and FHIR as was computed.

The EHR is told only once the archive has given back what was stored, unchanged and under the same
patient. Archives coerce patient attributes as they store (PS3.18 10.5.3, Warning Reason B000). A
name in another spelling, or an attribute filled in that the slide did not have, is accepted;
another ID or issuer, another name, birth date or sex is a failed job: the report would be read as
another person's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from pydicom.dataset import Dataset

from conformance.agreement import check_agreement, check_standing, check_subject
from dicom_io.dimse import DimseArchive, open_dimse
from dicom_io.errors import (
    InputError,
    PacsNotFound,
    PacsReadBackDiffers,
    PacsRefused,
    ResultsDisagree,
)
from dicom_io.pacs import Pacs, open_pacs
from dicom_io.pacs_errors import FOREIGN_ERRORS
from dicom_io.report_content import report_items
from dicom_io.segmentation import decode_segmentation
from dicom_io.source_header import text_of
from node.config import Settings
from node.outputs import Artifact

CONTENT_NOT_READ = "listed by C-FIND, content not read back"
CONTENT_NOT_READABLE = "acknowledged by MLLP, which cannot be asked for what it holds"
LOOK_S = 0.5
# What tells persons apart, and must come back as it was sent.
IDENTIFIERS = ("PatientID", "IssuerOfPatientID")
# What may be filled in besides, where the slide has nothing.
DEMOGRAPHICS = ("PatientName", "PatientBirthDate", "PatientSex")


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
    place = (artifact.study_uid, artifact.series_uid, artifact.uid)
    there, remark = pacs.has_instance(*place), ""
    if not there:
        try:
            remark = pacs.store([document])
        except PacsRefused:
            # Some refuse what they have without saying that this is why.
            if not pacs.has_instance(*place):
                raise
            there, remark = True, "the archive refused it and has it"
    status = "already there" if there else "stored"
    notes = [remark]
    if isinstance(pacs, DimseArchive):
        notes += [pacs.commitment(document), "" if pacs.reads_back else CONTENT_NOT_READ]
    note = "; ".join(filter(None, notes))
    return Receipt("PACS", artifact.kind, artifact.uid, status, now_utc(), note)


def read_back(
    pacs: Pacs | DimseArchive,
    artifacts: Mapping[str, Artifact],
    sent: Mapping[str, Dataset],
    within_s: float = 0.0,
) -> dict[str, Dataset]:
    """Retrieve every DICOM artifact from the archive, by kind.

    An archive that can only be asked by C-FIND has to list each; then `sent` stands for what it
    holds, and the receipts say so.

    Parameters
    ----------
    pacs
    artifacts, sent
        The documents as they were made, by kind.
    within_s
        Seconds to wait for those that it does not give at once.

    Raises
    ------
    PacsReadBackDiffers
        When the archive has taken an object and does not give it.
    """
    end = time.monotonic() + within_s
    returned: dict[str, Dataset] = {}
    for kind, artifact in artifacts.items():
        place = (artifact.study_uid, artifact.series_uid, artifact.uid)
        while artifact.uid and kind not in returned:
            given = _given(pacs, place, sent[kind])
            if given is not None:
                returned[kind] = given
            elif time.monotonic() >= end:
                raise PacsReadBackDiffers(
                    f"{pacs.name} took {kind} {artifact.uid} and does not give it: look for it "
                    "there, check what the archive does with such objects, and submit the slide "
                    "again."
                )
            else:
                time.sleep(min(LOOK_S, max(0.0, end - time.monotonic())))
    return returned


def _given(pacs: Pacs | DimseArchive, place: tuple[str, str, str], sent: Dataset) -> Dataset | None:
    """An object as the archive gives it, None where it does not."""
    if isinstance(pacs, DimseArchive) and not pacs.reads_back:
        return sent if pacs.has_instance(*place) else None
    try:
        return pacs.retrieve_instance(*place)
    except PacsNotFound:
        return None


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
        When counts, percentages, references, patient or standing differ between the documents.
    """
    check_unchanged(sent, returned)
    bundle = {"resourceType": "Bundle", "entry": [{"resource": dict(each)} for each in fhir]}
    with _readable("SR", sent["SR"]):
        findings = check_agreement(returned.get("ANN"), returned["SR"], bundle)
        findings += check_standing(returned["SR"], bundle) + check_subject(returned["SR"], bundle)
    if findings:
        first = findings[0]
        raise ResultsDisagree(
            f"The documents as read back do not agree ({len(findings)} findings); the first: "
            f"{first.sentence} Withdraw the report of SR {returned['SR'].SOPInstanceUID} and "
            "look for what changed an object on its way."
        )


def check_unchanged(sent: Mapping[str, Dataset], returned: Mapping[str, Dataset]) -> None:
    """Compare what came back from the archive with what was sent.

    Parameters
    ----------
    sent, returned
        As of :func:`reconcile`.

    Raises
    ------
    PacsReadBackDiffers
        Naming the object, and what differs.
    """
    for kind, document in sent.items():
        with _readable(kind, document):
            _same_patient(kind, document, returned[kind])
            if kind == "ANN":
                _same_cells(document, returned[kind])
            elif kind == "SEG":
                _same_mask(document, returned[kind])
            elif kind == "SR":
                _same_report(document, returned[kind])
            else:
                _same_payload(kind, document, returned[kind])


@contextmanager
def _readable(kind: str, sent: Dataset) -> Iterator[None]:
    """Say of an object that came back which of its parts are missing: that it is not whole."""
    try:
        yield
    # pydicom reads sequences when they are asked for.
    except (*FOREIGN_ERRORS, InputError) as error:
        raise PacsReadBackDiffers(
            f"{kind} {sent.SOPInstanceUID} came back from the PACS without a part of what was "
            "stored: do not use it, and check whether the archive cuts or alters such objects."
        ) from error


def _same_patient(kind: str, sent: Dataset, returned: Dataset) -> None:
    differ = [name for name in IDENTIFIERS if _said(sent, name) != _said(returned, name)]
    differ += [
        name
        for name in DEMOGRAPHICS
        if _said(sent, name) and _said(sent, name) != _said(returned, name)
    ]
    if differ:
        raise PacsReadBackDiffers(
            f"{kind} {sent.SOPInstanceUID} came back from the PACS under another patient "
            f"({', '.join(differ)}): find out which patient the archive means, correct it or the "
            "slide there, delete this object, and try the job again."
        )


def _said(document: Dataset, name: str) -> str:
    """An attribute of the patient; of a name its letters alone, in one spelling (PS3.5 6.2.1)."""
    value = text_of(document, name)
    if name != "PatientName":
        return value
    alphabetic = value.split("=")[0] or value
    return " ".join(re.split(r"[\^\s,.]+", alphabetic.casefold())).strip()


def _same_cells(sent: Dataset, returned: Dataset) -> None:
    groups, back = _drawn(sent), _drawn(returned)
    if groups == back:
        return
    pairs = enumerate(zip(groups, back, strict=False), 1)
    differ = [str(number) for number, (ours, theirs) in pairs if ours != theirs]
    what = (
        f"{len(back)} groups instead of {len(groups)}"
        if len(back) != len(groups)
        else f"other coordinates, types or values in group {', '.join(differ)}"
    )
    raise PacsReadBackDiffers(
        f"ANN {sent.SOPInstanceUID} came back from the PACS with {what}: do not use it, and check "
        "whether the archive alters bulk annotations."
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


def _same_report(sent: Dataset, returned: Dataset) -> None:
    """Of a report what its content items say and refer to, and whether a person verified it."""
    ours, theirs = report_items(sent), report_items(returned)
    if len(ours) != len(theirs):
        what = f"{len(theirs)} content items instead of {len(ours)}"
    elif differ := [one.name for one, other in zip(ours, theirs, strict=True) if one != other]:
        what = f"{len(differ)} other content items, the first of them {differ[0]}"
    elif sent.VerificationFlag != returned.VerificationFlag:
        what = f"the VerificationFlag {returned.VerificationFlag}"
    else:
        return
    raise PacsReadBackDiffers(
        f"SR {sent.SOPInstanceUID} came back from the PACS with {what}: do not use it, and check "
        "whether the archive cuts or alters reports."
    )


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
