"""The table of jobs, looked at by its indexes.

A site keeps hundreds of thousands of ended jobs. DBOS's own listing gives states as parameters,
with which no database uses an index that is made for some states alone: it would read every row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    literal_column,
    select,
    union_all,
    update,
)

from node.turns import SLOTS, Waiting
from node.write_ahead import READING

# One of the system tables that DBOS documents.
_ROWS = Table(
    "workflow_status",
    MetaData(),
    Column("workflow_uuid", Text),
    Column("name", Text),
    Column("queue_name", Text),
    Column("status", Text),
    Column("priority", Integer),
    Column("created_at", BigInteger),
    Column("executor_id", Text),
)
_SHORT = (_ROWS.c.workflow_uuid, _ROWS.c.name, _ROWS.c.status, _ROWS.c.created_at)
Kept = Literal["at work", "delayed", "failed"]


def _is(*states: str) -> ColumnElement[bool]:
    return _ROWS.c.status.in_([literal_column(f"'{state}'") for state in states])


# As DBOS's partial indexes say it, word for word.
_AT_WORK = _is("ENQUEUED", "PENDING")
_DELAYED = _ROWS.c.status == literal_column("'DELAYED'")
_FAILED = _is("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
_INDEXED = {"at work": _AT_WORK, "delayed": _DELAYED, "failed": _FAILED}


@dataclass(frozen=True, slots=True)
class Row:
    """A workflow in short.

    Attributes
    ----------
    workflow_id
    name
        Of its kind.
    status
        As DBOS says it.
    created_ms
        Unix time in milliseconds.
    """

    workflow_id: str
    name: str
    status: str
    created_ms: int


class JobTable:
    """The rows of a job database.

    Parameters
    ----------
    engine
    """

    def __init__(self, engine: Engine) -> None:
        schemas = {None: "dbos"} if engine.dialect.name == "postgresql" else {}
        options = {"schema_translate_map": schemas, READING: True}
        self._engine = engine.execution_options(**options)

    def close(self) -> None:
        self._engine.dispose()

    def rows(self, kept: Collection[Kept], names: Collection[str]) -> Sequence[Row]:
        """Workflows of some kinds that wait and run, are delayed, or have failed; newest first."""
        named = _ROWS.c.name.in_(names)
        queries = [select(*_SHORT).where(_INDEXED[each], named) for each in kept]
        with self._engine.connect() as connection:
            wanted = [Row(*each) for each in connection.execute(union_all(*queries))]
        return sorted(wanted, key=lambda row: row.created_ms, reverse=True)

    def failed(self, name: str, limit: int, offset: int, since_ms: int) -> Sequence[Row]:
        """Workflows of one kind that were queued since then and have failed; newest first."""
        found = (
            select(*_SHORT)
            .where(_FAILED, _ROWS.c.name == name, _ROWS.c.created_at >= since_ms)
            .order_by(_ROWS.c.created_at.desc())
            .limit(limit)
            .offset(offset)
        )
        with self._engine.connect() as connection:
            return [Row(*each) for each in connection.execute(found)]

    def put_aside(self, names: Collection[str]) -> int:
        """How many workflows of some kinds DBOS ran no more: their workers died in them."""
        aside = _ROWS.c.status == literal_column("'MAX_RECOVERY_ATTEMPTS_EXCEEDED'")
        query = select(func.count()).where(_FAILED, aside, _ROWS.c.name.in_(names))
        with self._engine.connect() as connection:
            return connection.execute(query).scalar_one()

    def unended(self, ids: Collection[str]) -> set[str]:
        """Which workflows of some wait, are delayed or run."""
        unended = _ROWS.c.status.in_(["ENQUEUED", "PENDING", "DELAYED"])
        query = select(_ROWS.c.workflow_uuid).where(_ROWS.c.workflow_uuid.in_(ids), unended)
        with self._engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def executors(self) -> set[str]:
        """Who has workflows that run."""
        running = _AT_WORK & (_ROWS.c.status == "PENDING")
        query = select(_ROWS.c.executor_id).where(running).distinct()
        with self._engine.connect() as connection:
            return {each for each in connection.execute(query).scalars() if each}

    def move(self, workflow_id: str, number: int) -> None:
        """Give another number to what waits in a queue, see :func:`node.turns.number_of`."""
        waits = _ROWS.c.status.in_(["ENQUEUED", "DELAYED"])
        this = update(_ROWS).where(_ROWS.c.workflow_uuid == workflow_id, waits)
        with self._engine.begin() as connection:
            connection.execute(this.values(priority=number))

    def waiting(self, queue: str, first: int, behind: int, slot: int) -> Waiting:
        """What waits in a band of a queue, see :func:`node.turns.number_of`."""
        number = _ROWS.c.priority
        waits = (
            _AT_WORK
            & (_ROWS.c.queue_name == queue)
            & (_ROWS.c.status == "ENQUEUED")
            & number.between(first, behind - 1)
        )
        query = select(
            select(func.min(number)).where(waits).scalar_subquery(),
            select(func.max(number)).where(waits, number % SLOTS == slot).scalar_subquery(),
        )
        with self._engine.connect() as connection:
            return Waiting(*connection.execute(query).one())
