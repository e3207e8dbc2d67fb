"""``marrow-node backup`` and ``restore``: all that a node knows, in one file, while it works.

What a job refers to is written before the job's step is recorded. So the databases are copied
first, by their own means (SQLite's online backup, pg_dump), and the files afterwards: whatever the
copied databases name is there. Jobs that were at work go on from their last recorded step, and what
they had delivered since is found in the archive and the EHR, and not delivered again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from sqlalchemy import URL, inspect, make_url
from sqlalchemy.exc import SQLAlchemyError

from dicom_io.errors import ConfigurationInvalid, DiskFull
from node import __version__
from node.config import Settings
from node.engines import ENGINES
from node.job_database import database_errors, postgresql_engine
from node.work_lock import live_workers, lock_folder

# The worklist first: what it knows of jobs is then in the copy of these.
DATABASES = ("worklist.sqlite", "jobs.sqlite")
DUMP = "postgresql.dump"
# The last member: without it the file is not whole.
MANIFEST = "manifest.json"
LAYOUT = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds.

    Attributes
    ----------
    layout
        Of the file; a node refuses a later one than it knows.
    node
        Version that made it.
    made_s
        Unix time.
    database
        sqlite or postgresql.
    files
        Number of files beside the databases.
    n_bytes
        Of all that.
    """

    layout: int
    node: str
    made_s: float
    database: str
    files: int
    n_bytes: int


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def backup(settings: Settings, file: Path) -> None:
    """Copy jobs, results and work files into FILE, a tar archive, while the node works.

    Not in it: the settings file and its secrets, model packages, and slides that were received
    (receive.folder).
    """
    made = back_up(settings, file)
    click.echo(f"backed up {made.files} files, {made.n_bytes / 1e6:.1f} MB, and the jobs to {file}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.pass_obj
def restore(settings: Settings, file: Path) -> None:
    """Restore what 'marrow-node backup' wrote, into an empty work folder and database.

    The old node must not run any more. Jobs that had not ended go on when the node is started.
    """
    made = restore_from(settings, file)
    click.echo(f"restored {made.files} files and the jobs into {settings.work_folder.absolute()}")


def back_up(settings: Settings, file: Path) -> Manifest:
    """Write a backup; the file is there whole or not at all.

    Raises
    ------
    ConfigurationInvalid
        There is nothing to back up, or pg_dump is not installed.
    DiskFull
        A database cannot be read, or the file not be written.
    """
    work = settings.work_folder.absolute()
    if not settings.database_url and not (work / "jobs.sqlite").exists():
        raise ConfigurationInvalid(f"No job was ever submitted in {work}: check work_folder.")
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("wb") as stream:
            with tarfile.open(fileobj=stream, mode="w") as archive:
                manifest = _filled(settings, work, archive)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError as error:
        raise DiskFull(
            f"The backup {file} cannot be written ({error.strerror}): name another place."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return manifest


def restore_from(settings: Settings, file: Path) -> Manifest:
    """Bring a backup into an empty work folder, and an empty database.

    Raises
    ------
    ConfigurationInvalid
        The file is no whole backup, or of another kind of database; or something is there already.
    DiskFull
        The work folder or the database cannot be written.
    """
    work = settings.work_folder.absolute()
    _check_empty(settings, work)
    with _write_errors(work):
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work, prefix=".restore-") as folder:
            inside = Path(folder)
            manifest = _extracted(file, inside)
            kind = "postgresql" if settings.database_url else "sqlite"
            if manifest.database != kind:
                raise ConfigurationInvalid(
                    f"The backup {file} is of a {manifest.database} database, and database_url "
                    f"names a {kind} one: set it accordingly."
                )
            _check_files(file, inside)
            if settings.database_url:
                _restore_postgresql(settings, inside / DUMP)
                (inside / DUMP).unlink()
            for path in inside.iterdir():
                path.rename(work / path.name)
    return manifest


def _filled(settings: Settings, work: Path, archive: tarfile.TarFile) -> Manifest:
    files = n_bytes = 0
    with tempfile.TemporaryDirectory() as folder:
        for copy in _copied_databases(settings, work, Path(folder)):
            archive.add(copy, copy.name)
            n_bytes += copy.stat().st_size
    for path, name in _files(work, _left_out(settings, work)):
        try:
            with path.open("rb") as stream:
                member = archive.gettarinfo(arcname=name, fileobj=stream)
                archive.addfile(member, stream)
        except FileNotFoundError:  # it was forgotten meanwhile
            continue
        files += 1
        n_bytes += member.size
    kind = "postgresql" if settings.database_url else "sqlite"
    manifest = Manifest(LAYOUT, __version__, time.time(), kind, files, n_bytes)
    content = json.dumps(asdict(manifest)).encode()
    last = tarfile.TarInfo(MANIFEST)
    last.size = len(content)
    archive.addfile(last, io.BytesIO(content))
    return manifest


def _copied_databases(settings: Settings, work: Path, folder: Path) -> Iterator[Path]:
    if settings.database_url:
        dump = folder / DUMP
        _run_postgresql(settings, "pg_dump", "--format=custom", f"--file={dump}")
        yield dump
        return
    with database_errors(settings):
        for name in DATABASES:
            if (work / name).exists():
                with (
                    closing(sqlite3.connect(f"file:{work / name}?mode=ro", uri=True)) as source,
                    closing(sqlite3.connect(folder / name)) as copy,
                ):
                    # In one step: a copy in several begins again whenever somebody writes.
                    source.backup(copy)
                yield folder / name


def _left_out(settings: Settings, work: Path) -> set[Path]:
    """Counters of processes, engines of this host's GPU, and slides that were received."""
    return {work / "metrics", work / ENGINES, settings.receive.folder.absolute()}


def _files(work: Path, left_out: Collection[Path]) -> Iterator[tuple[Path, str]]:
    """All but databases, temporary files and what belongs to processes; links are followed.

    Results come before the files that they name: those are there when a result is written.
    """
    for folder, subfolders, names in os.walk(work, followlinks=True):
        inside = Path(folder)
        entered = (
            each
            for each in subfolders
            if not each.startswith(".") and inside / each not in left_out
        )
        subfolders[:] = sorted(entered, key=lambda each: (each != "results", each))
        for name in sorted(names):
            is_database = inside == work and name.startswith(DATABASES)
            if not name.startswith(".") and not is_database:
                yield inside / name, str((inside / name).relative_to(work))


def _check_empty(settings: Settings, work: Path) -> None:
    if live_workers(lock_folder(settings)):
        raise ConfigurationInvalid(f"A worker works in {work}: stop it before restoring.")
    if work.exists() and set(work.iterdir()) - _left_out(settings, work):
        raise ConfigurationInvalid(
            f"The work folder {work} is not empty: restore into another one, or empty it."
        )
    if settings.database_url:
        with database_errors(settings):
            engine = postgresql_engine(settings)
            with closing(engine.raw_connection()):
                there = inspect(engine).get_table_names() or "dbos" in (
                    inspect(engine).get_schema_names()
                )
            engine.dispose()
        if there:
            raise ConfigurationInvalid(
                "The database that database_url names is not empty: restore into a new one."
            )


def _extracted(file: Path, folder: Path) -> Manifest:
    try:
        with tarfile.open(file, "r:") as archive:
            archive.extractall(folder, filter="data")
        told = json.loads((folder / MANIFEST).read_bytes())
        if told.get("layout") == LAYOUT:
            manifest = Manifest(**told)
            (folder / MANIFEST).unlink()
            return manifest
    except (tarfile.TarError, EOFError, FileNotFoundError, ValueError, TypeError) as error:
        raise ConfigurationInvalid(
            f"{file} is not a whole backup of a node: take another one."
        ) from error
    raise ConfigurationInvalid(
        f"{file} was made by a later version ({told.get('node')}): restore it with that one."
    )


def _check_files(file: Path, folder: Path) -> None:
    """Work files are named by what they hold, and SQLite can check itself."""
    for path in (folder / "files").glob("??/*"):
        held = hashlib.sha256(path.read_bytes()).hexdigest()
        if _DIGEST.fullmatch(path.name) and held != path.name:
            raise ConfigurationInvalid(
                f"{file} is damaged: work file {path.name} is not what was backed up. "
                "Take another one."
            )
    for name in DATABASES:
        if (folder / name).exists():
            try:
                with closing(sqlite3.connect(folder / name)) as database:
                    (said,) = database.execute("PRAGMA integrity_check").fetchone()
            except sqlite3.Error as error:
                said = type(error).__name__
            if said != "ok":
                raise ConfigurationInvalid(f"{file} is damaged: {name} is. Take another one.")


def _restore_postgresql(settings: Settings, dump: Path) -> None:
    _run_postgresql(
        settings, "pg_restore", "--exit-on-error", "--single-transaction", "--no-owner", str(dump)
    )


def _run_postgresql(settings: Settings, program: str, *arguments: str) -> None:
    found = shutil.which(program)
    if found is None:
        raise ConfigurationInvalid(
            f"{program} is not installed: install PostgreSQL's client programs."
        )
    url = make_url(settings.database_url)
    # A command line is everybody's to read.
    environment = os.environ | ({"PGPASSWORD": str(url.password)} if url.password else {})
    address = URL.create(
        "postgresql", url.username, None, url.host, url.port, url.database, url.query
    ).render_as_string()
    ended = subprocess.run(  # noqa: S603
        [found, *arguments, f"--dbname={address}"],
        env=environment,
        capture_output=True,
        check=False,
    )
    if ended.returncode:
        raise DiskFull(
            f"{program} ended with status {ended.returncode}: see that it works with the database "
            "that database_url names, and is not older than its server."
        )


@contextmanager
def _write_errors(work: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SQLAlchemyError) as error:
        raise DiskFull(
            f"The work folder {work} cannot be written ({type(error).__name__}): "
            "free space there or set another folder with work_folder."
        ) from error
