"""The revisions of a result, kept in the work folder: each is written once and never changed.

The first is what the analysis wrote, each further one what a review made of the one before. Two
reviewers who saw the same revision race for the one file of the next.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom_io.analysis import FIRST_REVISION
from models.errors import ReviewRefused
from node.work_files import WorkFiles, disk_errors, write_atomically, write_once

if TYPE_CHECKING:
    from node.review import Review

Json = dict[str, Any]


def revisions(work_folder: Path, identity: str) -> list[Json]:
    """What was written of a result, first revision first; empty where it is not there.

    Parameters
    ----------
    work_folder
    identity
        Digest of slide, model package and configuration.
    """
    found: list[Json] = []
    while True:
        path = _path(work_folder, identity, FIRST_REVISION + len(found))
        if not path.exists():
            return found
        found.append(json.loads(path.read_bytes()))


def keep_first(work_folder: Path, identity: str, written: Json) -> None:
    """Keep what an analysis wrote.

    Raises
    ------
    DiskFull
    """
    with disk_errors(work_folder):
        write_atomically(_path(work_folder, identity, FIRST_REVISION), _content(written))


def keep_next(work_folder: Path, identity: str, written: Json) -> Json:
    """Keep what a review wrote, unless its revision is there; what is there is returned.

    Raises
    ------
    DiskFull
    """
    path = _path(work_folder, identity, written["revision"])
    with disk_errors(work_folder):
        write_once(path, _content(written))
    kept: Json = json.loads(path.read_bytes())
    return kept


def find_seen(work_folder: Path, identity: str, review: Review) -> tuple[Json, Json | None]:
    """The revision that a review is about, and what this very review made of it before.

    Raises
    ------
    ReviewRefused
        When there is no such revision, somebody else's decision followed on it, or none can.
    """
    known = revisions(work_folder, identity)
    if not known or "identity" not in known[0]:
        raise ReviewRefused(
            "There is nothing to review: this work folder has no result of that analysis, or one "
            "of an older version of the node; analyse the slide again."
        )
    if review.revision > len(known):
        raise ReviewRefused(
            f"There is no revision {review.revision}: the newest is {known[-1]['revision']}."
        )
    seen, later = known[review.revision - 1], known[review.revision :]
    if later and later[0]["review"]["digest"] == review.digest:
        return seen, later[0]
    if later:
        raise ReviewRefused(
            f"Revision {review.revision} is no longer the newest: revision "
            f"{later[-1]['revision']} is there, {later[-1]['standing']}. Look at it, then decide."
        )
    if not all(path.exists() for path in _needed(work_folder, seen)):
        raise ReviewRefused(
            f"The work files of revision {review.revision} are gone: analyse the slide again, "
            "then review that result."
        )
    if review.signature(seen["standing"]).at <= datetime.fromisoformat(seen["issued"]):
        raise ReviewRefused(
            f"The review's time lies before revision {review.revision} was issued: correct the "
            "clock of this machine."
        )
    return seen, None


def _needed(work_folder: Path, written: Json) -> Iterator[Path]:
    """What the next revision is made from."""
    work = WorkFiles(work_folder / "files")
    for artifact in written["artifacts"].values():
        yield work.path(artifact["sha256"])
    for record in ("regions", "cells", "differential", "counted"):
        yield work.path(written["analysis"][record])


def _path(work_folder: Path, identity: str, revision: int) -> Path:
    suffix = "" if revision == FIRST_REVISION else f".{revision}"
    return work_folder / "results" / f"{identity}{suffix}.json"


def _content(written: Json) -> bytes:
    return json.dumps(written).encode()
