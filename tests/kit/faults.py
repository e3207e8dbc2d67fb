"""Every fault of ``conformance/faults.toml``, and the function that makes it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import conformance
from tests.kit import (
    annotation_faults,
    fhir_faults,
    general_faults,
    image_faults,
    report_faults,
    set_faults,
)
from tests.kit.bases import Case, as_file, base

LIST = Path(conformance.__file__).with_name("faults.toml")
ROOMS = (general_faults, annotation_faults, report_faults, image_faults, set_faults, fhir_faults)


@dataclass(frozen=True)
class Fault:
    """A row of the list."""

    id: str
    made_from: str
    sentence: str
    rule: str
    source: str

    @property
    def make(self) -> Callable[[Case], None]:
        name = self.id.replace("-", "_")
        (found,) = (getattr(room, name) for room in ROOMS if hasattr(room, name))
        return found

    def broken(self) -> Case:
        """Its base with the fault in it, as files are read."""
        case = base(self.made_from)
        self.make(case)
        case.objects = [as_file(each) for each in case.objects]
        return case


def all_faults() -> list[Fault]:
    rows = tomllib.loads(LIST.read_text(encoding="utf-8"))
    return [
        Fault(id, row["from"], row["sentence"], row["rule"], row["source"])
        for id, row in rows.items()
    ]
