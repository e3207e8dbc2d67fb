"""The command line: ``marrow-node``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from models.errors import MarrowNodeError
from models.package import installed_packages
from node import __version__
from node.backup import backup, restore
from node.batch_command import batch
from node.check import check
from node.config import Settings, load_settings, settings_rows
from node.console import OUT, print_job, run_job
from node.demo import run_demo
from node.exit_codes import exit_code_table
from node.job_queue import open_job_queue
from node.log import set_up_logging
from node.model_commands import compare, evaluate, field, train
from node.pause import pause, resume
from node.perform import perform
from node.pipeline import SlideReference
from node.poll import poll
from node.probe import probe
from node.progress import Progress
from node.receive import receive
from node.reconciliation import reconcile
from node.review_command import review
from node.rules import rules
from node.serve import key, purge, serve, web, work
from node.stages import write_results_to


def _epilog() -> str:
    rows = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in exit_code_table())
    return f"\b\nExit codes:\n{rows}"


class _Command(click.Group):
    """Turns an error of the tree into one sentence and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MarrowNodeError as error:
            click.echo(f"marrow-node: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Command, epilog=_epilog(), context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="marrow-node")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="MARROW_NODE_CONFIG",
    help="TOML file with the settings; 'marrow-node config' lists them all.",
)
@click.option("--work", type=click.Path(path_type=Path), help="Work folder (setting work_folder).")
@click.option("--verbose", is_flag=True, help="Log what the node does to standard error.")
@click.pass_context
def main(ctx: click.Context, config: Path | None, work: Path | None, verbose: bool) -> None:
    """Analyse bone marrow smears: whole slide images in, annotations and reports out.

    \b
    Try it without any server:
      marrow-node demo
    Analyse a slide of your PACS:
      marrow-node analyse --pacs https://pacs.example/dicom-web --ehr https://ehr.example/fhir \\
          STUDY_UID SERIES_UID
    See what was done:
      marrow-node jobs
      marrow-node show JOB

    The shipped model demo-smear is a demonstration, not for clinical use.
    """
    settings = load_settings(config)
    set_up_logging(verbose, settings.log_format)
    ctx.obj = replace(settings, work_folder=work) if work else settings


@main.command()
@click.option(
    "--pacs", "pacs_url", help="Where the slide is: https://…/dicom-web or file:///folder."
)
@click.option(
    "--ehr",
    "ehr_url",
    help="Where the report goes: https://…/fhir, file:///folder or mllp://host:port.",
)
@click.option("--model", help="Model package, see 'marrow-node models'.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Also copy all results to this folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.argument("study_uid")
@click.argument("series_uid")
@click.pass_obj
def analyse(
    settings: Settings,
    pacs_url: str | None,
    ehr_url: str | None,
    model: str | None,
    out: Path | None,
    as_json: bool,
    study_uid: str,
    series_uid: str,
) -> None:
    """Analyse one slide and deliver its results.

    Waits for the job; exits 0 only when all is delivered, read back and reconciled. The same
    slide, model and settings give the same objects, and nothing is stored twice. A job that was
    killed goes on where it stopped when the same command is given again.
    """
    settings = replace(
        settings,
        pacs_url=pacs_url or settings.pacs_url,
        ehr_url=ehr_url or settings.ehr_url,
        model=replace(settings.model, name=model or settings.model.name),
    )
    job = run_job(settings, SlideReference(study_uid, series_uid, "command line"))
    if job.result is not None and out is not None:
        write_results_to(settings, job.result, out)
    print_job(job, as_json)
    sys.exit(job.exit_code)


@main.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Where slide, results and pictures go.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def demo(settings: Settings, folder: Path, as_json: bool) -> None:
    """Compose a slide from real cells, analyse it, compare with the truth.

    Needs no server: the PACS and the EHR are folders. The cells are ones that the model was not
    trained on.
    """
    sys.exit(run_demo(settings, folder, as_json))


@main.command()
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


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.argument("job")
@click.pass_obj
def show(settings: Settings, as_json: bool, job: str) -> None:
    """Show one job: its result, or why it failed."""
    with open_job_queue(settings) as known:
        found = known.get(job)
    print_job(found, as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def models(settings: Settings, as_json: bool) -> None:
    """List the model packages that are installed."""
    packages = installed_packages(settings.model.folders)
    rows = [
        {
            "name": package.manifest.name,
            "version": package.manifest.version,
            "digest": package.digest,
            "demonstration": package.manifest.demonstration,
            "intended_use": package.manifest.intended_use,
            "classes": list(package.manifest.classes),
            "folder": str(package.folder),
        }
        for package in packages
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("name", "version", "digest", "intended use", "types", box=None)
    for row in rows:
        table.add_row(
            str(row["name"]),
            str(row["version"]),
            str(row["digest"])[:12],
            str(row["intended_use"]),
            str(len(row["classes"])),  # type: ignore[arg-type]
        )
    OUT.print(table)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def config(settings: Settings, as_json: bool) -> None:
    """Print every setting with its value as it is in force, and its reason."""
    rows = list(settings_rows(settings))
    if as_json:
        click.echo(json.dumps({name: value for name, value, _ in rows}, indent=2, default=str))
        return
    table = Table("setting", "value", "what for", box=None)
    for name, value, reason in rows:
        table.add_row(name, repr(str(value) if isinstance(value, Path) else value), reason)
    OUT.print(table)


for _command in (
    train, evaluate, compare, field, probe, receive, check, review, reconcile,
    serve, web, work, perform, poll, rules, batch, key, purge,
    pause, resume, backup, restore,
):  # fmt: skip
    main.add_command(_command)
