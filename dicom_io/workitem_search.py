"""Search for workitems: keys (PS3.4 C.2.2.2), and what is returned (PS3.18 §8.3.4, §11.9).

Keys are keywords or tags in hexadecimal; a dot leads into a sequence:
``ScheduledWorkitemCodeSequence.CodeValue=…``.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.valuerep import DT

from dicom_io.dicom_json import Json, values
from dicom_io.errors import WorkitemRefused

# Return keys of type 1 and 2 in PS3.4 table CC.2.5-3.
RETURNED = (
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "ScheduledProcedureStepPriority",
    "ScheduledProcedureStepModificationDateTime",
    "ProcedureStepLabel",
    "WorklistLabel",
    "ScheduledStationNameCodeSequence",
    "ScheduledStationClassCodeSequence",
    "ScheduledStationGeographicLocationCodeSequence",
    "ScheduledHumanPerformersSequence",
    "ScheduledProcedureStepStartDateTime",
    "ExpectedCompletionDateTime",
    "ScheduledWorkitemCodeSequence",
    "InputReadinessState",
    "InputInformationSequence",
    "StudyInstanceUID",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "ReferencedRequestSequence",
    "ProcedureStepState",
)
LONGEST_PAGE = 500
_TIMES = ("DA", "TM", "DT")
_WILD = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
_HEX = re.compile(r"[0-9A-Fa-f]{8}")
_RANGE = re.compile(r"([^-]*?(?:[+-]\d{4})?)-([^-]*(?:[+-]\d{4})?)")


@dataclass(frozen=True, slots=True)
class Key:
    """One matching key.

    Attributes
    ----------
    path
        Keywords, from the outermost sequence in.
    wanted
        Empty matches everything (universal matching).
    """

    path: tuple[str, ...]
    wanted: str

    @property
    def literal(self) -> str:
        """What the JSON of every match holds as a string; empty where that cannot be said."""
        plain = self.wanted.isascii() and self.wanted.replace("-", "").isalnum()
        return self.wanted if plain and _vr(self.path[-1]) in _WILD and not self._is_name else ""

    @property
    def _is_name(self) -> bool:
        return _vr(self.path[-1]) == "PN"


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched for.

    Attributes
    ----------
    keys
    include
        Further keywords to return; None for everything.
    fuzzy
        Whether fuzzy matching of names was asked for.
    offset, limit
    """

    keys: tuple[Key, ...] = ()
    include: tuple[str, ...] | None = ()
    fuzzy: bool = False
    offset: int = 0
    limit: int = LONGEST_PAGE

    def matches(self, item: Json) -> bool:
        return all(_matches(item, key.path, key.wanted) for key in self.keys)

    def answer(self, item: Json) -> Json:
        """The attributes to return of a workitem."""
        if self.include is None:
            return item
        keywords = {*RETURNED, *self.include, *(key.path[0] for key in self.keys)}
        return {tag: each for tag, each in item.items() if _keyword(tag) in keywords}


def search_of(parameters: Iterable[tuple[str, str]]) -> Search:
    """Read the parameters of a request's address.

    Raises
    ------
    WorkitemRefused
        An attribute is not known, or a number is none.
    """
    keys: list[Key] = []
    include: list[str] | None = []
    options: dict[str, str] = {}
    for name, given in parameters:
        if name in ("offset", "limit", "fuzzymatching"):
            options[name] = given
        elif name == "includefield":
            if given == "all":
                include = None
            elif include is not None:
                include += [_path(each)[0] for each in given.split(",")]
        elif name not in ("accept", "charset"):
            keys.append(Key(_path(name), given))
    limit = min(_number(options.get("limit", str(LONGEST_PAGE))), LONGEST_PAGE)
    return Search(
        tuple(keys),
        None if include is None else tuple(include),
        options.get("fuzzymatching") == "true",
        _number(options.get("offset", "0")),
        limit,
    )


def filter_of(filters: Sequence[str]) -> Search:
    """Read the filter of a subscription: ``KEY=VALUE,KEY=VALUE`` (PS3.18 §11.10.1.2).

    Raises
    ------
    WorkitemRefused
    """
    pairs = [each.partition("=") for given in filters for each in given.split(",") if each]
    if not pairs or not all(equals for _, equals, _ in pairs):
        raise WorkitemRefused("A filtered subscription needs a filter: filter=KEYWORD=value,….")
    return Search(tuple(Key(_path(name), given) for name, _, given in pairs))


def keys_text(search: Search) -> str:
    """The keys as the filter of a subscription spells them."""
    return ",".join(f"{'.'.join(key.path)}={key.wanted}" for key in search.keys)


def uid_list(wanted: str) -> list[str]:
    """List of UID matching, with commas (PS3.18) or backslashes (PS3.4)."""
    return re.split(r"[,\\]", wanted)


def _path(name: str) -> tuple[str, ...]:
    path = tuple(_known(part) for part in name.split("."))
    if any(_vr(keyword) != "SQ" for keyword in path[:-1]):
        raise WorkitemRefused("A key leads into something that is no sequence: correct it.")
    return path


def _known(name: str) -> str:
    keyword = _keyword(name) if _HEX.fullmatch(name) else name
    if not keyword or tag_for_keyword(keyword) is None:
        raise WorkitemRefused(
            "A key is no attribute: write keywords or tags of eight hexadecimal digits."
        )
    return keyword


def _keyword(tag: str) -> str:
    return keyword_for_tag(int(tag, 16))


def _vr(keyword: str) -> str:
    return dictionary_VR(tag_for_keyword(keyword) or 0)


def _number(given: str) -> int:
    if not given.isdecimal() or len(given) > 9:
        raise WorkitemRefused("offset and limit are numbers from 0.")
    return int(given)


def _matches(item: Json, path: tuple[str, ...], wanted: str) -> bool:
    if not wanted:
        return True
    found = values(item, path[0])
    if len(path) > 1:
        return any(_matches(each, path[1:], wanted) for each in found if isinstance(each, dict))
    return any(_fits(_vr(path[0]), each, wanted) for each in found)


def _fits(vr: str, found: Any, wanted: str) -> bool:
    if vr == "PN":
        names: Mapping[str, str] = found if isinstance(found, dict) else {}
        # Case is of no meaning in names, PS3.4 C.2.2.2.1.
        return any(_wild(name.casefold(), wanted.casefold()) for name in names.values())
    if vr == "UI":
        return str(found) in uid_list(wanted)
    if vr in _TIMES:
        return _in_range(vr, str(found), wanted)
    if vr in _WILD:
        return _wild(str(found), wanted)
    try:
        return float(found) == float(wanted)
    except (TypeError, ValueError):
        return str(found) == wanted


def _wild(found: str, wanted: str) -> bool:
    """``*`` and ``?``, and nothing else that a shell would know."""
    return fnmatch.fnmatchcase(found, wanted.replace("[", "[[]"))


def _in_range(vr: str, found: str, wanted: str) -> bool:
    span = _RANGE.fullmatch(wanted)
    if span is None:
        return found.startswith(wanted)
    low, high = span.groups()
    moment = _comparable(vr, found)
    after = not low or _comparable(vr, low) <= moment
    # A bound of few digits means the whole of its day or year.
    return after and (not high or moment <= _comparable(vr, high) or found.startswith(high))


def _comparable(vr: str, given: str) -> str:
    if vr != "DT":
        return given
    try:
        at = DT(given)
    except (ValueError, TypeError) as error:
        raise WorkitemRefused("A date and time is malformed (PS3.5 6.2, DT).") from error
    if at is None:
        return ""
    known = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return known.strftime("%Y%m%d%H%M%S.%f")
