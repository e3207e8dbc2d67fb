"""The revisions of a result, kept in the work folder: each is written once and never changed.

Where hosts share a storage it is the one that counts, and the work folder has a copy.

The first is what the analysis wrote, each further one what a review made of the one before. Two
reviewers who saw the same revision race for the one file of the next.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dicom_io.analysis import FIRST_REVISION
from dicom_io.errors import SharedStorageUnreachable, WorkFileMissing
from models.errors import ReviewRefused
from node.work_files import (
    disk_errors,
    open_work_files,
    shared_storage,
    write_atomically,
    write_once,
)

if TYPE_CHECKING:
    from node.config import Settings
    from node.review import Review

Json = dict[str, Any]


def revisions(settings: Settings, identity: str) -> list[Json]:
    """What was written of a result, first revision first; empty where it is not there.

    Parameters
    ----------
    settings
    identity
        Digest of slide, model package and configuration.

    Raises
    ------
    SharedStorageUnreachable
    """
    found: list[Json] = []
    while True:
        name = _name(identity, FIRST_REVISION + len(found))
        path = settings.work_folder / name
        if not path.exists() and not _copied(settings, name):
            return found
        found.append(json.loads(path.read_bytes()))


def newest_revision(settings: Settings, identity: str) -> int:
    """Number of the newest revision of a result that was written.

    Raises
    ------
    WorkFileMissing
        It lies on another host, or was purged.
    SharedStorageUnreachable
    """
    known = revisions(settings, identity)
    if not known:
        raise WorkFileMissing(
            f"Result {identity[:12]}… is not in {settings.work_folder}: another host has it, or it "
            "was purged. An analysis begins again, a review is left to that host; hosts with a "
            "shared_storage go on instead."
        )
    return int(known[-1]["revision"])


def keep_first(settings: Settings, identity: str, written: Json) -> None:
    """Keep what an analysis wrote.

    Raises
    ------
    DiskFull
    SharedStorageUnreachable
    """
    name = _name(identity, FIRST_REVISION)
    with disk_errors(settings.work_folder):
        write_atomically(settings.work_folder / name, _content(written))
    shared = shared_storage(settings)
    if shared is not None:
        shared.put(name, _content(written))


def keep_next(settings: Settings, identity: str, written: Json) -> Json:
    """Keep what a review wrote, unless its revision is there; what is there is returned.

    Raises
    ------
    DiskFull
    SharedStorageUnreachable
    """
    name = _name(identity, written["revision"])
    path = settings.work_folder / name
    shared = shared_storage(settings)
    if shared is None:
        with disk_errors(settings.work_folder):
            write_once(path, _content(written))
    elif not path.exists():
        shared.put_once(name, _content(written))
        _copied(settings, name)
    kept: Json = json.loads(path.read_bytes())
    return kept


def _copied(settings: Settings, name: str) -> bool:
    """Copy a file from the shared storage into the work folder, if it is there."""
    shared = shared_storage(settings)
    content = None if shared is None else shared.get(name)
    if content is None:
        return False
    try:
        json.loads(content)
    except ValueError as error:
        raise SharedStorageUnreachable(
            f"The shared storage has a part of {name} only: it is just being written; if that "
            "lasts, its writer was killed: remove that file, then try again."
        ) from error
    with disk_errors(settings.work_folder):
        write_atomically(settings.work_folder / name, content)
    return True


def find_seen(settings: Settings, identity: str, review: Review) -> tuple[Json, Json | None]:
    """The revision that a review is about, and what this very review made of it before.

    Raises
    ------
    ReviewRefused
        When there is no such revision, somebody else's decision followed on it, or none can.
    """
    known = revisions(settings, identity)
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
    work = open_work_files(settings)
    if not all(work.has(digest) for digest in _needed(seen)):
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


def _needed(written: Json) -> Iterator[str]:
    """Digests of what the next revision is made from."""
    for artifact in written["artifacts"].values():
        yield artifact["sha256"]
    for record in ("regions", "cells", "differential", "counted"):
        yield written["analysis"][record]


def _name(identity: str, revision: int) -> str:
    """Below the work folder, and in the shared storage."""
    suffix = "" if revision == FIRST_REVISION else f".{revision}"
    return f"results/{identity}{suffix}.json"


def _content(written: Json) -> bytes:
    return json.dumps(written).encode()
