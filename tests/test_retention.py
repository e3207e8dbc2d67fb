"""What the work folder forgets, and what it must not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from node.config import load_settings
from node.job_queue import open_job_queue
from node.retention import DAY_S, purge
from node.work_files import WorkFiles
from tests.smears import Smear, small_smear


@pytest.fixture
def analysed(tmp_path: Path) -> tuple[Smear, dict[str, Any]]:
    smear = small_smear(tmp_path)
    code, result, said = smear.analyse()
    assert code == 0, said
    return smear, result


def make_old(smear: Smear, days: float) -> None:
    """Let all files of the work folder look as if nobody had touched them since."""
    at = time.time() - days * DAY_S
    for path in smear.work.rglob("*"):
        if path.is_file() and path.name != "jobs.sqlite":
            os.utime(path, (at, at))


def files_of(smear: Smear) -> set[str]:
    return {path.name for path in (smear.work / "files").glob("??/*")}


def purged(smear: Smear, days: float, dry_run: bool = False) -> Any:
    settings = load_settings(smear.settings())
    with open_job_queue(settings) as queue:
        return purge(settings, queue, days, dry_run=dry_run)


def test_what_is_young_stays(analysed: tuple[Smear, dict[str, Any]]) -> None:
    smear, _ = analysed
    before = files_of(smear)
    make_old(smear, 5)
    said = purged(smear, 6)
    assert (said.results, said.files, said.jobs) == (0, 0, 0)
    assert files_of(smear) == before


def test_what_is_old_goes_and_can_be_made_again(
    analysed: tuple[Smear, dict[str, Any]],
) -> None:
    smear, first = analysed
    make_old(smear, 5)
    would = purged(smear, 4, dry_run=True)
    assert files_of(smear)
    said = purged(smear, 4)
    assert said == would
    assert said.results == 1
    assert said.bytes_freed > 100_000
    assert files_of(smear) == set()
    assert not list((smear.work / "progress").iterdir())
    code, again, told = smear.analyse()
    assert code == 0, told
    assert again["ann"] == first["ann"]
    told = {(each["target"], each["status"]) for each in again["receipts"]}
    assert ("PACS", "stored") not in told  # the archive has the objects, and keeps the first
    assert len(list((smear.folder / "ehr").rglob("DiagnosticReport*"))) == 1


def test_a_results_files_stay_as_long_as_the_result(
    analysed: tuple[Smear, dict[str, Any]],
) -> None:
    """A file that no result names, such as one of a job that failed, goes."""
    smear, result = analysed
    left = WorkFiles(smear.work / "files").put(b"left behind")
    make_old(smear, 5)
    (named,) = (smear.work / "results").glob("*.json")
    os.utime(named)
    said = purged(smear, 4)
    assert said.results == 0
    assert said.files == 1
    assert left not in files_of(smear)
    assert {Path(path).name for path in result["files"].values()} <= files_of(smear)


def test_a_reviewed_result_is_kept(analysed: tuple[Smear, dict[str, Any]]) -> None:
    smear, result = analysed
    done = subprocess.run(
        [
            *(sys.executable, "-m", "node", "--config", str(smear.settings())),
            *("review", result["job"], "--confirm", "--revision", "1"),
            *("--by", "Lee^Anna", "--organization", "Hospital"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    make_old(smear, 5)
    before = sorted((smear.work / "results").iterdir())
    assert len(before) == 2
    assert purged(smear, 4).results == 0
    assert sorted((smear.work / "results").iterdir()) == before
    assert {Path(path).name for path in result["files"].values()} <= files_of(smear)


def test_old_jobs_are_forgotten(analysed: tuple[Smear, dict[str, Any]]) -> None:
    smear, _ = analysed
    said = purged(smear, 0)
    assert said.jobs == 1
    settings = load_settings(smear.settings())
    with open_job_queue(settings) as queue:
        assert queue.list() == []


def test_the_command_tells_what_would_go(analysed: tuple[Smear, dict[str, Any]]) -> None:
    smear, _ = analysed
    make_old(smear, 100)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "node", "--config", str(smear.settings())),
            *("purge", "--days", "90", "--dry-run", "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)["results"] == 1
    assert files_of(smear)
