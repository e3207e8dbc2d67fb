"""Values of data sets that may be broken: rules ask for them here and never fall over them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, MutableSequence
from copy import deepcopy

from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

Code = tuple[str, str]


def readable(document: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """The data set without the elements that cannot be decoded, and the paths of those.

    A copy where there are some; else the data set itself.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's words about values; the rules have their own
        unreadable = tuple(_unreadable(document, ""))
        if not unreadable:
            return document, ()
        copy = deepcopy(document)
        for _, where, tag in unreadable:
            item = copy
            for sequence_tag, number in where:
                item = item[sequence_tag].value[number]
            del item[tag]
    return copy, tuple(path for path, _, _ in unreadable)


_Way = tuple[tuple[BaseTag, int], ...]


def _unreadable(
    document: Dataset, path: str, way: _Way = ()
) -> Iterator[tuple[str, _Way, BaseTag]]:
    """(path, way to its item, tag) of every element that cannot be decoded."""
    for tag in list(document.keys()):
        here = f"{path}{name_of(tag)}"
        try:
            element = document[tag]
        except Exception:  # noqa: BLE001  pydicom lets through what its converters raise
            yield here, way, tag
            continue
        if element.VR == "SQ":
            for number, item in enumerate(element.value or []):
                yield from _unreadable(item, f"{here}[{number + 1}]/", (*way, (tag, number)))


def name_of(tag: BaseTag) -> str:
    """Keyword of an attribute, or its tag where it has none."""
    return keyword_for_tag(tag) or str(tag).replace(" ", "")


def items(document: Dataset, path: str = "") -> Iterator[tuple[str, Dataset]]:
    """(path ending in a slash, item) of the data set itself and of every item in it, at any depth.

    The path of the data set itself is empty.
    """
    yield path, document
    for element in document:
        if element.VR == "SQ":
            for number, item in enumerate(element.value or [], start=1):
                yield from items(item, f"{path}{name_of(element.tag)}[{number}]/")


def elements(document: Dataset) -> Iterator[tuple[str, DataElement]]:
    """(path, element) of every element at any depth."""
    for path, item in items(document):
        for element in item:
            yield f"{path}{name_of(element.tag)}", element


def sequence(item: Dataset, keyword: str) -> list[Dataset]:
    """Items of a sequence; empty where there is none."""
    value = item.get(keyword)
    return list(value) if isinstance(value, Sequence) else []


def paths(item: Dataset, keyword: str, path: str = "") -> Iterator[tuple[str, Dataset]]:
    """(path ending in a slash, item) of a sequence's items."""
    for number, each in enumerate(sequence(item, keyword), start=1):
        yield f"{path}{keyword}[{number}]/", each


def first(item: Dataset, keyword: str) -> Dataset:
    """First item of a sequence; empty where there is none."""
    found = sequence(item, keyword)
    return found[0] if found else Dataset()


def text(item: Dataset, keyword: str) -> str:
    """A value as text; empty where there is none."""
    value = item.get(keyword)
    return "" if value is None else str(value)


def texts(item: Dataset, keyword: str) -> list[str]:
    """All values as text."""
    value = item.get(keyword)
    if value is None or value == "":
        return []
    return [str(each) for each in value] if isinstance(value, MutableSequence) else [str(value)]


def whole(item: Dataset, keyword: str) -> int | None:
    """A whole number; None where there is none."""
    try:
        return int(text(item, keyword))
    except ValueError:
        return None


def numbers(item: Dataset, keyword: str) -> list[float]:
    """All values as numbers; empty where one is not."""
    try:
        return [float(each) for each in texts(item, keyword)]
    except ValueError:
        return []


def content(item: Dataset, keyword: str) -> bytes:
    """Bytes of a binary value; empty where there is none."""
    value = item.get(keyword)
    return value if isinstance(value, bytes) else b""


def code(item: Dataset, keyword: str) -> Code:
    """(value, scheme) of the code in a sequence; empty where there is none."""
    found = first(item, keyword)
    value = text(found, "CodeValue") or text(found, "LongCodeValue") or text(found, "URNCodeValue")
    return value, text(found, "CodingSchemeDesignator")


def content_items(item: Dataset, path: str = "") -> Iterator[tuple[str, Dataset, Dataset]]:
    """(path, content item, its parent) of an SR's tree, from the root's children down."""
    for here, child in paths(item, "ContentSequence", path):
        yield here, child, item
        yield from content_items(child, here)
