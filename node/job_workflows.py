"""The workflows behind jobs, looked up without a look at all that have ended.

A job is its newest try; a try is the workflow of an analysis or of a review, and while its slide is
still coming in that of an arrival. What changes jobs is in :mod:`node.job_queue`, what looks for
slides in :mod:`node.searches`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any, TypeVar

from dbos import WorkflowStatus

from node.job import (
    ANALYSE,
    ARRIVAL_SUFFIX,
    ARRIVE,
    CALL_INFIX,
    FIND,
    REVIEW,
    SEARCH_PREFIX,
    JobStatus,
    try_of,
)
from node.job_database import JobDatabase, database_errors
from node.job_table import Kept, Row

_JOBS = [ANALYSE, ARRIVE, REVIEW]
# Which rows may be of a state; of a completed job nearly all are.
_KEPT: dict[JobStatus, tuple[Kept, ...]] = {
    "waiting": ("at work", "delayed"),
    "queued": ("at work", "delayed"),
    "running": ("at work",),
    "failed": ("failed",),
    "cancelled": ("failed",),
}
_FAILED = ["ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
_ENDED = ["SUCCESS", *_FAILED]
_FIRST_PAGE, _PAGE = 60, 500
# Their numbers follow each other from 1 on: none is forgotten before all that follow it.
_TRIES_AT_A_TIME = 8
Paged = TypeVar("Paged")


class Workflows:
    """The workflows of a job database.

    Parameters
    ----------
    database
    """

    def __init__(self, database: JobDatabase) -> None:
        self._settings = database.settings
        self._client, self._table = database.client, database.table

    def listed(self, **filters: Any) -> Sequence[WorkflowStatus]:
        """Workflows of any kind, as DBOS's client lists them."""
        if self._client is None:
            return []
        with database_errors(self._settings):
            return self._client.list_workflows(**filters)

    def outputs(self, workflow_id: str) -> Mapping[str, Any]:
        """What each step of a workflow gave, by its name; those that gave nothing are left out."""
        if self._client is None:
            return {}
        with database_errors(self._settings):
            steps = self._client.list_workflow_steps(workflow_id)
        return {step["function_name"]: step["output"] for step in steps if step["output"]}

    def newest(self, job: str) -> WorkflowStatus | None:
        """The newest workflow of a job or of one of its tries; an analysis before its arrival."""
        if "-" in job:
            found = self.listed(workflow_ids=[job, job + ARRIVAL_SUFFIX], name=_JOBS)
        else:
            found = self.tries(job)
        return max(found, key=_age, default=None)

    def tries(self, job: str) -> Sequence[WorkflowStatus]:
        """The workflows of a job."""
        found: list[WorkflowStatus] = []
        number = 0
        while True:
            ids = _ids_from(job, number + 1, number + 1 + _TRIES_AT_A_TIME)
            more = self.listed(workflow_ids=ids, name=_JOBS)
            found.extend(more)
            number += _TRIES_AT_A_TIME
            if not any(try_of(each.workflow_id)[1] == number for each in more):
                return found

    def ended_before(self, unix_s: float) -> Sequence[str]:
        """Those of any kind that ended before then, but for jobs that were tried again since."""
        at = datetime.fromtimestamp(unix_s, UTC).isoformat()
        ended = self.listed(completed_before=at, status=_ENDED, load_input=False, load_output=False)
        newest: dict[str, int] = {}
        for workflow in ended:
            if workflow.name in _JOBS:
                job, number = try_of(workflow.workflow_id)
                newest[job] = max(number, newest.get(job, 0))
        going_on = self._going_on(newest, {workflow.workflow_id for workflow in ended})
        return [
            workflow.workflow_id
            for workflow in ended
            if workflow.name not in _JOBS or try_of(workflow.workflow_id)[0] not in going_on
        ]

    def newest_of_each(self, status: JobStatus | None) -> Iterator[WorkflowStatus]:
        """The newest workflow of each job, newest first; where a state is wanted, at least its."""
        if status is None or status == "completed":
            yield from self._all_newest()
            return
        rows = self._rows(_KEPT[status])
        if status in ("waiting", "queued", "running"):
            # A job's newest is the one at work.
            yield from self._whole([row for row in rows if state_of(row) == status])
            return
        for page in _paged(rows):
            again = self._tried_again(page)
            yield from self._whole([row for row in page if row not in again])

    def unended(self) -> Sequence[Row]:
        """Of jobs that wait or run."""
        return self._rows(_KEPT["waiting"])

    def all_unended(self) -> Iterator[WorkflowStatus]:
        """The same, with what they were queued with."""
        return self._whole(self.unended())

    def unended_of(self, awaited: Mapping[str, int]) -> set[str]:
        """Which jobs and searches have not ended, of some.

        Parameters
        ----------
        awaited
            Job → number of a try; search → any number. Of a job, later tries are looked for up to
            the eighth after it.
        """
        found: set[str] = set()
        # Nearly all that are awaited are at that try.
        for following in (0, 1), (1, 1 + _TRIES_AT_A_TIME):
            awaited_by = {
                workflow_id: each
                for each, number in awaited.items()
                if each not in found
                for workflow_id in _ids_from(each, number + following[0], number + following[1])
            }
            found |= {awaited_by[each] for each in self._unended([*awaited_by])}
        return found

    def failed_searches(self, limit: int, offset: int, since_s: float) -> Iterator[WorkflowStatus]:
        """Searches for slides that were asked for since then and failed, newest first."""
        if self._table is None:
            return iter(())
        with database_errors(self._settings):
            rows = self._table.failed(FIND, limit, offset, int(since_s * 1000))
        return self._whole(rows)

    def call_id(self, of: str, address: str) -> str:
        """Identifier of the call that tells an address of an end; another after calls that failed.

        Parameters
        ----------
        of
            The try or the search that has ended.
        address
            Digest of the URL.
        """
        call = f"{of}{CALL_INFIX}{address}"
        for number in count(2):
            known = {"workflow_ids": [call], "load_input": False, "load_output": False}
            if not self.listed(status=_FAILED, **known):
                return call
            call = f"{of}{CALL_INFIX}{address}.{number}"
        raise AssertionError

    def delayed(self) -> Iterator[WorkflowStatus]:
        """Tries that wait for some time before they are queued."""
        return self._whole(self._rows(("delayed",)))

    def _all_newest(self) -> Iterator[WorkflowStatus]:
        seen: set[str] = set()
        offset, size = 0, _FIRST_PAGE
        while True:
            page = self.listed(name=_JOBS, sort_desc=True, limit=size, offset=offset)
            for workflow in page:
                job, _ = try_of(workflow.workflow_id)
                if job not in seen:
                    seen.add(job)
                    yield workflow
            if len(page) < size:
                return
            offset, size = offset + size, _PAGE

    def _tried_again(self, rows: Sequence[Row]) -> set[Row]:
        """Which of them have a later try, or an analysis after their arrival."""
        later: dict[str, Row] = {}
        for row in rows:
            job, number = try_of(row.workflow_id)
            later |= dict.fromkeys(_ids_of(job, number + 1), row)
            if row.name == ARRIVE:
                later[f"{job}-{number}"] = row
        found = self.listed(workflow_ids=[*later], load_input=False, load_output=False)
        return {later[workflow.workflow_id] for workflow in found}

    def _going_on(self, newest: Mapping[str, int], ended: Collection[str]) -> set[str]:
        """Which jobs have another try after the one of this number, or an analysis after it."""
        following = {
            workflow_id: job
            for job, number in newest.items()
            for workflow_id in _ids_from(job, number, number + 2)
            if workflow_id not in ended
        }
        return {
            following[workflow.workflow_id]
            for page in _paged([*following])
            for workflow in self.listed(workflow_ids=page, load_input=False, load_output=False)
        }

    def _unended(self, ids: Sequence[str]) -> set[str]:
        if self._table is None:
            return set()
        with database_errors(self._settings):
            return {each for page in _paged(ids) for each in self._table.unended(page)}

    def _rows(self, kept: Sequence[Kept], names: Sequence[str] = _JOBS) -> Sequence[Row]:
        if self._table is None:
            return []
        with database_errors(self._settings):
            return self._table.rows(kept, names)

    def _whole(self, rows: Sequence[Row]) -> Iterator[WorkflowStatus]:
        """The workflows of rows, with what they were queued with and what came of them."""
        for page in _paged(rows):
            ids = [row.workflow_id for row in page]
            yield from self.listed(workflow_ids=ids, sort_desc=True)


def state_of(row: Row) -> JobStatus:
    """Of a job that has not ended."""
    if row.name == ARRIVE:
        return "waiting"
    return "running" if row.status == "PENDING" else "queued"


def _ids_of(job: str, number: int) -> tuple[str, str]:
    """Of a try's analysis and of its arrival."""
    return f"{job}-{number}", f"{job}-{number}{ARRIVAL_SUFFIX}"


def _ids_from(awaited: str, first: int, behind: int) -> list[str]:
    """Of some tries of a job, or of a search, which has one alone."""
    if awaited.startswith(SEARCH_PREFIX):
        return [awaited]
    return [each for number in range(first, behind) for each in _ids_of(awaited, number)]


def _paged(rows: Sequence[Paged]) -> Iterator[Sequence[Paged]]:
    """Few at first: most who ask want the newest."""
    start, size = 0, _FIRST_PAGE
    while start < len(rows):
        yield rows[start : start + size]
        start, size = start + size, _PAGE


def _age(workflow: WorkflowStatus) -> tuple[int, bool]:
    return try_of(workflow.workflow_id)[1], workflow.name != ARRIVE
