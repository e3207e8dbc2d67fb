"""What can be counted about the node, for Prometheus.

Several processes count: the web process and its workers share a folder of counter files
(:func:`share_metrics` or :func:`join_metrics` before the first of them is made), on one host or on
several. No label holds anything of a patient or a slide.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Literal, get_args

from models.errors import MarrowNodeError
from node.gpu_use import GpuUse

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
STAGE_BUCKETS_S = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600)
GivenUp = Literal["job", "search", "call"]
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def share_metrics(folder: Path) -> None:
    """Let this process and those it starts count together, from zero."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.db"):
        left.unlink()
    os.environ[SHARED_FOLDER] = str(folder.absolute())


def join_metrics(folder: Path) -> None:
    """Let this process count together with those that share `folder` already, if none was named."""
    if SHARED_FOLDER not in os.environ:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[SHARED_FOLDER] = str(folder.absolute())


def _process() -> int:
    """Number of this process among those that count, after which its counter files are named."""
    return _numbered(os.getpid())[0]


@cache
def _numbered(pid: int) -> tuple[int, IO[str]]:
    """The first number that no living process has, and the lock that keeps it.

    Who takes the number of one that is gone counts on in its files: there are as many as ever
    counted at a time, however often processes and containers are replaced. After a fork the child
    takes a number of its own, for it has another `pid`.
    """
    folder = Path(os.environ[SHARED_FOLDER])
    for number in itertools.count():
        lock = (folder / f"{number}.lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            return number, lock
    raise AssertionError


@cache
def _counters() -> Any:
    """Made at first use: the library looks for the shared folder when it is imported."""
    from prometheus_client import Counter, Histogram, values  # noqa: PLC0415

    if SHARED_FOLDER in os.environ:
        values.ValueClass = values.MultiProcessValue(_process)  # type: ignore[no-untyped-call]
    # In no registry, for what is told lies in the files. A registry would refuse those made anew
    # after others could not be made, as on a full disk.
    counter, histogram = partial(Counter, registry=None), partial(Histogram, registry=None)
    given_up = counter(
        "marrow_node_given_up_total",
        "Jobs, searches for slides, and calls to whoever waits for an end, that failed for good.",
        ["what"],
    )
    for what in get_args(GivenUp):
        given_up.labels(what)  # from zero on, else Prometheus would not see the first
    return SimpleNamespace(
        given_up=given_up,
        slides=counter(
            "marrow_node_slides_total",
            "Analyses that were completed, by model package.",
            ["model", "model_version", "model_digest"],
        ),
        stage_s=histogram(
            "marrow_node_stage_seconds",
            "Seconds of each stage of the way of a slide.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
        ),
        cells=counter("marrow_node_cells_total", "Cells found."),
        bytes_read=counter("marrow_node_bytes_read_total", "Bytes of frames read from the PACS."),
        delivered=counter(
            "marrow_node_deliveries_total",
            "Objects and resources by what became of them at their target.",
            ["target", "status"],
        ),
        failures=counter(
            "marrow_node_failures_total",
            "Tries of jobs that failed, by class of error.",
            ["error", "transient"],
        ),
        requests=counter(
            "marrow_node_http_requests_total",
            "Answers of the web service.",
            ["endpoint", "method", "status"],
        ),
        request_s=histogram(
            "marrow_node_http_request_seconds", "Seconds to the answer.", ["endpoint"]
        ),
    )


@contextmanager
def stage_timed(name: str) -> Iterator[None]:
    """Count the seconds of a stage, however it ends."""
    begin = time.monotonic()
    try:
        yield
    finally:
        # Counters are files: on a full disk one is missing, and what it counts does not fail.
        with suppress(OSError):
            _counters().stage_s.labels(name).observe(time.monotonic() - begin)


def count_result(result: Mapping[str, Any]) -> None:
    """Count a completed job."""
    with suppress(OSError):
        counters, model = _counters(), result["model"]
        counters.slides.labels(model["name"], model["version"], model["digest"]).inc()
        counters.cells.inc(result["cells"])
        counters.bytes_read.inc(result["bytes_read"])
        for receipt in result["receipts"]:
            counters.delivered.labels(receipt["target"], receipt["status"]).inc()


def count_failure(error: Exception) -> None:
    """Count a try that failed."""
    transient = isinstance(error, MarrowNodeError) and error.transient
    with suppress(OSError):
        _counters().failures.labels(type(error).__name__, str(transient).lower()).inc()


def count_given_up(what: GivenUp) -> None:
    """Count a job, a search or a call that failed for good, however often it was tried."""
    with suppress(OSError):
        _counters().given_up.labels(what).inc()


def count_request(endpoint: str, method: str, status: int, seconds: float) -> None:
    """Count an answer of the web service; callers may invent methods, of which none is counted."""
    known = method if method in _METHODS else "other"
    with suppress(OSError):
        _counters().requests.labels(endpoint, known, str(status)).inc()
        _counters().request_s.labels(endpoint).observe(seconds)


def exposition(gauges: Mapping[str, tuple[str, float]], gpus: Sequence[GpuUse] = ()) -> bytes:
    """All metrics in the text format of Prometheus.

    Parameters
    ----------
    gauges
        Name → (help, value) of what is looked up only now, such as the queue's length.
    gpus
    """
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

    class LookedUp:
        def collect(self) -> Iterator[GaugeMetricFamily]:
            for name, (meaning, number) in gauges.items():
                yield GaugeMetricFamily(name, meaning, number)
            busy = GaugeMetricFamily(
                "marrow_node_gpu_busy_ratio", "Share of time that a GPU ran.", labels=["gpu"]
            )
            memory = GaugeMetricFamily(
                "marrow_node_gpu_memory_used_bytes", "Memory in use on a GPU.", labels=["gpu"]
            )
            for gpu in gpus:
                busy.add_metric([str(gpu.index)], gpu.busy_ratio)
                memory.add_metric([str(gpu.index)], gpu.memory_used_bytes)
            yield from (busy, memory)

    registry = CollectorRegistry()
    registry.register(LookedUp())
    if SHARED_FOLDER in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
