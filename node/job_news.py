"""The news of jobs and searches that have ended, for all who wait for them.

Who waits stands in the table of :mod:`node.job_callbacks`. Here they are written into it, and it is
looked through for what has ended: each of its news becomes a call, which a worker makes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from node.job import (
    CALL_BACK,
    CALL_INFIX,
    CALLBACKS,
    ENDED,
    FIND,
    SEARCH_PREFIX,
    arguments_of,
    found_of,
    job_of,
    news_of,
    try_of,
)
from node.job_callbacks import Callback
from node.job_database import JobDatabase, database_errors
from node.job_workflows import Workflows

# What is told of a search.
_TOLD = ("search", "status", "study_uid", "series_uid", "error")


class JobNews:
    """Who waits for the end of jobs and searches, and is told of it.

    Parameters
    ----------
    database
    """

    def __init__(self, database: JobDatabase) -> None:
        self._database, self._callbacks = database, database.callbacks
        self._workflows = Workflows(database)

    def ask(self, awaited: str, url: str, from_try: int = 0) -> None:
        """Write down that somebody waits.

        Parameters
        ----------
        awaited
            A job or a search.
        url
            Where its end is told; empty for nobody.
        from_try
            Of a job, the first try whose end is to be told.
        """
        if url and self._callbacks is not None:
            with self._database.changing():
                self._callbacks.ask(Callback(awaited, url, from_try))

    def ask_again(self, job: str, from_try: int) -> None:
        """Let all who were ever told of a job's end, or wait for it, wait for a further try."""
        if self._callbacks is not None:
            with self._database.changing():
                self._callbacks.ask_again(job, from_try)

    def adopt_callbacks(self) -> None:
        """Write down who waits for jobs that an older version of the node has queued."""
        for workflow in self._workflows.all_unended():
            job, number = try_of(workflow.workflow_id)
            self.ask(job, arguments_of(workflow).get("callback", ""), number)

    def is_awaited(self, job: str) -> bool:
        """Whether somebody is still to be told of a job's end."""
        if self._callbacks is None:
            return False
        with database_errors(self._database.settings):
            return self._callbacks.waits_for(job)

    def tell_ended(self) -> None:
        """Queue the news of jobs and searches that have ended, for all who still wait for them.

        However they ended: completed, failed, put aside or cancelled in the middle. The same news
        queued twice is told once; where a call has failed for good, who asks again is told anew.
        """
        if self._callbacks is None:
            return
        with database_errors(self._database.settings):
            waiting = self._callbacks.open()
        # Of a job the newest try that somebody waits for.
        awaited = {each.awaited: each.from_try for each in sorted(waiting, key=_from_try)}
        unended = self._workflows.unended_of(awaited)
        for callback in waiting:
            if callback.awaited not in unended:
                news = self._news(callback)
                if news is not None:
                    self._tell(callback, news)

    def forget(self, workflow_ids: Collection[str]) -> None:
        """Delete who was told of workflows that go, and who waits for what goes whole."""
        if self._callbacks is None:
            return
        going = set(workflow_ids)
        # Not those of which a call is about: they may be kept.
        ended = {_awaited(each) for each in going if CALL_INFIX not in each}
        with self._database.changing():
            if not self._callbacks.are_kept:
                return
            for callback in self._callbacks.open():
                if callback.awaited in ended and going.issuperset(
                    each.workflow_id for each in self._workflows.tries(callback.awaited)
                ):
                    self._callbacks.told(callback)  # nobody could be told of it any more
            self._callbacks.forget(ended)

    def _news(self, callback: Callback) -> Mapping[str, Any] | None:
        """By the try or the search that they are of; None before there are any."""
        is_search = callback.awaited.startswith(SEARCH_PREFIX)
        return self._search_news(callback) if is_search else self._job_news(callback)

    def _job_news(self, callback: Callback) -> Mapping[str, Any] | None:
        newest = self._workflows.newest(callback.awaited)
        if newest is None:
            return None
        job = job_of(newest, None)
        if job.status not in ENDED or job.tries < callback.from_try:
            return None
        return {f"{job.job}-{job.tries}": news_of(job)}

    def _search_news(self, callback: Callback) -> Mapping[str, Any] | None:
        """Of one that failed; who waits for one that did not is told of the jobs it has queued."""
        for workflow in self._workflows.listed(workflow_ids=[callback.awaited], name=FIND):
            found = found_of(workflow)
            if found["status"] in ENDED:
                told = {key: found[key] for key in _TOLD}
                return {} if found["status"] == "completed" else {callback.awaited: told}
        return None

    def _tell(self, callback: Callback, news: Mapping[str, Any]) -> None:
        """Queue a call for each of the news, and note that they are told."""
        with self._database.changing() as client:
            for of, told in news.items():
                client.enqueue(
                    {
                        "workflow_name": CALL_BACK,
                        "queue_name": CALLBACKS,
                        "workflow_id": self._workflows.call_id(of, callback.address),
                    },
                    {"url": callback.url, "told": told},
                )
            if self._callbacks is not None:
                self._callbacks.told(callback)


def _from_try(callback: Callback) -> int:
    return callback.from_try


def _awaited(workflow_id: str) -> str:
    """The job or the search that a workflow is of."""
    return workflow_id if workflow_id.startswith(SEARCH_PREFIX) else try_of(workflow_id)[0]
