"""Values out of raw DICOM JSON (PS3.18 annex F), without building datasets.

Per-frame items of a sparse level are tens of thousands: a walk of the JSON takes a hundredth of
what ``Dataset.from_json`` takes.
"""

from __future__ import annotations

from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

Json = dict[str, Any]

PIXEL_DATA = "7FE00010"
PER_FRAME = "52009230"


def key(keyword: str) -> str:
    """DICOM JSON key of an attribute: ``Rows`` → ``00280010``."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return f"{tag:08X}"


def values(item: Json, keyword: str) -> list[Any]:
    """Values of an attribute; empty if it is absent or empty."""
    element = item.get(key(keyword), {})
    found = element.get("Value", []) if isinstance(element, dict) else []
    return found if isinstance(found, list) else []


def value(item: Json, keyword: str) -> Any:
    """First value of an attribute, None if there is none."""
    found = values(item, keyword)
    return found[0] if found else None


def nested(item: Json, *keywords: str) -> Json:
    """First item of a sequence in the first item of a sequence …; empty if one is absent."""
    for keyword in keywords:
        item = value(item, keyword) or {}
    return item


def dataset_of(item: Json) -> Dataset:
    """Dataset without per-frame items, pixel data and whatever lies elsewhere as bulk data."""
    return Dataset.from_json(_here({k: v for k, v in item.items() if k != PER_FRAME}))


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
