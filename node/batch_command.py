"""``marrow-node batch``: the command, and what it shows."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from dicom_io.errors import ConfigurationInvalid
from dicom_io.search import Search, SearchInvalid, read_search
from models.errors import MarrowNodeError
from node.batch import Batch, Standing
from node.config import Settings
from node.console import ERR
from node.job_database import prepare_database
from node.job_queue import open_job_queue
from node.work_lock import live_workers, lock_folder
from node.worklist_database import worklist_database

LINE_EVERY_S = 10.0


@click.command()
@click.option("--model", help="Model package, see 'marrow-node models'.")
@click.option("--dry-run", is_flag=True, help="Only list what would be analysed.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.argument("query", nargs=-1, required=True)
@click.pass_obj
def batch(
    settings: Settings, model: str | None, dry_run: bool, as_json: bool, query: tuple[str, ...]
) -> None:
    """Analyse the slides of an archive again: those of the studies that QUERY finds.

    \b
    QUERY is one or more KEY=VALUE of a search for studies (QIDO-RS):
      marrow-node batch StudyDate=20200101-20251231
      marrow-node batch 'PatientID=*' ModalitiesInStudy=SM

    Where there are rules, they decide which slides. Jobs have the priority batch, so that slides
    that come in meanwhile go before them; workers ('marrow-node serve' or 'work') do them. The
    table [batch] in the settings says how many at a time, and in an hour. A batch that was stopped
    or killed goes on when the same command is given again, and queues nothing twice.
    """
    if model:
        settings = replace(settings, model=replace(settings.model, name=model))
    search = _search_of(query)
    stopped = threading.Event()
    if not dry_run:
        prepare_database(settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
    with closing(worklist_database(settings)) as database, open_job_queue(settings) as queue:
        made = Batch(settings, database, queue, search, stopped)
        if dry_run:
            _print_wanted(made, as_json)
            return
        with _standing_shown(settings) as watch:
            made.run(watch)
        sys.exit(_print_outcome(made, as_json))


def _search_of(query: Sequence[str]) -> Search:
    pairs = [each.partition("=") for each in query]
    if not all(key and sign for key, sign, _ in pairs):
        raise ConfigurationInvalid(
            "The query is not KEY=VALUE…, for example StudyDate=20200101-20251231: correct it."
        )
    try:
        search = read_search("studies", [(key, wanted) for key, _, wanted in pairs])
    except SearchInvalid as error:
        raise ConfigurationInvalid(f"The query cannot be searched for: {error}") from error
    if search.ignored or search.offset or search.limit is not None:
        raise ConfigurationInvalid("The query searches for studies only: leave out its switches.")
    return search


def _print_wanted(made: Batch, as_json: bool) -> None:
    rows = [
        {
            "study_uid": slide.study_uid,
            "series_uid": slide.series_uid,
            "analyse": analyse,
            "why": why,
        }
        for slide, analyse, why in made.wanted()
    ]
    count = sum(bool(row["analyse"]) for row in rows)
    if as_json:
        click.echo(json.dumps({"batch": made.name, "analyse": count, "slides": rows}, indent=2))
        return
    for row in rows:
        what = "analyse     " if row["analyse"] else "not analysed"
        click.echo(f"{what} {row['series_uid']}: {row['why']}")
    click.echo(f"batch {made.name}: would analyse {count} of {len(rows)} slides not come to yet")


def _print_outcome(made: Batch, as_json: bool) -> int:
    """Print how it ended; returns the exit code."""
    standing, jobs = made.standing, made.jobs()
    failed = [*jobs.get("failed", []), *jobs.get("cancelled", [])]
    ends: Mapping[str, int] = {state: len(of) for state, of in jobs.items()}
    if as_json:
        told: dict[str, Any] = {**asdict(standing), "jobs": ends}
        told["failed"] = [
            {"job": job.job, "series_uid": job.series_uid, "error": job.error} for job in failed
        ]
        click.echo(json.dumps(told, indent=2))
    else:
        listed = ", ".join(f"{count} {state}" for state, count in sorted(ends.items()))
        click.echo(f"{standing.line}; jobs: {listed or 'none'}")
        for job in failed:
            click.echo(f"job {job.job} of series {job.series_uid} {job.status}: {job.error}")
    if failed:
        return failed[0].exit_code or MarrowNodeError.exit_code
    return MarrowNodeError.exit_code if standing.not_readable else 0


@contextmanager
def _standing_shown(settings: Settings) -> Iterator[Callable[[Standing], None]]:
    """A bar on a terminal, a line now and then in a log; always on standard error."""
    alone = threading.Event()

    def tell_if_alone(standing: Standing) -> None:
        # Of PostgreSQL's workers other hosts may have some.
        if settings.database_url or not standing.at_work or alone.is_set():
            return
        if not live_workers(lock_folder(settings)):
            alone.set()
            click.echo("marrow-node: no worker runs, so that jobs wait: start one.", err=True)

    if not ERR.is_terminal:
        told_s = -float("inf")

        def line(standing: Standing) -> None:
            nonlocal told_s
            tell_if_alone(standing)
            if time.monotonic() - told_s >= LINE_EVERY_S:
                told_s = time.monotonic()
                click.echo(standing.line, err=True)

        yield line
        return
    bar = ProgressBar(
        TextColumn("studies"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=ERR,
    )
    with bar:
        task = bar.add_task("", total=None)

        def show(standing: Standing) -> None:
            tell_if_alone(standing)
            bar.update(
                task,
                total=standing.studies or None,
                completed=standing.studies_done,
                description=f"{standing.queued} slides queued, {standing.at_work} at work",
            )

        yield show
