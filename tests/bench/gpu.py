"""``make bench-gpu``: tiles a second on the GPU in 32 and in 16 bits and on the CPU, how busy the
GPU is, and how much of what the CPU finds the GPU finds, too.

Without a usable GPU it says why and measures nothing. ``--device cpu`` runs the same measurement
without one, to see that it works.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np

from dicom_io.demonstration import compose_demonstration_slide
from dicom_io.frames import read_tiles
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import open_slide
from dicom_io.tile_plan import frame_boxes
from models.detect import detect
from models.errors import InferenceFailed
from models.evaluation import match
from models.package import ModelPackage, Precision, find_package
from models.records import Detections, Tiles
from models.session import open_session, provider_for

SEED = 2026
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SLIDE_PX, SLIDE_CELLS = (8_192, 8_192), 600


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--model", default="demo-smear", show_default=True)
@click.option("--tiles", "count", default=192, show_default=True)
def main(device: Literal["cuda", "cpu"], model: str, count: int) -> None:
    """Measure one package; prints a line of JSON for each figure, as soon as it is taken."""
    try:
        provider = provider_for(device)
    except InferenceFailed as reason:
        click.echo(f"skipped: {reason}", err=True)
        return
    package = find_package(model, ())
    tiles = _tiles(package.manifest.detector.um_per_px, package.manifest.detector.tile_px, count)
    slow = open_session(package, "detector", "cpu", 0)
    started = time.monotonic()
    truth = [detect(_part(tiles, at, 2), slow, package) for at in range(0, count, 2)]
    cpu_rate = count / (time.monotonic() - started)
    about = {
        "provider": provider,
        "gpu": _gpu_name(),
        "model": model,
        "tiles": count,
        "tile_px": package.manifest.detector.tile_px,
        "cpu_tiles_per_s": round(cpu_rate, 2),
    }
    click.echo(json.dumps(about))
    for precision in _precisions(package, device):
        for row in _timed(package, device, precision, tiles, truth):
            click.echo(json.dumps({"precision": precision, **row}))


def _precisions(package: ModelPackage, device: Literal["cuda", "cpu"]) -> list[Precision]:
    """What the device can run of the package: a CPU has no 16-bit form of its own."""
    if device == "cpu" or package.manifest.detector.fp16 is None:
        return ["fp32"]
    return ["fp32", "fp16"]


def _timed(
    package: ModelPackage,
    device: Literal["cuda", "cpu"],
    precision: Precision,
    tiles: Tiles,
    truth: Sequence[Detections],
) -> Iterator[dict[str, Any]]:
    """Speed by batch size, then how much of what the CPU found in 32 bits is found again."""
    session = open_session(package, "detector", device, 0, precision)
    count = len(tiles.rgb)
    for size in BATCHES:
        batches = [_part(tiles, at, size) for at in range(0, count, size)]
        detect(batches[0], session, package)  # warm: kernels are chosen at the first shape
        with _gpu_busy() as busy:
            started = time.monotonic()
            found = [detect(batch, session, package) for batch in batches]
            seconds = time.monotonic() - started
        yield {
            "batch_tiles": size,
            "tiles_per_s": round(count / seconds, 1),
            "gpu_busy_percent": round(statistics.mean(busy), 1) if busy else None,
        }
    yield _agreement(found, truth, BATCHES[-1], 2)


def _tiles(um_per_px: float, tile_px: int, count: int) -> Tiles:
    """Tiles of a composed smear, from a folder."""
    with tempfile.TemporaryDirectory() as name:
        slide = compose_demonstration_slide(Path(name) / "pacs", SEED, SLIDE_PX, SLIDE_CELLS)
        with open_pacs((Path(name) / "pacs").as_uri(), PacsSettings()) as pacs:
            opened = open_slide(pacs, slide.study_uid, slide.series_uid)
            corner = frame_boxes(opened)[:, :2][:count]
            side = tile_px * um_per_px / opened.base.um_per_px
            box_px = np.hstack([corner, corner + side])
            (tiles,) = read_tiles(pacs, opened, box_px, um_per_px, batch_size=count)
    return tiles


def _part(tiles: Tiles, at: int, size: int) -> Tiles:
    end = at + size
    return Tiles(
        tiles.rgb[at:end], tiles.origin_px[at:end], tiles.px_per_tile_px, tiles.valid[at:end]
    )


def _agreement(
    found: Sequence[Detections], truth: Sequence[Detections], size: int, truth_size: int
) -> dict[str, Any]:
    """Cells of the CPU that the other device finds at the same place, and with the same type."""
    near = same = cells = 0
    mine, true = _by_tile(found, size), _by_tile(truth, truth_size)
    for tile, (box, kind) in true.items():
        other_box, other_kind = mine.get(tile, (np.empty((0, 4)), np.empty(0, np.int64)))
        pairs = match(other_box, box, iou=0.9)
        cells += len(box)
        near += len(pairs.truth)
        same += int((other_kind[pairs.found] == kind[pairs.truth]).sum())
    return {
        "cells": cells,
        "found_beside_them": sum(len(box) for box, _ in mine.values()) - near,
        "same_place_percent": round(100 * near / max(cells, 1), 3),
        "same_place_and_type_percent": round(100 * same / max(cells, 1), 3),
    }


def _by_tile(
    batches: Sequence[Detections], size: int
) -> dict[int, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    by_tile = {}
    for number, batch in enumerate(batches):
        for tile in np.unique(batch.tile):
            rows = batch.tile == tile
            box = batch.box_tile_px[rows].astype(np.float64)
            by_tile[number * size + int(tile)] = (box, batch.label[rows])
    return by_tile


@contextmanager
def _gpu_busy() -> Iterator[list[float]]:
    """Share of time in which the GPU computed, sampled every 0.2 s; empty without nvidia-smi."""
    samples: list[float] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.2):
            samples.append(float(_nvidia_smi("utilization.gpu")))

    thread = threading.Thread(target=sample)
    if shutil.which("nvidia-smi"):
        thread.start()
    try:
        yield samples
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()


def _gpu_name() -> str | None:
    return _nvidia_smi("name") if shutil.which("nvidia-smi") else None


def _nvidia_smi(field: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", "--id=0"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
