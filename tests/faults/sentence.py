"""The sentence that has to hold after any fault, checked where results have gone.

Exactly one set of ANN, SEG and SR and one DiagnosticReport with equal counts, or a visible failed
job. What a failed job has left behind may be incomplete, but nothing is there twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import requests
from pydicom.dataset import Dataset

from conformance.agreement import check_agreement
from dicom_io.pacs import open_pacs
from dicom_io.segmentation import decode_segmentation
from node.config import Settings
from node.ehr import open_ehr
from node.job import Job
from tests.faults.world import World

KINDS = ("ANN", "SEG", "SR")


def violations(world: World, settings: Settings, job: Job, harmed: bool = False) -> list[str]:
    """Sentences, one for each way in which the promise is broken.

    Parameters
    ----------
    world
    settings
    job
    harmed
        Whether the archive has lost something of the results or filed them under somebody else:
        then the job must have failed, and the EHR been told of nothing.
    """
    stored, reports = stored_kinds(world), _resources(world, "DiagnosticReport")
    surplus = [f"{n} {kind} are there" for kind, n in stored.items() if n > 1 or kind not in KINDS]
    if len(reports) > 1:
        surplus.append(f"{len(reports)} DiagnosticReports are there")
    if harmed and reports:
        surplus.append("the EHR was told of results that the archive does not have as they are")
    if harmed and job.status == "completed":
        return [*surplus, "the job is completed and the archive has something else"]
    if job.status == "failed":
        hidden = [] if job.error and job.exit_code else ["the failed job does not say why"]
        return surplus + hidden
    if job.status != "completed" or job.result is None:
        return [*surplus, f"the job is {job.status}"]
    missing = [f"no {kind} is there" for kind in KINDS if not stored[kind]]
    if not reports:
        missing.append("no DiagnosticReport is there")
    if surplus or missing:
        return surplus + missing
    return list(_disagreements(world, settings, job.result))


def stored_kinds(world: World) -> Counter[str]:
    """How many instances of each modality lie in the archive beside the slide."""
    counted: Counter[str] = Counter()
    url = world.orthanc.rest_url
    for series in requests.get(f"{url}/series?expand", timeout=30).json():
        if series["MainDicomTags"]["SeriesInstanceUID"] != world.smear.slide.series_uid:
            counted[series["MainDicomTags"]["Modality"]] += len(series["Instances"])
    return counted


def _disagreements(world: World, settings: Settings, result: Mapping[str, Any]) -> Iterator[str]:
    with open_pacs(world.orthanc.dicomweb_url, settings.pacs) as pacs:
        there: dict[str, Dataset] = {
            kind: pacs.retrieve_instance(*result[kind.lower()][0]) for kind in KINDS
        }
    if not decode_segmentation(there["SEG"]).mask.any():
        yield "the SEG is empty"
    resources = open_ehr(world.ehr.url, settings.ehr).read_report(result["report"])
    bundle = {"entry": [{"resource": resource} for resource in resources]}
    for finding in check_agreement(there["ANN"], there["SR"], bundle):
        yield finding.sentence
    told = sum(resource["resourceType"] == "Observation" for resource in resources)
    counted = len(_resources(world, "Observation"))
    if counted != told:
        yield f"{counted} Observations are there and the report has {told}"


def _resources(world: World, kind: str) -> list[dict[str, Any]]:
    answer = requests.get(f"{world.ehr.url}/{kind}", params={"_count": 500}, timeout=30)
    answer.raise_for_status()
    return [entry["resource"] for entry in answer.json().get("entry", [])]
