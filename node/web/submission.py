"""What may be submitted: checked here, queued by :mod:`node.job_queue` and :mod:`node.searches`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from cachetools import TTLCache
from flask import Request
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from dicom_io.arrival import LONGEST_UID
from dicom_io.errors import ConfigurationInvalid
from dicom_io.folder_index import UID
from node.callback import check_callback
from node.config import Settings
from node.job import Job
from node.job_queue import JobQueue
from node.pipeline import SlideReference
from node.rule_settings import Priority
from node.searches import Searches
from node.workplace import Workplace

# PS3.5 §9.1
UID_PATTERN = f"^{UID.pattern}$"
Uid = Annotated[str, Field(max_length=LONGEST_UID, pattern=UID_PATTERN)]
# A model package that is installed anew is seen after so many seconds.
PACKAGES_KEPT_S = 10
MODELS_KEPT = 64


@checked_dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class JobRequest:
    """Body of ``POST /jobs``.

    Attributes
    ----------
    study_uid, series_uid
        The slide; a study alone means all its slides.
    accession_number
        Instead of these: all slides of the studies with this number.
    model
        Package; empty for the node's own choice.
    priority
    callback
        Address that is told when the job has ended, or when the search for the slides has failed;
        its origin has to be configured.
    reason
        Free words, kept with the job.
    """

    study_uid: Uid | None = None
    series_uid: Uid | None = None
    accession_number: Annotated[str, Field(min_length=1, max_length=16)] | None = None
    model: Annotated[str, Field(max_length=64)] = ""
    priority: Priority = "routine"
    callback: Annotated[str, Field(max_length=2048)] = ""
    reason: Annotated[str, Field(max_length=64)] = ""


@checked_dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class RerunRequest:
    """Body of ``POST /jobs/{job}/rerun``: the package to run."""

    model: Annotated[str, Field(min_length=1, max_length=64)]


def body_of(request: Request, kind: type[Any]) -> Any:
    """Read a JSON body.

    Raises
    ------
    UnsupportedMediaType, BadRequest
        By Flask: no JSON.
    ConfigurationInvalid
        A field is missing, unknown or malformed; the error names it.
    """
    request.get_json()  # says what is not JSON
    try:
        return TypeAdapter(kind).validate_json(request.get_data())
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise ConfigurationInvalid(
            f"{where} is not usable: {first['msg']}; see /openapi.json."
        ) from None


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a request: a job, or a search that queues jobs for the slides it finds."""

    job: Job | None = None
    search: str = ""


class Submissions:
    """Turns requests into jobs.

    Parameters
    ----------
    settings
    queue
    searches
    """

    def __init__(self, settings: Settings, queue: JobQueue, searches: Searches) -> None:
        self._settings, self._queue, self._searches = settings, queue, searches
        self._places: TTLCache[str, Workplace] = TTLCache(MODELS_KEPT, PACKAGES_KEPT_S)
        self._lock = threading.Lock()

    def submit(self, wanted: JobRequest, asker: str) -> Submitted:
        """Queue what is wanted.

        Parameters
        ----------
        wanted
        asker
            Name of whoever asks: askers take turns.

        Raises
        ------
        ConfigurationInvalid
            It names no slide, or a callback that is not configured.
        ModelError
            The package is not installed, or not usable.
        """
        self._check(wanted)
        place = self.place(wanted.model)
        reason = wanted.reason or "POST /jobs"
        # What the rules say of a slide depends on its metadata, which a worker looks up.
        by_rules = bool(self._settings.rules) and not wanted.model
        if wanted.study_uid and wanted.series_uid and not by_rules:
            slide = SlideReference(wanted.study_uid, wanted.series_uid, reason)
            return Submitted(
                job=self.submit_slide(slide, place, wanted.priority, wanted.callback, asker)
            )
        search: Mapping[str, Any] = {
            "study_uid": wanted.study_uid,
            "series_uid": wanted.series_uid,
            "by_rules": by_rules,
            "accession_number": wanted.accession_number,
            "priority": wanted.priority,
            "callback": wanted.callback,
            "reason": reason,
            "site": asker,
        }
        return Submitted(search=self._searches.begin(search, place))

    def submit_slide(
        self,
        slide: SlideReference,
        place: Workplace,
        priority: Priority,
        callback: str = "",
        site: str = "",
    ) -> Job:
        return self._queue.submit(slide, place, priority, callback, await_arrival=True, site=site)

    def rerun(self, job: Job, model: str) -> Job:
        """The same slide again, where that one's results went.

        With another model it is another job; with its own it is tried again also where it was
        completed, and what the archive or the EHR has lost is delivered.
        """
        slide = SlideReference(job.study_uid, job.series_uid, f"rerun of {job.job}")
        settings = self._queue.settings_of(job.job)
        chosen = replace(settings, model=replace(settings.model, name=model))
        place = Workplace.open(chosen, lambda progress: None)
        again, site = model == job.model, self._queue.site_of(job.job)
        return self._queue.submit(slide, place, "routine", again=again, site=site)

    def place(self, model: str) -> Workplace:
        """Workplace for a model package, read and verified anew every few seconds."""
        settings, name = self._settings, model or self._settings.model.name
        with self._lock:
            if name not in self._places:
                chosen = replace(settings, model=replace(settings.model, name=name))
                self._places[name] = Workplace.open(chosen, lambda progress: None)
            return self._places[name]

    def _check(self, wanted: JobRequest) -> None:
        by_number = wanted.accession_number is not None
        if by_number == (wanted.study_uid is not None) or (by_number and wanted.series_uid):
            raise ConfigurationInvalid(
                "The body names no slide: give study_uid and series_uid, or study_uid alone for "
                "all its slides, or accession_number."
            )
        if wanted.callback:
            check_callback(wanted.callback, self._settings.serve)
