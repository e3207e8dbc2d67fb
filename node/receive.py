"""``marrow-node receive``: slides that are routed here by C-STORE, and their analysis."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from dicom_io.arrival import Arrival, read_arrival
from dicom_io.commitment import Commitments
from dicom_io.errors import PacsRefused
from dicom_io.receiver import Receiver, series_in
from models.errors import MarrowNodeError
from node.arrivals import Arrivals, Series
from node.attempts import Attempts
from node.config import Settings
from node.job import ENDED, Job
from node.job_queue import JobQueue
from node.jobs import Worker, open_worker
from node.pipeline import SlideReference
from node.received_slides import kept_still
from node.retention import DAY_S, purge
from node.rules import submit_by_rules
from node.workplace import Workplace

LOG = logging.getLogger(__name__)

LOOK_S = 0.5


@click.command()
@click.option(
    "--analyse/--no-analyse", default=True, show_default=True, help="Analyse complete slides."
)
@click.pass_obj
def receive(settings: Settings, analyse: bool) -> None:
    """Receive slides by DICOM C-STORE, and analyse each when it is complete.

    Slides go to the folder archive of the settings in [receive] and are analysed from there;
    results go to results_url, or to pacs_url, or into the same folder where neither is set. Slides
    are deleted jobs.keep_days after their results were delivered; see 'marrow-node purge'. Ends on
    SIGTERM or SIGINT; a job that is not done goes on at the next start.
    """
    site, settings = settings, received_settings(settings)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    arrivals = Arrivals(settings.receive.settle_s, settings.receive.quiet_s)
    commitments = Commitments(settings.work_folder / "commitments")
    receiver = Receiver(
        settings.receive, commitments, arrivals.arrived, arrivals.ended, arrivals.began
    )
    with ExitStack() as stack:
        worker, place = None, None
        if analyse:
            worker = stack.enter_context(open_worker(settings))
            # Not before the worker: it looks at the GPU, and what is forked later could not use it.
            place = Workplace.open(settings, lambda progress: None)
        stack.enter_context(receiver.listening())
        click.echo(
            f"marrow-node: receiving as {settings.receive.ae_title} on port"
            f" {settings.receive.port} into {settings.receive.archive}",
            err=True,
        )
        if worker is None or place is None:
            stopped.wait()
        else:
            with kept_still(settings):
                for arrival in not_analysed(settings.receive.archive, worker.jobs.list()):
                    arrivals.arrived(arrival)
            with _forgetting(site, worker.jobs):
                _analyse_until(stopped, arrivals, worker, place)
    click.echo("marrow-node: receiver stopped", err=True)


@contextmanager
def _forgetting(settings: Settings, jobs: JobQueue) -> Iterator[None]:
    """Forget once a day what is old, as workers do, and keep no slide waiting for it."""
    done, attempts = threading.Event(), Attempts()

    def daily() -> None:
        while not done.is_set():
            attempts.make(partial(purge, settings, jobs, settings.jobs.keep_days))
            done.wait(DAY_S)

    thread = threading.Thread(target=daily, name="retention", daemon=True)
    if settings.jobs.keep_days:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()


def received_settings(settings: Settings) -> Settings:
    """Settings of jobs that read what was received."""
    dimse = settings.dimse
    if settings.pacs_url.startswith("http"):
        # Jobs read from the folder; the site's DICOMweb service is still the one to ask.
        dimse = replace(dimse, ask_url=dimse.ask_url or settings.pacs_url)
    return replace(
        settings,
        pacs_url=settings.receive.archive.as_uri(),
        results_url=settings.results_url or settings.pacs_url,
        dimse=dimse,
    )


def not_analysed(archive: Path, jobs: list[Job]) -> Iterator[Arrival]:
    """Instances of series that changed after their last job was submitted, or have had none."""
    newest = {(job.study_uid, job.series_uid): job.created_ms for job in reversed(jobs)}
    for study_uid, series_uid, files in series_in(archive):
        submitted_ms = newest.get((study_uid, series_uid), -1)
        if all(file.stat().st_mtime_ns // 1_000_000 < submitted_ms for file in files):
            continue
        for file in files:
            try:
                yield read_arrival(file)
            except PacsRefused as error:
                LOG.warning("%s (%s)", error, file)


def _analyse_until(
    stopped: threading.Event, arrivals: Arrivals, worker: Worker, place: Workplace
) -> None:
    # Also those that an earlier process left, which this one goes on with.
    running: dict[str, Series] = {
        job.job: (job.study_uid, job.series_uid)
        for job in worker.jobs.list()
        if job.status not in ENDED
    }
    due: list[Series] = []
    while not stopped.wait(LOOK_S):
        for series, whole in arrivals.complete(busy=running.values()):
            if not whole:
                LOG.warning(
                    "Series %s may not be whole; it is analysed as it is after a long silence.",
                    series[1],
                )
            due.append(series)
        while due:
            try:
                job = _submitted(worker.jobs, place, SlideReference(*due[0], "received by C-STORE"))
            except MarrowNodeError as error:
                if error.transient:
                    LOG.warning("Series %s waits: %s", due[0][1], error)
                    break
                click.echo(f"marrow-node: series {due[0][1]}: {error}", err=True)
                job = ""
            series = due.pop(0)
            if job:
                running[job] = series
                click.echo(f"marrow-node: series {series[1]} is complete, job {job}", err=True)
        for job in sorted(running):
            ended = worker.jobs.get(job)
            if ended.status in ENDED:
                del running[job]
                said = f": {ended.error}" if ended.error else ""
                click.echo(f"marrow-node: job {job} {ended.status}{said}", err=True)


def _submitted(jobs: JobQueue, place: Workplace, slide: SlideReference) -> str:
    """Queue a slide, by the rules where there are any. Returns its job, empty for none.

    Nobody waits for it, so that it has a priority: failures that may pass are tried again.
    """
    if not place.settings.rules:
        return jobs.submit(slide, place, "routine", again=True).job
    job, decision = submit_by_rules(place.settings, jobs, slide, "routine", again=True)
    if job is None:
        click.echo(f"marrow-node: series {slide.series_uid}: {decision.why}", err=True)
        return ""
    return job.job
