"""Modules and types of the standard's information objects, generated from highdicom's tables.

highdicom carries PS3.3 as JSON. What the kit needs of it for the objects that it knows lies in
``information_objects.json``; ``python -m conformance`` writes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

TABLES = Path(__file__).with_name("information_objects.json")
OBJECTS = (
    "basic-text-sr",
    "comprehensive-3d-sr",
    "comprehensive-sr",
    "encapsulated-pdf",
    "enhanced-sr",
    "microscopy-bulk-simple-annotations",
    "multi-frame-true-color-secondary-capture-image",
    "parametric-map",
    "secondary-capture-image",
    "segmentation",
    "vl-whole-slide-microscopy-image",
)
# These tables are macros side by side, of which one item uses one: rules of their own check them.
_LEFT_OUT = ("sr-document-content", "-functional-groups")


# Module → (module, attribute) whose type it overrides: PS3.3 C.8.6.1 says so of the modality.
_OVERRIDDEN = {"sc-equipment": ("general-series", "Modality")}


@dataclass(frozen=True, slots=True)
class Attribute:
    """Type of an attribute (PS3.5 7.4), and of those in its items.

    Attributes
    ----------
    type
        ``1``, ``1C``, ``2``, ``2C`` or ``3``.
    items
        Keyword → attribute of an item, for sequences.
    """

    type: str
    items: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True)
class Module:
    """A module of an information object.

    Attributes
    ----------
    name
    mandatory
        Whether every instance has it; else its attributes count where one of its own is there.
    attributes
    """

    name: str
    mandatory: bool
    attributes: Mapping[str, Attribute]


@cache
def modules_of(sop_class_uid: str) -> tuple[Module, ...]:
    """Modules of a SOP class' information object; empty for one that the kit does not know."""
    tables = _tables()
    name = tables["sop_classes"].get(sop_class_uid)
    rows = [] if name is None else tables["information_objects"][name]
    overridden = {_OVERRIDDEN[module] for module, _ in rows if module in _OVERRIDDEN}
    return tuple(
        Module(
            module,
            usage == "M",
            {
                keyword: attribute
                for keyword, attribute in _attributes(tables["modules"][module]).items()
                if (module, keyword) not in overridden
            },
        )
        for module, usage in rows
    )


@cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(TABLES.read_text(encoding="utf-8"))
    return tables


def _attributes(table: Mapping[str, Any]) -> dict[str, Attribute]:
    return {
        keyword: Attribute(row, {})
        if isinstance(row, str)
        else Attribute(row[0], _attributes(row[1]))
        for keyword, row in table.items()
    }


def generated_tables() -> str:
    """The tables as highdicom's installed version has them, as JSON."""
    from highdicom import _standard_utils as library  # noqa: PLC0415  22 MB, read for this alone

    known = library.get_iod_module_map()
    objects = {name: [[each["key"], each["usage"]] for each in known[name]] for name in OBJECTS}
    names = sorted({module for modules in objects.values() for module, _ in modules})
    classes = {
        uid: name
        for uid, name in sorted(library.get_sop_class_iod_map().items())
        if name in OBJECTS
    }
    attributes = library.get_module_attribute_map()
    tables = {
        "generated_from": f"highdicom {version('highdicom')}",
        "sop_classes": classes,
        "information_objects": objects,
        "modules": {name: _tree(_used(attributes, name), ()) for name in names},
    }
    return json.dumps(tables, indent=1, sort_keys=True) + "\n"


def _used(attributes: Mapping[str, list[dict[str, Any]]], module: str) -> list[dict[str, Any]]:
    return [] if module.endswith(_LEFT_OUT) else attributes[module]


def _tree(rows: list[dict[str, Any]], path: tuple[str, ...]) -> dict[str, Any]:
    """Attributes at `path`, with those in their items; codes have a rule of their own."""
    return dict(_branches([row for row in rows if tuple(row["path"][: len(path)]) == path], path))


def _branches(rows: list[dict[str, Any]], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    here: dict[str, str] = {}
    for row in rows:
        if len(row["path"]) == len(path):
            # Twice in one module stands what several macros bring: the mildest of them holds.
            here[row["keyword"]] = max(here.get(row["keyword"], ""), row["type"])
    for keyword, kind in here.items():
        inside = _tree(rows, (*path, keyword))
        if "CodeMeaning" in inside:
            inside = {}
        wanted = {name: row for name, row in inside.items() if isinstance(row, list) or row != "3"}
        yield keyword, [kind, wanted] if wanted else kind
