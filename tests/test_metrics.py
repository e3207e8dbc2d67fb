"""What Prometheus reads, beside what tests/test_service.py sees of the whole service."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from flask import Flask

from models.errors import MarrowNodeError
from node import metrics
from node.audit import AuditTrail
from node.config import Settings
from node.gpu_use import GpuUse, gpu_use
from node.job_database import prepare_database
from node.job_queue import JobQueue, open_job_queue
from node.metrics import exposition
from node.web.health import health_blueprint
from tests.test_job_table import arguments, changed


def test_gpus_are_told_one_by_one() -> None:
    text = exposition({}, [GpuUse(0, 0.25, 1024), GpuUse(1, 1.0, 2048)]).decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert float(values['marrow_node_gpu_busy_ratio{gpu="0"}']) == 0.25
    assert float(values['marrow_node_gpu_memory_used_bytes{gpu="1"}']) == 2048


def test_a_host_without_a_gpu_tells_of_none() -> None:
    """Where there are some, each is within its bounds."""
    for gpu in gpu_use():
        assert 0 <= gpu.busy_ratio <= 1
        assert gpu.memory_used_bytes > 0


def test_a_counter_that_cannot_be_written_does_not_fail_what_it_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics, "_counters", full)
    with metrics.stage_timed("open"):
        counted = True
    metrics.count_failure(MarrowNodeError("A sentence: with a remedy."))
    metrics.count_result({"model": {}})
    metrics.count_request("jobs", "GET", 200, 0.1)
    assert counted


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, told where its counters lie."""
    return subprocess.run(
        [sys.executable, "-c", script, str(folder / "metrics")],
        capture_output=True,
        text=True,
        check=False,
    )


COUNTS_WHEN_THE_DISK_HAS_ROOM_AGAIN = """
import resource, signal, sys
from pathlib import Path
from models.errors import MarrowNodeError
from node import metrics

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
metrics.share_metrics(Path(sys.argv[1]))
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
# Files of the first counters can be made, those of later ones cannot.
for room in (0, 4096):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    with metrics.stage_timed("open"):
        pass
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
with metrics.stage_timed("open"):
    pass
metrics.count_failure(MarrowNodeError("A sentence: with a remedy."))
sys.stdout.buffer.write(metrics.exposition({}))
"""


def test_counters_that_could_not_be_made_on_a_full_disk_are_made_later(tmp_path: Path) -> None:
    told = run(COUNTS_WHEN_THE_DISK_HAS_ROOM_AGAIN, tmp_path)
    assert told.returncode == 0, told.stderr
    assert 'marrow_node_stage_seconds_count{stage="open"} 1.0' in told.stdout
    assert "marrow_node_failures_total{" in told.stdout
    for what in ("job", "search", "call"):
        assert f'marrow_node_given_up_total{{what="{what}"}} 0.0' in told.stdout, "from zero on"


COUNTS_UNTIL_TOLD = """
import sys
from pathlib import Path
from node import metrics

metrics.join_metrics(Path(sys.argv[1]))
with metrics.stage_timed("open"):
    pass
print("counted", flush=True)
sys.stdin.read()
"""


@contextmanager
def counting(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has counted once, killed at the end as one whose container is removed."""
    with subprocess.Popen(
        [sys.executable, "-c", COUNTS_UNTIL_TOLD, str(folder / "metrics")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "counted\n"
        yield process
        process.kill()


TELLS = """
import sys
from pathlib import Path
from node import metrics

metrics.join_metrics(Path(sys.argv[1]))
sys.stdout.buffer.write(metrics.exposition({}))
"""


def test_processes_that_follow_one_another_count_on_in_the_same_files(tmp_path: Path) -> None:
    for _ in range(3):
        with counting(tmp_path), counting(tmp_path):
            files = {path.name for path in (tmp_path / "metrics").glob("*.db")}
            assert files == {f"{kind}_{n}.db" for kind in ("counter", "histogram") for n in (0, 1)}
    told = run(TELLS, tmp_path)
    assert 'marrow_node_stage_seconds_count{stage="open"} 6.0' in told.stdout, told.stderr


COUNTS_IN_A_FORK = """
import os, sys
from pathlib import Path
from node import metrics

metrics.join_metrics(Path(sys.argv[1]))
with metrics.stage_timed("open"):
    pass
child = os.fork()
for _ in range(100):
    with metrics.stage_timed("open"):
        pass
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
sys.stdout.buffer.write(metrics.exposition({}))
"""


def test_a_forked_process_counts_for_itself(tmp_path: Path) -> None:
    told = run(COUNTS_IN_A_FORK, tmp_path)
    assert 'marrow_node_stage_seconds_count{stage="open"} 201.0' in told.stdout, told.stderr
    assert len(list((tmp_path / "metrics").glob("histogram_*.db"))) == 2


COUNTS_INVENTED_METHODS = """
import sys
from pathlib import Path
from node import metrics

metrics.share_metrics(Path(sys.argv[1]))
for number in range(5):
    metrics.count_request("jobs", f"XAA{number}", 401, 0.1)
sys.stdout.buffer.write(metrics.exposition({}))
"""


def test_a_method_that_a_caller_has_made_up_is_no_time_series_of_its_own(tmp_path: Path) -> None:
    told = run(COUNTS_INVENTED_METHODS, tmp_path)
    assert told.returncode == 0, told.stderr
    assert "XAA" not in told.stdout
    (line,) = (each for each in told.stdout.splitlines() if 'method="other"' in each)
    assert line.endswith(" 5.0")


def test_a_job_in_which_workers_died_is_told(tmp_path: Path) -> None:
    """No code of the node's runs when DBOS puts it aside."""
    settings = replace(Settings(), work_folder=tmp_path)
    prepare_database(settings)
    with open_job_queue(settings) as queue, health_of(settings, queue) as told:
        assert told("marrow_node_jobs_put_aside") == 0
        queue.enqueue(f"{1:016x}-1", arguments(1))
        assert told("marrow_node_jobs_put_aside") == 0
        changed(queue, f"{1:016x}-1", status="MAX_RECOVERY_ATTEMPTS_EXCEEDED")
        assert told("marrow_node_jobs_put_aside") == 1
        assert queue.get(f"{1:016x}").status == "failed"


def test_before_the_first_worker_there_is_no_job(tmp_path: Path) -> None:
    settings = replace(Settings(), work_folder=tmp_path)
    with open_job_queue(settings) as queue, health_of(settings, queue) as told:
        assert told("marrow_node_jobs_put_aside") == 0
    assert not list(tmp_path.glob("jobs.sqlite"))


@contextmanager
def health_of(settings: Settings, queue: JobQueue) -> Iterator[Callable[[str], float]]:
    """Asks for the value of a metric without labels."""
    app, trail = Flask("health"), AuditTrail(settings.audit, settings.work_folder / "audit")
    app.register_blueprint(health_blueprint(settings, queue, trail))
    client = app.test_client()

    def told(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        (line,) = (each for each in lines if each.startswith(f"{name} "))
        return float(line.split()[1])

    yield told
