"""Whether a code can be one of its system: DICOM's own list, check digits, UCUM's grammar."""

from __future__ import annotations

from functools import cache

from lark import Lark
from lark.exceptions import UnexpectedInput
from pydicom.sr.codedict import codes
from stdnum import luhn, verhoeff

DCM_SOURCE, LOINC_SOURCE, SNOMED_SOURCE, UCUM_SOURCE = (
    "PS3.16 Annex D",
    "LOINC Users' Guide, check digit",
    "SNOMED CT Technical Implementation Guide, check digit",
    "UCUM, §2 grammar",
)


def wrong_code(value: str, scheme: str) -> str:
    """Why a code cannot be one of its scheme; empty where nothing speaks against it.

    LOINC and SNOMED CT codes carry check digits, so that a mistyped one is found without the
    terminologies, which are licensed. Other schemes are not looked at.
    """
    if scheme == "DCM" and value not in _dcm_codes():
        return "is not a DCM code of PS3.16 Annex D"
    if scheme == "LN" and not is_loinc(value):
        return "is not a LOINC code: its check digit is wrong"
    if scheme == "SCT" and not is_snomed(value):
        return "is not a SNOMED CT code: its check digit is wrong"
    return ""


def is_loinc(value: str) -> bool:
    """Digits, a hyphen and a check digit; LOINC's part and answer codes begin with LP and LA."""
    return luhn.is_valid(value.removeprefix("LP").removeprefix("LA").replace("-", ""))


def is_snomed(value: str) -> bool:
    return bool(verhoeff.is_valid(value))


@cache
def is_ucum(value: str) -> bool:
    """Whether UCUM's case-sensitive grammar knows the unit."""
    try:
        _parser().parse(value)
    except UnexpectedInput:
        return False
    return True


@cache
def _parser() -> Lark:
    from ucumvert import get_ucum_parser  # noqa: PLC0415  half a second, for units alone

    parser: Lark = get_ucum_parser()
    return parser


@cache
def _dcm_codes() -> frozenset[str]:
    return frozenset(code.value for code in codes.DCM.concepts.values())
