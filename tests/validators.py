"""Validators by others, run on files as a receiver would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pydicom.dataset import Dataset

from node.outputs import to_bytes
from tests.servers import program

# DCMTK 3.6.7 checks values in some character sets only, and says so of every other one.
UTF8_UNCHECKED = "The VR checker does not support this Specific Character Set: ISO_IR 192"
CHECKED = {
    "Comprehensive3DSR",
    "EncapsulatedPDF",
    "MicroscopyBulkSimpleAnnotations",
    "ParametricMap",
    "SCImage",
    "Segmentation",
}


def written(document: Dataset, path: Path) -> Path:
    """`document` as a DICOM file."""
    path.write_bytes(to_bytes(document))
    return path


def dciodvfy(path: Path, profile: str = "") -> list[str]:
    """Errors and warnings of dicom3tools; its exit status says little, so stderr is read.

    Left out is that it does not know the node's own coding scheme.
    """
    tool = Path(sys.executable).parent / "dciodvfy"
    done = subprocess.run(
        [tool, "-new", *(("-profile", profile) if profile else ()), path],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    lines = done.stderr.splitlines()
    # It names the information object that it checked: an answer without that is no verdict.
    assert {line.removesuffix(profile) for line in lines} & CHECKED, lines[:3]
    return [
        line
        for line in lines
        if line.startswith(("Error", "Warning"))
        and not line.endswith("Unrecognized defined term = <99MARROW>")
    ]


def dsrdump(path: Path) -> tuple[str, str]:
    """(what DCMTK prints of a structured report, its warnings and errors)."""
    done = subprocess.run(
        [program("dsrdump", "dcmtk"), "+Pc", path],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        return done.stdout, f"exit {done.returncode}"
    return done.stdout, "".join(
        line for line in done.stderr.splitlines(keepends=True) if UTF8_UNCHECKED not in line
    )


def dsr2html(path: Path) -> tuple[str, str]:
    """(a structured report as DCMTK shows it in HTML, its warnings and errors)."""
    done = subprocess.run(
        ["dsr2html", path], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:
        return done.stdout, f"exit {done.returncode}: {done.stderr}"
    return done.stdout, "".join(
        line for line in done.stderr.splitlines(keepends=True) if UTF8_UNCHECKED not in line
    )


def dcentvfy(*paths: Path) -> list[str]:
    """Errors of dicom3tools about information entities and references across files.

    Its warnings are not errors of the files: it holds an accession number to be the series' in some
    classes and the study's in others.
    """
    tool = Path(sys.executable).parent / "dcentvfy"
    done = subprocess.run([tool, *paths], capture_output=True, check=False, timeout=120)
    said = done.stderr.decode(errors="replace")  # values come in each file's own character set
    return [line for line in said.splitlines() if line.startswith("Error")]
