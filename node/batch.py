"""Analyses the slides of an archive again, slowly and to the end.

Which slides were come to is kept beside the jobs, so that a batch that was killed goes on when the
same command is given again. Archives promise no order of what they find, so the place is not a
number of results but the studies themselves: those that were looked through are not asked about
again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

from dicom_io.dicom_json import value
from dicom_io.errors import ConfigurationInvalid, JobCancelled, JobNotFound, PacsBusy
from dicom_io.pacs import Pacs, open_pacs
from dicom_io.search import Search
from models.errors import MarrowNodeError
from node.config import Settings
from node.intake import SLIDE_MODALITY
from node.job import ENDED, Job, JobStatus
from node.job_queue import JobQueue
from node.pipeline import SlideReference
from node.rule_settings import RuleSettings
from node.rules import decision_for, settings_by
from node.seen_slides import SeenSlides
from node.worklist_database import WorklistDatabase
from node.workplace import Workplace

log = logging.getLogger(__name__)

LOOK_S = 0.5
# Of a study that was looked through; no series has an empty UID.
WHOLE_STUDY = ""
_QUEUED, _KNOWN, _UNWANTED, _UNREADABLE = "queued", "known", "not analysed", "not readable"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a batch is.

    Attributes
    ----------
    batch
        Identifier: digest of archive, query, rules, model and configuration.
    studies, studies_done
        With slides, that the archive has found; those of them that were looked through.
    queued
        Slides that became a job of this batch.
    known
        Slides whose very analysis was already there or on its way.
    not_analysed
        Slides that the rules do not want.
    not_readable
        Slides that could not be decided on.
    at_work
        Jobs of this batch that wait or run.
    """

    batch: str
    studies: int
    studies_done: int
    queued: int
    known: int
    not_analysed: int
    not_readable: int
    at_work: int

    @property
    def line(self) -> str:
        return (
            f"batch {self.batch}: {self.studies_done} of {self.studies} studies, "
            f"{self.queued} slides queued, {self.known} known, {self.not_analysed} not analysed, "
            f"{self.not_readable} not readable; {self.at_work} at work"
        )


class Batch:
    """The slides of a query, and what has become of them.

    Parameters
    ----------
    settings
    database
    queue
    search
        For studies.
    stopped
        Once it is set, every method raises JobCancelled where it would wait.

    Raises
    ------
    ConfigurationInvalid
        No archive is set.
    ModelError
        The model package is missing or not usable.
    """

    def __init__(
        self,
        settings: Settings,
        database: WorklistDatabase,
        queue: JobQueue,
        search: Search,
        stopped: threading.Event,
    ) -> None:
        if not settings.pacs_url:
            raise ConfigurationInvalid("There is no archive to look through: set pacs_url.")
        self._settings, self._queue, self._search = settings, queue, search
        self._stopped = stopped
        # By the rule that slides go by; None for those that go by none.
        self._places: dict[RuleSettings | None, Workplace] = {
            None: Workplace.open(settings, lambda progress: None)
        }
        self.name = self._name()
        self._seen = SeenSlides(database, f"batch {self.name}")
        self._studies: list[str] = []
        self._studies_done = 0
        self._counts = Counter(decision.partition(":")[0] for _, _, decision in self._seen)
        # Of which the archive would not tell all: the same command given again asks once more.
        self._unread: set[str] = set()
        self._at_work = self._unfinished()
        self._next_s = time.monotonic()
        self._told = ""

    @property
    def standing(self) -> Standing:
        return Standing(
            batch=self.name,
            studies=len(self._studies),
            studies_done=self._studies_done,
            queued=self._counts[_QUEUED],
            known=self._counts[_KNOWN],
            not_analysed=self._counts[_UNWANTED],
            not_readable=self._counts[_UNREADABLE],
            at_work=len(self._at_work),
        )

    def run(self, watch: Callable[[Standing], None]) -> None:
        """Queue every slide that was not come to yet, and wait for the jobs to end.

        Raises
        ------
        JobCancelled
            It was stopped; the next one of the same name goes on.
        MarrowNodeError
            The archive refuses the search, or a model package is not usable.
        """
        for slide in self._slides(watch):
            self._await_turn(watch)
            self._submit(slide)
            watch(self.standing)
        while self._look():
            watch(self.standing)
            self._pause(LOOK_S)
        watch(self.standing)

    def wanted(self) -> Iterator[tuple[SlideReference, bool, str]]:
        """Slides that were not come to yet: whether they would be analysed, and why. Notes nothing.

        Raises
        ------
        MarrowNodeError
        """
        for study_uid in self._found():
            for slide in self._new_in(study_uid):
                try:
                    decision = decision_for(self._settings, slide.study_uid, slide.series_uid)
                except MarrowNodeError as error:
                    yield slide, False, str(error)
                else:
                    yield slide, decision.analyse, decision.why

    def jobs(self) -> dict[JobStatus, list[Job]]:
        """The jobs that analyse this batch's slides, by their states."""
        ours = {
            decision.rpartition(" ")[2]
            for _, _, decision in self._seen
            if decision.startswith((_QUEUED, _KNOWN))
        }
        states: dict[JobStatus, list[Job]] = {}
        for job in self._queue.list():
            if job.job in ours:
                states.setdefault(job.status, []).append(job)
        return states

    def _name(self) -> str:
        place = self._places[None]
        told = [
            self._settings.pacs_url,
            self._settings.results_url,
            self._settings.ehr_url,
            dict(self._search.matches),
            [asdict(rule) for rule in self._settings.rules],
            place.package.digest,
            place.configuration_digest,
        ]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def _reason(self) -> str:
        return f"batch {self.name}"

    def _unfinished(self) -> set[str]:
        """Jobs that an earlier process of this batch has queued."""
        states: tuple[JobStatus, ...] = ("queued", "running")
        return {
            job.job
            for state in states
            for job in self._queue.list(status=state)
            if job.reason == self._reason
        }

    def _slides(self, watch: Callable[[Standing], None]) -> Iterator[SlideReference]:
        self._studies = self._patiently(self._found)
        for study_uid in self._studies:
            if (study_uid, WHOLE_STUDY) not in self._seen:
                yield from self._new_slides(study_uid)
                if study_uid not in self._unread:
                    self._seen.add(study_uid, WHOLE_STUDY, "looked through")
            self._studies_done += 1
            watch(self.standing)

    def _found(self) -> list[str]:
        with self._pacs() as pacs:
            return list(pacs.search_slide_studies(self._search))

    def _new_slides(self, study_uid: str) -> list[SlideReference]:
        try:
            return self._tried(partial(self._new_in, study_uid))
        except PacsBusy as error:
            self._leave(study_uid, f"Study {study_uid}: {error}")
            return []

    def _new_in(self, study_uid: str) -> list[SlideReference]:
        with self._pacs() as pacs:
            series = pacs.search_series(study_uid)
        uids = [
            str(value(each, "SeriesInstanceUID") or "")
            for each in series
            if value(each, "Modality") == SLIDE_MODALITY
        ]
        return [
            SlideReference(study_uid, uid, self._reason)
            for uid in uids
            if (study_uid, uid) not in self._seen
        ]

    def _pacs(self) -> Pacs:
        return open_pacs(self._settings.pacs_url, self._settings.pacs)

    def _submit(self, slide: SlideReference) -> None:
        study_uid, series_uid = slide.study_uid, slide.series_uid
        try:
            decision = self._tried(lambda: decision_for(self._settings, study_uid, series_uid))
        except JobCancelled:
            raise
        except PacsBusy as error:
            self._leave(study_uid, f"Series {series_uid}: {error}")
            return
        except MarrowNodeError as error:
            # One slide that cannot be decided on must not end the batch.
            log.warning("Series %s: %s", series_uid, error)
            self._note(slide, f"{_UNREADABLE}: {error}")
            return
        if not decision.analyse:
            self._note(slide, f"{_UNWANTED}: {decision.why}")
            return
        if decision.rule not in self._places:
            by_rule = settings_by(self._settings, decision.rule)
            self._places[decision.rule] = Workplace.open(by_rule, lambda progress: None)
        place = self._places[decision.rule]
        site = (decision.rule.site if decision.rule else "") or self._reason
        job = self._patiently(lambda: self._queue.submit(slide, place, "batch", site=site))
        # A process that was killed before it could note the slide has queued it under this reason.
        ours = job.reason == self._reason
        self._note(slide, f"{_QUEUED if ours else _KNOWN}: job {job.job}")
        if ours and job.status not in ENDED:
            self._at_work.add(job.job)
            rate = self._settings.batch.slides_per_hour
            self._next_s = time.monotonic() + (3600 / rate if rate else 0.0)

    def _note(self, slide: SlideReference, decision: str) -> None:
        self._seen.add(slide.study_uid, slide.series_uid, decision)
        self._counts[decision.partition(":")[0]] += 1

    def _leave(self, study_uid: str, why: str) -> None:
        """Go on without a slide, or a study's slides: the archive may tell of them another day."""
        log.warning("%s It is passed over.", why)
        self._unread.add(study_uid)
        self._counts[_UNREADABLE] += 1

    def _await_turn(self, watch: Callable[[Standing], None]) -> None:
        """Wait until the limits let another slide begin."""
        while self._look() >= self._settings.batch.at_a_time or time.monotonic() < self._next_s:
            watch(self.standing)
            self._pause(LOOK_S)

    def _look(self) -> int:
        """Forget jobs that have ended; how many have not."""
        for job in sorted(self._at_work):
            try:
                ended = self._queue.get(job).status in ENDED
            except JobNotFound:  # an old one, forgotten with its result
                ended = True
            if ended:
                self._at_work.discard(job)
        return len(self._at_work)

    def _tried(self, ask: Callable[[], T]) -> T:
        """Ask about one slide or study, as often as a job is tried where the archive has no time.

        Raises
        ------
        PacsBusy
        """
        return self._patiently(ask, self._settings.jobs.retries)

    def _patiently(self, ask: Callable[[], T], busy: float = float("inf")) -> T:
        """Ask until there is an answer: an archive that is down for a night ends no batch.

        Parameters
        ----------
        ask
        busy
            How often an archive is asked again that answers, but has no time for this.
        """
        while True:
            try:
                return ask()
            except MarrowNodeError as error:
                busy -= isinstance(error, PacsBusy)
                if not error.transient or busy < 0:
                    raise
                if str(error) != self._told:
                    log.warning("%s The batch waits, and asks again.", error)
                self._told = str(error)
            self._pause(self._settings.jobs.retry_wait_s)

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise JobCancelled(
                f"Batch {self.name} was stopped; its queued jobs go on. "
                "Give the same command again to go on where it was."
            )
