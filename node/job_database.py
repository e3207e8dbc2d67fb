"""The database that jobs are in: SQLite in the work folder, or PostgreSQL for many workers."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import SQLAlchemyError

from dicom_io.errors import ConfigurationInvalid, DiskFull
from node.config import Settings
from node.job_callbacks import METADATA, Callbacks
from node.job_table import JobTable
from node.schema import bring_up_to_date
from node.write_ahead import keep_write_ahead, sqlite_engine

APPLICATION = "marrow-node"
CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class JobDatabase:
    """A job database that is open. Made by :func:`open_job_database`.

    Attributes
    ----------
    settings
    client, table, callbacks
        None where no job was ever submitted, and there is nothing to see.
    """

    settings: Settings
    client: DBOSClient | None = None
    table: JobTable | None = None
    callbacks: Callbacks | None = None
    _turns: AbstractContextManager[object] = field(default_factory=nullcontext, repr=False)

    @contextmanager
    def changing(self) -> Iterator[DBOSClient]:
        """The client, for changes by one thread at a time where the database takes no more.

        SQLite lets one write at a time, and others ask again now and then: who waits here instead
        goes on at once, and leaves the connections to those who only look.

        Raises
        ------
        ConfigurationInvalid
            No job was ever submitted.
        DiskFull
            When the database cannot be used.
        """
        with database_errors(self.settings), self._turns:
            if self.client is None:
                raise ConfigurationInvalid(
                    f"No job was ever submitted in {self.settings.work_folder}: check work_folder."
                )
            yield self.client


@contextmanager
def open_job_database(settings: Settings) -> Iterator[JobDatabase]:
    """Open the database that a worker has made; without one there is nothing to see.

    Raises
    ------
    DiskFull
        When the job database cannot be read.
    """
    if not settings.database_url and not sqlite_file(settings).exists():
        yield JobDatabase(settings)
        return
    with database_errors(settings):
        client = DBOSClient(
            system_database_url=database_url(settings),
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION,
            system_database_pool_size=CONNECTIONS,
        )
        engine = job_engine(settings)
        table = JobTable(engine)
    turns = nullcontext() if settings.database_url else threading.Lock()
    try:
        yield JobDatabase(settings, client, table, Callbacks(engine), turns)
    finally:
        table.close()
        client.destroy()


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
