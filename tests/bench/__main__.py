"""``make bench``: reading, whole analyses and growth, side by side against a real Orthanc.

Everything runs in one go on one machine, contestants in turn, and is told as the median of all
rounds with the lowest and the highest. Machines are noisy: compare what stands in one table, not
seconds of two runs.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from dicom_io.demonstration import compose_demonstration_slide
from node.demo import SEED
from tests.bench.annotating import annotate
from tests.bench.growth import PARTS, open_and_read
from tests.bench.opening import open_large_slides
from tests.bench.reading import LIMITS, READERS, Reader
from tests.bench.serving import serve_under_load
from tests.bench.stored_slides import FramePool, StoredSlide
from tests.servers import MISSING_ORTHANC, Orthanc, orthanc_missing, running_orthanc
from tests.tiny_package import tiny_package

SMALL_SIDE, LARGE_SIDE = 64, 204  # frames: 4 096 of about 30 MB, 41 616 of over 300 MB
LARGE_FRAMES = 4_096
ONE_BY_ONE_FRAMES = 400  # a rate: all of them take minutes
ONE_FRAME_SAMPLE = 100  # of the large instance, for readers that ask for one frame at a time
GROWTH_SIDES = (32, 64, 128)
PARTS_MEASURED = ("reading", "large", "whole", "growth", "opening", "annotating", "serving")
SHIPPED = Path(__file__).parents[2] / "models" / "packages"

console = Console(stderr=True)


@dataclass(frozen=True)
class Timing:
    """Frames a second of one contestant."""

    name: str
    frames: int
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "frames": self.frames,
            "frames_per_s": {
                "median": round(self.median, 1),
                "lowest": round(min(self.rounds), 1),
                "highest": round(max(self.rounds), 1),
                "rounds": len(self.rounds),
            },
        }


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Rounds of every measurement.")
@click.option("--out", default="bench", type=click.Path(path_type=Path), show_default=True)
@click.option("--only", type=click.Choice(PARTS_MEASURED), multiple=True)
def main(rounds: int, out: Path, only: tuple[str, ...]) -> None:
    """Measure, print tables, and write bench.json and bench.png."""
    if orthanc_missing():
        raise click.ClickException(MISSING_ORTHANC)
    wanted = only or PARTS_MEASURED
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": _machine(), "rounds": rounds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool = FramePool()
        if "reading" in wanted:
            with _stored(folder / "small", pool, SMALL_SIDE) as (orthanc, slide):
                result["reading"] = _reading(orthanc, slide, rounds)
        if "large" in wanted:
            with _stored(folder / "large", pool, LARGE_SIDE) as (orthanc, slide):
                result["large"] = _large(orthanc, slide, rounds)
        if "whole" in wanted:
            result["whole"] = _whole(folder, rounds)
        if "growth" in wanted:
            result["growth"] = _growth(folder, pool, rounds)
        if "opening" in wanted:
            result["opening"] = _opening()
        if "annotating" in wanted:
            result["annotating"] = _annotating()
        if "serving" in wanted:
            result["serving"] = serve_under_load()
    (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if "reading" in result:
        _draw(result["reading"], out / "bench.png")
    print(json.dumps(result, indent=1))


def _reading(orthanc: Orthanc, slide: StoredSlide, rounds: int) -> dict[str, Any]:
    frames = len(slide.stored)
    fewer = {"dicomweb-client, one by one": ONE_BY_ONE_FRAMES}
    timings = _in_turn({**READERS, **LIMITS}, orthanc, slide, fewer, rounds)
    by_name = {timing.name: timing for timing in timings}
    this = by_name["this reader"].median
    fetch = max(timing.median for name, timing in by_name.items() if name.startswith("raw fetch"))
    decode = by_name["libjpeg-turbo on all cores"].median
    # Server and reader share the cores, so the limit is the sum of both times.
    limit = 1 / (1 / fetch + 1 / decode)
    table: dict[str, Any] = {
        "instance_bytes": slide.path.stat().st_size,
        "timings": [timing.as_json() for timing in timings],
        "times_faster_than_wsidicom": round(this / by_name["wsidicom"].median, 2),
        "limit_frames_per_s": round(limit, 1),
        "times_slower_than_limit": round(limit / this, 3),
    }
    _print_timings(f"{frames} frames of {table['instance_bytes'] / 1e6:.0f} MB", timings)
    console.print(
        f"{table['times_faster_than_wsidicom']} × wsidicom;"
        f" {table['times_slower_than_limit']} × the limit's time"
    )
    return table


def _large(orthanc: Orthanc, slide: StoredSlide, rounds: int) -> dict[str, Any]:
    this = _in_turn(
        {"this reader": READERS["this reader"]},
        orthanc,
        slide,
        {"this reader": LARGE_FRAMES},
        rounds,
    )
    one_frame = {name: reader for name, reader in READERS.items() if name != "this reader"}
    others = _in_turn(one_frame, orthanc, slide, dict.fromkeys(one_frame, ONE_FRAME_SAMPLE), 1)
    fastest = max(timing.median for timing in others)
    table: dict[str, Any] = {
        "instance_bytes": slide.path.stat().st_size,
        "timings": [timing.as_json() for timing in (*this, *others)],
        "times_faster_than_one_frame_readers": round(this[0].median / fastest, 1),
    }
    _print_timings(f"an instance of {table['instance_bytes'] / 1e6:.0f} MB", [*this, *others])
    return table


def _in_turn(
    readers: Mapping[str, Reader],
    orthanc: Orthanc,
    slide: StoredSlide,
    frames: Mapping[str, int],
    rounds: int,
) -> list[Timing]:
    """Every contestant once in each round, so that a slow minute hits all of them."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds):
        for name, reader in readers.items():
            wanted = frames.get(name, len(slide.stored))
            rates[name].append(wanted / reader(orthanc.dicomweb_url, slide, wanted))
        console.print(f"round {number + 1} of {rounds}")
    return [
        Timing(name, frames.get(name, len(slide.stored)), tuple(each))
        for name, each in rates.items()
    ]


def _whole(folder: Path, rounds: int) -> list[dict[str, Any]]:
    slide = compose_demonstration_slide(folder / "demo", SEED)
    models = (str(tiny_package(folder / "costless", costless=True)), str(SHIPPED / "demo-smear"))
    rows = []
    with running_orthanc(folder / "whole") as orthanc:
        orthanc.add(*slide.paths)
        for model in models:
            runs = [
                _one_analysis(orthanc, slide.study_uid, slide.series_uid, folder / f"{n}", model)
                for n in range(rounds)
            ]
            rows.append(sorted(runs, key=lambda run: float(run["over_limit"]))[rounds // 2])
    table = Table(
        "model", "s", "reading alone", "network alone", "CPU s", "over limit", "MB", box=None
    )
    for row in rows:
        table.add_row(
            row["model"],
            *(f"{row[key]:.1f}" for key in ("wall_s", "reading_alone_s", "network_alone_s")),
            f"{row['processor_s']:.1f}",
            f"{row['over_limit']:.2f}",
            f"{row['peak_rss_mb']:.0f}",
        )
    console.print(table)
    return rows


def _one_analysis(
    orthanc: Orthanc, study_uid: str, series_uid: str, folder: Path, model: str
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        answer = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.bench.whole",
                orthanc.dicomweb_url,
                study_uid,
                series_uid,
                str(orthanc.pid),
                work,
                model,
            ],
            check=True,
            stdout=subprocess.PIPE,
        )
    measured: dict[str, Any] = json.loads(answer.stdout)
    return measured


def _growth(folder: Path, pool: FramePool, rounds: int) -> list[dict[str, Any]]:
    rows = []
    table = Table("slide", "part", "open s", "read s", "tiles", "MB read", box=None)
    for side in GROWTH_SIDES:
        with _stored(folder / f"growth-{side}", pool, side) as (orthanc, slide):
            for part, side_px in PARTS.items():
                runs = [
                    open_and_read(orthanc.dicomweb_url, slide, side_px(side, GROWTH_SIDES[0]))
                    for _ in range(rounds)
                ]
                run = {key: statistics.median(each[key] for each in runs) for key in runs[0]}
                rows.append({"frames": side * side, "part": part, **run})
                table.add_row(
                    f"{side * side} frames",
                    part,
                    f"{run['open_s']:.3f}",
                    f"{run['read_s']:.2f}",
                    f"{run['tiles']:.0f}",
                    f"{run['bytes_read'] / 1e6:.1f}",
                )
    console.print(table)
    return rows


def _opening() -> list[dict[str, Any]]:
    rows = open_large_slides()
    table = Table("layout", "frames", "JSON MB", "s after metadata", "MB with reading", box=None)
    for row in rows:
        keys = ("layout", "frames", "metadata_mb", "opened_after_metadata_s")
        table.add_row(*(str(row[key]) for key in (*keys, "opening_and_reading_mb")))
    console.print(table)
    return rows


def _annotating() -> list[dict[str, Any]]:
    rows = annotate()
    keys = ("name", "cells", "built_s", "read_s", "mb", "peak_rss_mb")
    table = Table(*keys, box=None)
    for row in rows:
        table.add_row(*(str(row[key]) for key in keys))
    console.print(table)
    return rows


@contextmanager
def _stored(folder: Path, pool: FramePool, side: int) -> Iterator[tuple[Orthanc, StoredSlide]]:
    slide = pool.slide(folder, side, side)
    with running_orthanc(folder / "orthanc") as orthanc:
        orthanc.add(slide.path)
        yield orthanc, slide


def _print_timings(title: str, timings: Sequence[Timing]) -> None:
    table = Table(title, "frames/s", "lowest", "highest", "n", box=None)
    for timing in timings:
        rates = (timing.median, min(timing.rounds), max(timing.rounds))
        table.add_row(timing.name, *(f"{rate:.0f}" for rate in rates), str(timing.frames))
    console.print(table)


def _draw(reading: Mapping[str, Any], path: Path) -> None:
    """Frames a second of each contestant, lowest to highest as a line, and the limit."""
    timings = reading["timings"][: len(READERS)]
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.add_subplot()
    for row, timing in enumerate(reversed(timings)):
        rate = timing["frames_per_s"]
        axes.barh(row, rate["median"], color="#4878a8")
        axes.plot([rate["lowest"], rate["highest"]], [row, row], color="black")
        axes.text(rate["highest"] * 1.02, row, f"{rate['median']:.0f}", va="center")
    axes.axvline(reading["limit_frames_per_s"], color="#b04030", label="fetch + libjpeg-turbo")
    axes.set_yticks(range(len(timings)), [timing["name"] for timing in reversed(timings)])
    axes.set_xlabel("frames of 256 px fetched and decoded per second")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
