"""Who waits for the end of a job or a search: written down until they have been told.

A job that ends, however it ends, tells nobody by itself: whoever looks here finds who still waits,
and whether what they wait for has ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    delete,
    inspect,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from node.write_ahead import READING

METADATA = MetaData()
_CALLBACKS = Table(
    "job_callbacks",
    METADATA,
    # Of a job or a search.
    Column("awaited", String(64), primary_key=True),
    # Digest of the URL, which may be longer than an index takes.
    Column("address", String(16), primary_key=True),
    Column("url", Text, nullable=False),
    # The end of this try or of a later one is to be told; NULL once it was.
    Column("from_try", Integer),
)
_OPEN = _CALLBACKS.c.from_try.is_not(None)
Index("job_callbacks_open", _CALLBACKS.c.from_try, postgresql_where=_OPEN, sqlite_where=_OPEN)
_INSERT: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
_AT_A_TIME = 500


@dataclass(frozen=True, slots=True)
class Callback:
    """Somebody who waits.

    Attributes
    ----------
    awaited
        Identifier of the job or the search.
    url
        Where its end is told.
    from_try
        Earlier tries had ended before somebody asked.
    """

    awaited: str
    url: str
    from_try: int

    @property
    def address(self) -> str:
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]


class Callbacks:
    """The callbacks of a job database.

    Parameters
    ----------
    engine
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reading = engine, engine.execution_options(**{READING: True})

    @property
    def are_kept(self) -> bool:
        """Whether a worker of a version that keeps them was here."""
        with self._reading.connect() as connection:
            return inspect(connection).has_table(_CALLBACKS.name)

    def ask(self, callback: Callback) -> None:
        """Write down that somebody waits; who asks twice for the same is told once."""
        new = _INSERT[self._engine.dialect.name](_CALLBACKS).values(
            awaited=callback.awaited,
            address=callback.address,
            url=callback.url,
            from_try=callback.from_try,
        )
        known = new.on_conflict_do_update(
            index_elements=["awaited", "address"], set_={"from_try": callback.from_try}
        )
        with self._engine.begin() as connection:
            connection.execute(known)

    def ask_again(self, job: str, from_try: int) -> None:
        """Let all who have ever waited for a job wait for a further try of it."""
        asked = update(_CALLBACKS).where(_CALLBACKS.c.awaited == job)
        with self._engine.begin() as connection:
            connection.execute(asked.values(from_try=from_try))

    def open(self) -> Sequence[Callback]:
        """All who still wait."""
        columns = (_CALLBACKS.c.awaited, _CALLBACKS.c.url, _CALLBACKS.c.from_try)
        with self._reading.connect() as connection:
            return [Callback(*row) for row in connection.execute(select(*columns).where(_OPEN))]

    def waits_for(self, job: str) -> bool:
        """Whether somebody still waits for a job."""
        query = select(_CALLBACKS.c.address).where(_CALLBACKS.c.awaited == job, _OPEN)
        with self._reading.connect() as connection:
            return connection.execute(query).first() is not None

    def told(self, callback: Callback) -> None:
        """Note that somebody was told, unless they have asked for a later try meanwhile."""
        this = (
            (_CALLBACKS.c.awaited == callback.awaited)
            & (_CALLBACKS.c.address == callback.address)
            & (_CALLBACKS.c.from_try == callback.from_try)
        )
        with self._engine.begin() as connection:
            connection.execute(update(_CALLBACKS).where(this).values(from_try=None))

    def forget(self, awaited: Collection[str]) -> None:
        """Delete who was told of old jobs and searches."""
        names = sorted(awaited)
        for start in range(0, len(names), _AT_A_TIME):
            some = _CALLBACKS.c.awaited.in_(names[start : start + _AT_A_TIME])
            with self._engine.begin() as connection:
                connection.execute(delete(_CALLBACKS).where(some, ~_OPEN))
