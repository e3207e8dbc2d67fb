"""``marrow-node serve``, ``web``, ``work`` and ``key``: the node as a service.

``serve`` keeps one web process and its workers alive, and performs workitems meanwhile. They meet
in the database alone, so that each may end at any moment: the next one goes on. ``web``, ``work``
and ``perform`` are the same one by one, for containers.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import cast

import click
from flask import Flask

from dicom_io.errors import ConfigurationInvalid
from node.attempts import Attempts
from node.audit import forwarding
from node.audited import application_audited, audit_folder
from node.config import Settings
from node.device import check_device
from node.job_database import open_job_database, prepare_database
from node.job_queue import open_job_queue
from node.metrics import join_metrics, share_metrics
from node.perform import perform_until
from node.poll import poll_until, polls
from node.retention import DAY_S
from node.retention import purge as purge_old
from node.web.access import new_key
from node.web.settings import ROLES, Role

log = logging.getLogger(__name__)

LOOK_S = 0.2
# A process that keeps failing is started again after a while only.
LONGEST_PAUSE_S = 60.0
STEADY_S = 60.0
END_S = 30.0


@click.command()
@click.pass_context
def serve(ctx: click.Context) -> None:
    """Run the service: web, pages and workers, until SIGTERM.

    \b
    Make a key for each machine and person first, and put its lines into the settings file:
      marrow-node key orthanc --role submit
      marrow-node key anna --role read --role operate
    """
    settings: Settings = ctx.obj
    check_servable(settings)
    check_device(settings.model)
    share_metrics(settings.work_folder / "metrics")
    prepare_database(settings)
    same = _same_settings(ctx)
    kept = [_Kept("web", [*same, "web"])]
    kept += [_Kept(f"worker {n + 1}", [*same, "work"]) for n in range(settings.serve.workers)]
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    # In this process: one of its own would need another 230 MB for the same libraries.
    loops = [("performer", partial(perform_until, settings, stopped))]
    if polls(settings):
        loops.append(("poller", partial(poll_until, settings, stopped)))
    threads = [threading.Thread(target=_keep_running, args=(*loop, stopped)) for loop in loops]
    for thread in threads:
        thread.start()
    address = settings.serve.public_url or _address(settings)
    click.echo(f"marrow-node: serving at {address}", err=True)
    try:
        while not stopped.wait(LOOK_S):
            for process in kept:
                process.look()
    finally:
        stopped.set()
        for process in kept:
            process.terminate()
        for process in kept:
            process.end(settings.jobs.drain_s + END_S)
        for thread in threads:
            thread.join(END_S)
    click.echo("marrow-node: service stopped", err=True)


@click.command()
@click.pass_obj
def web(settings: Settings) -> None:
    """Run the web process alone; jobs wait until a worker takes them."""
    # Both take a second to load, and other commands have no use for them.
    from node.web.app import create_app  # noqa: PLC0415
    from node.web.server import run_web  # noqa: PLC0415

    check_servable(settings)
    check_device(settings.model)
    join_metrics(settings.work_folder / "metrics")
    prepare_database(settings)
    lasting = ExitStack()

    def make_app() -> Flask:
        # In the process that answers: neither connections nor threads outlive a fork.
        database = lasting.enter_context(open_job_database(settings))
        lasting.enter_context(forwarding(settings.audit, audit_folder(settings)))
        return create_app(settings, database)

    with application_audited(settings, "web"):
        run_web(settings.serve, make_app)


@click.command()
@click.pass_obj
def work(settings: Settings) -> None:
    """Run one worker alone: it analyses what is queued, one slide at a time, until SIGTERM."""
    from node.jobs import open_worker  # noqa: PLC0415

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    join_metrics(settings.work_folder / "metrics")
    with (
        open_worker(settings) as worker,
        application_audited(settings, "worker"),
        forwarding(settings.audit, audit_folder(settings)),
    ):
        while not stopped.is_set():
            if settings.jobs.keep_days:
                # What it meets keeps no slide from being read.
                Attempts().make(partial(purge_old, settings, worker.jobs, settings.jobs.keep_days))
            stopped.wait(DAY_S)
        finished = worker.drain(settings.jobs.drain_s)
    if not finished:
        log.warning("The worker ends in the middle of a slide; the next one goes on with it.")
    logging.shutdown()
    # The interpreter would wait for threads that wait for slides to come in.
    os._exit(0)


@click.command()
@click.option("--days", type=click.FloatRange(min=0), help="Age; the setting jobs.keep_days.")
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def purge(settings: Settings, days: float | None, dry_run: bool, as_json: bool) -> None:
    """Forget old jobs, results, work files and received slides; reviewed results are kept.

    Of slides that came by C-STORE those go whose results were delivered so long ago. One that no
    job has analysed stays, and so do results that lie in the same folder, and all slides where
    pacs_url names that folder. Workers and the receiver do it once a day by themselves
    (jobs.keep_days).
    """
    age_days = settings.jobs.keep_days if days is None else days
    if not age_days and days is None:
        raise ConfigurationInvalid("jobs.keep_days is 0, which keeps all: say --days.")
    with open_job_queue(settings) as queue:
        purged = purge_old(settings, queue, age_days, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(asdict(purged)))
        return
    click.echo(
        f"{'would forget' if dry_run else 'forgot'} {purged.results} results, {purged.files} files"
        f" ({purged.bytes_freed / 1e6:.1f} MB), {purged.jobs} tries of jobs and {purged.slides}"
        f" received slides ({purged.slide_bytes / 1e6:.1f} MB)"
    )
    if purged.slides_without_job:
        click.echo(
            f"kept {purged.slides_without_job} old received slides in {settings.receive.archive} of"
            " which no job is known: delete by hand what is not to be analysed"
        )


@click.command()
@click.argument("name")
@click.option("--role", "roles", type=click.Choice(ROLES), multiple=True, required=True)
@click.option("--person", default="", help="Of a key that signs: Family^Given^^Prefix.")
@click.option("--organization", default="", help="Of that person.")
def key(name: str, roles: tuple[str, ...], person: str, organization: str) -> None:
    """Make a key for a machine or a person; it is shown once and stored nowhere."""
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise ConfigurationInvalid(
            f"The name {name!r} is not letters, digits, - and _: choose one."
        )
    secret, digest = new_key()
    listed = ", ".join(f'"{role}"' for role in cast(Sequence[Role], roles))
    click.echo(f"# {name}: {secret}")
    click.echo(f'[serve.keys.{name}]\nsha256 = "{digest}"\nroles = [{listed}]')
    for field_name, value in (("person", person), ("organization", organization)):
        if value:
            click.echo(f'{field_name} = "{value}"')


def check_servable(settings: Settings) -> None:
    """Tell early what would not work.

    Raises
    ------
    ConfigurationInvalid
        Nobody could use the service, or it has no archive.
    """
    from node.web.server import check_tls  # noqa: PLC0415

    check_tls(settings.serve)
    if not settings.pacs_url:
        raise ConfigurationInvalid("The service needs an archive: set pacs_url.")
    if not settings.serve.keys and not settings.serve.oidc.issuer:
        raise ConfigurationInvalid(
            "Nobody could use the service: make a key with 'marrow-node key NAME --role ROLE' and "
            "put its lines into the settings file, or set [serve.oidc]."
        )


@dataclass(slots=True)
class _Kept:
    """A process that is started again when it ends."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started_s: float = -float("inf")
    pause_s: float = field(default=0.0)

    def look(self) -> None:
        now = time.monotonic()
        if self.process is None:
            if now - self.started_s >= self.pause_s:
                self.process, self.started_s = subprocess.Popen(self.command), now  # noqa: S603
            return
        code = self.process.poll()
        if code is None:
            return
        log.error("The %s ended (exit status %d); it is started again.", self.name, code)
        steady = now - self.started_s >= STEADY_S
        self.pause_s = 0.0 if steady else min(LONGEST_PAUSE_S, 2 * self.pause_s + 0.5)
        self.process = None

    def terminate(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def end(self, seconds: float) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _keep_running(name: str, run: Callable[[], None], stopped: threading.Event) -> None:
    """Run a part of this process, and again after a defect in it."""
    pause_s = 0.5
    while not stopped.is_set():
        try:
            run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other parts go on
            # Its words may quote a patient's data.
            log.error("The %s ended (%s); it is started again.", name, type(error).__name__)
            stopped.wait(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)


def _same_settings(ctx: click.Context) -> list[str]:
    """The command line of this process up to its command."""
    options = ctx.parent.params if ctx.parent is not None else {}
    command = [sys.executable, "-m", "node"]
    for name in ("config", "work"):
        if options.get(name):
            command += [f"--{name}", str(options[name])]
    return [*command, "--verbose"] if options.get("verbose") else command


def _address(settings: Settings) -> str:
    scheme = "https" if settings.serve.certificate is not None else "http"
    return f"{scheme}://{settings.serve.host}:{settings.serve.port}/"
