"""The shape of the node's own tables: counted, brought up to date at start, never guessed.

DBOS does the same for its tables. A step changes one version's tables into the next one's; all
steps of a start are one transaction, so that a database is of one version or of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, inspect, select, text

from dicom_io.errors import ConfigurationInvalid

Upgrade = Callable[[Connection], None]

VERSIONS = Table(
    "node_schema",
    MetaData(),
    Column("tables", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
)
# Of an advisory lock: of two processes that start at the same time one makes the changes.
_MAKING = 7_155_021


def bring_up_to_date(
    connection: Connection, name: str, tables: MetaData, upgrades: Sequence[Upgrade]
) -> None:
    """Make tables, or change older ones.

    Parameters
    ----------
    connection
        In a transaction; on SQLite one that has the write lock.
    name
        Of these tables together.
    tables
        As they are to be.
    upgrades
        The first makes version 2 of version 1, and so on. Version 1 is also what there was before
        versions were counted.

    Raises
    ------
    ConfigurationInvalid
        The tables are of a later version than this code knows.
    """
    latest = 1 + len(upgrades)
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_MAKING})"))
    VERSIONS.create(connection, checkfirst=True)
    found = _version(connection, name)
    there = any(inspect(connection).has_table(table) for table in tables.tables)
    version = found or (1 if there else latest)
    if version > latest:
        raise ConfigurationInvalid(
            f"The tables of the {name} were made by a later version of the node (version {version},"
            f" this node knows {latest}): start that version, or restore a backup of this one."
        )
    tables.create_all(connection)
    for upgrade in upgrades[version - 1 :]:
        upgrade(connection)
    if found is None:
        connection.execute(VERSIONS.insert().values(tables=name, version=latest))
    elif found != latest:
        own = VERSIONS.c.tables == name
        connection.execute(VERSIONS.update().where(own).values(version=latest))


def _version(connection: Connection, name: str) -> int | None:
    version: int | None = connection.execute(
        select(VERSIONS.c.version).where(VERSIONS.c.tables == name)
    ).scalar()
    return version
