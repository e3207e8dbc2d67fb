"""What a run happens in: a real archive, a real EHR, proxies before both, and a real worker."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import requests

from node.config import load_settings
from node.job_queue import prepare_database
from tests.faulty_proxy import Proxy, faulty_proxy
from tests.fhir_fixture import FhirServer, running_fhir_server
from tests.forked import start_marrow_node
from tests.servers import Orthanc, running_orthanc
from tests.smears import Smear, small_smear

DEADLINE_S = 1.5


class Archive:
    """Orthanc, which can be killed and started again with the same storage and port."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._running = folder, ExitStack()
        self._one_at_a_time = threading.Lock()
        self.server = self._running.enter_context(running_orthanc(folder))

    def start_again(self, seconds: float) -> None:
        """After it was killed, and some seconds."""
        with self._one_at_a_time:
            self._start_again(seconds)

    def _start_again(self, seconds: float) -> None:
        self._running.close()
        time.sleep(seconds)
        port = int(self.server.rest_url.rpartition(":")[2])
        again = running_orthanc(self._folder, further={"HttpPort": port})
        self.server = self._running.enter_context(again)

    def close(self) -> None:
        self._running.close()

    def clear_results(self, slide_series_uid: str) -> None:
        """Delete all but the slide."""
        url = self.server.rest_url
        for series in requests.get(f"{url}/series?expand", timeout=30).json():
            if series["MainDicomTags"]["SeriesInstanceUID"] != slide_series_uid:
                requests.delete(f"{url}/series/{series['ID']}", timeout=30).raise_for_status()


@dataclass(frozen=True, slots=True)
class World:
    """Servers, and the slide in them. Made by :func:`world`.

    Attributes
    ----------
    smear
    archive, ehr
        The servers, reached without a fault.
    pacs_proxy, ehr_proxy
        What the node is told that they are.
    empty
        An empty job database.
    """

    smear: Smear
    archive: Archive
    ehr: FhirServer
    pacs_proxy: Proxy
    ehr_proxy: Proxy
    empty: Path

    @property
    def orthanc(self) -> Orthanc:
        return self.archive.server

    def fresh(self, work: Path) -> Path:
        """Forget all results; the settings file of a new node with an empty work folder."""
        for proxy in (self.pacs_proxy, self.ehr_proxy):
            proxy.faults.clear()
        self.archive.clear_results(self.smear.slide.series_uid)
        self.ehr.clear()
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        shutil.copy(self.empty, work / "jobs.sqlite")
        config = self.smear.settings(
            work_folder=str(work), pacs_url=self.pacs_proxy.url, ehr_url=self.ehr_proxy.url
        )
        text = config.read_text().replace("timeout_s = 5.0", f"timeout_s = {DEADLINE_S}")
        config.write_text(f"{text}[jobs]\nretries = 6\nretry_wait_s = 0.1\n")
        return config


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """Start the servers, and bring the slide into the archive."""
    smear = small_smear(folder)
    with ExitStack() as running:
        archive = Archive(folder / "orthanc")
        running.callback(archive.close)
        archive.server.add(*smear.slide.paths)
        ehr = running.enter_context(running_fhir_server())
        yield World(
            smear,
            archive,
            ehr,
            running.enter_context(faulty_proxy(archive.server.dicomweb_url, keep_host=True)),
            running.enter_context(faulty_proxy(ehr.url, keep_host=True)),
            _empty_database(smear),
        )


def _empty_database(smear: Smear) -> Path:
    settings = load_settings(smear.settings(work_folder=str(smear.folder / "empty")))
    prepare_database(settings)
    made = settings.work_folder / "jobs.sqlite"
    with closing(sqlite3.connect(made)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return made


@dataclass(slots=True)
class Worker:
    """``marrow-node work``, which is started again when it has ended, as ``serve`` does.

    Attributes
    ----------
    config
    folder
        Where what it says goes.
    starts
    """

    config: Path
    folder: Path
    starts: int = 0
    _process: BaseProcess | None = field(default=None, repr=False)
    _rest_until: float = 0.0

    def look(self) -> None:
        """Start it unless it lives or has to stay away."""
        alive = self._process is not None and self._process.is_alive()
        if alive or time.monotonic() < self._rest_until:
            return
        self.starts += 1
        said = self.folder / f"worker-{self.starts}.log"
        self._process = start_marrow_node(
            "--verbose", "--config", str(self.config), "work", said=said
        )

    def kill(self, away_s: float = 0.0) -> None:
        self._rest_until = time.monotonic() + away_s
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.pid and self._process.is_alive():
            os.kill(self._process.pid, number)

    def limit_files(self, largest_bytes: int) -> None:
        """Let no file of the worker and its slides' processes grow, as on a full disk."""
        if self._process is None or not self._process.pid:
            return
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            children = psutil.Process(self._process.pid).children(recursive=True)
            for pid in (self._process.pid, *(child.pid for child in children)):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest_bytes, hard))

    def stop(self) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.join(10)

    @property
    def said(self) -> str:
        logs = sorted(self.folder.glob("worker-*.log"))
        return "\n".join(f"{log.name}:\n{log.read_text()}" for log in logs)
