"""SQLite's write-ahead log."""

from __future__ import annotations

import sqlite3

import stamina

WAIT_S = 30.0


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
