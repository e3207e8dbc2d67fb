"""Faults that show only when objects are looked at together."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np

from conformance.reading import items
from tests.kit.annotation_faults import group, points, set_points
from tests.kit.bases import Case


def reference_dangling(case: Case) -> None:
    case.objects.remove(case.ann)


def reference_class(case: Case) -> None:
    for _, item in items(case.sr):
        if item.get("ReferencedSOPInstanceUID") == case.seg.SOPInstanceUID:
            item.ReferencedSOPClassUID = case.ann.SOPClassUID


def reference_series(case: Case) -> None:
    case.ann.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3.4"


def instance_uid_twice(case: Case) -> None:
    ann, seg = case.ann, case.seg
    seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = ann.SOPInstanceUID


def series_of_two_modalities(case: Case) -> None:
    case.ann.SeriesInstanceUID = case.sr.SeriesInstanceUID


def series_in_two_studies(case: Case) -> None:
    other = deepcopy(case.seg)
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    other.StudyInstanceUID = "1.2.3"
    case.objects.append(other)


def frame_of_reference_of_another(case: Case) -> None:
    case.seg.FrameOfReferenceUID = "1.2.3"


def observation(case: Case, code: str) -> dict[str, Any]:
    return next(
        entry["resource"]
        for entry in case.fhir["entry"]
        if entry["resource"]["resourceType"] == "Observation"
        and entry["resource"]["code"]["coding"][0]["code"] == code
    )


def resource(case: Case, kind: str) -> dict[str, Any]:
    return next(
        entry["resource"]
        for entry in case.fhir["entry"]
        if entry["resource"]["resourceType"] == kind
    )


def agree_count(case: Case) -> None:
    item = group(case)
    set_points(item, points(item)[:-4])
    item.NumberOfAnnotations -= 1
    for measurement in item.MeasurementsSequence:
        values = measurement.MeasurementValuesSequence[0]
        values.FloatingPointValues = values.FloatingPointValues[:-4]


def agree_count_fhir(case: Case) -> None:
    observation(case, "myelocyte")["component"][0]["valueQuantity"]["value"] += 1


def agree_percent(case: Case) -> None:
    observation(case, "promyelocyte")["valueQuantity"]["value"] += 0.5


def agree_study(case: Case) -> None:
    resource(case, "DiagnosticReport")["imagingStudy"][0]["identifier"]["value"] = "urn:oid:1.2.3"


def agree_patient(case: Case) -> None:
    case.ann.PatientID = "SOMEBODY-ELSE"


def agree_patient_fhir(case: Case) -> None:
    resource(case, "DiagnosticReport")["subject"]["identifier"]["value"] = "SOMEBODY-ELSE"


def agree_model(case: Case) -> None:
    for version in resource(case, "Device")["version"]:
        if "SHA-256" in version["type"]["text"]:
            version["value"] = "00" * 32


def agree_version(case: Case) -> None:
    case.seg.SoftwareVersions = "0.0.1"


def agree_time(case: Case) -> None:
    report = resource(case, "DiagnosticReport")
    report["issued"] = report["issued"].replace("T12:", "T13:")


def agree_status(case: Case) -> None:
    resource(case, "DiagnosticReport")["status"] = "final"


def agree_regions(case: Case) -> None:
    """One pixel more, and that is a frame of the slide."""
    stored = np.frombuffer(case.seg.PixelData, np.uint8).copy()
    (empty,) = np.nonzero(np.unpackbits(stored, bitorder="little") == 0)
    stored[empty[0] // 8] |= 1 << (empty[0] % 8)
    case.seg.PixelData = stored.tobytes()


def agree_objects(case: Case) -> None:
    for entity in resource(case, "Provenance")["entity"]:
        if entity["what"].get("display") == "SR":
            entity["what"]["identifier"]["value"] = "urn:oid:1.2.3"
