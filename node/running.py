"""A job from submission to end, with its progress shown meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from dicom_io.errors import JobRefused
from node.config import Settings
from node.console import ERR
from node.job import Job
from node.jobs import open_worker
from node.pipeline import SlideReference
from node.progress import Progress
from node.review import Review
from node.workplace import Workplace


def run_job(settings: Settings, slide: SlideReference) -> Job:
    """Submit a slide, show its progress, return the ended job.

    Raises
    ------
    JobRefused
        The node is paused.
    MarrowNodeError
    """
    with open_worker(settings) as worker, _progress_shown() as watch:
        if worker.jobs.paused:
            raise JobRefused("The node is paused: give 'marrow-node resume' first.")
        # Not before the worker: it looks at the GPU, and what is forked later could not use it.
        place = Workplace.open(settings, lambda progress: None)
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
