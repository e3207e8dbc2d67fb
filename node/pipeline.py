"""The way of a slide, in one place.

:func:`analyse` names the steps in their order; what each does stands in :mod:`node.stages`. A step
takes and returns small JSON, so that the job layer can keep it and go on after the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from node import stages
from node.workplace import Workplace

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SlideReference:
    """A slide that has come in.

    Attributes
    ----------
    study_uid, series_uid
    reason
        What brought it here, for example ``"command line"``.
    """

    study_uid: str
    series_uid: str
    reason: str


class Step(Protocol):
    """Runs one stage under its name, and may answer from an earlier run instead."""

    def __call__(self, name: str, stage: Callable[[], Json]) -> Json: ...


def analyse(place: Workplace, slide: SlideReference, step: Step) -> Mapping[str, Any]:
    """Take a slide all the way, from opening it to reconciled results.

    Parameters
    ----------
    place
        Settings, archive, EHR, model package and work files.
    slide
    step
        How a stage is run: durably in a job, directly in a test.

    Returns
    -------
    Mapping
        The job's result, see :func:`node.stages.reconcile`.

    Raises
    ------
    MarrowNodeError
        As the stages raise it; nothing is caught on the way.
    """
    run = place.apart.run
    opened = step("open", lambda: run(stages.open_, place, slide.study_uid, slide.series_uid))
    written = opened["written"]
    if written is None:
        regions = step("localise", lambda: run(stages.localise, place, opened))
        cells = step("detect", lambda: run(stages.detect, place, opened, regions))
        counted = step("count", lambda: run(stages.count, place, opened, cells))
        written = step("write", lambda: run(stages.write, place, opened, regions, cells, counted))
    stored = step("deliver to PACS", lambda: stages.deliver_to_pacs(place, written))
    reported = step("deliver to EHR", lambda: stages.deliver_to_ehr(place, written))
    return step("reconcile", lambda: stages.reconcile(place, opened, written, stored, reported))
