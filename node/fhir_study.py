"""The DICOM objects of a result as a FHIR ImagingStudy, contained in the report.

The archive, or whoever speaks for it, keeps the ImagingStudy of an EHR; a node that created one
would make a second. Contained, it says which series and instances the report is about, also to an
EHR that knows no study.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    MicroscopyBulkSimpleAnnotationsStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    VLWholeSlideMicroscopyImageStorage,
)

from dicom_io.analysis import Analysis
from node.ehr_records import UID_SYSTEM, Resource
from node.fhir_header import context_of

DCM = "http://dicom.nema.org/resources/ontology/DCM"
# Kind of document → modality and SOP class.
_KINDS = {
    "SM": ("SM", VLWholeSlideMicroscopyImageStorage),
    "ANN": ("ANN", MicroscopyBulkSimpleAnnotationsStorage),
    "SEG": ("SEG", SegmentationStorage),
    "SR": ("SR", Comprehensive3DSRStorage),
    "PDF": ("DOC", EncapsulatedPDFStorage),
    "SC overview": ("OT", SecondaryCaptureImageStorage),
    "SC differential": ("OT", SecondaryCaptureImageStorage),
    "PM": ("OT", ParametricMapStorage),
}


def contained_study(
    analysis: Analysis, references: Mapping[str, tuple[str, str, str]]
) -> Resource | None:
    """The study with the slide's instances that were read and the documents written.

    None where the patient is not known: an ImagingStudy needs a subject.
    """
    subject = context_of(analysis.slide.header).get("subject")
    if subject is None:
        return None
    series: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for level in analysis.slide.levels:
        for series_uid, uid in zip(level.series_uids, level.instance_uids, strict=True):
            series[series_uid].append(("SM", uid))
    for kind, (_, series_uid, uid) in references.items():
        series[series_uid].append((kind, uid))
    return {
        "resourceType": "ImagingStudy",
        "id": "study",
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{analysis.slide.study_uid}"}],
        "status": "available",
        "subject": subject,
        "series": [_series(uid, instances) for uid, instances in series.items()],
    }


def _series(uid: str, instances: list[tuple[str, str]]) -> Resource:
    modality, _ = _KINDS[instances[0][0]]
    return {
        "uid": uid,
        "modality": {"system": DCM, "code": modality},
        "numberOfInstances": len(instances),
        "instance": [
            {
                "uid": instance,
                "sopClass": {"system": UID_SYSTEM, "code": f"urn:oid:{_KINDS[kind][1]}"},
            }
            for kind, instance in instances
        ],
    }
