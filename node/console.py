"""What the commands show: progress while a job runs, its result at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from dicom_io.errors import JobRefused
from models.cell_types import CELL_TYPES
from node.config import Settings
from node.job import Job
from node.jobs import open_worker
from node.pipeline import SlideReference
from node.progress import Progress
from node.review import Review
from node.workplace import Workplace

OUT = Console()
ERR = Console(stderr=True)


def run_job(settings: Settings, slide: SlideReference) -> Job:
    """Submit a slide, show its progress, return the ended job.

    Raises
    ------
    JobRefused
        The node is paused.
    MarrowNodeError
    """
    place = Workplace.open(settings, lambda progress: None)
    with open_worker(settings) as worker, _progress_shown() as watch:
        if worker.jobs.paused:
            raise JobRefused("The node is paused: give 'marrow-node resume' first.")
        return worker.wait(worker.submit(slide, place), watch)


def run_review(settings: Settings, job: str, review: Review) -> Job:
    """Queue a review of a job's result, show its progress, return the ended job."""
    with open_worker(settings) as worker, _progress_shown() as watch:
        return worker.wait(worker.jobs.review(job, review).job, watch)


@contextmanager
def _progress_shown() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, a line per stage in a log; always on standard error."""
    if not ERR.is_terminal:
        seen: set[str] = set()

        def line(progress: Progress) -> None:
            if progress.stage not in seen:
                seen.add(progress.stage)
                click.echo(f"{progress.percent:5.1f} % {progress.stage}", err=True)

        yield line
        return
    bar = ProgressBar(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[cells]} cells"),
        TimeElapsedColumn(),
        console=ERR,
    )
    with bar:
        task = bar.add_task("waiting", total=100.0, cells=0)
        yield lambda progress: bar.update(
            task, completed=progress.percent, description=progress.stage, cells=progress.cells
        )


def print_job(job: Job, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(job_as_json(job), indent=2))
    elif job.result is not None:
        print_result(job.result)
    if job.result is None:
        click.echo(
            f"marrow-node: job {job.job} {job.status}: {job.error or 'not ended yet'}", err=True
        )


def job_as_json(job: Job) -> dict[str, Any]:
    """What ``--json`` prints: the result of a completed job, the reason of a failed one."""
    head = {
        "status": job.status,
        "job": job.job,
        "study_uid": job.study_uid,
        "series_uid": job.series_uid,
    }
    if job.result is not None:
        return head | dict(job.result)
    return head | {"error": job.error, "exit_code": job.exit_code}


def print_result(result: Mapping[str, Any]) -> None:
    """The differential as a table, and where each object lies."""
    OUT.print(f"revision {result.get('revision', 1)}, {result.get('standing', 'unreviewed')}")
    table = Table("type", "count", "% of NDC", "95 % interval", box=None)
    for key, row in result["differential"].items():
        percent = f"{row['percent']:.1f}" if row["percent"] is not None else "–"
        interval = f"{row['low']:.1f} – {row['high']:.1f}" if row["low"] is not None else ""
        table.add_row(CELL_TYPES[key].name, str(row["count"]), percent, interval)
    OUT.print(table)
    ratio = (
        "none (no erythroid cell)" if result["me_ratio"] is None else f"{result['me_ratio']:.2f}"
    )
    OUT.print(f"cells {result['cells']}, M:E {ratio}, {result['sufficiency']}")
    model = result["model"]
    name = f"{model['name']} {model['version']} ({model['digest'][:12]})"
    OUT.print(f"model {name}: {model['intended_use']}")
    for kind in ("ann", "seg", "sr"):
        for uids in result[kind]:
            OUT.print(f"{kind.upper():<4} {uids[2]}", highlight=False)
    OUT.print(f"report {result['report']}", highlight=False)
    OUT.print(
        f"{result['bytes_read'] / 1e6:.1f} of about {result['bytes_slide'] / 1e6:.1f} MB read "
        f"({result['bytes_read'] / result['bytes_needed']:.2f} × the regions' frames and the "
        "localiser's level), "
        f"{result['seconds']:.1f} s, peak memory {result['peak_rss_mb']:.0f} MB"
    )
