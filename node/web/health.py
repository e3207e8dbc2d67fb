"""Health checks and metrics."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

from flask import Blueprint, Response, jsonify

from models.errors import MarrowNodeError
from models.package import find_package
from node.audit import AuditTrail
from node.config import Settings
from node.gpu_use import gpu_use
from node.job_queue import JobQueue
from node.lease import Roll
from node.metrics import exposition
from node.work_lock import live_workers, lock_folder

FREE_BYTES = 64 << 20
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def health_blueprint(settings: Settings, queue: JobQueue, trail: AuditTrail) -> Blueprint:
    """Routes ``/healthz``, ``/readyz`` and ``/metrics``."""
    health = Blueprint("health", __name__)
    workers = _workers(settings)

    @health.get("/healthz")
    def alive() -> Response:
        return jsonify({"status": "alive"})

    @health.get("/readyz")
    def ready() -> tuple[Response, int]:
        wrong = [name for name, holds in _conditions(settings, queue, workers) if not holds]
        status = "not ready" if wrong else "ready"
        # A node that is paused takes jobs, and is no fault.
        paused = "job database" not in wrong and queue.paused
        return jsonify({"status": status, "wrong": wrong, "paused": paused}), 503 if wrong else 200

    @health.get("/metrics")
    def metrics() -> Response:
        text = exposition(_gauges(queue, trail, workers), gpu_use())
        return Response(text, content_type=METRICS_TYPE)

    return health


def _conditions(
    settings: Settings, queue: JobQueue, workers: Callable[[], int]
) -> list[tuple[str, bool]]:
    """What has to hold for a job to be taken and worked on."""
    return [
        ("job database", _answers(lambda: queue.list(limit=1) is not None)),
        ("free space in the work folder", _has_space(settings)),
        ("model package", _is_installed(settings)),
        ("worker", _answers(workers)),
    ]


def _answers(ask: Callable[[], object]) -> bool:
    """Whether there is an answer, and one that is not empty."""
    try:
        return bool(ask())
    except MarrowNodeError:
        return False


def _has_space(settings: Settings) -> bool:
    try:
        return shutil.disk_usage(settings.work_folder).free >= FREE_BYTES
    except OSError:
        return False


def _is_installed(settings: Settings) -> bool:
    try:
        find_package(settings.model.name, settings.model.folders)
    except MarrowNodeError:
        return False
    return True


def _workers(settings: Settings) -> Callable[[], int]:
    """Counts the workers that live: of all hosts where they share a database, else of this one."""
    if settings.database_url:
        return Roll(settings).living
    return lambda: len(live_workers(lock_folder(settings)))


def _gauges(
    queue: JobQueue, trail: AuditTrail, workers: Callable[[], int]
) -> dict[str, tuple[str, float]]:
    counts = queue.counts()
    oldest_ms = queue.oldest_active_ms()
    age_s = max(0.0, time.time() - oldest_ms / 1000) if oldest_ms is not None else 0.0
    return {
        "marrow_node_jobs_waiting": ("Slides that are not whole yet.", counts["waiting"]),
        "marrow_node_jobs_queued": ("Jobs that no worker has begun.", counts["queued"]),
        "marrow_node_jobs_running": ("Jobs that a worker is at.", counts["running"]),
        "marrow_node_jobs_put_aside": (
            "Tries of jobs that are run no more, as every worker that took them died.",
            queue.put_aside(),
        ),
        "marrow_node_queue_age_seconds": ("Age of the oldest job that has not ended.", age_s),
        "marrow_node_audit_waiting": (
            "Audit records that a repository has not taken yet.",
            trail.waiting(),
        ),
        "marrow_node_audit_refused": (
            "Audit records that a repository refused, and that were put aside.",
            trail.refused(),
        ),
        "marrow_node_paused": ("1 while no further slide is begun.", float(queue.paused)),
        "marrow_node_workers": ("Worker processes that live.", workers()),
    }
