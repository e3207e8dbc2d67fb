"""``make bench-gpu``: tiles and slides a second on the GPU and on the CPU, how busy the GPU is, and
how much of what the CPU finds the GPU finds, too.

Without a usable GPU it says why and measures nothing. ``--device cpu`` runs the same measurement
without one, to see that it works.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np

from dicom_io.demonstration import DemonstrationSlide, compose_demonstration_slide
from dicom_io.frames import read_tiles
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import open_slide
from models.classify import Sessions, detect_and_classify
from models.errors import InferenceFailed
from models.evaluation import match
from models.package import ModelPackage, Precision, find_package, stages_of
from models.records import Detections, Tiles
from models.session import open_session, provider_for
from node.gpu_use import gpu_use

SEED = 2026
SLIDE_PX, SLIDE_CELLS = (24_000, 16_000), 6_000
SLIDES = 3  # of each process
AT_ONCE = 4  # processes that share the GPU
TILES_SLIDE_PX, TILES_SLIDE_CELLS = (8_192, 8_192), 1_000
BATCHES = (4, 16, 64)
SAME_PLACE_IOU = 0.9
# Tiles that a CPU goes through in seconds too: two-stage detectors are slow there.
PACKAGES = {"demo-smear": 192, "tayebi2021": 128, "choi2017": 128, "wang2022": 96, "liu2022": 96}
WHOLE = "demo-smear"

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Found:
    """Cells of one package on one device: boxes and types, in the order of their tiles."""

    box_px: np.ndarray[Any, Any]
    label: np.ndarray[Any, Any]


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--only", type=click.Choice(["slides", "tiles"]), help="One of the two parts.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for gpu.json and gpu.md.")
def main(device: Device, only: Literal["slides", "tiles"] | None, out: Path | None) -> None:
    """Measure; prints a line of JSON for each figure, as soon as it is taken."""
    try:
        provider = provider_for(device)
    except InferenceFailed as reason:
        click.echo(f"skipped: {reason}", err=True)
        return
    rows: list[dict[str, Any]] = []

    def tell(row: dict[str, Any]) -> None:
        rows.append(row)
        click.echo(json.dumps(row))
        if out is not None:  # what is cut short still tells something
            _write(out, rows)

    tell({"part": "machine", "provider": provider, **_machine()})
    with tempfile.TemporaryDirectory() as name:
        if only != "tiles":
            for row in _whole_slides(Path(name) / "slides", device):
                tell(row)
        if only != "slides":
            for row in _tile_by_tile(Path(name) / "tiles", device):
                tell(row)


def _tile_by_tile(folder: Path, device: Device) -> Iterator[dict[str, Any]]:
    slide = compose_demonstration_slide(folder / "pacs", SEED, TILES_SLIDE_PX, TILES_SLIDE_CELLS)
    for model in PACKAGES:
        package = find_package(model, ())
        try:
            yield from _networks(package, device, _tiles(folder, slide, package))
        except InferenceFailed as error:
            yield {"part": "failed", "model": model, "reason": str(error)}


def _networks(package: ModelPackage, device: Device, tiles: Tiles) -> Iterator[dict[str, Any]]:
    """Speed by batch size, then how much of what the CPU found in 32 bits is found again."""
    count = len(tiles.rgb)
    about = {"part": "tiles", "model": package.manifest.name, "tiles": count}
    sessions = _sessions(package, "cpu", "fp32")
    begun = time.monotonic()
    truth = [
        detect_and_classify(_part(tiles, at, 4), sessions, package) for at in range(0, count, 4)
    ]
    cpu_s = time.monotonic() - begun
    yield {**about, "device": "cpu", "precision": "fp32", "tiles_per_s": round(count / cpu_s, 1)}
    for precision in _precisions(package, device):
        for size in (batch for batch in BATCHES if batch <= count):
            sessions = _sessions(package, device, precision)
            batches = [_part(tiles, at, size) for at in range(0, count, size)]
            begun = time.monotonic()
            detect_and_classify(batches[0], sessions, package)  # kernels are chosen
            first_s = time.monotonic() - begun
            with _gpu_watched() as samples:
                begun = time.monotonic()
                found = [detect_and_classify(batch, sessions, package) for batch in batches]
                ended = time.monotonic()
            yield {
                **about,
                "device": device,
                "precision": precision,
                "batch_tiles": size,
                "first_batch_s": round(first_s, 2),
                "tiles_per_s": round(count / (ended - begun), 1),
                "gpu_busy_percent": _busy_percent(samples, begun, ended),
                **_agreement(_in_one_frame(found, size, tiles), _in_one_frame(truth, 4, tiles)),
            }


def _sessions(package: ModelPackage, device: Device, precision: Precision) -> Sessions:
    stages = [stage for stage in stages_of(package.manifest) if stage != "localiser"]
    return {stage: open_session(package, stage, device, 0, precision) for stage in stages}


def _precisions(package: ModelPackage, device: Device) -> list[Precision]:
    """What the device can run of the package: a CPU has no 16-bit form of its own."""
    if device == "cpu" or package.manifest.detector.fp16 is None:
        return ["fp32"]
    return ["fp32", "fp16"]


def _tiles(folder: Path, slide: DemonstrationSlide, package: ModelPackage) -> Tiles:
    """Tiles around cells that were drawn by lot."""
    stage, count = package.manifest.detector, PACKAGES[package.manifest.name]
    with open_pacs((folder / "pacs").as_uri(), PacsSettings()) as pacs:
        opened = open_slide(pacs, slide.study_uid, slide.series_uid)
        box = slide.truth.box_px
        centre = (box[:, :2] + box[:, 2:]) / 2
        drawn = np.random.default_rng(SEED).choice(centre, count, replace=False)
        side = stage.tile_px * stage.um_per_px / opened.base.um_per_px
        corner = np.round(drawn - side / 2)
        box_px = np.hstack([corner, corner + side])
        (tiles,) = read_tiles(pacs, opened, box_px, stage.um_per_px, batch_size=count)
    return tiles


def _part(tiles: Tiles, at: int, size: int) -> Tiles:
    end = at + size
    return Tiles(
        tiles.rgb[at:end], tiles.origin_px[at:end], tiles.px_per_tile_px, tiles.valid[at:end]
    )


def _in_one_frame(batches: Sequence[Detections], size: int, tiles: Tiles) -> Found:
    """All cells, with tiles laid out apart from each other."""
    apart = 2 * max(tiles.rgb.shape[1:3])
    box = [
        batch.box_tile_px + apart * (number * size + batch.tile[:, None])
        for number, batch in enumerate(batches)
    ]
    return Found(np.concatenate(box), np.concatenate([batch.label for batch in batches]))


def _agreement(found: Found, truth: Found) -> dict[str, Any]:
    """Cells of the CPU that the other device finds at the same place, and with the same type."""
    pairs = match(found.box_px, truth.box_px, iou=SAME_PLACE_IOU)
    same = int((found.label[pairs.found] == truth.label[pairs.truth]).sum())
    cells = len(truth.label)
    return {
        "cells": cells,
        "found_beside_them": len(found.label) - len(pairs.found),
        "same_place_percent": round(100 * len(pairs.truth) / max(cells, 1), 3),
        "same_place_and_type_percent": round(100 * same / max(cells, 1), 3),
    }


def _whole_slides(folder: Path, device: Device) -> Iterator[dict[str, Any]]:
    """One process after another, then several that share the GPU; folders as archive and EHR."""
    slide = compose_demonstration_slide(folder / "pacs", SEED, SLIDE_PX, SLIDE_CELLS)
    package = find_package(WHOLE, ())
    kinds: list[tuple[Device, Precision, int]] = [("cpu", "fp32", 1)]
    for precision in _precisions(package, device):
        kinds += [(device, precision, number) for number in (1, AT_ONCE)]
    kinds = list(dict.fromkeys(kinds))  # where the device is the CPU itself
    truth: Found | None = None
    for kind_device, precision, processes in kinds:
        each = 1 if kind_device == "cpu" else SLIDES
        places = [folder / f"{kind_device}-{precision}-{processes}-{n}" for n in range(processes)]
        with _gpu_watched() as samples:
            _analyse_at_once(folder, slide, places, kind_device, precision, each)
        rows = [row for place in places for row in json.loads((place / "slides.json").read_text())]
        found = _cells_in(places[0])
        agreement = {"cells": len(found.label)} if truth is None else _agreement(found, truth)
        truth = truth or found
        began, ended = min(row["began"] for row in rows), max(row["ended"] for row in rows)
        span_s = ended - began
        yield {
            "part": "slides",
            "model": WHOLE,
            "device": kind_device,
            "precision": precision,
            "provider": rows[0]["provider"],
            "processes": processes,
            "slides": len(rows),
            "tiles_per_slide": rows[0]["tiles"],
            "slides_per_s": round(len(rows) / span_s, 3),
            "tiles_per_s": round(sum(row["tiles"] for row in rows) / span_s, 1),
            "gpu_busy_percent": _busy_percent(samples, began, ended),
            "stages_s": rows[-1]["stages_s"],
            **agreement,
        }


def _analyse_at_once(
    folder: Path,
    slide: DemonstrationSlide,
    places: Sequence[Path],
    device: Device,
    precision: Precision,
    slides: int,
) -> None:
    running = []
    for place in places:
        place.mkdir()
        words = [device, precision, str(folder / "pacs"), slide.study_uid, slide.series_uid]
        command = [sys.executable, "-m", "tests.bench.gpu_slides", *words, str(place), str(slides)]
        running.append(subprocess.Popen(command))
    ended = [process.wait() for process in running]
    if any(ended):
        raise RuntimeError("An analysis of the benchmark failed; what it said stands above.")


def _cells_in(place: Path) -> Found:
    with np.load(place / "cells.npz") as cells:
        return Found(cells["box_px"], cells["label"])


@contextmanager
def _gpu_watched() -> Iterator[list[tuple[float, float]]]:
    """When, and which percentage of the time before it, the first GPU computed."""
    samples: list[tuple[float, float]] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.05):
            samples.extend((time.monotonic(), 100 * use.busy_ratio) for use in gpu_use()[:1])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def _busy_percent(
    samples: Sequence[tuple[float, float]], began: float, ended: float
) -> float | None:
    busy = [percent for when, percent in samples if began <= when <= ended]
    return round(statistics.mean(busy), 1) if busy else None


def _machine() -> dict[str, Any]:
    try:
        command = [
            "nvidia-smi",
            "--id=0",
            "--query-gpu=name,driver_version",
            "--format=csv,noheader",
        ]
        gpu = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        gpu = "none"
    return {"gpu": gpu, "cores": os.cpu_count(), "architecture": platform.machine()}


def _write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(rows, indent=1) + "\n")
    (out / "gpu.md").write_text(_table(rows))


def _table(rows: Sequence[dict[str, Any]]) -> str:
    machine, *others = rows
    lines = [
        "# On a GPU",
        "",
        f"{machine['gpu']}, {machine['cores']} cores ({machine['architecture']}); written by",
        f"`make bench-gpu`. Slides are composed, {SLIDE_PX[0]} × {SLIDE_PX[1]} px with"
        f" {SLIDE_CELLS} cells; tiles lie around cells.",
        f"Agreement: cells of the CPU (32 bits) found with IoU ≥ {SAME_PLACE_IOU} and the same"
        " type, of all that it found. The driver tells how busy the GPU was in up to a second:"
        " of networks alone, which are through in less, it tells too little.",
        "",
    ]
    for part, heads in _COLUMNS.items():
        chosen = [row for row in others if row["part"] == part]
        if chosen:
            lines += [f"| {' | '.join(heads.values())} |", f"|{'---|' * len(heads)}"]
            lines += [f"| {' | '.join(_cell(row.get(key)) for key in heads)} |" for row in chosen]
            lines.append("")
    return "\n".join(lines)


_COLUMNS = {
    "slides": {
        "model": "whole slides",
        "device": "device",
        "precision": "precision",
        "processes": "processes",
        "slides": "slides",
        "slides_per_s": "slides/s",
        "tiles_per_s": "tiles/s",
        "gpu_busy_percent": "GPU busy %",
        "cells": "cells",
        "same_place_and_type_percent": "agreement %",
    },
    "tiles": {
        "model": "network alone",
        "device": "device",
        "precision": "precision",
        "batch_tiles": "batch",
        "tiles": "tiles",
        "tiles_per_s": "tiles/s",
        "gpu_busy_percent": "GPU busy %",
        "cells": "cells",
        "same_place_and_type_percent": "agreement %",
    },
}


def _cell(value: object) -> str:
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
