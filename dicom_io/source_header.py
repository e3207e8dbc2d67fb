"""The slide's header as documents copy it: complete, and without what no receiver could read.

Real slides leave attributes out, and hold values that their VR does not allow. Documents carry
what is there unchanged; what would make them invalid is left empty and named in the log, by its
keyword alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import copy

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import DA, DS, TM

from dicom_io.analysis import Analysis
from dicom_io.errors import InputError
from dicom_io.z_offset import UM_PER_MM

log = logging.getLogger(__name__)

# Documents are written in UTF-8 whatever the slide came in: names stay the same text, and an
# archive's JSON is UTF-8 already while it still names the character set of the file (PS3.18 F.2).
CHARACTER_SET = "ISO_IR 192"

_IDENTIFYING = ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID")
# Type-2 attributes of the Patient and General Study modules that real slides leave out.
_EMPTY_WHEN_MISSING = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_SPECIMEN_MODULE = (
    "ContainerIdentifier",
    "IssuerOfTheContainerIdentifierSequence",
    "AlternateContainerIdentifierSequence",
    "ContainerTypeCodeSequence",
    "ContainerDescription",
    "ContainerComponentSequence",
    "SpecimenDescriptionSequence",
)
_CONTAINER_EMPTY_WHEN_MISSING = (
    "IssuerOfTheContainerIdentifierSequence",
    "ContainerTypeCodeSequence",
)
_SPECIMEN_EMPTY_WHEN_MISSING = (
    "IssuerOfTheSpecimenIdentifierSequence",
    "SpecimenPreparationSequence",
)
# Enumerated values of Patient's Sex (PS3.3 C.7.1.1).
_SEXES = ("", "M", "F", "O")


def text_of(dataset: Dataset, keyword: str) -> str:
    """A value as text without blanks around it; empty where there is none.

    Several values where one is allowed stay as DICOM writes them, with backslashes between.
    """
    value = dataset.get(keyword)
    if isinstance(value, MultiValue):
        return "\\".join(map(str, value)).strip()
    return str(value or "").strip()


def source_header(analysis: Analysis) -> Dataset:
    """The slide's header with every type-2 attribute, if only empty, and no invalid value.

    Raises
    ------
    InputError
        When the header lacks what identifies the slide.

    Notes
    -----
    Without a Specimen Description the Specimen module (PS3.3 C.7.6.22) is left out as a whole: a
    Container Identifier alone is not allowed, and a specimen is not made up.
    """
    header = _resettable(analysis.slide.header)
    series_uid = analysis.slide.series_uid
    for keyword in _IDENTIFYING:
        if not header.get(keyword):
            raise InputError(
                f"The metadata of series {series_uid} lacks {keyword}: "
                "the archive must return it before results can refer to the slide."
            )
    header.SpecificCharacterSet = CHARACTER_SET
    for keyword in _EMPTY_WHEN_MISSING:
        if keyword not in header:
            setattr(header, keyword, "")
    _empty_invalid(header, series_uid)
    _complete_specimen(header)
    header.TotalPixelMatrixOriginSequence = [_origin(analysis)]
    return header


def _resettable(dataset: Dataset) -> Dataset:
    """The same, with elements of its own; their values are shared, as most stay what they are."""
    return Dataset({element.tag: copy(element) for element in dataset})


def _empty_invalid(header: Dataset, series_uid: str) -> None:
    for keyword in ("PatientBirthDate", "StudyDate"):
        # yyyy.mm.dd of ACR-NEMA may be read, but no longer written (PS3.5 6.2, DA).
        setattr(header, keyword, str(header.get(keyword) or "").replace(".", ""))
    for keyword, is_valid in _CHECKS.items():
        if not is_valid(header.get(keyword)):
            log.warning(
                "%s of series %s is not what its VR allows: results leave it empty",
                keyword,
                series_uid,
            )
            setattr(header, keyword, "")


def _is_sex(value: object) -> bool:
    return str(value or "") in _SEXES


def _is_date(value: object) -> bool:
    try:
        DA(value)
    except (ValueError, TypeError):
        return False
    return True


def _is_time(value: object) -> bool:
    try:
        TM(value)
    except (ValueError, TypeError):
        return False
    return True


_CHECKS: dict[str, Callable[[object], bool]] = {
    "PatientBirthDate": _is_date,
    "PatientSex": _is_sex,
    "StudyDate": _is_date,
    "StudyTime": _is_time,
}


def _complete_specimen(header: Dataset) -> None:
    specimens = header.get("SpecimenDescriptionSequence") or []
    whole = [each for each in specimens if each.get("SpecimenIdentifier") and "SpecimenUID" in each]
    if not header.get("ContainerIdentifier") or not specimens or len(whole) < len(specimens):
        for keyword in _SPECIMEN_MODULE:
            header.pop(keyword, None)
        return
    for keyword in _CONTAINER_EMPTY_WHEN_MISSING:
        if keyword not in header:
            setattr(header, keyword, [])
    header.SpecimenDescriptionSequence = [_resettable(each) for each in specimens]
    for specimen in header.SpecimenDescriptionSequence:
        for keyword in _SPECIMEN_EMPTY_WHEN_MISSING:
            if keyword not in specimen:
                setattr(specimen, keyword, [])


def _origin(analysis: Analysis) -> Dataset:
    """The origin that the slide was opened with: real headers lack it."""
    x_mm, y_mm, z_mm = analysis.slide.origin_mm.tolist()
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = DS(x_mm, auto_format=True)
    origin.YOffsetInSlideCoordinateSystem = DS(y_mm, auto_format=True)
    origin.ZOffsetInSlideCoordinateSystem = DS(z_mm * UM_PER_MM, auto_format=True)
    return origin
