"""What routing rules ask of a slide, read off its metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dicom_io.dicom_json import Json, value, values
from dicom_io.workitem import codes_in

# Where metadata say what a slide is of (PS3.3 C.7.6.22 Specimen, 10.5 General Anatomy).
_SPECIMEN_CODES = ("SpecimenTypeCodeSequence", "PrimaryAnatomicStructureSequence")
_IMAGE_CODES = ("AnatomicRegionSequence", "PrimaryAnatomicStructureSequence")
_YEAR_DAYS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclass(frozen=True, slots=True)
class SlideFacts:
    """What is known of a series; empty or None where its metadata do not say.

    Attributes
    ----------
    modality
    codes
        Of specimen type, anatomic structure and region, each ``VALUE^SCHEME``.
    body_part
    station
        Station Name, or the scanner's model where there is none.
    accession
    description
        Series Description.
    age_years
        Of the patient at the time of the study.
    """

    modality: str = ""
    codes: frozenset[str] = frozenset()
    body_part: str = ""
    station: str = ""
    accession: str = ""
    description: str = ""
    age_years: float | None = None


def slide_facts(metadata: Iterable[Json]) -> SlideFacts:
    """Facts of a series, from the metadata of its instances: the first that says something."""
    items = list(metadata)

    def said(keyword: str) -> str:
        found = (value(item, keyword) for item in items)
        return next((str(each).strip() for each in found if each), "")

    codes: set[str] = set()
    for item in items:
        for keyword in _IMAGE_CODES:
            codes |= codes_in(item, keyword)
        for specimen in values(item, "SpecimenDescriptionSequence"):
            for keyword in _SPECIMEN_CODES:
                codes |= codes_in(specimen, keyword)
    return SlideFacts(
        modality=said("Modality"),
        codes=frozenset(codes),
        body_part=said("BodyPartExamined"),
        station=said("StationName") or said("ManufacturerModelName"),
        accession=said("AccessionNumber"),
        description=said("SeriesDescription"),
        age_years=_age_years(said("PatientAge"), said("PatientBirthDate"), said("StudyDate")),
    )


def _age_years(age: str, born: str, studied: str) -> float | None:
    """Patient's Age (VR AS), or the years between birth and study (VR DA)."""
    told = re.fullmatch(r"(\d{3})([DWMY])", age)
    if told:
        return int(told[1]) * _YEAR_DAYS[told[2]]
    if not (re.fullmatch(r"\d{8}", born) and re.fullmatch(r"\d{8}", studied)):
        return None
    # 20260228 - 19260301 = 999927: the years are what stands before the last four digits.
    return float((int(studied) - int(born)) // 10_000)
