"""Searches for slides: somebody asks for a study or an accession number, and a worker looks.

What the worker does then, :mod:`node.slide_search` says. Here searches are begun, and looked up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dicom_io.errors import JobNotFound
from node.job import ARRIVALS, FIND, SEARCH_PREFIX, found_of, identifier
from node.job_database import JobDatabase
from node.job_news import JobNews
from node.job_workflows import Workflows

if TYPE_CHECKING:  # commands that only look at jobs need not load what works on them
    from node.workplace import Workplace

# Step of a search that failed, which tells what became of each slide.
OUTCOME = "outcome"


class Searches:
    """The searches of a job database.

    Parameters
    ----------
    database
    """

    def __init__(self, database: JobDatabase) -> None:
        self._database, self._news = database, JobNews(database)
        self._workflows = Workflows(database)

    def begin(self, wanted: Mapping[str, Any], place: Workplace) -> str:
        """Look for the slides of a study or of an accession number, and queue each of them.

        Returns
        -------
        str
            Identifier of the search; the same request within one second is the same search.
        """
        settings = place.settings
        arguments = {
            **wanted,
            "model": place.package.manifest.name,
            "pacs_url": settings.pacs_url,
            "results_url": settings.results_url,
            "ehr_url": settings.ehr_url,
        }
        search = f"{SEARCH_PREFIX}{identifier([arguments, int(time.time())])}"
        with self._database.changing() as client:
            client.enqueue(
                {"workflow_name": FIND, "queue_name": ARRIVALS, "workflow_id": search}, arguments
            )
        self._news.ask(search, str(wanted.get("callback") or ""))
        return search

    def found(self, search: str) -> dict[str, Any]:
        """What became of a search: its status, and the jobs of the slides it found.

        Raises
        ------
        JobNotFound
            There is no such search.
        """
        for workflow in self._workflows.listed(workflow_ids=[search], name=FIND):
            if workflow.status != "ERROR":
                return found_of(workflow)
            # Others than the one that it failed of may have been queued.
            outcome: dict[str, Any] = self._workflows.outputs(search).get(OUTCOME, {})
            return found_of(workflow) | outcome
        raise JobNotFound(f"Search {search} is not known here: submit it again.")

    def failed(self, limit: int, offset: int = 0, since_s: float = 0.0) -> Sequence[dict[str, Any]]:
        """Searches that failed, newest first: slides that may have no job.

        Parameters
        ----------
        limit
        offset
        since_s
            Unix time; searches that somebody asked for before are left out.
        """
        found = self._workflows.failed_searches(limit, offset, since_s)
        return [found_of(each) for each in found]
