"""Validators by others, where they are installed: their messages become findings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance.finding import Finding, Severity

# Seconds for one file; dciodvfy reads a million annotations in less than ten.
TIMEOUT_S = 120
_DICOM3TOOLS = re.compile(r"^(Error|Warning) - (?:</?([^>]*)> - )?(.*)$")
_TAG = re.compile(r"\([0-9a-f]{4},[0-9a-f]{4}\)")
_DCMTK = re.compile(r"^([EW]): (.*)$")
# What results refer to without it being given: the slide. The kit notes that.
_NOT_GIVEN = "Missing SOPInstanceUID that was referenced"
# A private coding scheme is meant to be unknown to others (PS3.16 section 8.2).
_PRIVATE_SCHEME = re.compile(r"Unrecognized defined term = <99[^>]*>")


@dataclass(frozen=True, slots=True)
class KnownComplaint:
    """What a validator says of objects that are as they should be.

    Attributes
    ----------
    path, sentence
        Patterns of the whole path and of the beginning of the sentence.
    reason
        Why it is the validator's fault, and where the standard says so.
    """

    path: re.Pattern[str]
    sentence: re.Pattern[str]
    reason: str


KNOWN_COMPLAINTS: tuple[KnownComplaint, ...] = (
    KnownComplaint(
        re.compile(
            r"SharedFunctionalGroupsSequence\[1\]/SegmentIdentificationSequence"
            r"(\[1\]/ReferencedSegmentNumber)?"
        ),
        re.compile("Attribute is not present in standard DICOM IOD"),
        "PS3.3 C.8.20.3 has the macros of segmentations in either functional groups sequence; "
        "dciodvfy 20260927 looks for Segment Identification in the one of frames only.",
    ),
    KnownComplaint(
        re.compile(""),
        re.compile("Different information entities for attribute - Element=<AccessionNumber> "),
        "The accession number is the study's in every object (PS3.3 C.7.2.1); dcentvfy 20260927 "
        "holds it to be the series' where that can have Request Attributes, and says so of any "
        "image beside any report. It compares no values there: the rules of sets do.",
    ),
)


@dataclass(frozen=True, slots=True)
class Validator:
    """A validator by others.

    Attributes
    ----------
    name
        What findings are named after.
    command
        Without the files.
    together
        Whether all files are given at once.
    only
        Kinds of objects that it reads; empty for all.
    read
        (severity, path, sentence) of every message in what it printed.
    """

    name: str
    command: tuple[str, ...]
    together: bool
    only: frozenset[str]
    read: Callable[[str], Iterator[tuple[Severity, str, str]]]


def _dicom3tools(printed: str) -> Iterator[tuple[Severity, str, str]]:
    for line in printed.splitlines():
        found = _DICOM3TOOLS.match(line)
        if found is not None and not _PRIVATE_SCHEME.search(line):
            severity: Severity = "error" if found[1] == "Error" else "warning"
            yield severity, _TAG.sub("", found[2] or ""), found[3]


def _dcmtk(printed: str) -> Iterator[tuple[Severity, str, str]]:
    for line in printed.splitlines():
        found = _DCMTK.match(line)
        if found is not None:
            yield "error" if found[1] == "E" else "warning", "", found[2]


_REPORTS = frozenset({"SR"})
VALIDATORS: tuple[Validator, ...] = (
    Validator("dciodvfy", ("dciodvfy", "-new"), False, frozenset(), _dicom3tools),
    Validator(
        "dciodvfy-wg26",
        ("dciodvfy", "-new", "-profile", "WG26SP2025"),
        False,
        frozenset({"ANN", "SM"}),  # the profile has these
        _dicom3tools,
    ),
    Validator("dsrdump", ("dsrdump",), False, _REPORTS, _dcmtk),
    Validator("dcentvfy", ("dcentvfy",), True, frozenset(), _dicom3tools),
)


def installed(name: str) -> str:
    """Path of a program, beside this Python or on the PATH; empty where there is none."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or ""


def missing_validators() -> list[str]:
    """Names of the validators that are not installed."""
    return [each.name for each in VALIDATORS if not installed(each.command[0])]


def validate(
    files: Sequence[tuple[Path, str, str]], validators: Sequence[Validator] = VALIDATORS
) -> Iterator[Finding]:
    """Run those of the validators that are installed.

    Parameters
    ----------
    files
        (file, kind, SOP Instance UID) of each object.
    validators

    Yields
    ------
    Finding
        Its rule is the validator's name; its sentence is the validator's own, without the name
        of the file.
    """
    for validator in validators:
        program = installed(validator.command[0])
        wanted = [each for each in files if not validator.only or each[1] in validator.only]
        if not program or not wanted:
            continue
        runs = [wanted] if validator.together else [[each] for each in wanted]
        for run in runs:
            yield from _run(validator, program, run)


def _run(
    validator: Validator, program: str, files: Sequence[tuple[Path, str, str]]
) -> Iterator[Finding]:
    about = files[0][2] if len(files) == 1 else "set"
    try:
        done = subprocess.run(  # noqa: S603  a validator that was found on this machine
            [program, *validator.command[1:], *(str(path) for path, _, _ in files)],
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        sentence = f"It did not end in {TIMEOUT_S} seconds."
        yield Finding(validator.name, "error", about, sentence, source=validator.name)
        return
    printed = done.stderr.decode("utf-8", "replace")
    slide = any(kind == "SM" for _, kind, _ in files)
    messages = [
        each
        for each in validator.read(printed)
        if (slide or not each[2].startswith(_NOT_GIVEN)) and not _is_known(each[1], each[2])
    ]
    for severity, path, sentence in messages:
        told = sentence
        for file, _, uid in files:
            told = told.replace(str(file), uid)
        yield Finding(validator.name, severity, about, told, path, validator.name)
    if done.returncode < 0 and not messages:
        sentence = f"It ended by signal {-done.returncode}."
        yield Finding(validator.name, "error", about, sentence, source=validator.name)


def _is_known(path: str, sentence: str) -> bool:
    return any(
        each.path.fullmatch(path) and each.sentence.match(sentence) for each in KNOWN_COMPLAINTS
    )
