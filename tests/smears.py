"""A small smear and a model package that reads it: for tests of the whole way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicom_io.demonstration import DemonstrationSlide
from tests.forked import marrow_node
from tests.small_slides import write_small_slide
from tests.tiny_package import tiny_package


@dataclass(frozen=True)
class Smear:
    """A slide in a folder, a tiny model package, and a work folder."""

    slide: DemonstrationSlide
    folder: Path

    @property
    def pacs_url(self) -> str:
        return (self.folder / "pacs").as_uri()

    @property
    def ehr_url(self) -> str:
        return (self.folder / "ehr").as_uri()

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def settings(self, **lines: Any) -> Path:
        """A settings file that names the tiny package; `lines` are top-level values."""
        path = self.folder / "node.toml"
        values = {"work_folder": str(self.work), **lines}
        head = "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
        packages = json.dumps([str(self.folder / "packages")])
        retries = "retries = 1\nretry_wait_s = 0.05\ntimeout_s = 5.0"
        path.write_text(
            f'{head}\n[model]\nname = "tiny"\nfolders = {packages}\n'
            f"[pacs]\n{retries}\n[ehr]\n{retries}\n"
        )
        return path

    def command(self, *more: str, **addresses: Any) -> list[str]:
        """``marrow-node analyse``, as a shell starts it."""
        return [sys.executable, "-m", "node", *self.arguments(*more, **addresses)]

    def arguments(
        self, *more: str, pacs_url: str = "", ehr_url: str = "", uids: tuple[str, str] | None = None
    ) -> list[str]:
        study, series = uids or (self.slide.study_uid, self.slide.series_uid)
        return [
            "--config",
            str(self.settings()),
            "analyse",
            "--pacs",
            pacs_url or self.pacs_url,
            "--ehr",
            ehr_url or self.ehr_url,
            "--json",
            *more,
            study,
            series,
        ]

    def analyse(self, *more: str, **addresses: Any) -> tuple[int, Mapping[str, Any], str]:
        """Run ``marrow-node analyse`` in a process of its own: exit code, JSON, standard error."""
        ended = marrow_node(*self.arguments(*more, **addresses))
        return ended.returncode, json.loads(ended.stdout or "{}"), ended.stderr

    def killed_at(self, stage: str, command: Sequence[str]) -> bool:
        """Start a command and SIGKILL it in a stage of its job; whether it died there."""
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            for path in (self.work / "progress").glob("*.json"):
                try:
                    if json.loads(path.read_bytes())["stage"] == stage:
                        process.kill()
                except FileNotFoundError:  # replaced between listing and reading
                    continue
            time.sleep(0.001)
        return process.wait() == -signal.SIGKILL


def small_smear(folder: Path) -> Smear:
    """Write the slide and the package."""
    tiny_package(folder / "packages" / "tiny")
    slide = write_small_slide(folder / "pacs")
    return Smear(slide, folder)
