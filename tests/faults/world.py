"""What a run happens in: a real archive, a real EHR, proxies before both, and a real worker."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Generic, TypeVar

import psutil
import psycopg
import requests

from node.config import Settings, load_settings
from node.job_database import prepare_database
from tests.faults.schedule import Schedule
from tests.faulty_proxy import Proxy, faulty_proxy
from tests.fhir_fixture import FhirServer, running_fhir_server
from tests.forked import preload, start_marrow_node
from tests.postgresql import (
    MISSING_POSTGRESQL,
    PostgresServer,
    postgresql_missing,
    running_server,
)
from tests.servers import Orthanc, free_port, running_orthanc
from tests.smears import Smear, small_smear
from tests.token_server import CLIENT_ID, CLIENT_SECRET, TokenServer, token_server

DEADLINE_S = 1.5
LEASE_S = 1.5
SHOWN_WITHIN_S = 4.0
REST_S = 0.5
NEXT_VERSION = "999.0"
MISSING_COMPILER = "no C compiler here, which turning clocks needs: apt-get install gcc libc6-dev"
CLOCK_SOURCE = Path(__file__).with_name("clock.c")
Server = TypeVar("Server", Orthanc, FhirServer)
UNDISTURBED = Schedule("overwrites a repeat", 0.0, "", "SQLite", 1, False, ())


class Lasting(Generic[Server]):
    """A server that can be killed and started again with the same storage and port."""

    def __init__(self, start: Callable[[], AbstractContextManager[Server]]) -> None:
        self._start = start
        self._running = ExitStack()
        self._down = threading.Lock()
        self.server: Server = self._running.enter_context(start())

    def kill(self) -> None:
        """End it as a power failure does; of two hits the second waits until it runs again."""
        self._down.acquire()
        self.signal(signal.SIGKILL)

    def start_again(self, seconds: float) -> None:
        """After it was killed, and some seconds."""
        try:
            self._running.close()
            time.sleep(seconds)
            self.server = self._running.enter_context(self._start())
        finally:
            self._down.release()

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it is down
            os.kill(self.server.pid, number)

    def close(self) -> None:
        self._running.close()


@dataclass(frozen=True, slots=True)
class Site:
    """A node's settings in one run.

    Attributes
    ----------
    configs
        Settings file of each host.
    settings
        The first host's.
    clock
        How many seconds the clock is off, see ``clock.c``.
    """

    configs: tuple[Path, ...]
    settings: Settings
    clock: Path

    def turn_clock(self, by_s: int) -> None:
        with self.clock.open("r+b") as file:  # in place: processes have it mapped
            file.write(by_s.to_bytes(8, sys.byteorder, signed=True))


@dataclass(frozen=True, slots=True)
class World:
    """Servers, and the slide in them. Made by :func:`world`.

    Attributes
    ----------
    smear
    archive, records
        The servers, reached without a fault: PACS and EHR.
    pacs_proxy, ehr_proxy
        What the node is told that they are.
    empty
        An empty job database.
    postgresql
        None where there is none here.
    tokens
        What proxies ask for in some runs.
    next_version
        Folder that makes the node another version, where it is searched first.
    clock
        Library that turns the clock of a process; None where it cannot be compiled.
    """

    smear: Smear
    archive: Lasting[Orthanc]
    records: Lasting[FhirServer]
    pacs_proxy: Proxy
    ehr_proxy: Proxy
    empty: Path
    postgresql: PostgresServer | None
    tokens: TokenServer
    next_version: Path
    clock: Path | None

    @property
    def orthanc(self) -> Orthanc:
        return self.archive.server

    @property
    def ehr(self) -> FhirServer:
        return self.records.server

    def missing(self, schedule: Schedule) -> str:
        """What a schedule needs and this machine has not; empty for nothing."""
        if schedule.database == "PostgreSQL" and self.postgresql is None:
            return MISSING_POSTGRESQL
        return MISSING_COMPILER if schedule.needs_clock and self.clock is None else ""

    def fresh(self, work: Path, schedule: Schedule = UNDISTURBED) -> Site:
        """Forget all results; a new node with empty work folders."""
        for proxy in (self.pacs_proxy, self.ehr_proxy):
            proxy.faults.clear()
            proxy.habit = None
            proxy.allowed = self.tokens.valid if schedule.tokens else _anybody
        self._clear_archive()
        self.ehr.clear()
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        clock = work / "clock"
        clock.write_bytes(bytes(8))
        if schedule.database == "PostgreSQL":
            url = self._empty_database()
            configs = tuple(
                self._host(work / host, schedule, url) for host in "ab"[: schedule.hosts]
            )
        else:
            shutil.copy(self.empty, work / "jobs.sqlite")
            configs = (self._config(work, schedule),)
        return Site(configs, load_settings(configs[0]), clock)

    def _clear_archive(self) -> None:
        """Delete all but the slide."""
        url = self.orthanc.rest_url
        for series in requests.get(f"{url}/series?expand", timeout=30).json():
            if series["MainDicomTags"]["SeriesInstanceUID"] != self.smear.slide.series_uid:
                requests.delete(f"{url}/series/{series['ID']}", timeout=30).raise_for_status()

    def _host(self, work: Path, schedule: Schedule, url: str) -> Path:
        """A host whose folder is its own, but for files that all hosts share."""
        work.mkdir()
        for shared in ("files", "results", "progress"):
            (work.parent / shared).mkdir(exist_ok=True)
            (work / shared).symlink_to(work.parent / shared)
        return self._config(work, schedule, database_url=url)

    def _config(self, work: Path, schedule: Schedule, **lines: str) -> Path:
        written = self.smear.settings(
            work_folder=str(work), pacs_url=self.pacs_proxy.url, ehr_url=self.ehr_proxy.url, **lines
        )
        deadline = f"timeout_s = {DEADLINE_S}"
        if schedule.tokens:
            secret = work / "secret"
            secret.write_text(CLIENT_SECRET)
            deadline += (
                f'\ntoken_url = "{self.tokens.url}"\nclient_id = "{CLIENT_ID}"'
                f'\nclient_secret = "file:{secret}"'
            )
        text = written.read_text().replace("timeout_s = 5.0", deadline)
        text = text.replace("[pacs]\n", f"[pacs]\nshown_within_s = {SHOWN_WITHIN_S}\n")
        host = f'host = "{work.name}"\nlease_s = {LEASE_S}\n' if lines else ""
        config = work / "node.toml"
        config.write_text(f"{text}[jobs]\nretries = 6\nretry_wait_s = 0.1\n{host}")
        return config

    def _empty_database(self) -> str:
        assert self.postgresql is not None
        server = self.postgresql.url
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS jobs WITH (FORCE)")
            connection.execute("CREATE DATABASE jobs TEMPLATE prepared")
        return server.replace("/postgres", "/jobs")


def _anybody(authorization: str | None) -> bool:
    return True


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """Start the servers, and bring the slide into the archive."""
    preload("tests.faults.warm")
    smear = small_smear(folder)
    with ExitStack() as running:
        port = free_port()
        archive = Lasting(lambda: running_orthanc(folder / "orthanc", further={"HttpPort": port}))
        running.callback(archive.close)
        archive.server.add(*smear.slide.paths)
        ehr_port = free_port()
        ehr = Lasting(lambda: running_fhir_server(ehr_port, folder / "ehr.ndjson"))
        running.callback(ehr.close)
        postgresql = None if postgresql_missing() else running.enter_context(running_server())
        if postgresql is not None:
            _prepare(postgresql)
        yield World(
            smear,
            archive,
            ehr,
            running.enter_context(faulty_proxy(archive.server.dicomweb_url, keep_host=True)),
            running.enter_context(faulty_proxy(ehr.server.url, keep_host=True)),
            _empty_database(smear),
            postgresql,
            running.enter_context(token_server()),
            _next_version(folder / "next"),
            _clock(folder / "clock.so"),
        )


def _empty_database(smear: Smear) -> Path:
    settings = load_settings(smear.settings(work_folder=str(smear.folder / "empty")))
    prepare_database(settings)
    made = settings.work_folder / "jobs.sqlite"
    with closing(sqlite3.connect(made)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return made


def _prepare(server: PostgresServer) -> None:
    """Make the tables once; each run's database is a copy."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE prepared")
    url = server.url.replace("/postgres", "/prepared")
    prepare_database(replace(Settings(), database_url=url))


def _next_version(folder: Path) -> Path:
    """What an installation leaves, of another version of the same code."""
    told = folder / f"marrow_node-{NEXT_VERSION}.dist-info"
    told.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: marrow-node\nVersion: {NEXT_VERSION}\n"
    (told / "METADATA").write_text(metadata)
    return folder


def _clock(library: Path) -> Path | None:
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(CLOCK_SOURCE)]
    subprocess.run(command, check=True, timeout=60)
    return library


@dataclass(slots=True)
class Worker:
    """``marrow-node work`` of one host, started again when it has ended, as ``serve`` does.

    Attributes
    ----------
    config
    environment
        Beside that of this process; with it a new interpreter starts, which takes longer.
    starts
    """

    config: Path
    environment: dict[str, str] = field(default_factory=dict)
    starts: int = 0
    _process: BaseProcess | subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _rest_until: float = 0.0

    def look(self) -> None:
        """Start it unless it lives or has to stay away."""
        if self._pid() is not None or time.monotonic() < self._rest_until:
            return
        # One that cannot start, as while its database is down, is not tried all the time.
        self._rest_until = time.monotonic() + REST_S
        self.starts += 1
        said = self.config.parent / f"worker-{self.starts}.log"
        command = ("--verbose", "--config", str(self.config), "work")
        if not self.environment:
            self._process = start_marrow_node(*command, said=said)
            return
        with said.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "node", *command],
                env={**os.environ, **self.environment},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def kill(self, away_s: float = 0.0) -> None:
        self._rest_until = time.monotonic() + away_s
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        pid = self._pid()
        if pid is not None:
            os.kill(pid, number)

    def limit_files(self, largest_bytes: int) -> None:
        """Let no file of the worker and its slides' processes grow, as on a full disk."""
        pid = self._pid()
        if pid is None:
            return
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            children = psutil.Process(pid).children(recursive=True)
            for each in (pid, *(child.pid for child in children)):
                _, hard = resource.prlimit(each, resource.RLIMIT_FSIZE)
                resource.prlimit(each, resource.RLIMIT_FSIZE, (largest_bytes, hard))

    def stop(self) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        if isinstance(self._process, subprocess.Popen):
            self._process.wait(10)
        elif self._process is not None:
            self._process.join(10)

    def _pid(self) -> int | None:
        """Of the process, while it lives."""
        process = self._process
        if isinstance(process, subprocess.Popen):
            return process.pid if process.poll() is None else None
        return process.pid if process is not None and process.is_alive() else None

    @property
    def said(self) -> str:
        logs = sorted(self.config.parent.glob("worker-*.log"))
        return "\n".join(f"{log}:\n{log.read_text()}" for log in logs)
