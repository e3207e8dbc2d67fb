"""Values that no writer lets through: put into a data set as bytes."""

from __future__ import annotations

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag


def put(item: Dataset, keyword: str, value: bytes) -> None:
    """Set an attribute to `value` as it would stand in a file."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    item[tag] = RawDataElement(
        Tag(tag),
        dictionary_VR(tag),
        len(value),
        value,
        0,
        is_implicit_VR=False,
        is_little_endian=True,
    )
