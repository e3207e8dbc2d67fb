"""What the commands print: the result of a job, or why it failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from models.cell_types import CELL_TYPES

if TYPE_CHECKING:  # not the job database for what only prints
    from node.job import Job

OUT = Console()
ERR = Console(stderr=True)


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
    if result.get("slide_changed"):
        OUT.print("the slide has changed since it was analysed")
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
