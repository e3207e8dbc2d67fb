"""Workitems that the node has claimed, and what it promised by that: kept before the list is told.

A Transaction UID is written down before it is sent. So a process that is killed at any moment
leaves either nothing, or a claim that the next process goes on with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydicom.uid import generate_uid
from sqlalchemy import delete, insert, select, update

from node.worklist_database import CLAIMS, WorklistDatabase

ClaimState = Literal["claiming", "claimed"]
CLAIMING: ClaimState = "claiming"
CLAIMED: ClaimState = "claimed"


@dataclass(frozen=True, slots=True)
class Claim:
    """One workitem that the node performs, or is about to.

    Attributes
    ----------
    uid
        Of the workitem.
    transaction_uid
    state
        claiming until the list has said yes.
    jobs
        Identifiers, one for each slide; empty before they are queued.
    cancel
        Whether somebody wishes that it is canceled.
    begun_s
        Unix time.
    """

    uid: str
    transaction_uid: str
    state: ClaimState
    jobs: tuple[str, ...]
    cancel: bool
    begun_s: float


class Claims:
    """The claims on one worklist.

    Parameters
    ----------
    database
    worklist
        Name of the list.
    clock
        Unix time in seconds.
    """

    def __init__(
        self, database: WorklistDatabase, worklist: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._database, self._worklist, self._clock = database, worklist, clock
        self._own = CLAIMS.c.worklist == worklist

    def open(self) -> list[Claim]:
        """All claims that have not ended, oldest first."""
        query = select(CLAIMS).where(self._own).order_by(CLAIMS.c.begun_s, CLAIMS.c.uid)
        with self._database.reading() as connection:
            return [
                Claim(
                    row.uid,
                    row.transaction_uid,
                    row.state,
                    tuple(json.loads(row.jobs)),
                    row.cancel,
                    row.begun_s,
                )
                for row in connection.execute(query)
            ]

    def begin(self, uid: str) -> Claim:
        """Make up a Transaction UID for a workitem, and write it down."""
        claim = Claim(uid, generate_uid(prefix="2.25."), CLAIMING, (), False, self._clock())
        with self._database.changing() as connection:
            connection.execute(
                insert(CLAIMS).values(
                    worklist=self._worklist,
                    uid=uid,
                    transaction_uid=claim.transaction_uid,
                    state=CLAIMING,
                    jobs="[]",
                    cancel=False,
                    begun_s=claim.begun_s,
                )
            )
        return claim

    def claimed(self, uid: str) -> None:
        """Note that the list has said yes."""
        self._change(uid, state=CLAIMED)

    def queued(self, uid: str, jobs: list[str]) -> None:
        """Note which jobs do the work."""
        self._change(uid, jobs=json.dumps(jobs))

    def cancel(self, uid: str) -> None:
        """Note that somebody wishes that it is canceled; nothing where it is not ours."""
        self._change(uid, cancel=True)

    def end(self, uid: str) -> None:
        """Forget a claim: the list knows how it ended, or it was not ours."""
        with self._database.changing() as connection:
            connection.execute(delete(CLAIMS).where(self._own, CLAIMS.c.uid == uid))

    def shared(self, job: str, uid: str) -> bool:
        """Whether another claim, on any list, that nobody wishes canceled waits for a job too."""
        query = select(CLAIMS.c.jobs, CLAIMS.c.uid).where(CLAIMS.c.cancel.is_(False))
        with self._database.reading() as connection:
            return any(
                job in json.loads(row.jobs) and row.uid != uid for row in connection.execute(query)
            )

    def _change(self, uid: str, **changed: object) -> None:
        with self._database.changing() as connection:
            connection.execute(
                update(CLAIMS).where(self._own, CLAIMS.c.uid == uid).values(**changed)
            )
