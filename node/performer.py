"""Performs workitems: claims those that the node can do, and lets each follow its jobs.

The same way serves the node's own worklist and a manager's: search, claim with a Transaction UID,
queue the slides, tell progress, name what was made, complete or cancel. It is written down before
each step what will be done (:mod:`node.claims`), and each step may be done twice, so that a process
that is killed anywhere goes on at its next start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Protocol

from pydicom.uid import (
    Comprehensive3DSRStorage,
    MicroscopyBulkSimpleAnnotationsStorage,
    SegmentationStorage,
    VLWholeSlideMicroscopyImageStorage,
)

from dicom_io.dicom_json import Json, value
from dicom_io.errors import JobNotFound, WorkitemRefused
from dicom_io.pacs_http import service_urls
from dicom_io.workitem import (
    CANCELED,
    COMPLETED,
    IN_PROGRESS,
    SCHEDULED,
    Output,
    State,
    canceled,
    code_item,
    codes_in,
    input_series,
    performed,
    progress,
    state_of,
    workitem_uid,
)
from dicom_io.workitem_events import CANCEL_REQUESTED, event_of
from dicom_io.workitem_search import Key, Search
from models.errors import MarrowNodeError
from node.attempts import OneByOne
from node.claims import CLAIMING, Claim, Claims
from node.config import Settings
from node.job import ENDED, OF_WORKITEM, Job
from node.job_news import JobNews
from node.job_queue import JobQueue
from node.pipeline import SlideReference
from node.rule_settings import Priority
from node.workitems import UNSPECIFIED, Workitems
from node.workplace import Workplace

log = logging.getLogger(__name__)

OUTPUTS = {
    "ann": MicroscopyBulkSimpleAnnotationsStorage,
    "seg": SegmentationStorage,
    "sr": Comprehensive3DSRStorage,
}
PRIORITIES: dict[str, Priority] = {"HIGH": "urgent", "MEDIUM": "routine", "LOW": "batch"}
LONGEST_REASON = 10_240  # VR LT, PS3.5 6.2
# Of jobs that a workitem has begun, before its UID.


class Worklist(Protocol):
    """A list of workitems, the node's own or a manager's."""

    name: str

    def scheduled(self) -> Iterator[Json]:
        """What a search tells of each scheduled workitem."""

    def retrieve(self, uid: str) -> Json:
        """One workitem."""

    def claim(self, uid: str, transaction_uid: str) -> None:
        """Become its performer."""

    def update(self, uid: str, transaction_uid: str, changes: Json) -> None:
        """Change attributes of one that the node performs."""

    def change_state(self, uid: str, transaction_uid: str, state: State) -> None:
        """Complete or cancel one that the node performs."""


class OwnWorklist:
    """The node's own list, as its performer sees it."""

    name = "own"

    def __init__(self, workitems: Workitems) -> None:
        self._workitems = workitems

    def scheduled(self) -> Iterator[Json]:
        wanted = Search(keys=(Key(("ProcedureStepState",), SCHEDULED),))
        yield from self._workitems.search(wanted).items

    def retrieve(self, uid: str) -> Json:
        return self._workitems.retrieve(uid)

    def claim(self, uid: str, transaction_uid: str) -> None:
        self._workitems.change_state(uid, IN_PROGRESS, transaction_uid, own=True)

    def update(self, uid: str, transaction_uid: str, changes: Json) -> None:
        self._workitems.update(uid, changes, transaction_uid)

    def change_state(self, uid: str, transaction_uid: str, state: State) -> None:
        self._workitems.change_state(uid, state, transaction_uid, own=True)


class Performer:
    """Performs the workitems of one list. Call :meth:`look` again and again.

    Parameters
    ----------
    settings
    worklist
    claims
    queue
    news
        Tells whether somebody waits for a job.
    choose
        Workplace for the slides of a workitem; raises what speaks against it.
    now
    """

    def __init__(
        self,
        settings: Settings,
        worklist: Worklist,
        claims: Claims,
        queue: JobQueue,
        news: JobNews,
        choose: Callable[[list[tuple[str, str]]], Workplace],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings, self._worklist, self._claims = settings, worklist, claims
        self._queue, self._news, self._choose, self._now = queue, news, choose, now
        self._station = code_item(settings.ups.station[:16], "99MARROW", settings.ups.station)
        # Workitems that are not the node's to do, for as long as they stay as they are.
        self._left: set[tuple[str, str]] = set()
        # What stood against others: it may pass, and is told once.
        self._hindered: dict[str, str] = {}
        self._told: dict[str, tuple[int, str]] = {}

    def look(self) -> None:
        """Go on with what was claimed, and claim what is new.

        Raises
        ------
        MarrowNodeError
            The list cannot be asked at present, or not about one of the workitems.
        """
        workitems = OneByOne()
        self._follow_all(workitems)
        self._take({claim.uid for claim in self._claims.open()}, workitems)
        workitems.end()

    def follow(self) -> None:
        """Go on with what was claimed.

        Raises
        ------
        MarrowNodeError
            The list cannot be asked at present, or not about one of the workitems.
        """
        workitems = OneByOne()
        self._follow_all(workitems)
        workitems.end()

    def heed(self, report: Json) -> None:
        """Note what an event report asks of this performer."""
        uid, kind = event_of(report)
        if kind == CANCEL_REQUESTED:
            self._claims.cancel(uid)

    def cancel(self, uids: Iterable[str]) -> None:
        """Note that workitems should be canceled; those that are not ours are passed over."""
        for uid in uids:
            self._claims.cancel(uid)

    def why_not(self, item: Json) -> str:
        """Why a workitem is not this node's to do; empty where it is."""
        ups = self._settings.ups
        if not codes_in(item, "ScheduledWorkitemCodeSequence") & set(ups.codes):
            return "its Scheduled Workitem Code is not one that is performed here"
        stations = {
            code.partition("^")[0] for code in codes_in(item, "ScheduledStationNameCodeSequence")
        }
        if stations and ups.station not in stations:
            return "it is scheduled for another station"
        if not input_series(item, VLWholeSlideMicroscopyImageStorage):
            return "its input names no series of slides (SM)"
        if value(item, "InputReadinessState") != "READY":
            return "its input is not ready"
        return ""

    def _follow_all(self, workitems: OneByOne) -> None:
        for claim in self._claims.open():
            with workitems.one():
                try:
                    self._follow(claim)
                # It was deleted.
                except WorkitemRefused as error:
                    self._lose(claim, [], error)
                except JobNotFound as error:
                    self._end_canceled(claim, [], str(error))

    def _take(self, known: set[str], workitems: OneByOne) -> None:
        seen = set()
        for found in self._worklist.scheduled():
            uid = workitem_uid(found)
            mark = (uid, str(value(found, "ScheduledProcedureStepModificationDateTime")))
            seen.add(mark)
            if uid in known or mark in self._left:
                continue
            codes = codes_in(found, "ScheduledWorkitemCodeSequence")
            if codes and not codes & set(self._settings.ups.codes):
                self._left.add(mark)  # most of a shared list is others' work
                continue
            with workitems.one():
                self._consider(uid, mark)
        self._left &= seen

    def _consider(self, uid: str, mark: tuple[str, str]) -> None:
        try:
            item = self._worklist.retrieve(uid)
            why = self.why_not(item) or ("" if state_of(item) == SCHEDULED else "it has begun")
            if why:
                self._left.add(mark)
                log.info("Workitem %s is left alone: %s.", uid, why)
                return
            self._choose(input_series(item, VLWholeSlideMicroscopyImageStorage))
        except MarrowNodeError as error:
            if error.transient:
                raise
            if self._hindered.get(uid) != str(error):
                log.warning("Workitem %s is left alone for now: %s", uid, error)
            self._hindered[uid] = str(error)
            return
        self._hindered.pop(uid, None)
        claim = self._claims.begin(uid)
        if self._claimed(claim, before=False):
            self._submit(claim, item)

    def _claimed(self, claim: Claim, *, before: bool) -> bool:
        """Whether the list says that the workitem is ours.

        Parameters
        ----------
        claim
        before
            Whether it was asked for before, so that a refusal may mean that we have it.
        """
        try:
            self._worklist.claim(claim.uid, claim.transaction_uid)
        except WorkitemRefused as error:
            if not (before and self._holds(claim)):
                log.info("Workitem %s is somebody else's: %s", claim.uid, error)
                self._claims.end(claim.uid)
                return False
        self._claims.claimed(claim.uid)
        log.info("Workitem %s is claimed from %s.", claim.uid, self._worklist.name)
        return True

    def _holds(self, claim: Claim) -> bool:
        """Whether our Transaction UID is the one that counts: only then may we update."""
        try:
            self._worklist.update(claim.uid, claim.transaction_uid, progress(0, "claimed"))
        except WorkitemRefused:
            return False
        return True

    def _follow(self, claim: Claim) -> None:
        if claim.state == CLAIMING and not self._claimed(claim, before=True):
            return
        if not claim.jobs:
            try:
                item = self._worklist.retrieve(claim.uid)
            except WorkitemRefused as error:
                self._lose(claim, [], error)
                return
            self._submit(claim, item)
            return
        jobs = [self._queue.get(job) for job in claim.jobs]
        if claim.cancel:
            jobs = [self._stopped(claim, job) for job in jobs]
            if any(job.status not in ENDED for job in jobs):
                self._end_canceled(claim, jobs, "Canceled by request.")
                return
        if all(job.status in ENDED for job in jobs):
            self._end(claim, jobs)
        else:
            self._tell(claim, jobs)

    def _submit(self, claim: Claim, item: Json) -> None:
        slides = input_series(item, VLWholeSlideMicroscopyImageStorage)
        priority = PRIORITIES.get(str(value(item, "ScheduledProcedureStepPriority")), "routine")
        try:
            place = self._choose(slides)
            jobs = [
                self._queue.submit(
                    SlideReference(study, series, f"{OF_WORKITEM}{claim.uid}"),
                    place,
                    priority,
                    await_arrival=True,
                ).job
                for study, series in slides
            ]
        except MarrowNodeError as error:
            if error.transient:
                raise
            self._end_canceled(claim, [], str(error))
            return
        self._claims.queued(claim.uid, jobs)

    def _stopped(self, claim: Claim, job: Job) -> Job:
        """Cancel a job, unless it has ended or somebody else waits for it or has asked for it."""
        if (
            job.status in ENDED
            or not job.reason.startswith(OF_WORKITEM)
            or self._claims.shared(job.job, claim.uid)
            or self._news.is_awaited(job.job)
        ):
            return job
        return self._queue.cancel(job.job)

    def _tell(self, claim: Claim, jobs: list[Job]) -> None:
        """Tell how far the jobs are, where that has changed."""
        reached = [
            100.0 if job.status == "completed" else job.progress.percent if job.progress else 0.0
            for job in jobs
        ]
        stages = [job.progress.stage for job in jobs if job.progress and job.status not in ENDED]
        doing = (int(sum(reached) / len(reached)), stages[0] if stages else jobs[0].status)
        if self._told.get(claim.uid) == doing:
            return
        self._told[claim.uid] = doing
        try:
            self._worklist.update(claim.uid, claim.transaction_uid, progress(*doing))
        except WorkitemRefused as error:
            if self._is_lost(claim):
                self._lose(claim, jobs, error)
                return
            # Progress is for those who watch; the work goes on.
            log.info("Progress of workitem %s was not taken: %s", claim.uid, error)

    def _is_lost(self, claim: Claim) -> bool:
        try:
            return state_of(self._worklist.retrieve(claim.uid)) != IN_PROGRESS
        except WorkitemRefused:
            return True

    def _lose(self, claim: Claim, jobs: list[Job], error: WorkitemRefused) -> None:
        """The list has taken the workitem away: it was canceled there, or deleted."""
        log.warning("Workitem %s is not ours any more: %s", claim.uid, error)
        for job in jobs:
            self._stopped(claim, job)
        self._claims.end(claim.uid)

    def _end(self, claim: Claim, jobs: list[Job]) -> None:
        failed = [job for job in jobs if job.status != "completed"]
        if failed:
            sentence = failed[0].error or f"Job {failed[0].job} {failed[0].status}."
            self._end_canceled(claim, jobs, sentence)
            return
        self._closed(claim, self._performed(claim, jobs), COMPLETED)

    def _end_canceled(self, claim: Claim, jobs: list[Job], sentence: str) -> None:
        reason = canceled(self._now(), sentence[:LONGEST_REASON], UNSPECIFIED)
        made = [job for job in jobs if job.status == "completed"]
        self._closed(claim, reason | (self._performed(claim, made) if made else {}), CANCELED)

    def _performed(self, claim: Claim, jobs: list[Job]) -> Json:
        return performed(
            self._worklist.retrieve(claim.uid),
            self._station,
            datetime.fromtimestamp(claim.begun_s, UTC),
            self._now(),
            outputs_of(jobs),
            retrieval(self._settings),
        )

    def _closed(self, claim: Claim, changes: Json, state: State) -> None:
        """Write how it ended, and end it. What was done before a crash is refused, or the same."""
        uid, transaction = claim.uid, claim.transaction_uid
        try:
            self._worklist.update(uid, transaction, changes)
        except WorkitemRefused as error:
            log.info("The end of workitem %s was not taken: %s", uid, error)
        try:
            self._worklist.change_state(uid, transaction, state)
        except WorkitemRefused as error:
            log.warning("Workitem %s did not become %s: %s", uid, state, error)
        else:
            log.info("Workitem %s is %s.", uid, state)
        self._claims.end(uid)
        self._told.pop(uid, None)


def outputs_of(jobs: list[Job]) -> list[Output]:
    """What completed jobs have stored."""
    return [
        Output(str(sop_class), *uids)
        for job in jobs
        if job.result is not None
        for kind, sop_class in OUTPUTS.items()
        for uids in job.result[kind]
    ]


def retrieval(settings: Settings) -> dict[str, str]:
    """Where outputs can be had: the archive that they were stored in, or this node's service."""
    stored = settings.results_url or settings.pacs_url
    if stored.startswith("http"):
        return {"url": service_urls(stored, settings.pacs)[1]}
    if stored.startswith("dimse"):
        return {"ae_title": stored.partition("://")[2].partition("@")[0]}
    if settings.serve.public_url:
        return {"url": f"{settings.serve.public_url.rstrip('/')}/dicom-web"}
    return {}
