"""A slide that has changed between two tries of its job has one set of results all the same."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.misc import is_dicom

from dicom_io.errors import ConfigurationInvalid, SeriesNotFound
from dicom_io.pacs import open_pacs
from dicom_io.pacs_settings import PacsSettings
from dicom_io.slide import open_slide
from node.config import load_settings
from node.job_queue import open_job_queue
from node.pipeline import SlideReference
from node.stages import open_, opened_slide
from node.workplace import Workplace
from tests.reviews import DELETE_ONE, Node
from tests.smears import Smear, small_smear

ONE_SET = {"ANN": 1, "SEG": 1, "SR": 1, "DiagnosticReport": 1}


@pytest.fixture
def smear(tmp_path: Path) -> Smear:
    return small_smear(tmp_path)


@pytest.fixture
def another_level(smear: Smear) -> Callable[[], None]:
    """Lets another level arrive; the base level alone is there before."""
    _, *others = sorted(smear.slide.paths, key=lambda path: path.stat().st_size, reverse=True)
    scanner = smear.folder / "scanner"
    scanner.mkdir()
    for path in others:
        path.rename(scanner / path.name)

    def arrive() -> None:
        path = others.pop(0)
        (scanner / path.name).rename(path)

    return arrive


def results(smear: Smear) -> dict[str, int]:
    """How many of each are in archive and EHR."""
    files = [path for path in (smear.folder / "pacs").rglob("*") if path.is_file()]
    kinds = Counter(dcmread(path).Modality for path in files if is_dicom(path))
    del kinds["SM"]
    reports = list((smear.folder / "ehr").rglob("DiagnosticReport/*.json"))
    return dict(kinds) | {"DiagnosticReport": len(reports)}


def fail_at_the_ehr(smear: Smear) -> None:
    """Let a try end after it has stored its results in the archive."""
    shutil.rmtree(smear.folder / "ehr", ignore_errors=True)
    (smear.folder / "ehr").write_text("no folder")
    code, _, said = smear.analyse()
    assert code != 0, said
    (smear.folder / "ehr").unlink()


def test_what_a_failed_try_has_stored_is_delivered(
    smear: Smear, another_level: Callable[[], None]
) -> None:
    fail_at_the_ehr(smear)
    another_level()
    code, result, said = smear.analyse()
    assert code == 0, said
    assert results(smear) == ONE_SET
    assert result["slide_changed"]
    assert "has changed since" in said
    assert {each["status"] for each in result["receipts"] if each["target"] == "PACS"} == {
        "already there"
    }


def test_a_completed_job_is_compared_and_reviewed_and_once_withdrawn_made_anew(
    smear: Smear, another_level: Callable[[], None]
) -> None:
    code, first, said = smear.analyse()
    assert code == 0, said
    another_level()
    code, again, said = smear.analyse()
    assert code == 0, said
    assert (again["sr"], results(smear)) == (first["sr"], ONE_SET)
    settings = load_settings(smear.settings(), {})
    node = Node(smear, replace(settings, pacs_url=smear.pacs_url, ehr_url=smear.ehr_url))
    node.review(first, 1, "confirmed")  # of the slide as it was
    node.review(first, 2, "withdrawn", reason="A level was missing")
    assert results(smear)["DiagnosticReport"] == 1
    # Whoever asks for it: a rule that sends it again, a poll, a person.
    with open_job_queue(node.settings) as queue:
        (job,) = queue.list()
        slide = SlideReference(job.study_uid, job.series_uid, "HTTP request")
        sent = queue.submit(slide, Workplace.open(node.settings, lambda _: None), "routine")
        assert (sent.job, sent.status, sent.tries) == (job.job, "queued", job.tries + 1)
        queue.cancel(sent.job)
    code, anew, said = smear.analyse()
    assert code == 0, said
    assert anew["identity"] != first["identity"]
    assert (anew["standing"], "slide_changed" in anew) == ("unreviewed", False)


def test_a_result_is_withdrawn_though_an_instance_of_its_slide_is_gone(smear: Smear) -> None:
    """A bad level was rejected in the archive, which is why."""
    code, first, said = smear.analyse()
    assert code == 0, said
    *_, low = sorted(smear.slide.paths, key=lambda path: -path.stat().st_size)
    low.unlink()
    settings = load_settings(smear.settings(), {})
    node = Node(smear, replace(settings, pacs_url=smear.pacs_url, ehr_url=smear.ehr_url))
    with pytest.raises(SeriesNotFound, match="no longer has all instances"):
        node.review(first, 1, "corrected", corrections=DELETE_ONE)
    with pytest.raises(SeriesNotFound, match="no longer has all instances"):
        node.review(first, 1, "confirmed")
    node.review(first, 1, "withdrawn", reason="A level was bad")
    assert results(smear) == ONE_SET | {"SR": 2}
    (report,) = (smear.folder / "ehr").rglob("DiagnosticReport/*.json")
    assert "entered-in-error" in report.read_text()


def test_a_withdrawn_result_of_a_slide_that_stays_is_looked_at_once(smear: Smear) -> None:
    """Rules send slides again and again: nothing is told anew each time."""
    code, first, said = smear.analyse()
    assert code == 0, said
    settings = load_settings(smear.settings(), {})
    node = Node(smear, replace(settings, pacs_url=smear.pacs_url, ehr_url=smear.ehr_url))
    node.review(first, 1, "withdrawn", reason="Clotted")
    code, again, said = smear.analyse()
    assert code == 0, said
    assert (again["identity"], again["standing"]) == (first["identity"], "withdrawn")
    with open_job_queue(node.settings) as queue:
        (job,) = queue.list()
        slide = SlideReference(job.study_uid, job.series_uid, "HTTP request")
        sent = queue.submit(slide, Workplace.open(node.settings, lambda _: None), "routine")
    assert (sent.job, sent.status, sent.tries) == (job.job, "completed", job.tries)


def test_what_nobody_can_make_again_fails_until_the_archive_does_not_have_it(
    smear: Smear, another_level: Callable[[], None]
) -> None:
    """The work files lie on a host that has died."""
    fail_at_the_ehr(smear)
    another_level()
    shutil.rmtree(smear.work / "files")
    code, failed, said = smear.analyse()
    assert code == ConfigurationInvalid.exit_code, said
    assert "remove what it had stored" in failed["error"]
    for path in (smear.folder / "pacs").rglob("*"):
        if path.is_file() and is_dicom(path) and dcmread(path).Modality != "SM":
            path.unlink()
    code, _, said = smear.analyse()
    assert code == 0, said
    assert results(smear) == ONE_SET


def test_a_job_that_goes_on_after_a_restart_has_the_slide_that_it_opened(
    smear: Smear, another_level: Callable[[], None]
) -> None:
    settings = replace(load_settings(smear.settings(), {}), pacs_url=smear.pacs_url)
    uids = (smear.slide.study_uid, smear.slide.series_uid)
    opened = open_(Workplace.open(settings, lambda _: None), *uids)
    another_level()
    with opened_slide(Workplace.open(settings, lambda _: None), opened) as (_, slide):
        assert sorted(slide.source_instances) == opened["instances"]
    assert len(opened["instances"]) == 1


def test_a_slide_is_opened_as_it_was_before_its_base_level_came(smear: Smear) -> None:
    uids = (smear.slide.study_uid, smear.slide.series_uid)
    with open_pacs(smear.pacs_url, PacsSettings()) as pacs:
        now = open_slide(pacs, *uids)
        before = [uid for level in now.levels[1:] for uid in level.instance_uids]
        then = open_slide(pacs, *uids, instances=before)
        assert [level.size_px for level in then.levels] == [
            level.size_px for level in now.levels[1:]
        ]
        assert sorted(then.source_instances) == sorted(before)
        assert then.header.SOPInstanceUID in before
        for gone in ([*before, "1.2.3"], ["1.2.3"]):
            with pytest.raises(SeriesNotFound, match="no longer has all instances"):
                open_slide(pacs, *uids, instances=gone)
