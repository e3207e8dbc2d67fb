"""A search that somebody asked for: its slides are looked up, and each becomes a job of its own.

What stands against one slide keeps no other from being queued. A search of which not every slide
could be decided on has failed, and tells what became of the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from dicom_io.errors import SeriesNotFound
from models.errors import MarrowNodeError
from node.config import Settings
from node.intake import await_listed, find_slides
from node.job import sited
from node.job_queue import JobQueue
from node.pipeline import SlideReference, Step
from node.rules import submit_by_rules
from node.searches import OUTCOME
from node.steps import Steps
from node.workplace import Workplace

log = logging.getLogger(__name__)

Json = dict[str, Any]
Submit = Callable[[SlideReference], Json]


def queue_slides(
    settings: Settings, jobs: JobQueue, steps: Steps, arguments: Mapping[str, Any]
) -> Json:
    """Look for slides, and queue those that are wanted.

    Parameters
    ----------
    settings
    jobs
    steps
    arguments
        Of :meth:`node.searches.Searches.begin`.

    Returns
    -------
    dict
        Identifiers of the jobs, and where rules decide what they said of each slide.

    Raises
    ------
    SeriesNotFound
        Nothing of it came into the archive within `quiet_s`.
    MarrowNodeError
        The first of what stands against slides, once all others are queued.
    """
    patient = partial(steps.patient, settings=settings.jobs)
    submit = _submission(settings, jobs, arguments)

    def listed() -> Json:
        found = find_slides(sited(settings, arguments), arguments)
        return {"slides": [(slide.study_uid, slide.series_uid) for slide in found]}

    def patiently(name: str, stage: Callable[[], Json]) -> Json:
        return await_listed(name, stage, settings.jobs, patient, steps.sleep)

    told: list[Json] = []
    against: dict[SlideReference, MarrowNodeError] = {}
    for study, series in patiently("find slides", listed)["slides"]:
        slide = SlideReference(study, series, arguments["reason"])
        try:
            told.append(steps.step("queue", partial(submit, slide)))
        except MarrowNodeError as error:
            against[slide] = error
    # Those that the others need not wait for.
    ask: Step = patiently
    for slide in [*against]:
        try:
            told.append(ask("queue", partial(submit, slide)))
            del against[slide]
        except MarrowNodeError as error:
            against[slide] = error
            # It was waited for, long enough for all.
            if error.transient or isinstance(error, SeriesNotFound):
                ask = steps.step
    outcome = _outcome(told, against)
    if against:
        steps.step(OUTCOME, lambda: outcome)
        _raise_first(against)
    return outcome


def _submission(settings: Settings, jobs: JobQueue, arguments: Mapping[str, Any]) -> Submit:
    """How one of the slides is queued."""
    priority, callback = arguments["priority"], arguments["callback"]
    site = arguments.get("site", "")

    @cache
    def place() -> Workplace:
        return Workplace.open(sited(settings, arguments), lambda progress: None)

    def by_rules(slide: SlideReference) -> Json:
        job, decision = submit_by_rules(settings, jobs, slide, priority, callback, site=site)
        said = {"analyse": decision.analyse, "why": decision.why}
        return {
            "jobs": [job.job] if job is not None else [],
            "decisions": [{"series_uid": slide.series_uid, **said}],
        }

    def by_model(slide: SlideReference) -> Json:
        job = jobs.submit(slide, place(), priority, callback, await_arrival=True, site=site)
        return {"jobs": [job.job], "decisions": []}

    return by_rules if arguments.get("by_rules") else by_model


def _outcome(told: list[Json], against: Mapping[SlideReference, MarrowNodeError]) -> Json:
    undecided = [
        {"series_uid": slide.series_uid, "analyse": False, "why": str(error)}
        for slide, error in against.items()
    ]
    return {
        "jobs": [job for each in told for job in each["jobs"]],
        "decisions": [said for each in told for said in each["decisions"]] + undecided,
    }


def _raise_first(against: Mapping[SlideReference, MarrowNodeError]) -> None:
    for slide, error in against.items():
        log.warning("Series %s is in no job: %s", slide.series_uid, error)
    raise next(iter(against.values()))
