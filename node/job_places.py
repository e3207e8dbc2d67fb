"""The workplaces of jobs, in workers and in the processes of slides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dicom_io.errors import ConfigurationInvalid
from node.config import Settings
from node.job import sited
from node.progress import Progress
from node.workplace import ReviewPlace, Workplace


def analysis_place(
    settings: Settings, arguments: Mapping[str, Any], report: Callable[[Progress], None]
) -> Workplace:
    """The workplace of an analysis: what it was submitted for, as it is today.

    Raises
    ------
    MarrowNodeError
        As :meth:`Workplace.open` raises it.
    """
    return Workplace.open(sited(settings, arguments), report)


def check_unchanged(place: Workplace, begun: Mapping[str, Any], try_id: str) -> None:
    """Check that an analysis goes on with what it has begun with.

    One that only waited when the node was upgraded, or its settings were changed, begins with what
    there is now; its results say so.

    Parameters
    ----------
    place
    begun
        Digests of package and configuration when the slide was opened.
    try_id

    Raises
    ------
    ConfigurationInvalid
        When the settings or the model package have changed since then.
    """
    now = {
        "package_digest": place.package.digest,
        "configuration_digest": place.configuration_digest,
    }
    if now != begun_with(begun):
        raise ConfigurationInvalid(
            f"The model package, the settings or the node's version changed after job {try_id} had "
            "begun: try it again."
        )


def begun_with(opened: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of package and configuration when a slide was opened."""
    return {name: opened.get(name) for name in ("package_digest", "configuration_digest")}


def review_place(
    settings: Settings, arguments: Mapping[str, Any], report: Callable[[Progress], None]
) -> ReviewPlace:
    """The workplace of a review."""
    return ReviewPlace.open(sited(settings, arguments), report)
