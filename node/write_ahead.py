"""SQLite with a write-ahead log."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import stamina
from sqlalchemy import Connection, Engine, create_engine, event

WAIT_S = 30.0
# Execution option of connections that only look.
READING = "reading"


def sqlite_engine(file: Path) -> Engine:
    """Of a database whose transactions take its only write lock at their beginning."""
    engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": WAIT_S})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def keep_write_ahead(connection: sqlite3.Connection) -> None:
    """Let a database keep a write-ahead log from now on.

    Readers and the writer do not wait for each other then, and a commit costs one flush instead of
    three; it stays as durable. While one process changes to it, SQLite refuses others at once,
    without the wait that it has for all else.

    Raises
    ------
    sqlite3.Error
    """
    for attempt in stamina.retry_context(
        on=sqlite3.OperationalError, attempts=None, timeout=WAIT_S, wait_initial=0.01, wait_max=0.2
    ):
        with attempt:
            connection.execute("PRAGMA journal_mode=WAL")


def _prepare(connection: Any, _: Any) -> None:
    # Python's driver would begin transactions by itself, too late for a lock at their beginning.
    connection.isolation_level = None
    keep_write_ahead(connection)


def _begin(connection: Connection) -> None:
    # Without one, each statement of a reader is a transaction of its own, and waits for no writer.
    if not connection.get_execution_options().get(READING):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
