"""Which workers of several hosts live: a heartbeat of each, beside the jobs in PostgreSQL.

DBOS has no lease of its own. Every start of a worker gets a number of its own, its fencing number,
and writes down that it lives. Others finish the jobs of one that has been silent for too long, and
first take its number away; one that was only slow finds that out before it records or delivers
anything further, and ends at once. How long one has been silent is measured by each of the others
on its own, as time without another beat while it could look: neither a clock that jumps, on
whichever host, nor a database that was away makes a living worker a dead one.

With SQLite there is one host, whose locks tell more exactly which workers are dead
(:mod:`node.work_lock`).
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    cast,
    delete,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from node.config import Settings
from node.exit_codes import FENCED
from node.job_database import database_errors, postgresql_engine
from node.recovery import Recover, executor
from node.repeated import repeated
from node.schema import bring_up_to_date

log = logging.getLogger(__name__)

BEATS_IN_A_LEASE = 5
DATABASE_WAIT_S = 0.5
GIVEN_UP_S = 0.0
_METADATA = MetaData()
WORKERS = Table(
    "node_workers",
    _METADATA,
    Column("fence", Integer, primary_key=True, autoincrement=True),
    Column("name", String(255), nullable=False, index=True),
    Column("seen_s", Float, nullable=False),
    # Set before its jobs are given to others; the row goes when they have been.
    Column("fenced", Boolean, nullable=False),
)


class Lease:
    """A worker's right to record and to deliver. Made by :func:`held_lease`.

    Parameters
    ----------
    engine
    name
        Of the worker: the same after a restart, and no other's.
    fence
        Its fencing number.
    lease_s
    """

    def __init__(self, engine: Engine, name: str, fence: int, lease_s: float) -> None:
        self._engine, self._name, self._fence, self._lease_s = engine, name, fence, lease_s
        # Fence of another worker → its last beat, and since when that is known here (monotonic).
        self._heard: dict[int, tuple[float, float]] = {}

    @property
    def executor(self) -> str:
        """This start of the worker, as DBOS knows it."""
        return executor(self._name, str(self._fence))

    @property
    def beat_s(self) -> float:
        return self._lease_s / BEATS_IN_A_LEASE

    def check(self) -> None:
        """Return while the lease is held; end the process at once where it was taken away.

        Without the database nobody can take it away, nor can anything be recorded: waits for it.
        """
        query = select(WORKERS.c.fenced).where(WORKERS.c.fence == self._fence)
        while True:
            try:
                with self._engine.connect() as connection:
                    fenced = connection.execute(query).scalar()
                break
            except SQLAlchemyError:
                time.sleep(DATABASE_WAIT_S)
        if fenced is not False:
            self._end()

    def beat(self) -> None:
        """Write down that the worker lives; end the process where it was taken for dead."""
        own = (WORKERS.c.fence == self._fence) & WORKERS.c.fenced.is_(False)
        with self._engine.begin() as connection:
            beaten = connection.execute(update(WORKERS).where(own).values(seen_s=_now_s()))
        if not beaten.rowcount:
            self._end()

    def bury(self, recover: Recover) -> None:
        """Give the jobs of workers that are dead to the living.

        Parameters
        ----------
        recover
            Queues the jobs of some executors anew; once, however often it is called.
        """
        rows = self._buried()
        # A survivor that is killed here leaves the rows, and with them the work to the next one.
        for name, fence in rows:
            log.warning("Worker %s is silent: its jobs go to others.", executor(name, str(fence)))
            recover([executor(name, str(fence))])
            with self._engine.begin() as connection:
                connection.execute(delete(WORKERS).where(WORKERS.c.fence == fence))

    def adopt(self, executors: Callable[[], Collection[str]], recover: Recover) -> None:
        """Give the jobs of workers that are buried already to the living.

        One that was cut off may take a further job when it is back, before it finds out that it
        was thought dead and ends.

        Parameters
        ----------
        executors
            Asks who has jobs at work.
        recover
            As of :meth:`bury`.
        """
        # Before the rows are read: a worker has one before it has a job.
        at_work = executors()
        with self._engine.connect() as connection:
            rows = connection.execute(select(WORKERS.c.name, WORKERS.c.fence)).all()
        known = {executor(name, str(fence)) for name, fence in rows}
        # Own jobs stay: without a row of its own this worker is about to end.
        left = sorted(set(at_work) - known - {self.executor})
        if left:
            log.warning("Jobs of workers that are gone go to others: %s.", ", ".join(left))
            recover(left)

    def look_anew(self) -> None:
        """Forget who was silent: while the database is away, nobody can be heard."""
        self._heard.clear()

    def _buried(self) -> list[tuple[str, int]]:
        """Take away the numbers of workers that are dead: (name, fence) of each."""
        others = select(WORKERS).where(WORKERS.c.fence != self._fence)
        with self._engine.connect() as connection:
            there = connection.execute(others).all()
        now_s = time.monotonic()
        self._heard = {
            row.fence: known
            if (known := self._heard.get(row.fence)) is not None and known[0] == row.seen_s
            else (row.seen_s, now_s)
            for row in there
        }
        dead = [
            row.fence
            for row in there
            if row.fenced
            or row.seen_s == GIVEN_UP_S
            # This worker's own lock is proof that its earlier starts are dead.
            or row.name == self._name
            or now_s - self._heard[row.fence][1] > self._lease_s
        ]
        rows: list[tuple[str, int]] = []
        for fence in dead:
            # Not where it was heard of after all, between looking and now.
            silent = (WORKERS.c.fence == fence) & (WORKERS.c.seen_s == self._heard[fence][0])
            taken = update(WORKERS).where(silent).values(fenced=True)
            with self._engine.begin() as connection:
                found = connection.execute(taken.returning(WORKERS.c.name, WORKERS.c.fence)).all()
            rows += [(str(name), int(fence)) for name, fence in found]
        return rows

    def give_up(self) -> None:
        """Tell the others that this worker ends, and need not be waited for."""
        with self._engine.begin() as connection:
            connection.execute(
                update(WORKERS).where(WORKERS.c.fence == self._fence).values(seen_s=GIVEN_UP_S)
            )

    def _end(self) -> None:
        log.error("Worker %s was taken for dead and ends: others do its jobs.", self.executor)
        sys.stderr.flush()
        # Neither handlers nor threads may run on: what they would record is another worker's now.
        os._exit(FENCED)


@contextmanager
def held_lease(settings: Settings, name: str) -> Iterator[Lease]:
    """Take part as a worker of a PostgreSQL database.

    Raises
    ------
    DiskFull
        When the database cannot be used.
    """
    with database_errors(settings):
        engine = postgresql_engine(settings)
        with engine.begin() as connection:
            bring_up_to_date(connection, "workers", _METADATA, ())
        new = insert(WORKERS).values(name=name, seen_s=_now_s(), fenced=False)
        with engine.begin() as connection:
            fence = connection.execute(new.returning(WORKERS.c.fence)).scalar_one()
    lease = Lease(engine, name, fence, settings.jobs.lease_s)
    try:
        yield lease
    finally:
        try:
            lease.give_up()
        except SQLAlchemyError:
            log.warning("The job database does not answer: worker %s is missed later.", name)
        engine.dispose()


class Roll:
    """Who lives of the workers of a PostgreSQL database, for those who only look.

    Parameters
    ----------
    settings
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._engine = settings, postgresql_engine(settings)

    def living(self) -> int:
        """Workers of all hosts that have been heard of within a lease; 0 before the first.

        Raises
        ------
        DiskFull
            When the database cannot be used.
        """
        living = WORKERS.c.fenced.is_(False) & (
            WORKERS.c.seen_s >= _now_s() - self._settings.jobs.lease_s
        )
        with database_errors(self._settings), self._engine.connect() as connection:
            if not inspect(connection).has_table(WORKERS.name):
                return 0
            return connection.execute(select(func.count()).where(living)).scalar_one()


@contextmanager
def beating(
    lease: Lease, executors: Callable[[], Collection[str]], recover: Recover
) -> Iterator[None]:
    """Keep a lease, and look after the other workers, while the block runs.

    Parameters
    ----------
    lease
    executors, recover
        As of :meth:`Lease.adopt`.
    """

    def keep() -> None:
        try:
            lease.beat()
            lease.bury(recover)
            lease.adopt(executors, recover)
        except SQLAlchemyError as error:
            lease.look_anew()
            log.warning("The job database does not answer (%s).", type(error).__name__)

    with repeated(keep, lease.beat_s, "lease"):
        yield


def _now_s() -> ColumnElement[float]:
    """By the database's clock: those of hosts may differ."""
    return cast(func.extract("epoch", func.clock_timestamp()), Float)
