"""``marrow-node compare``: several model packages over the same slides, in one table."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from dicom_io.demonstration import Truth, read_truth
from dicom_io.errors import InputError
from models.evaluation import evaluate
from models.manifest import UNCLASSIFIED
from models.manual_count import differential_difference
from models.records import Cells, Differential, Int32
from node import stages
from node.config import Settings
from node.pipeline import SlideReference
from node.workplace import Workplace


@dataclass(frozen=True, slots=True)
class Row:
    """One package on one slide.

    Attributes
    ----------
    model, version, digest
    series_uid
    cells
    f1, type_accuracy, neighbour_accuracy
        Against the truth; None without one. Types that the package does not know count as wrong.
    largest_error_percent
        Largest difference of a type's percentage from the truth.
    tiles, tiles_in_regions
        Read, and how many there were to read.
    megabytes
        Read from the PACS.
    seconds
    """

    model: str
    version: str
    digest: str
    series_uid: str
    cells: int
    f1: float | None
    type_accuracy: float | None
    neighbour_accuracy: float | None
    largest_error_percent: float | None
    tiles: int
    tiles_in_regions: int
    megabytes: float
    seconds: float


def compare_packages(
    settings: Settings, models: Sequence[str], slides: Sequence[SlideReference], truth: Path | None
) -> Iterator[Row]:
    """Run every package over every slide; nothing is delivered anywhere.

    Parameters
    ----------
    settings
    models
        Names of packages.
    slides
    truth
        File with the true cells of the one slide, as ``marrow-node demo`` writes it.

    Raises
    ------
    InputError
        There is a truth, and more than one slide; or it cannot be read.
    """
    known = _truth(truth, slides)
    for slide in slides:
        for name in models:
            mine = replace(settings, model=replace(settings.model, name=name))
            yield _row(Workplace.open(mine, lambda progress: None), slide, known)


def rows_as_json(rows: Sequence[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2)


def _truth(path: Path | None, slides: Sequence[SlideReference]) -> Truth | None:
    if path is None:
        return None
    if len(slides) != 1:
        raise InputError("A truth belongs to one slide: compare slides with a truth one by one.")
    try:
        return read_truth(path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no truth of a slide: name what the demo wrote.") from error


def _row(place: Workplace, slide: SlideReference, truth: Truth | None) -> Row:
    started = time.monotonic()
    opened = stages.open_(place, slide.study_uid, slide.series_uid)
    localised = stages.localise(place, opened)
    detected = stages.detect(place, opened, localised)
    counted = stages.count(place, opened, detected)
    seconds = time.monotonic() - started
    cells: Cells = place.work.get_record(detected["cells"])
    manifest = place.package.manifest
    return Row(
        model=manifest.name,
        version=manifest.version,
        digest=place.package.digest,
        series_uid=slide.series_uid,
        cells=len(cells),
        **_against(cells, place.work.get_record(counted["differential"]), truth),
        tiles=detected["tiles"],
        tiles_in_regions=detected["tiles_in_regions"],
        megabytes=round((localised["bytes_read"] + detected["bytes_read"]) / 1e6, 2),
        seconds=round(seconds, 2),
    )


def _against(cells: Cells, counted: Differential, truth: Truth | None) -> dict[str, float | None]:
    names = ("f1", "type_accuracy", "neighbour_accuracy", "largest_error_percent")
    if truth is None:
        return dict.fromkeys(names)
    classes = tuple(dict.fromkeys((*cells.classes, *truth.types, UNCLASSIFIED)))
    true_label = _labels(truth.types, classes)
    found = evaluate(cells.box_px, cells.label, truth.box_px, true_label, classes)
    apart = differential_difference(
        dict(zip(counted.classes, counted.count.tolist(), strict=True)), Counter(truth.types)
    )
    values = (
        found.f1,
        found.type_accuracy,
        found.neighbour_accuracy,
        apart["ndc_largest_error_points"],
    )
    return {
        name: None if value is None else round(value, 4)
        for name, value in zip(names, values, strict=True)
    }


def _labels(keys: Sequence[str], classes: Sequence[str]) -> Int32:
    place = {key: row for row, key in enumerate(classes)}
    return np.array([place[key] for key in keys], np.int32)
