"""Workitems, subscriptions, claims, and slides seen: SQLite in the work folder, or PostgreSQL.

A change is one transaction that nobody else's comes between: SQLite takes its only write lock at
the beginning, PostgreSQL locks the tables that it changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

from node.config import Settings
from node.job_database import database_errors, postgresql_engine
from node.schema import bring_up_to_date
from node.write_ahead import READING, sqlite_engine

_METADATA = MetaData()
WORKITEMS = Table(
    "workitems",
    _METADATA,
    Column("uid", String(64), primary_key=True),
    # Empty once it has been deleted; the row then tells that it was there.
    Column("state", String(16), nullable=False, index=True),
    Column("transaction_uid", String(64), nullable=False),
    Column("item", Text, nullable=False),
    # Whether the node itself performs it.
    Column("own", Boolean, nullable=False),
    Column("cancel", Boolean, nullable=False),
    Column("created_s", Float, nullable=False, index=True),
    Column("updated_s", Float, nullable=False, index=True),
)
SUBSCRIPTIONS = Table(
    "workitem_subscriptions",
    _METADATA,
    Column("aetitle", String(16), primary_key=True),
    Column("uid", String(64), primary_key=True, index=True),
    Column("locked", Boolean, nullable=False),
)
WORKLIST_SUBSCRIPTIONS = Table(
    "worklist_subscriptions",
    _METADATA,
    Column("aetitle", String(16), primary_key=True),
    Column("resource", String(64), primary_key=True),
    Column("filter", Text, nullable=False),
    Column("locked", Boolean, nullable=False),
)
REPORTS = Table(
    "workitem_reports",
    _METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("aetitle", String(16), nullable=False, index=True),
    Column("report", Text, nullable=False),
    Column("sent", Boolean, nullable=False),
    Column("made_s", Float, nullable=False),
)
CLAIMS = Table(
    "workitem_claims",
    _METADATA,
    Column("worklist", String(256), primary_key=True),
    Column("uid", String(64), primary_key=True),
    Column("transaction_uid", String(64), nullable=False),
    # claiming until the list has said yes; then claimed, and ended when it was told how it ended.
    Column("state", String(16), nullable=False, index=True),
    Column("jobs", Text, nullable=False),
    Column("cancel", Boolean, nullable=False),
    Column("begun_s", Float, nullable=False),
)
CURSORS = Table(
    "cursors",
    _METADATA,
    Column("source", String(512), primary_key=True),
    Column("place", Text, nullable=False),
)
# Studies that a search has found and could not look through.
UNREAD = Table(
    "unread_studies",
    _METADATA,
    Column("source", String(512), primary_key=True),
    Column("study_uid", String(64), primary_key=True),
)
SEEN = Table(
    "seen_series",
    _METADATA,
    Column("source", String(512), primary_key=True),
    Column("study_uid", String(64), primary_key=True),
    Column("series_uid", String(64), primary_key=True),
    Column("decision", Text, nullable=False),
)


def _to_version_2(connection: Connection) -> None:
    """Sources may be longer, and workitems are found by their times."""
    if connection.dialect.name == "postgresql":  # SQLite does not hold anybody to a length
        connection.execute(text("ALTER TABLE cursors ALTER COLUMN source TYPE VARCHAR(512)"))
    for index in WORKITEMS.indexes:
        index.create(connection, checkfirst=True)


UPGRADES = (_to_version_2,)


class WorklistDatabase:
    """The tables above. Made by :func:`worklist_database`.

    Parameters
    ----------
    settings
    engine
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings, self._engine = settings, engine

    @contextmanager
    def changing(self) -> Iterator[Connection]:
        """One transaction; it is undone where the block raises.

        Raises
        ------
        DiskFull
            When the database cannot be used.
        """
        with database_errors(self._settings), self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(text("LOCK TABLE workitems IN SHARE ROW EXCLUSIVE MODE"))
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Statements that see what was committed before each of them.

        Raises
        ------
        DiskFull
            When the database cannot be used.
        """
        with database_errors(self._settings), self._engine.connect() as connection:
            yield connection.execution_options(**{READING: True})


def worklist_database(settings: Settings) -> WorklistDatabase:
    """The database, with its tables made or brought up to date.

    Raises
    ------
    ConfigurationInvalid
        A later version of the node has made the tables.
    DiskFull
        When the database cannot be used.
    """
    with database_errors(settings):
        engine = _engine(settings)
        try:
            with engine.begin() as connection:
                bring_up_to_date(connection, "worklist", _METADATA, UPGRADES)
        except BaseException:
            engine.dispose()
            raise
        return WorklistDatabase(settings, engine)


def _engine(settings: Settings) -> Engine:
    if settings.database_url:
        return postgresql_engine(settings)
    settings.work_folder.mkdir(parents=True, exist_ok=True)
    return sqlite_engine((settings.work_folder / "worklist.sqlite").absolute())
