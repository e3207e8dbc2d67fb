"""``marrow-node demo``: compose a slide, analyse it, compare with the truth."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table

from dicom_io.annotation import decode_annotation
from dicom_io.demonstration import Truth, compose_demonstration_slide, read_truth
from dicom_io.pacs import open_pacs
from models.cell_types import CELL_TYPES
from models.evaluation import evaluate
from models.records import Int32
from node.config import Settings
from node.console import OUT, job_as_json, print_result
from node.pipeline import SlideReference
from node.running import run_job
from node.stages import write_results_to

SEED = 2026


@click.command()
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


def run_demo(settings: Settings, folder: Path, as_json: bool) -> int:
    """Run the demonstration; returns the exit code of its job."""
    folder = folder.absolute()
    click.echo(f"composing the demonstration slide in {folder} …", err=True)
    started = time.monotonic()
    slide = compose_demonstration_slide(folder / "pacs", SEED)
    composed_s = time.monotonic() - started
    settings = replace(
        settings,
        pacs_url=(folder / "pacs").as_uri(),
        ehr_url=(folder / "ehr").as_uri(),
        work_folder=folder / "work",
    )
    job = run_job(settings, SlideReference(slide.study_uid, slide.series_uid, "demonstration"))
    if job.result is None:
        click.echo(f"marrow-node: {job.error}", err=True)
        return job.exit_code or 1
    truth = read_truth(slide.truth_path)
    compared = compare(settings, job.result, truth)
    files = write_results_to(settings, job.result, folder / "results")
    if as_json:
        click.echo(json.dumps(job_as_json(job) | {"truth": compared}, indent=2))
        return 0
    print_result(job.result)
    _print_comparison(compared)
    OUT.print(
        f"\nslide composed in {composed_s:.1f} s; truth in {slide.truth_path}", soft_wrap=True
    )
    for kind, path in files.items():
        OUT.print(f"{kind:<13} {path}", soft_wrap=True, highlight=False)
    return 0


def compare(settings: Settings, result: Any, truth: Truth) -> dict[str, Any]:
    """The annotations in the archive against the truth of the slide.

    Returns
    -------
    dict
        F1 of cells found at IoU 0.5, accuracy of their types, and per type the percentage of the
        NDC found and true.
    """
    classes = tuple(result["differential"])
    with open_pacs(settings.pacs_url, settings.pacs) as pacs:
        cells = decode_annotation(pacs.retrieve_instance(*result["ann"][0]))
    found_label = _labels([cells.classes[label] for label in cells.label], classes)
    truth_label = _labels(list(truth.types), classes)
    measured = evaluate(cells.box_px, found_label, truth.box_px, truth_label, classes)
    share = np.bincount(truth_label, minlength=len(classes)) / len(truth_label)
    return {
        "cells": len(truth_label),
        "found": len(cells),
        "f1": round(measured.f1, 4),
        "type_accuracy": round(measured.type_accuracy or 0.0, 4),
        "neighbour_accuracy": round(measured.neighbour_accuracy or 0.0, 4),
        "percent": {
            key: {
                "true": round(100 * float(share[row]), 2),
                "found": result["differential"][key]["percent"],
            }
            for row, key in enumerate(classes)
        },
    }


def _labels(keys: list[str], classes: tuple[str, ...]) -> Int32:
    return np.array([classes.index(key) for key in keys], np.int32)


def _print_comparison(compared: dict[str, Any]) -> None:
    table = Table("type", "true %", "found %", "difference", box=None, title="against the truth")
    for key, row in compared["percent"].items():
        if row["found"] is None:
            continue
        difference = row["found"] - row["true"]
        table.add_row(
            CELL_TYPES[key].name, f"{row['true']:.1f}", f"{row['found']:.1f}", f"{difference:+.1f}"
        )
    OUT.print(table)
    OUT.print(
        f"cells found: F1 {compared['f1']:.3f} at IoU 0.5 ({compared['found']} found, "
        f"{compared['cells']} true); type right {compared['type_accuracy']:.3f}, "
        f"right or a neighbouring stage {compared['neighbour_accuracy']:.3f}"
    )
