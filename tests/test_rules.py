"""Rules, and the ways in that look for slides by themselves: the archive and a folder."""

from __future__ import annotations

import json
import shutil
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydicom import dcmread

from dicom_io.demonstration import DemonstrationSlide, compose_demonstration_slide
from dicom_io.dicom_json import PER_FRAME, attributes
from dicom_io.errors import ConfigurationInvalid, SeriesNotFound
from dicom_io.slide_facts import SlideFacts, slide_facts
from node.cli import main
from node.config import Settings, load_settings
from node.drop_folder import DropFolder
from node.intake import WHOLE, await_whole
from node.job_database import prepare_database
from node.job_queue import JobQueue, open_job_queue
from node.pipeline import SlideReference
from node.poll import ArchiveLooks
from node.receive import _submitted
from node.rule_settings import RuleSettings
from node.rules import decide, decision_for, settings_by
from node.worklist_database import WorklistDatabase, worklist_database
from node.workplace import Workplace
from tests.loopback_host import Host
from tests.servers import Orthanc, running_orthanc
from tests.service import Service, awaited, running_service
from tests.slides import write_slide
from tests.smears import Smear, small_smear

MARROW = "14016003^SCT"
FACTS = SlideFacts(
    modality="SM",
    codes=frozenset({MARROW}),
    body_part="MARROW",
    station="Scanner [1]",
    accession="BM-123",
    description="Aspirate, 40x",
    age_years=7.0,
)


# Decisions


@pytest.mark.parametrize(
    ("wanted", "against"),
    [
        ({}, ""),
        ({"modality": "CT"}, "modality"),
        ({"codes": (MARROW, "1^X")}, ""),
        ({"codes": ("1^X",)}, "1^X"),
        ({"body_parts": ("MARROW",)}, ""),
        ({"body_parts": ("BLOOD",)}, "BLOOD"),
        ({"stations": ("scanner [1]",)}, ""),
        ({"stations": ("scanner 1",)}, "station"),
        ({"accession_numbers": ("XX*", "bm-???")}, ""),
        ({"accession_numbers": ("BM-??",)}, "accession number"),
        ({"descriptions": ("*aspirate*",)}, ""),
        ({"descriptions": ("aspirate",)}, "description"),
        ({"youngest_years": 7, "oldest_years": 7}, ""),
        ({"youngest_years": 18}, "age"),
        ({"oldest_years": 6}, "age"),
    ],
)
def test_a_rule_fits_or_says_why_not(wanted: dict[str, Any], against: str) -> None:
    decision = decide([RuleSettings("one", **wanted)], FACTS)
    (tried,) = decision.tried
    assert tried.fits == decision.analyse == (not against)
    assert against in tried.because
    assert "BM-123" not in decision.why, "the slide's own values are not told"


def test_the_first_rule_that_fits_decides() -> None:
    rules = [
        RuleSettings("children", oldest_years=17, analyse=False),
        RuleSettings("marrow", codes=(MARROW,), model="wang2022", results_url="file:///results"),
        RuleSettings("rest", priority="batch"),
    ]
    child = decide(rules, FACTS)
    assert (child.rule, child.analyse) == (rules[0], False)
    assert "children" in child.why
    adult = decide(rules, replace(FACTS, age_years=40))
    assert [each.fits for each in adult.tried] == [False, True]
    assert adult.rule is rules[1]
    chosen = settings_by(Settings(), adult.rule)
    assert (chosen.model.name, chosen.results_url) == ("wang2022", "file:///results")
    assert decide(rules, replace(FACTS, age_years=40, codes=frozenset())).rule is rules[2]
    ct = decide(rules, replace(FACTS, modality="CT"))
    assert (ct.rule, ct.analyse, len(ct.tried)) == (None, False, 3)
    assert decide([], FACTS).analyse


def test_an_age_that_is_not_known_fits_no_bound() -> None:
    decision = decide([RuleSettings("adults", youngest_years=18)], replace(FACTS, age_years=None))
    assert "not known" in decision.why


@pytest.mark.parametrize(
    ("told", "years"),
    [
        ({"PatientAge": "007Y"}, 7),
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientBirthDate": "20080228", "StudyDate": "20260227"}, 17),
        ({"PatientBirthDate": "20080228", "StudyDate": "20260228"}, 18),
        ({"PatientBirthDate": "2008", "StudyDate": "20260228"}, None),
        ({}, None),
    ],
)
def test_ages(told: dict[str, str], years: float | None) -> None:
    assert slide_facts([attributes(**told)]).age_years == years


def test_a_rule_with_a_mistake_is_named(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('[[rules]]\nname = "a"\n[[rules]]\nname = "b"\nacession_numbers = ["1"]\n')
    with pytest.raises(ConfigurationInvalid, match=r"rules\[2\]\.acession_numbers"):
        load_settings(path, {})
    path.write_text('[[rules]]\nmodality = "SM"\n')
    with pytest.raises(ConfigurationInvalid, match="name"):
        load_settings(path, {})


def test_a_dry_run_tells_of_each_rule(smear: Smear) -> None:
    path = smear.settings(pacs_url=smear.pacs_url)
    rules = '[[rules]]\nname = "ct"\nmodality = "CT"\n[[rules]]\nname = "demo"\n'
    path.write_text(f'{path.read_text()}{rules}accession_numbers = ["DEMO-*"]\n')
    command = ["--config", str(path), "rules", "test"]
    for uids in ([smear.slide.study_uid, smear.slide.series_uid], [smear.slide.study_uid]):
        ended = CliRunner().invoke(main, [*command, *uids])
        assert "no    ct: the modality is not CT" in ended.output
        assert "fits  demo: everything fits" in ended.output
    told = CliRunner().invoke(main, [*command, "--json", *uids])
    (decision,) = json.loads(told.stdout)
    assert (decision["analyse"], decision["rule"]["name"]) == (True, "demo")
    assert not (smear.work / "jobs.sqlite").exists(), "a dry run queues nothing"


def test_places_of_frames_are_not_held_to_look_at_a_slide(
    host: Host, settings: Settings, tmp_path: Path
) -> None:
    written = write_slide(tmp_path / "slide", levels=1, organization="TILED_SPARSE")
    told = dcmread(written.paths[0], stop_before_pixels=True).to_json_dict()
    told[PER_FRAME]["Value"] *= 400
    metadata = json.dumps([told]).encode()
    answers = {"instances": json.dumps([{"00280008": told["00280008"]}]).encode()}
    host.answer = lambda path: (200, {}, answers.get(path.rpartition("/")[2], metadata))
    settings = replace(settings, pacs_url=host.url, rules=(RuleSettings("slides"),))
    slide = SlideReference(written.study_uid, written.series_uid, "test")

    tracemalloc.start()
    try:
        decision = decision_for(settings, slide.study_uid, slide.series_uid)
        waited = await_whole(settings, slide, lambda name, stage: stage(), lambda seconds: None)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decision.analyse
    assert waited == {"arrival": WHOLE}
    assert peak_bytes < 4 * len(metadata)


# Polling, one look at a time


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Smear:
    return small_smear(tmp_path_factory.mktemp("rules"))


@pytest.fixture
def settings(tmp_path: Path, smear: Smear) -> Settings:
    settings = load_settings(smear.settings(pacs_url=smear.pacs_url), {})
    settings = replace(settings, work_folder=tmp_path / "work")
    prepare_database(settings)
    return settings


@pytest.fixture
def queue(settings: Settings) -> Iterator[JobQueue]:
    with open_job_queue(settings) as queue:
        yield queue


@pytest.fixture
def database(settings: Settings) -> Iterator[WorklistDatabase]:
    with closing(worklist_database(settings)) as database:
        yield database


def test_a_slide_that_is_found_again_is_one_job(
    settings: Settings, database: WorklistDatabase, queue: JobQueue, smear: Smear
) -> None:
    for _ in range(3):
        search = ArchiveLooks(settings, database, queue, lambda: date(2000, 1, 1))
        search.look()
        search.look()
    (job,) = queue.list()
    assert (job.series_uid, job.tries) == (smear.slide.series_uid, 1)
    assert job.reason == "found by polling"


def test_other_rules_decide_anew(
    settings: Settings, database: WorklistDatabase, queue: JobQueue
) -> None:
    none = replace(settings, rules=(RuleSettings("ct", modality="CT"),))
    ArchiveLooks(none, database, queue, lambda: date(2000, 1, 1)).look()
    assert queue.list() == []
    some = replace(settings, rules=(RuleSettings("slides", priority="urgent"),))
    ArchiveLooks(some, database, queue, lambda: date(2000, 1, 1)).look()
    (job,) = queue.list()
    assert (job.priority, job.reason) == ("urgent", "found by polling, rule slides")


def test_clocks_that_jump_lose_nothing(
    settings: Settings, database: WorklistDatabase, queue: JobQueue
) -> None:
    """Where the search begins: never later than a week before today or before the last look."""
    days = [
        date(2026, 3, 1),
        date(2026, 3, 20),
        date(2099, 1, 1),
        date(2026, 3, 21),
        date(2000, 1, 1),
    ]
    begun = []
    for day in days:
        search = ArchiveLooks(settings, database, queue, lambda day=day: day)  # type: ignore[misc]
        begun.append(search._since(day))
        search._searched(day)
    assert begun == [
        date(2026, 2, 22),  # the first look
        date(2026, 2, 22),  # nothing was looked at for 19 days
        date(2026, 3, 13),  # the clock jumps ahead
        date(2026, 3, 14),  # it is right again
        date(1999, 12, 25),  # it jumps back
    ]


def test_a_slide_that_cannot_be_decided_on_does_not_hide_others(
    settings: Settings, database: WorklistDatabase, queue: JobQueue, smear: Smear
) -> None:
    missing = RuleSettings("missing", accession_numbers=("DEMO-*",), model="none")
    ruled = replace(settings, rules=(missing,))
    search = ArchiveLooks(ruled, database, queue, lambda: date(2000, 1, 1))
    search.look()
    assert queue.list() == []
    search.look()  # and it is looked at again, in case that the package has come
    assert search._failed.keys() == {smear.slide.series_uid}


# A folder


def test_files_are_taken_when_they_are_whole(
    settings: Settings, queue: JobQueue, smear: Smear, tmp_path: Path
) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    receive = replace(settings.receive, folder=tmp_path / "received", settle_s=0.0)
    settings = replace(settings, receive=receive, poll=replace(settings.poll, folder=drop))
    folder = DropFolder(settings, queue)
    (drop / "notes.txt").write_text("not DICOM")
    (drop / ".hidden").write_text("still being written")
    first, *others = smear.slide.paths
    (drop / "sub").mkdir()
    shutil.copy(first, drop / "sub" / "a.dcm")
    folder.look()
    assert not receive.archive.exists(), "a file is looked at twice"
    with (drop / "sub" / "a.dcm").open("ab") as growing:
        growing.write(b"\0\0")  # somebody still writes
    folder.look()
    shutil.copy(first, drop / "sub" / "a.dcm")
    folder.look()
    assert not (drop / "sub" / "a.dcm").exists() or folder.look() is None
    for number, path in enumerate(others):
        shutil.copy(path, drop / f"{number}.dcm")
    for _ in range(3):
        folder.look()
    taken = sorted(path.name for path in receive.archive.rglob("*") if path.is_file())
    assert len(taken) == len(smear.slide.paths)
    assert sorted(path.name for path in drop.rglob("*") if path.is_file()) == [
        ".hidden",
        "notes.txt",
    ]
    (job,) = queue.list()
    assert (job.series_uid, job.reason) == (smear.slide.series_uid, "dropped into a folder")
    shutil.copy(first, drop / "again.dcm")
    for _ in range(3):
        folder.look()
    assert not (drop / "again.dcm").exists()
    assert len(queue.list()) == 1


def test_a_folder_that_is_not_there_is_named(settings: Settings, queue: JobQueue) -> None:
    missing = replace(settings, poll=replace(settings.poll, folder=Path("/nowhere")))
    with pytest.raises(ConfigurationInvalid, match=r"poll\.folder"):
        DropFolder(missing, queue)


def test_a_received_slide_goes_by_the_rules(
    settings: Settings, queue: JobQueue, smear: Smear
) -> None:
    slide = SlideReference(smear.slide.study_uid, smear.slide.series_uid, "received by C-STORE")
    none = replace(settings, rules=(RuleSettings("ct", modality="CT"),))
    assert _submitted(queue, Workplace.open(none, lambda progress: None), slide) == ""
    some = replace(settings, rules=(RuleSettings("slides"),))
    job = _submitted(queue, Workplace.open(some, lambda progress: None), slide)
    assert queue.get(job).reason == "received by C-STORE, rule slides"


# With a real archive, as a site runs it


RULES = """
[[rules]]
name = "second slides are not analysed"
descriptions = ["second*"]
analyse = false
[[rules]]
name = "marrow"
codes = ["14016003^SCT"]
priority = "urgent"
"""


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="module")
def service(smear: Smear, orthanc: Orthanc) -> Iterator[Service]:
    drop = smear.folder / "drop"
    drop.mkdir()
    tables = {
        "jobs": {"look_s": 0.2, "quiet_s": 6.0},
        "poll": {
            "pacs_every_s": 0.5,
            "overlap_days": 36_500,
            "folder": str(drop),
            "folder_every_s": 0.3,
        },
        "receive": {"folder": str(smear.folder / "received"), "settle_s": 0.5},
    }
    with running_service(smear, tables, RULES, pacs_url=orthanc.dicomweb_url) as running:
        yield running


def jobs_of(service: Service, series_uid: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = service.get("/jobs")["jobs"]
    return [job for job in listed if job["series_uid"] == series_uid]


def another(smear: Smear, name: str, seed: int) -> DemonstrationSlide:
    folder = smear.folder / name
    return compose_demonstration_slide(folder, seed=seed, size_px=(2048, 1536), cells=20)


def test_a_slide_that_the_archive_answers_404_for_is_not_there(
    orthanc: Orthanc, settings: Settings
) -> None:
    """Not yet, as it may be: who asks about a slide on its way asks again."""
    there = replace(settings, pacs_url=orthanc.dicomweb_url, rules=(RuleSettings("all"),))
    with pytest.raises(SeriesNotFound, match=r"1\.2\.4 of study 1\.2\.3 is not in the PACS"):
        decision_for(there, "1.2.3", "1.2.4")


def test_a_new_slide_in_orthanc_is_found_and_analysed(
    service: Service, orthanc: Orthanc, smear: Smear
) -> None:
    orthanc.add(*smear.slide.paths)
    (job,) = awaited(lambda: jobs_of(service, smear.slide.series_uid))
    assert job["reason"] == "found by polling, rule marrow"
    assert job["priority"] == "urgent"
    assert service.ended(job["job"])["status"] == "completed"
    time.sleep(2)  # several further looks, with results of the node in the archive too
    assert len(service.get("/jobs")["jobs"]) == 1


def test_routing_without_a_model_goes_by_the_rules(
    service: Service, orthanc: Orthanc, smear: Smear
) -> None:
    slide = smear.slide
    orthanc.add(*slide.paths)
    for wanted in ({}, {"series_uid": slide.series_uid}):
        search = service.submit(study_uid=slide.study_uid, **wanted)["search"]
        found = awaited(
            lambda search=search: (
                (seen := service.get(f"/searches/{search}"))["status"] == "completed" and seen
            )
        )
        assert found["jobs"] == [jobs_of(service, slide.series_uid)[0]["job"]]
        (decision,) = found["decisions"]
        assert decision["analyse"]
        assert decision["why"] == "it fits the rule marrow"
    assert service.submit_slide(model="tiny"), "who names a model has decided"


def test_a_dropped_slide_is_analysed(service: Service, smear: Smear) -> None:
    slide = another(smear, "dropped", seed=7)
    for number, path in enumerate(slide.paths):
        shutil.copy(path, smear.folder / "drop" / f"{number}.dcm")
    (job,) = awaited(lambda: jobs_of(service, slide.series_uid))
    assert job["reason"] == "dropped into a folder, rule marrow"
    assert service.ended(job["job"])["status"] == "completed"
    assert not any((smear.folder / "drop").iterdir())
