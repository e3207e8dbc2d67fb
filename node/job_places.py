"""The workplaces of jobs, in workers and in the processes of slides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from node.config import Settings
from node.job_queue import sited
from node.progress import Progress
from node.workplace import ReviewPlace, Workplace, configuration_digest


def analysis_place(
    settings: Settings,
    arguments: Mapping[str, Any],
    report: Callable[[Progress], None],
) -> Workplace:
    """The workplace that an analysis was submitted for, with the digests of that time.

    Raises
    ------
    MarrowNodeError
        As :meth:`Workplace.open` raises it.
    """
    return replace(
        Workplace.open(sited(settings, arguments), report),
        package_digest=arguments["package_digest"],
        configuration_digest=arguments["configuration_digest"],
    )


def is_as_submitted(place: Workplace) -> bool:
    """Whether model package, settings and versions are still those of the submission."""
    now = (place.package.digest, configuration_digest(place.settings))
    return now == (place.package_digest, place.configuration_digest)


def review_place(
    settings: Settings, arguments: Mapping[str, Any], report: Callable[[Progress], None]
) -> ReviewPlace:
    """The workplace of a review."""
    return ReviewPlace.open(sited(settings, arguments), report)
