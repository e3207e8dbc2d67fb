"""Two simulated hosts: workers with storage of their own, and servers that they share."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
import requests
from pydicom import dcmread

from node.config import Settings, load_settings
from node.job_database import prepare_database
from node.job_queue import JobQueue
from node.pipeline import SlideReference
from node.workplace import Workplace
from tests.copied_slides import copied_slides
from tests.fhir_fixture import FhirServer, running_fhir_server
from tests.postgresql import running_postgresql
from tests.servers import Orthanc, running_orthanc
from tests.smears import Smear, small_smear

LEASE_S = 10.0
# Of these an archive has one each for every slide that was analysed.
RESULTS = ("ANN", "SEG", "SR")


@dataclass(frozen=True, slots=True)
class Site:
    """Archive, EHR and database, with slides. Made by :func:`site`."""

    smear: Smear
    slides: tuple[SlideReference, ...]
    archive: Orthanc
    ehr: FhirServer
    database_url: str
    folder: Path

    def fresh(self, run: str, hosts: Sequence[str]) -> list[Host]:
        """Forget all results; hosts with empty folders that share a new, empty job database."""
        self._forget()
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {run}")
        url = self.database_url.replace("/postgres", f"/{run}")
        made = [
            Host(name, core, self._config(self.folder / run / name, name, url))
            for core, name in enumerate(hosts)
        ]
        prepare_database(made[0].settings)
        return made

    def submit(self, queue: JobQueue, settings: Settings, slides: int) -> list[str]:
        place = Workplace.open(settings, lambda progress: None)
        return [queue.submit(each, place, "routine").job for each in self.slides[:slides]]

    def delivered(self) -> dict[str, int]:
        return delivered(self.archive, self.ehr)

    def _config(self, work: Path, host: str, database_url: str) -> Path:
        work.mkdir(parents=True)
        text = self.smear.settings(
            work_folder=str(work),
            database_url=database_url,
            pacs_url=self.archive.dicomweb_url,
            ehr_url=self.ehr.url,
        ).read_text()
        # Deadlines as a site has them: here more processes than cores ask at the same time.
        text = text.replace("timeout_s = 5.0", "timeout_s = 60.0")
        config = work / "node.toml"
        config.write_text(
            f'{text}[jobs]\nhost = "{host}"\nlease_s = {LEASE_S}\nretry_wait_s = 0.5\n'
        )
        return config

    def _forget(self) -> None:
        url = self.archive.rest_url
        for each in requests.get(f"{url}/series?expand", timeout=60).json():
            if each["MainDicomTags"]["Modality"] in RESULTS:
                requests.delete(f"{url}/series/{each['ID']}", timeout=60).raise_for_status()
        self.ehr.clear()


@dataclass(slots=True)
class Host:
    """A host: its settings, and its workers while they run.

    Its workers share one core that no other host has, as hosts have processors of their own; the
    servers run where there is room.
    """

    name: str
    core: int
    config: Path
    _workers: list[psutil.Popen] = field(default_factory=list, repr=False)

    @property
    def settings(self) -> Settings:
        return load_settings(self.config)

    @property
    def log(self) -> Path:
        return self.config.with_name("workers.log")

    def start(self, workers: int, sleep_s: float) -> None:
        on_core = ["taskset", "--cpu-list", str(self.core), sys.executable]
        command = [*on_core, "-m", "tests.hosts.sleeping", str(sleep_s), "--verbose"]
        for _ in range(workers):
            with self.log.open("ab") as said:
                self._workers.append(
                    psutil.Popen(
                        [*command, "--config", str(self.config), "work"],
                        stdout=subprocess.DEVNULL,
                        stderr=said,
                    )
                )

    def cpu_s(self) -> float:
        """Processor seconds of its workers and of what they have started."""
        return sum(map(_tree_cpu_s, self._workers))

    def kill(self) -> None:
        """End it as a power failure does."""
        for worker in self._workers:
            for process in (*worker.children(recursive=True), worker):
                process.send_signal(signal.SIGKILL)
        for worker in self._workers:
            worker.wait(30)
        self._workers.clear()

    def stop(self) -> None:
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.wait(60)
        self._workers.clear()

    @property
    def begun(self) -> int:
        """How often a slide was begun to be read."""
        return self.log.read_text().count("is read in optical path") if self.log.exists() else 0


def _tree_cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    own = times.user + times.system + times.children_user + times.children_system
    return own + sum(_tree_cpu_s(child) for child in process.children())


@contextmanager
def site(folder: Path, slides: int) -> Iterator[Site]:
    """Start the servers, and bring copies of a small slide into the archive."""
    smear = small_smear(folder)
    copies = copied_slides(smear.slide.paths, folder / "copies", ["20261126"] * slides)
    with ExitStack() as running:
        archive = running.enter_context(running_orthanc(folder / "orthanc"))
        for paths in copies:
            archive.add(*paths)
        yield Site(
            smear,
            tuple(reference(paths[0]) for paths in copies),
            archive,
            running.enter_context(running_fhir_server()),
            running.enter_context(running_postgresql()),
            folder,
        )


def delivered(archive: Orthanc, ehr: FhirServer) -> dict[str, int]:
    """How many objects of each modality an archive has, and reports an EHR."""
    series = requests.get(f"{archive.rest_url}/series?expand", timeout=60).json()
    counts = dict.fromkeys(RESULTS, 0)
    for each in series:
        modality = each["MainDicomTags"]["Modality"]
        if modality in counts:
            counts[modality] += len(each["Instances"])
    found = requests.get(f"{ehr.url}/DiagnosticReport?_summary=count", timeout=60).json()
    return counts | {"DiagnosticReport": int(found["total"])}


def reference(path: Path) -> SlideReference:
    """What a file's slide is called."""
    header = dcmread(path, stop_before_pixels=True)
    return SlideReference(str(header.StudyInstanceUID), str(header.SeriesInstanceUID), "hosts")
