"""Many slides of one: the same pixels under identifiers and dates of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import generate_uid


def copied_slides(paths: Sequence[Path], folder: Path, dates: Sequence[str]) -> list[list[Path]]:
    """Write a copy of a slide for each study date (DA); the files of each."""
    return [
        _copied(paths, folder / str(number), number, date) for number, date in enumerate(dates, 1)
    ]


def _copied(paths: Sequence[Path], folder: Path, number: int, date: str) -> list[Path]:
    folder.mkdir(parents=True)
    written = []
    for path in paths:
        dataset = dcmread(path)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            old = str(dataset[keyword].value)
            dataset[keyword].value = generate_uid(entropy_srcs=[old, str(number)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.PatientID, dataset.StudyDate = "COPY", date
        dataset.AccessionNumber = f"COPY-{number}"
        written.append(folder / path.name)
        dataset.save_as(written[-1])
    return written
