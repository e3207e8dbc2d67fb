"""``marrow-node analyse``: one slide from the archive to reconciled results."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from node.config import Settings
from node.console import print_job
from node.pipeline import SlideReference
from node.running import run_job
from node.stages import write_results_to


@click.command()
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
