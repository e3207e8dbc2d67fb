"""Who made a document, with what, and under which UID."""

from __future__ import annotations

import json
from datetime import UTC, datetime, tzinfo
from importlib.metadata import version

from highdicom import AlgorithmIdentificationSequence, SOPClass
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID, Comprehensive3DSRStorage

from dicom_io.analysis import FIRST_REVISION, Analysis
from dicom_io.codes import ALGORITHM_FAMILY, LOCAL_SCHEME
from dicom_io.derived_uid import derive_uid

MANUFACTURER = "marrow-node project"
MODEL_NAME = "marrow-node"
SERIAL_NUMBER = "1"
SOFTWARE_VERSION = version("marrow-node")
LONG_STRING = 64
"""Most characters of a value of VR LO (PS3.5 6.2)."""


def load_tables() -> None:
    """Let highdicom read its tables of the standard, which its first object waits for."""
    SOPClass(
        study_instance_uid=derive_uid("study"),
        series_instance_uid=derive_uid("series"),
        series_number=1,
        sop_instance_uid=derive_uid("instance"),
        sop_class_uid=Comprehensive3DSRStorage,
        instance_number=1,
        modality="SR",
        manufacturer=MANUFACTURER,
    )


def result_uid(analysis: Analysis, *what: str) -> UID:
    """UID of one part of an analysis' results: the same work gives the same objects."""
    return _derived(analysis, analysis.revision, *what)


def lasting_uid(analysis: Analysis, *what: str) -> UID:
    """UID of what stays one thing through all revisions: a finding, a report in the EHR."""
    return _derived(analysis, FIRST_REVISION, *what)


def _derived(analysis: Analysis, revision: int, *what: str) -> UID:
    slide = analysis.slide
    return derive_uid(
        slide.study_uid,
        slide.series_uid,
        *sorted(slide.source_instances),
        analysis.model.digest,
        analysis.configuration_digest,
        str(revision),
        *what,
    )


def algorithm_identification(analysis: Analysis) -> AlgorithmIdentificationSequence:
    """The model package as Algorithm Identification (PS3.3 10.16)."""
    model = analysis.model
    return AlgorithmIdentificationSequence(
        name=model.name[:LONG_STRING],
        family=ALGORITHM_FAMILY,
        version=model.version[:LONG_STRING],
        source=MANUFACTURER,
        parameters={
            "package_sha256": model.digest,
            "configuration_sha256": analysis.configuration_digest,
            "icc": analysis.icc,
        },
    )


def complete_laterality(document: Dataset) -> None:
    """Laterality is of type 2C (PS3.3 C.7.3.1): empty where nobody said what was examined.

    A specimen has no side.
    """
    if "SpecimenDescriptionSequence" not in document:
        document.Laterality = ""


def finish(document: Dataset, analysis: Analysis) -> None:
    """Make a document the same whenever it is made, and readable everywhere.

    The series begins when the analysis does, so that its documents can be made again from their
    own header; all other times become that of the revision. Text that is plain ASCII needs no
    character set, which some readers complain of; the node's own coding scheme is named. Times are
    told in the zone of the slide's header, as what is copied from there has no other (PS3.3
    C.12.1.1.8).
    """
    zone = zone_of(analysis.slide.header)
    issued = analysis.issued.astimezone(zone)
    date, time = issued.strftime("%Y%m%d"), issued.strftime("%H%M%S.%f")
    begun = issued if analysis.signature is not None else analysis.started.astimezone(zone)
    document.SeriesDate, document.SeriesTime = begun.strftime("%Y%m%d"), begun.strftime("%H%M%S.%f")
    document.InstanceCreationDate = document.ContentDate = date
    document.InstanceCreationTime = document.ContentTime = time
    document.TimezoneOffsetFromUTC = issued.strftime("%z")
    for equipment in document.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in equipment:
            equipment.ContributionDateTime = date + time
    scheme = Dataset()
    scheme.CodingSchemeDesignator = LOCAL_SCHEME
    scheme.CodingSchemeName = "marrow-node codes"
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    document.CodingSchemeIdentificationSequence = [scheme]
    text = document.to_json_dict(bulk_data_threshold=1024, bulk_data_element_handler=_no_text)
    if json.dumps(text, ensure_ascii=False).isascii():
        document.pop("SpecificCharacterSet", None)


def zone_of(header: Dataset) -> tzinfo:
    """Zone of the times in a header without one of their own; UTC where it names none."""
    try:
        return datetime.strptime(str(header.get("TimezoneOffsetFromUTC")), "%z").tzinfo or UTC
    except ValueError:
        return UTC


def _no_text(_: DataElement) -> str:
    return ""


def series_description(analysis: Analysis, what: str) -> str:
    """At most 64 characters (VR LO)."""
    demonstration = " (demonstration)" if analysis.model.demonstration else ""
    return f"{what}, {analysis.model.name} {analysis.model.version}{demonstration}"[:64]
