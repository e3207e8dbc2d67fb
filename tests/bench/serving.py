"""How the service answers while much is submitted: an open loop, so that waiting counts.

Clients ask at fixed times whether or not the last answer has come; a latency counts from the time
at which the question was due.
"""

from __future__ import annotations

import http.client
import json
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.service import key_of, running_service
from tests.smears import small_smear

ASKING, EVERY_S = 200, 2.0
SUBMITTING, SUBMISSIONS_PER_S, SECONDS = 20, 100, 10
TIMEOUT_S = 30


def serve_under_load() -> dict[str, Any]:
    """Measure the list of jobs under submissions; then kill the service, and count the jobs."""
    with tempfile.TemporaryDirectory() as name:
        smear = small_smear(Path(name))
        # Slides that never come: the jobs stay, and looking for them is work beside.
        tables = {"jobs": {"quiet_s": 3600.0, "look_s": 2.0}, "serve": {"threads": 64}}
        with running_service(smear, tables) as service:
            port = int(service.url.rpartition(":")[2])
            listed, submitted = _Answers(), _Answers()
            begin = time.monotonic() + 1
            threads = [
                threading.Thread(
                    target=_ask,
                    args=(port, "read", lambda _: ("GET", "/jobs", None), listed),
                    kwargs={
                        "first_s": begin + EVERY_S * n / ASKING,
                        "every_s": EVERY_S,
                        "times": int(SECONDS / EVERY_S),
                    },
                )
                for n in range(ASKING)
            ] + [
                threading.Thread(
                    target=_ask,
                    args=(port, "submit", _submission(n), submitted),
                    kwargs={
                        "first_s": begin + n / SUBMISSIONS_PER_S,
                        "every_s": SUBMITTING / SUBMISSIONS_PER_S,
                        "times": SECONDS * SUBMISSIONS_PER_S // SUBMITTING,
                    },
                )
                for n in range(SUBMITTING)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert service.process is not None
            tree = [*psutil.Process(service.process.pid).children(), service.process]
            for process in tree:
                process.send_signal(signal.SIGKILL)
            service.process.wait(10)
            service.start()
            kept = _all_jobs(service.get)
    lost = submitted.names - kept
    return {
        "GET /jobs": listed.as_json(),
        "POST /jobs": submitted.as_json(),
        "jobs_kept_after_sigkill": len(kept & submitted.names),
        "jobs_lost": len(lost),
    }


class _Answers:
    """Latencies and statuses, from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.latencies_s: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.names: set[str] = set()

    def add(self, latency_s: float, status: str, body: bytes) -> None:
        with self._lock:
            self.latencies_s.append(latency_s)
            self.statuses[status] += 1
            if status == "202":
                self.names.add(json.loads(body)["job"])

    def as_json(self) -> dict[str, Any]:
        cuts = statistics.quantiles(self.latencies_s, n=100)
        return {
            "requests": len(self.latencies_s),
            "statuses": dict(self.statuses),
            "p50_ms": round(1e3 * cuts[49], 1),
            "p99_ms": round(1e3 * cuts[98], 1),
            "longest_ms": round(1e3 * max(self.latencies_s), 1),
        }


def _submission(client: int) -> Callable[[int], tuple[str, str, str]]:
    def request(number: int) -> tuple[str, str, str]:
        uids = {"study_uid": "1.2.3", "series_uid": f"1.2.{client + 1}.{number + 1}"}
        return "POST", "/jobs", json.dumps(uids)

    return request


def _ask(
    port: int,
    role: str,
    request: Callable[[int], tuple[str, str, str | None]],
    answers: _Answers,
    first_s: float,
    every_s: float,
    times: int,
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    headers = {"Authorization": f"Bearer {key_of(role)}", "Content-Type": "application/json"}
    for number in range(times):
        due_s = first_s + number * every_s
        time.sleep(max(0.0, due_s - time.monotonic()))
        method, path, body = request(number)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content, status = answer.read(), str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            content, status = b"", type(error).__name__
        answers.add(time.monotonic() - due_s, status, content)


def _all_jobs(get: Callable[[str], Any]) -> set[str]:
    found: set[str] = set()
    while page := get(f"/jobs?limit=500&offset={len(found)}")["jobs"]:
        found |= {job["job"] for job in page}
    return found
