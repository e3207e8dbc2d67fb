"""The database that jobs are in: SQLite in the work folder, or PostgreSQL for many workers."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from dbos import DBOS
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import SQLAlchemyError

from dicom_io.errors import DiskFull
from node.config import Settings
from node.job_callbacks import METADATA
from node.schema import bring_up_to_date
from node.write_ahead import keep_write_ahead, sqlite_engine

APPLICATION = "marrow-node"


def prepare_database(settings: Settings) -> None:
    """Make the job database, or bring it up to date."""
    with database_errors(settings):
        if not settings.database_url:
            sqlite_file(settings).parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(sqlite_file(settings))) as database:
                keep_write_ahead(database)
        DBOS.migrate(database_url(settings))
        engine = job_engine(settings)
        try:
            with engine.begin() as connection:
                bring_up_to_date(connection, "jobs", METADATA, ())
        finally:
            engine.dispose()


@contextmanager
def database_errors(settings: Settings) -> Iterator[None]:
    """Say of what the database refuses what to do: :class:`DiskFull`."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        name = type(error.__cause__ or error).__name__
        if settings.database_url:
            raise DiskFull(
                f"The job database that database_url names cannot be used ({name}): check that it "
                "runs, has space, and takes further connections (max_connections)."
            ) from error
        raise DiskFull(
            f"The job database of {settings.work_folder} cannot be used ({name}): free space there,"
            " or set database_url or work_folder to another place."
        ) from error


def database_url(settings: Settings) -> str:
    """As DBOS takes it."""
    return settings.database_url or f"sqlite:///{sqlite_file(settings)}"


def poll_s(settings: Settings) -> float:
    """Seconds between a worker's looks into a queue.

    Each costs some milliseconds, and of the database too: where it is shared, a site's many workers
    look less often, and one without a slide costs 2 % of a core.
    """
    return 1.0 if settings.database_url else 0.1


def pool(settings: Settings, kept: int = 1) -> dict[str, int]:
    """How many connections are kept, and how many more may be opened for a while.

    PostgreSQL takes 100 if nobody has told it otherwise, of all workers of a site together.
    """
    return {"pool_size": kept, "max_overflow": 15} if settings.database_url else {}


def sqlite_file(settings: Settings) -> Path:
    return (settings.work_folder / "jobs.sqlite").absolute()


def job_engine(settings: Settings) -> Engine:
    """Of the job database, for what DBOS's client cannot be asked."""
    if settings.database_url:
        return postgresql_engine(settings)
    return sqlite_engine(sqlite_file(settings))


def postgresql_engine(settings: Settings) -> Engine:
    """Of the PostgreSQL database that workers share, which few connections are kept to."""
    url = settings.database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    return create_engine(url, pool_pre_ping=True, **pool(settings))
