"""``marrow-node reconcile``: whether what was delivered is still there and still says the same.

A job is done only when its results were read back and agreed. What an archive or an EHR does to
them afterwards, only a later look can tell.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

import click
from rich.table import Table

from dicom_io.errors import (
    ConfigurationInvalid,
    DiskFull,
    EhrUnauthorized,
    PacsUnauthorized,
    ResultsDisagree,
)
from models.errors import MarrowNodeError
from node.config import Settings
from node.console import OUT
from node.job import Job
from node.job_queue import JobQueue, open_job_queue
from node.revisions import revisions
from node.stages import compare
from node.workplace import ReviewPlace

TIMES = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z")
# Beside errors that may pass: with these nothing was seen of the results either.
_UNSEEN = (ConfigurationInvalid, DiskFull, EhrUnauthorized, PacsUnauthorized)


@dataclass(frozen=True, slots=True)
class Checked:
    """One result, looked at again.

    Attributes
    ----------
    job
        The newest that delivered it.
    study_uid, series_uid
        Of the slide.
    revision
        The newest one; earlier ones stay in the archive beside it.
    found
        agrees; differs: something is missing, or says something else; not checked: it could not be
        read.
    why
        One sentence; empty where it agrees.
    exit_code
        Of the error; 0 where it agrees.
    """

    job: str
    study_uid: str
    series_uid: str
    revision: int
    found: Literal["agrees", "differs", "not checked"]
    why: str
    exit_code: int


def check_again(queue: JobQueue, settings: Settings, since_ms: float) -> Iterator[Checked]:
    """Look again at the newest revision of every result delivered since a moment, newest first.

    Parameters
    ----------
    queue
    settings
    since_ms
        Unix time in milliseconds.
    """
    seen: set[str] = set()
    for job in queue.list(status="completed"):
        identity = (job.result or {}).get("identity")
        if identity is None or identity in seen or job.updated_ms < since_ms:
            continue
        seen.add(identity)
        yield _checked(queue, settings, job, identity)


def _checked(queue: JobQueue, settings: Settings, job: Job, identity: str) -> Checked:
    known = revisions(settings, identity)
    revision = known[-1]["revision"] if known else 0

    def checked(found: Literal["agrees", "differs", "not checked"], why: str, code: int) -> Checked:
        return Checked(job.job, job.study_uid, job.series_uid, revision, found, why, code)

    if not known:
        why = f"The work folder has nothing of job {job.job} to compare with: analyse it again."
        return checked("not checked", why, DiskFull.exit_code)
    try:
        compare(ReviewPlace.open(queue.settings_of(job.job), lambda progress: None), known[-1])
    except MarrowNodeError as error:
        unseen = error.transient or isinstance(error, _UNSEEN)
        return checked("not checked" if unseen else "differs", str(error), error.exit_code)
    return checked("agrees", "", 0)


@click.command()
@click.option(
    "--since",
    type=click.DateTime(TIMES),
    help="Only what was delivered since then, for example 2026-11-26; local time unless it says.",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def reconcile(settings: Settings, since: datetime | None, as_json: bool) -> None:
    """Check delivered results again: ANN, SR and FHIR as they are there now.

    Reads the newest revision of each result back from the archive and the EHR and compares it with
    what was written. Exits 63 where one differs or is missing, else with the code of the first that
    could not be checked, else 0.
    """
    since_ms = since.timestamp() * 1000 if since is not None else 0.0
    with open_job_queue(settings) as queue:
        all_checked = list(check_again(queue, settings, since_ms))
    if as_json:
        click.echo(json.dumps([asdict(checked) for checked in all_checked], indent=2))
    else:
        _print(all_checked)
    if any(checked.found == "differs" for checked in all_checked):
        sys.exit(ResultsDisagree.exit_code)
    sys.exit(next((checked.exit_code for checked in all_checked if checked.exit_code), 0))


def _print(all_checked: list[Checked]) -> None:
    table = Table("job", "series", "revision", "found", "why", box=None)
    for checked in all_checked:
        table.add_row(
            checked.job, checked.series_uid, str(checked.revision), checked.found, checked.why
        )
    OUT.print(table)
