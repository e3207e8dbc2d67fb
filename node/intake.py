"""Slides on their way in: which slides a request means, and whether they are whole yet.

A slide is whole when every level that is there has all its frames by count, and nothing has come
between two looks: the base level may be stored before the others. Where counting cannot tell
(sparse levels may leave tiles out for good), it is taken as it is when nothing has come for a
while, and the job says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from dicom_io.arrival import arrival_of, is_whole
from dicom_io.dicom_json import value
from dicom_io.errors import NotWholeSlideImage, SeriesNotFound
from dicom_io.pacs import open_pacs
from node.config import JobSettings, Settings
from node.pipeline import SlideReference, Step

SLIDE_MODALITY = "SM"
WHOLE = "whole by count"


def await_whole(
    settings: Settings, slide: SlideReference, step: Step, sleep: Callable[[float], None]
) -> dict[str, str]:
    """Wait until a slide is whole.

    Returns
    -------
    dict
        ``arrival``: why it is taken as whole.

    Raises
    ------
    SeriesNotFound
        Nothing of it came within `quiet_s`.
    """
    jobs = settings.jobs
    seen: dict[str, Any] = {}
    unchanged = 0
    while True:
        look = step("look", partial(_look, settings, slide, seen))
        unchanged = unchanged + 1 if look == seen else 0
        if look["whole"] and unchanged:
            return {"arrival": WHOLE}
        if unchanged * jobs.look_s >= jobs.quiet_s:
            break
        seen = look
        sleep(jobs.look_s)
    if not seen["instances"]:
        raise SeriesNotFound(
            f"Series {slide.series_uid} of study {slide.study_uid} did not come into the PACS "
            f"within {jobs.quiet_s:g} s: check the identifiers, then submit it again."
        )
    return {"arrival": f"not whole by count, unchanged for {jobs.quiet_s:g} s"}


def await_listed(
    name: str,
    ask: Callable[[], dict[str, Any]],
    jobs: JobSettings,
    step: Step,
    sleep: Callable[[float], None],
) -> dict[str, Any]:
    """Ask for what a rule has told of and the archive may list only seconds later.

    Parameters
    ----------
    name
        Of the step.
    ask
    jobs
    step
    sleep

    Raises
    ------
    SeriesNotFound
        As `ask` still raises it after `quiet_s`.
    """
    for _ in range(int(jobs.quiet_s / jobs.look_s)):
        try:
            return step(name, ask)
        except SeriesNotFound:
            sleep(jobs.look_s)
    return step(name, ask)


def find_slides(settings: Settings, wanted: Mapping[str, Any]) -> list[SlideReference]:
    """Slides of a study, one of them where a series is named, or of those with an accession number.

    Raises
    ------
    SeriesNotFound
        The archive has no such study.
    NotWholeSlideImage
        None of its series is a slide.
    """
    with open_pacs(settings.pacs_url, settings.pacs) as pacs:
        studies = (
            [wanted["study_uid"]]
            if wanted.get("study_uid")
            else [
                value(study, "StudyInstanceUID")
                for study in pacs.search_studies({"AccessionNumber": wanted["accession_number"]})
                if value(study, "AccessionNumber") == wanted["accession_number"]
            ]
        )
        only = wanted.get("series_uid")
        series = [
            (study, each)
            for study in studies
            for each in pacs.search_series(study)
            if only in (None, value(each, "SeriesInstanceUID"))
        ]
    if not series:
        raise SeriesNotFound("The PACS has no study of that kind: check the request's identifiers.")
    found = [
        SlideReference(study, value(each, "SeriesInstanceUID"), wanted["reason"])
        for study, each in series
        if value(each, "Modality") == SLIDE_MODALITY
    ]
    if not found:
        raise NotWholeSlideImage(
            f"Study {studies[0]} has no series of modality {SLIDE_MODALITY}: "
            "check that it is the slide's study."
        )
    return found


def _look(settings: Settings, slide: SlideReference, seen: Mapping[str, Any]) -> dict[str, Any]:
    """Count instances and frames; look closer only where something has come since."""
    with open_pacs(settings.pacs_url, settings.pacs) as pacs:
        listed = pacs.search_instances(slide.study_uid, slide.series_uid)
        counted = {
            "instances": len(listed),
            "frames": sum(int(value(each, "NumberOfFrames") or 1) for each in listed),
        }
        if counted.items() <= seen.items():
            return {**counted, "whole": seen["whole"]}
        if not listed:
            return {**counted, "whole": False}
        headers = pacs.series_headers(slide.study_uid, slide.series_uid)
        return {**counted, "whole": is_whole(map(arrival_of, headers))}
