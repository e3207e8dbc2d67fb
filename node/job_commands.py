"""``marrow-node jobs`` and ``show``: they only look, and load nothing that works on slides."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.table import Table

from node.config import Settings
from node.console import OUT, print_job
from node.job_queue import open_job_queue
from node.progress import Progress


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def jobs(settings: Settings, as_json: bool) -> None:
    """List all jobs of the work folder, newest first."""
    with open_job_queue(settings) as known:
        listed = known.list()
    if as_json:
        click.echo(json.dumps([asdict(job) for job in listed], indent=2))
        return
    table = Table("job", "status", "stage", "%", "cells", "series", "model", box=None)
    for job in listed:
        progress = job.progress or Progress("", 0.0, 0)
        table.add_row(
            job.job,
            job.status,
            progress.stage,
            f"{progress.percent:.0f}",
            str(progress.cells),
            job.series_uid,
            job.model,
        )
    OUT.print(table)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.argument("job")
@click.pass_obj
def show(settings: Settings, as_json: bool, job: str) -> None:
    """Show one job: its result, or why it failed."""
    with open_job_queue(settings) as known:
        found = known.get(job)
    print_job(found, as_json)
