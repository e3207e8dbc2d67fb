"""The workplaces of jobs, in workers and in the processes of slides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dicom_io.errors import ConfigurationInvalid
from node.config import Settings
from node.job_queue import job_arguments, sited
from node.pipeline import SlideReference
from node.progress import Progress
from node.workplace import ReviewPlace, Workplace


def analysis_place(
    settings: Settings,
    arguments: Mapping[str, Any],
    try_id: str,
    report: Callable[[Progress], None],
) -> Workplace:
    """The workplace that an analysis was submitted for.

    Raises
    ------
    ConfigurationInvalid
        When the settings or the model package have changed since then.
    MarrowNodeError
        As :meth:`Workplace.open` raises it.
    """
    place = Workplace.open(sited(settings, arguments), report)
    slide = SlideReference(arguments["study_uid"], arguments["series_uid"], "")
    now = job_arguments(slide, place)
    if now != {name: arguments.get(name) for name in now}:
        raise ConfigurationInvalid(
            f"The model package or the settings changed since job {try_id} was submitted: "
            "submit the slide again."
        )
    return place


def review_place(
    settings: Settings, arguments: Mapping[str, Any], report: Callable[[Progress], None]
) -> ReviewPlace:
    """The workplace of a review."""
    return ReviewPlace.open(sited(settings, arguments), report)
