"""``marrow-node review``: what it needs, what it refuses, and that it may be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydicom import dcmread

from node.cli import main
from node.config import load_settings
from node.job_queue import open_job_queue
from node.jobs import open_worker
from node.pipeline import SlideReference
from node.review_command import decided
from node.running import run_job
from tests.postgresql import MISSING_POSTGRESQL, postgresql_missing, running_postgresql
from tests.reviews import RETYPE_ONE
from tests.smears import Smear, small_smear
from tests.test_receiver import until


@pytest.fixture
def analysed(tmp_path: Path) -> tuple[Smear, str]:
    """By the command line, whose reviews go where the analysis went; the job's identifier."""
    smear = small_smear(tmp_path)
    code, result, said = smear.analyse()
    assert code == 0, said
    return smear, result["job"]


def review_command(smear: Smear, job: str, *decision: str) -> list[str]:
    command = [sys.executable, "-m", "node", "--config", str(smear.folder / "node.toml")]
    by = ("--by", "Lee^Anna^^Dr.", "--organization", "Haematology")
    return [*command, "review", job, "--json", *by, *decision]


def test_killed_three_times_one_revision(analysed: tuple[Smear, str]) -> None:
    smear, job = analysed
    (smear.folder / "cells.json").write_text(json.dumps(RETYPE_ONE))
    decision = ("--revision", "1", "--corrections", str(smear.folder / "cells.json"))
    command = review_command(smear, job, *decision)
    for stage in ("correct", "write review", "deliver to EHR"):
        assert smear.killed_at(stage, command)
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert (result["revision"], result["standing"]) == (2, "final")
    files = [path for path in Path(smear.folder, "pacs", "studies").rglob("*") if path.is_file()]
    modalities = sorted(dcmread(path, specific_tags=["Modality"]).Modality for path in files)
    assert modalities == ["ANN", "ANN", "SEG", "SR", "SR"]
    (report,) = (smear.folder / "ehr" / "DiagnosticReport").glob("*.json")
    assert json.loads(report.read_bytes())["status"] == "final"
    assert len(list((smear.work / "results").glob("*.json"))) == 2


def test_the_command_confirms_and_refuses(analysed: tuple[Smear, str]) -> None:
    smear, job = analysed
    for decision, code, said in (
        (("--revision", "1", "--confirm"), 0, ""),
        (("--revision", "1", "--confirm"), 0, ""),
        (("--revision", "1", "--withdraw", "Wrong slide"), 70, "no longer the newest"),
    ):
        ended = subprocess.run(
            review_command(smear, job, *decision),
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert ended.returncode == code, ended.stderr
        assert said in ended.stderr
    assert len(list((smear.work / "results").glob("*.json"))) == 2


@pytest.mark.skipif(postgresql_missing(), reason=MISSING_POSTGRESQL)
def test_a_review_that_another_host_took_comes_back(tmp_path: Path) -> None:
    """Both hosts have their own folders and share a database; a command has no other tries."""
    smear = small_smear(tmp_path)
    with running_postgresql() as url:
        config = smear.settings(database_url=url, pacs_url=smear.pacs_url, ehr_url=smear.ehr_url)
        here = load_settings(config)
        here = replace(here, jobs=replace(here.jobs, host="here", retry_wait_s=0.2))
        there = replace(here, work_folder=tmp_path / "there", jobs=replace(here.jobs, host="there"))
        slide = SlideReference(smear.slide.study_uid, smear.slide.series_uid, "test")
        analysed = run_job(here, slide)
        assert analysed.status == "completed", analysed
        decision = decided(
            confirm=True,
            withdraw=None,
            annotation_uid=None,
            corrections=None,
            revision=1,
            name="Lee^Anna",
            organization="Haematology",
            reason="",
        )
        with open_job_queue(here) as queue:
            review = queue.review(analysed.job, decision).job
            with open_worker(there) as worker:
                assert until(lambda: queue.get(review).tries > 1, 60), queue.get(review)
                worker.drain(10)
            assert queue.get(review).status == "queued"
            with open_worker(here) as worker:
                ended = worker.wait(review, lambda progress: None)
        assert (ended.status, ended.result and ended.result["revision"]) == ("completed", 2)


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ((), "one of --confirm"),
        (("--confirm", "--withdraw", "x"), "one of --confirm"),
        (("--withdraw", ""), "has a reason"),
        (("--corrections", "none.json"), "cannot be read"),
        (("--corrections", "list.json"), "not usable"),
    ],
)
def test_the_command_needs_one_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decision: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    by = ("--by", "Lee^Anna", "--organization", "Haematology", "--revision", "1")
    done = CliRunner().invoke(main, ["review", "job", *by, *decision])
    assert done.exit_code == 71
    assert said in done.output
