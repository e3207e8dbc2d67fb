"""Values out of raw DICOM JSON (PS3.18 annex F), without building datasets.

Per-frame items of a sparse level are tens of thousands: a walk of the JSON takes a hundredth of
what ``Dataset.from_json`` takes.
"""

from __future__ import annotations

import math
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

from dicom_io.errors import PacsAnswerInvalid

Json = dict[str, Any]

PIXEL_DATA = "7FE00010"
PER_FRAME = "52009230"
# What pydicom raises for values that do not fit.
FROM_JSON_ERRORS = (KeyError, ValueError, TypeError, AttributeError, OverflowError)


def key(keyword: str) -> str:
    """DICOM JSON key of an attribute: ``Rows`` → ``00280010``."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return f"{tag:08X}"


def attributes(**held: Any) -> Json:
    """DICOM JSON of attributes by keyword: a value, or a list of values or items; [] is empty."""
    item: Json = {}
    for keyword, given in held.items():
        tag = key(keyword)
        found = list(given) if isinstance(given, list | tuple) else [given]
        vr = dictionary_VR(int(tag, 16))
        item[tag] = {"vr": vr, "Value": found} if found else {"vr": vr}
    return item


def values(item: Json, keyword: str) -> list[Any]:
    """Values of an attribute; empty if it is absent or empty."""
    element = item.get(key(keyword), {}) if isinstance(item, dict) else {}
    found = element.get("Value", []) if isinstance(element, dict) else []
    return found if isinstance(found, list) else []


def value(item: Json, keyword: str) -> Any:
    """First value of an attribute, None if there is none."""
    found = values(item, keyword)
    return found[0] if found else None


def numbers(item: Json, keyword: str) -> list[float]:
    """Values of a numeric attribute; empty if one of them is no finite number."""
    try:
        found = [float(number) for number in values(item, keyword)]
    except (TypeError, ValueError, OverflowError):
        return []
    return found if all(map(math.isfinite, found)) else []


def nested(item: Json, *keywords: str) -> Json:
    """First item of a sequence in the first item of a sequence …; empty if one is absent."""
    for keyword in keywords:
        found = value(item, keyword)
        item = found if isinstance(found, dict) else {}
    return item


def is_dicom_json(item: Any) -> bool:
    """Whether the shape is that of PS3.18 annex F; values and per-frame items are not looked at.

    Per-frame items are many, and are looked at where they are read.
    """
    return isinstance(item, dict) and all(
        tag == PER_FRAME or _is_element(element) for tag, element in item.items()
    )


def _is_element(element: Any) -> bool:
    if not isinstance(element, dict) or not isinstance(element.get("vr", ""), str):
        return False
    held = element.get("Value", [])
    if not isinstance(held, list):
        return False
    if element.get("vr") == "SQ":
        return all(item is None or is_dicom_json(item) for item in held)
    if element.get("vr") == "PN":
        return all(name is None or isinstance(name, dict) for name in held)
    return all(value is None or isinstance(value, str | int | float) for value in held)


def dataset_of(item: Json) -> Dataset:
    """Dataset without per-frame items, pixel data and whatever lies elsewhere as bulk data.

    Raises
    ------
    PacsAnswerInvalid
        A value is not what its VR allows in JSON.
    """
    try:
        return Dataset.from_json(_here({k: v for k, v in item.items() if k != PER_FRAME}))
    except FROM_JSON_ERRORS as error:
        raise PacsAnswerInvalid(
            f"The metadata of instance {str(value(item, 'SOPInstanceUID'))[:64]} is not DICOM JSON"
            f" ({type(error).__name__}): check the archive, or store the instance again."
        ) from error


def _here(item: Json) -> Json:
    kept: Json = {}
    for tag, element in item.items():
        if tag == PIXEL_DATA or "BulkDataURI" in element:
            continue
        if element.get("vr") == "SQ":
            kept[tag] = {**element, "Value": [_here(i or {}) for i in element.get("Value", [])]}
        else:
            kept[tag] = element
    return kept
