"""Searches for studies, series and instances, answered (PS3.18 sections 8.3.4 and 10.6).

An instance is known by its header: some of its top-level attributes in DICOM JSON, the keys of
``ATTRIBUTES``. Matching is that of PS3.4 C.2.2.2: single value, list of UIDs, wild card, range and
universal; names match without regard to case, whole or by their component groups.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from pydicom.datadict import dictionary_VR, keyword_for_tag

from dicom_io.dicom_json import Json, key, value

Level = Literal["studies", "series", "instances"]
LEVELS: tuple[Level, ...] = ("studies", "series", "instances")

# What can be matched and is returned, by the level it belongs to: Tables 10.6.1-5 and 10.6.3-3 to
# 10.6.3-5, as far as the node's objects have it, and what tells its results apart.
ATTRIBUTES: Mapping[Level, tuple[str, ...]] = {
    "studies": (
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
        "StudyDescription",
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyID",
    ),
    "series": (
        "Modality",
        "SeriesDate",
        "SeriesTime",
        "SeriesDescription",
        "SeriesInstanceUID",
        "SeriesNumber",
    ),
    "instances": (
        "SOPClassUID",
        "SOPInstanceUID",
        "ContentDate",
        "ContentTime",
        "InstanceNumber",
        "ContentLabel",
        "ContentDescription",
        "CompletionFlag",
        "VerificationFlag",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "BitsAllocated",
    ),
}
TIMEZONE = "TimezoneOffsetFromUTC"
HEADER = (TIMEZONE, *(keyword for level in LEVELS for keyword in ATTRIBUTES[level]))
_LEVEL = {keyword: level for level in LEVELS for keyword in ATTRIBUTES[level]}
_LEVEL["ModalitiesInStudy"] = "studies"
_SWITCHES = ("fuzzymatching", "emptyvaluematching", "multiplevaluematching")
_RANGES = frozenset({"DA", "TM"})
_TIME = re.compile(r"\d{2,6}(\.\d{1,6})?")
_DATE = re.compile(r"\d{8}")

Address = Callable[[str, str, str], str]
"""Study, series and instance UID (the latter two may be empty) → URL to retrieve it from."""


class SearchInvalid(ValueError):
    """The request is not a search that can be answered; one sentence, without any value."""


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched for.

    Attributes
    ----------
    level
    matches
        Keyword → value as it was asked for.
    offset, limit
        Results to leave out at the beginning, and most of them; None for all.
    ignored
        Parameters that could not be honoured, to be told in a Warning.
    """

    level: Level
    matches: Mapping[str, str]
    offset: int = 0
    limit: int | None = None
    ignored: tuple[str, ...] = ()


def read_search(level: Level, parameters: Iterable[tuple[str, str]]) -> Search:
    """Understand the query of a search.

    Parameters
    ----------
    level
    parameters
        Names and values as in the address, decoded.

    Raises
    ------
    SearchInvalid
        A parameter is not known, cannot be matched at this level, comes twice or is malformed.
    """
    matches: dict[str, str] = {}
    paging: dict[str, int] = {}
    ignored: list[str] = []
    for name, given in parameters:
        if name in ("limit", "offset"):
            paging[name] = _count(name, given)
        elif name in _SWITCHES:
            if given.lower() not in ("true", "false"):
                raise SearchInvalid(f"Parameter {name} is neither true nor false.")
            if given.lower() == "true":
                ignored.append(name)
        elif name == "includefield":
            _check_fields(given)
        else:
            keyword = _keyword(name)
            if keyword in matches:
                raise SearchInvalid(f"{keyword} is asked for twice.")
            matches[keyword] = _checked(keyword, level, given)
    return Search(level, matches, paging.get("offset", 0), paging.get("limit"), tuple(ignored))


def answer(search: Search, headers: Sequence[Json], address: Address) -> list[Json]:
    """The results of a search, in the order of their UIDs, one page of them.

    Parameters
    ----------
    search
    headers
        ``HEADER`` of instances in DICOM JSON; of a study either all instances or none, since the
        results tell how many there are.
    address
    """
    end = None if search.limit is None else search.offset + search.limit
    page = islice(_results(search, headers, address), search.offset, end)
    return [dict(sorted(result.items())) for result in page]


def fits_study(search: Search, header: Json) -> bool:
    """Whether a study's attributes are what is searched for; which modalities it has is not seen.

    Parameters
    ----------
    search
        Of the level ``studies``.
    header
        Attributes of the study in DICOM JSON. Without a StudyDate it fits any, so that no slide of
        an undated study is lost.
    """
    if value(header, "StudyDate") is None and "StudyDate" in search.matches:
        dateless = {name: of for name, of in search.matches.items() if name != "StudyDate"}
        search = replace(search, matches=dateless)
    return _matches(search, header, "studies")


def _results(search: Search, headers: Sequence[Json], address: Address) -> Iterator[Json]:
    for study in _grouped(headers, "StudyInstanceUID").values():
        if not _study_matches(search, study):
            continue
        told = _study_result(study, address)
        if search.level == "studies":
            yield told
            continue
        for series in _grouped(study, "SeriesInstanceUID").values():
            if _matches(search, series[0], "series"):
                for result in _series_results(search, series, address):
                    yield told | result


def _series_results(search: Search, series: Sequence[Json], address: Address) -> Iterator[Json]:
    told = _series_result(series, address)
    if search.level == "series":
        yield told
        return
    for header in sorted(series, key=lambda each: str(value(each, "SOPInstanceUID"))):
        if _matches(search, header, "instances"):
            yield told | _instance_result(header, address)


def _count(name: str, given: str) -> int:
    if not (given.isascii() and given.isdecimal()) or len(given) > 9:
        raise SearchInvalid(f"Parameter {name} is not a whole number.")
    return int(given)


def _check_fields(given: str) -> None:
    """What can be included is always there; that it is a name of an attribute is checked."""
    for field in given.split(","):
        if field != "all":
            for part in field.split("."):
                _keyword(part)


def _keyword(name: str) -> str:
    """Keyword of an attribute named by keyword or by tag."""
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        name = keyword_for_tag(int(name, 16))
    try:
        key(name)
    except KeyError:
        raise SearchInvalid(
            f"Parameter {name[:40]!r} is neither known nor the keyword or tag of an attribute: "
            "correct its name."
        ) from None
    return name


def _checked(keyword: str, level: Level, given: str) -> str:
    belongs = _LEVEL.get(keyword)
    if belongs is None:
        raise SearchInvalid(f"{keyword} cannot be matched here: leave it out.")
    if LEVELS.index(belongs) > LEVELS.index(level):
        hint = ": use ModalitiesInStudy" if keyword == "Modality" else ""
        raise SearchInvalid(f"{keyword} is no key of {level}, but of {belongs}{hint}.")
    vr = dictionary_VR(keyword)
    if vr in _RANGES:
        pattern = _DATE if vr == "DA" else _TIME
        ends = given.split("-")
        if len(ends) > 2 or not all(pattern.fullmatch(end) for end in ends if end):
            raise SearchInvalid(f"{keyword} is neither a value of VR {vr} nor a range of two.")
    return given


def _grouped(headers: Iterable[Json], keyword: str) -> dict[str, list[Json]]:
    groups: dict[str, list[Json]] = {}
    for header in headers:
        groups.setdefault(str(value(header, keyword)), []).append(header)
    return {uid: groups[uid] for uid in sorted(groups)}


def _study_matches(search: Search, study: Sequence[Json]) -> bool:
    asked = search.matches.get("ModalitiesInStudy", "")
    return _matches(search, study[0], "studies") and (
        not asked or any(_is_match(asked, value(each, "Modality"), "CS") for each in study)
    )


def _matches(search: Search, header: Json, level: Level) -> bool:
    return all(
        _is_match(asked, value(header, keyword), dictionary_VR(keyword))
        for keyword, asked in search.matches.items()
        if keyword in ATTRIBUTES[level]
    )


def _is_match(asked: str, held: Any, vr: str) -> bool:
    if asked in ("", "*"):
        return True  # universal matching, C.2.2.2.3
    if held is None:
        return False
    if vr == "PN":
        return _is_name(asked, held)
    return _MATCHINGS.get(vr, _like)(asked, str(held))


def _is_in_list(asked: str, held: str) -> bool:
    return held in re.split(r"[,\\]", asked)


def _is_number(asked: str, held: str) -> bool:
    return held == asked.strip()


def _like(asked: str, held: str) -> bool:
    # fnmatch knows a third wild card, [, which DICOM does not.
    return fnmatch.fnmatchcase(held, asked.replace("[", "[[]"))


def _is_name(asked: str, held: Mapping[str, str]) -> bool:
    groups = [held.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
    wanted = asked.casefold().rstrip("^=")
    names = [name.casefold().rstrip("^") for name in (*filter(None, groups), "=".join(groups))]
    return any(_like(wanted, name.rstrip("=")) for name in names)


def _in_dates(asked: str, held: str) -> bool:
    """Both ends belong to a range."""
    low, dash, high = asked.partition("-")
    return (not low or held >= low) and (not high or held <= high) if dash else held == low


def _in_times(asked: str, held: str) -> bool:
    """As dates; a time is compared to the precision in which it is asked for."""
    low, dash, high = asked.partition("-")
    if not dash:
        return held.startswith(low)
    return (not low or held >= low) and (not high or held[: len(high)] <= high)


_MATCHINGS: Mapping[str, Callable[[str, str], bool]] = {
    "DA": _in_dates,
    "TM": _in_times,
    "UI": _is_in_list,
    "IS": _is_number,
    "US": _is_number,
}


def _result(header: Json, level: Level) -> Json:
    held = {key(keyword): header.get(key(keyword)) for keyword in ATTRIBUTES[level]}
    return {
        tag: element
        if element is not None
        else {"vr": dictionary_VR(int(tag, 16))}  # an attribute without a value, F.2.5
        for tag, element in held.items()
        if element is not None or level == "studies"
    }


def _study_result(study: Sequence[Json], address: Address) -> Json:
    series = _grouped(study, "SeriesInstanceUID")
    modalities = sorted({str(value(each, "Modality")) for each in study})
    return {
        **_result(study[0], "studies"),
        **_timezone(study[0]),
        key("ModalitiesInStudy"): {"vr": "CS", "Value": modalities},
        key("NumberOfStudyRelatedSeries"): {"vr": "IS", "Value": [len(series)]},
        key("NumberOfStudyRelatedInstances"): {"vr": "IS", "Value": [len(study)]},
        **_there(address(str(value(study[0], "StudyInstanceUID")), "", "")),
    }


def _series_result(series: Sequence[Json], address: Address) -> Json:
    uids = [str(value(series[0], each)) for each in ("StudyInstanceUID", "SeriesInstanceUID")]
    return {
        **_result(series[0], "series"),
        key("NumberOfSeriesRelatedInstances"): {"vr": "IS", "Value": [len(series)]},
        **_there(address(uids[0], uids[1], "")),
    }


def _instance_result(header: Json, address: Address) -> Json:
    study, series, instance = (
        str(value(header, each))
        for each in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    return {**_result(header, "instances"), **_there(address(study, series, instance))}


def _timezone(header: Json) -> Json:
    held = header.get(key(TIMEZONE))
    return {} if held is None else {key(TIMEZONE): held}


def _there(url: str) -> Json:
    return {
        key("InstanceAvailability"): {"vr": "CS", "Value": ["ONLINE"]},
        key("RetrieveURL"): {"vr": "UR", "Value": [url]},
    }
