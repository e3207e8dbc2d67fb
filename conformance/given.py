"""What the kit is given: files and folders, or a study in an archive."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import VLWholeSlideMicroscopyImageStorage

from conformance.finding import Finding
from conformance.reading import text
from conformance.result_set import ResultSet, is_slide, kind_of
from conformance.viewer_rules import MICROSCOPY_VIEWER
from dicom_io.dicom_json import key, value, values
from dicom_io.errors import InputError, PacsAnswerInvalid
from dicom_io.pacs import Pacs

COORDINATES = ("PointCoordinatesData", "DoublePointCoordinatesData")
# Bulk data of a slide's header are not looked at; that they are there is.
_BULK = b"\0\0"
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, AttributeError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class Given:
    """What was read.

    Attributes
    ----------
    results
    files
        (file, kind, SOP Instance UID) of each DICOM object that is a file, for validators by
        others.
    findings
        Files that say they are DICOM and cannot be read.
    notes
        Files that are neither DICOM nor a FHIR Bundle.
    """

    results: ResultSet
    files: tuple[tuple[Path, str, str], ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


def read_paths(paths: Iterable[Path]) -> Given:
    """Read DICOM files and FHIR Bundles, and those in folders, at any depth.

    Raises
    ------
    InputError
        When a path does not exist, or nothing to check is there.
    """
    objects: list[Dataset] = []
    bundles: list[Mapping[str, Any]] = []
    files: list[tuple[Path, str, str]] = []
    findings: list[Finding] = []
    notes: list[str] = []
    for path in _files(paths):
        read = _read(path)
        if isinstance(read, Dataset):
            objects.append(read)
            files.append((path, kind_of(read), text(read, "SOPInstanceUID")))
        elif isinstance(read, Finding):
            findings.append(read)
        elif read is None:
            notes.append(f"{path.name} is neither DICOM nor a FHIR Bundle and was left out.")
        else:
            bundles.append(read)
    if not objects and not bundles and not findings:
        raise InputError(
            "There is no DICOM file and no FHIR Bundle in what was given: name files or folders "
            "that hold some."
        )
    results = ResultSet(tuple(objects), tuple(bundles))
    return Given(results, tuple(files), tuple(findings), tuple(notes))


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist: name a file or a folder.")
        yield from (
            sorted(each for each in path.rglob("*") if each.is_file())
            if (path.is_dir())
            else [path]
        )


def _read(path: Path) -> Dataset | Mapping[str, Any] | Finding | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = dcmread(path, stop_before_pixels=True)
            return header if is_slide(header) else dcmread(path)
    except InvalidDicomError:
        return _bundle(path)
    except _UNREADABLE as error:
        sentence = f"The file cannot be read as DICOM ({type(error).__name__})."
        return Finding("dicom-file", "error", path.name, sentence, source="PS3.10 7")


def _bundle(path: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    if isinstance(found, dict) and found.get("resourceType") == "Bundle":
        return found
    return None


def read_study(pacs: Pacs, study_uid: str, scratch: Path) -> Given:
    """Retrieve a study: slides as metadata, everything else whole.

    Parameters
    ----------
    scratch
        Folder where whole objects are put, for validators by others.

    Raises
    ------
    PacsError
    """
    objects: list[Dataset] = []
    files: list[tuple[Path, str, str]] = []
    findings: list[Finding] = []
    for series in pacs.search_series(study_uid):
        series_uid = str(value(series, "SeriesInstanceUID"))
        if value(series, "Modality") == "SM":
            objects.extend(_headers(pacs, study_uid, series_uid))
            continue
        if value(series, "Modality") == "ANN":
            findings.extend(_undrawable(pacs, study_uid, series_uid))
        for instance in pacs.search_instances(study_uid, series_uid):
            uid = str(value(instance, "SOPInstanceUID"))
            document = pacs.retrieve_instance(study_uid, series_uid, uid)
            path = scratch / f"{len(files)}.dcm"
            dcmwrite(path, document, enforce_file_format=True)
            objects.append(document)
            files.append((path, kind_of(document), uid))
    if not objects:
        raise InputError(f"{pacs.name} knows no study {study_uid}: check the UID.")
    return Given(ResultSet(tuple(objects)), tuple(files), tuple(findings))


def _undrawable(pacs: Pacs, study_uid: str, series_uid: str) -> Iterator[Finding]:
    """Annotations whose coordinates a browser cannot fetch, as the archive tells of them."""
    for instance in pacs.series_metadata(study_uid, series_uid):
        for number, group in enumerate(values(instance, "AnnotationGroupSequence"), start=1):
            stored = [group[key(name)] for name in COORDINATES if key(name) in group]
            told = ("BulkDataURI", "InlineBinary")
            if stored and not any(where in each for each in stored for where in told):
                yield Finding(
                    "view-bulk-data",
                    "warning",
                    str(value(instance, "SOPInstanceUID")),
                    f"The archive's metadata hold neither the coordinates of group {number} nor "
                    f"where they are, so that {MICROSCOPY_VIEWER} cannot draw them: let it read "
                    "them from a service that gives a BulkDataURI.",
                    f"AnnotationGroupSequence[{number}]",
                    f"{MICROSCOPY_VIEWER}; seen with Orthanc 1.10.1",
                )


def _headers(pacs: Pacs, study_uid: str, series_uid: str) -> Iterator[Dataset]:
    for each in pacs.series_metadata(study_uid, series_uid):
        if value(each, "SOPClassUID") != VLWholeSlideMicroscopyImageStorage:
            continue
        try:
            yield Dataset.from_json(each, lambda *_: _BULK)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PacsAnswerInvalid(
                f"{pacs.name} gave metadata of series {series_uid} that are not DICOM JSON: check "
                "the archive."
            ) from error
