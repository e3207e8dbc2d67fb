"""The way of a review, in one place; what each step does stands in :mod:`node.review_stages`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node import review_stages, stages
from node.pipeline import Step
from node.review import Review
from node.workplace import ReviewPlace


def review_result(
    place: ReviewPlace, identity: str, review: Review, step: Step
) -> Mapping[str, Any]:
    """Make the next revision of a result, from a person's decision to reconciled documents.

    Parameters
    ----------
    place
        Settings, archive, EHR and work files.
    identity
        Of the result: digest of slide, model package and configuration.
    review
    step
        How a stage is run: durably in a job, directly in a test.

    Returns
    -------
    Mapping
        The job's result, see :func:`node.stages.reconcile`.

    Raises
    ------
    ReviewRefused
        When the revision cannot be reviewed, or not so.
    MarrowNodeError
        As the stages raise it; nothing is caught on the way.
    """
    run = place.apart.run
    opened = step("open review", lambda: run(review_stages.open_review, place, identity, review))
    written = opened["written"]
    if written is None:
        corrections = None
        if review.decision == "corrected":
            corrections = step("correct", lambda: run(review_stages.correct, place, opened, review))
        written = step(
            "write review", lambda: run(review_stages.write, place, opened, review, corrections)
        )
    stored = step("deliver to PACS", lambda: stages.deliver_to_pacs(place, written))
    reported = step("deliver to EHR", lambda: stages.deliver_to_ehr(place, written))
    return step("reconcile", lambda: stages.reconcile(place, opened, written, stored, reported))
