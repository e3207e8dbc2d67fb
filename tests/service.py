"""The service as a site runs it: ``marrow-node serve`` on a free loopback port."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from node.web.access import digest_of
from node.web.jobs import LISTED_S
from node.web.settings import ROLES
from tests.servers import free_port
from tests.smears import Smear

READY_S = 180.0
ENDED = ("completed", "failed", "cancelled")


def key_of(role: str) -> str:
    """The key of the holder of one role; "admin" has all."""
    return f"mnk_the-{role}-key-of-this-test"


@dataclass
class Service:
    """A running service.

    Attributes
    ----------
    url
    smear
    config
        Its settings file.
    log
        Its standard error.
    process
        Of ``marrow-node serve``.
    """

    url: str
    smear: Smear
    config: Path
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "node", "--verbose", "--config", str(self.config), "serve"],
                stdout=log,
                stderr=log,
            )
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            try:
                if requests.get(f"{self.url}/readyz", timeout=5).ok:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"the service is not ready: {self.log.read_text()}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(120)
            self.process = None

    def ask(
        self, method: str, path: str, role: str | None = "admin", **more: Any
    ) -> requests.Response:
        """Make a request with the key of a role, or with none."""
        headers = {"Authorization": f"Bearer {key_of(role)}"} if role else {}
        headers |= more.pop("headers", {})
        return requests.request(
            method, f"{self.url}{path}", headers=headers, timeout=30, allow_redirects=False, **more
        )

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.ok, answer.text
        return answer.json()

    def listed(self, query: str = "") -> list[dict[str, Any]]:
        """The list of jobs, once it can be no older than now."""
        time.sleep(2 * LISTED_S)
        jobs: list[dict[str, Any]] = self.get(f"/jobs{query}")["jobs"]
        return jobs

    def submit(self, **body: Any) -> dict[str, Any]:
        answer = self.ask("POST", "/jobs", "submit", json=body)
        assert answer.status_code == 202, answer.text
        submitted: dict[str, Any] = answer.json()
        return submitted

    def submit_slide(self, **more: Any) -> str:
        slide = self.smear.slide
        submitted = self.submit(study_uid=slide.study_uid, series_uid=slide.series_uid, **more)
        return str(submitted["job"])

    def ended(self, job: str, seconds: float = 120) -> dict[str, Any]:
        """Wait for a job's end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            seen: dict[str, Any] = self.get(f"/jobs/{job}")
            if seen["status"] in ENDED:
                return seen
            time.sleep(0.2)
        raise AssertionError(f"job {job} did not end: {seen}; {self.log.read_text()}")


def awaited(look: Callable[[], Any], seconds: float = 90) -> Any:
    """What `look` says, once it says anything."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def service_settings(
    smear: Smear,
    port: int,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
    **lines: Any,
) -> Path:
    """Settings of a service: a key for each role, short waits, and what a test adds."""
    path = smear.settings(**{"pacs_url": smear.pacs_url, "ehr_url": smear.ehr_url} | lines)
    wanted: dict[str, dict[str, Any]] = {
        "jobs": {"look_s": 0.2, "quiet_s": 2.0, "retries": 0, "retry_wait_s": 0.2},
        "serve": {"port": port, "public_url": f"http://127.0.0.1:{port}", "threads": 16},
        **{
            f"serve.keys.{role}": {
                "sha256": digest_of(key_of(role)),
                "roles": [role],
                "person": "Lee^Anna^^Dr.",
                "organization": "Hospital",
            }
            for role in ROLES
        },
    }
    for name, values in (tables or {}).items():
        wanted[name] = wanted.get(name, {}) | dict(values)
    text = path.read_text()
    for name, values in wanted.items():
        rows = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        text += f"[{name}]\n{rows}\n"
    path.write_text(text)
    return path


@contextmanager
def running_service(
    smear: Smear,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
    rules: str = "",
    **lines: Any,
) -> Iterator[Service]:
    """Start the service over a smear's folders, and stop it; `rules` is TOML of [[rules]]."""
    port = free_port()
    config = service_settings(smear, port, tables, **lines)
    config.write_text(config.read_text() + rules)
    service = Service(f"http://127.0.0.1:{port}", smear, config, smear.folder / "service.log")
    try:
        service.start()
        yield service
    finally:
        service.stop()
