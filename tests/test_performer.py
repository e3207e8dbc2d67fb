"""Workitems of a manager's list and of the node's own are performed, through kills and refusals."""

from __future__ import annotations

import json
import signal
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from simple_websocket import Client, ConnectionClosed

from dicom_io.demonstration import compose_demonstration_slide
from dicom_io.dicom_json import attributes, value, values
from dicom_io.errors import (
    JobNotFound,
    PacsBusy,
    PacsUnauthorized,
    Refusal,
    WorkitemRefused,
)
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.workitem import COMPLETED, IN_PROGRESS, input_series, progress
from dicom_io.worklist_manager import WorklistManager
from node.claims import Claims
from node.config import Settings, load_settings
from node.job import ENDED
from node.job_database import open_job_database, prepare_database
from node.job_news import JobNews
from node.job_queue import JobQueue
from node.performer import OUTPUTS, OwnWorklist, Performer
from node.pipeline import SlideReference
from node.workitems import WORKLIST, Workitems
from node.worklist_database import WorklistDatabase, worklist_database
from node.workplace import Workplace
from tests.service import Service, awaited, key_of, running_service
from tests.smears import Smear, small_smear
from tests.ups.caller import code, workitem
from tests.ups_manager import Manager, Step, running_manager

SM = "1.2.840.10008.5.1.4.1.1.77.1.6"
OURS = code("marrow-ndc") | attributes(CodingSchemeDesignator="99MARROW")
TOKEN = "manager-token"  # noqa: S105 - of a manager that lives for this test
MISSING = ("1.2.3", "1.2.3.4")


def ended(manager: Manager, uid: str, service: Service) -> Step:
    step = manager.steps[uid]
    try:
        awaited(lambda: step.state in ("COMPLETED", "CANCELED"))
    except AssertionError as error:
        raise AssertionError(f"{step.history}: {service.log.read_text()[-4000:]}") from error
    return step


def jobs_of(service: Service, series_uid: str) -> list[dict[str, Any]]:
    """Jobs of a series, once the list, which is looked up from time to time, has them."""

    def listed() -> list[dict[str, Any]]:
        return [job for job in service.get("/jobs")["jobs"] if job["series_uid"] == series_uid]

    found: list[dict[str, Any]] = awaited(listed)
    return [service.get(f"/jobs/{job['job']}") for job in found]


# The whole way, with the service as a site runs it


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    with running_manager(Manager(token=TOKEN)) as running:
        yield running


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Smear:
    return small_smear(tmp_path_factory.mktemp("performer"))


@pytest.fixture(scope="module")
def service(smear: Smear, manager: Manager) -> Iterator[Service]:
    secret = smear.folder / "token"
    secret.write_text(TOKEN)
    tables = {
        "jobs": {"quiet_s": 4.0},
        "ups": {"manager_url": manager.url, "poll_s": 1.0},
        "ups.manager": {"bearer_token": f"file:{secret}"},
    }
    with running_service(smear, tables) as running:
        yield running


def slide_of(smear: Smear) -> tuple[str, str]:
    return smear.slide.study_uid, smear.slide.series_uid


def another_slide(smear: Smear, seed: int) -> tuple[str, str]:
    """A further slide in the same archive."""
    made = compose_demonstration_slide(
        smear.folder / "pacs", seed=seed, size_px=(2048, 1536), cells=20
    )
    return made.study_uid, made.series_uid


def test_a_managers_list_is_worked(service: Service, manager: Manager, smear: Smear) -> None:
    slide = slide_of(smear)
    manager.schedule("1.9.1", [slide])
    manager.schedule("1.9.2", [slide], workitem_code="110004", scheme="DCM")
    manager.schedule("1.9.3", [])
    manager.schedule("1.9.4", [slide], t00404041={"vr": "CS", "Value": ["INCOMPLETE"]})
    station = {"vr": "SQ", "Value": [code("OTHER_STATION")]}
    manager.schedule("1.9.5", [slide], t00404025=station)
    step = ended(manager, "1.9.1", service)
    assert step.state == "COMPLETED", step.history
    told = [float(each.split()[1]) for each in step.history if each.startswith("progress")]
    assert told == sorted(told)
    assert step.history.count("IN PROGRESS") == 1
    (performed,) = values(step.item, "UnifiedProcedureStepPerformedProcedureSequence")
    assert values(performed, "PerformedWorkitemCodeSequence") == values(
        step.item, "ScheduledWorkitemCodeSequence"
    )
    outputs = values(performed, "OutputInformationSequence")
    with open_pacs(smear.pacs_url, PacsSettings()) as pacs:
        for output in outputs:
            (made,) = values(output, "ReferencedSOPSequence")
            stored = pacs.retrieve_instance(
                value(output, "StudyInstanceUID"),
                value(output, "SeriesInstanceUID"),
                value(made, "ReferencedSOPInstanceUID"),
            )
            assert stored.SOPClassUID == value(made, "ReferencedSOPClassUID")
            (where,) = values(output, "WADORSRetrievalSequence")
            assert value(where, "RetrieveURL").startswith(f"{service.url}/dicom-web/studies/")
    assert len(outputs) == 3
    for left in ("1.9.2", "1.9.3", "1.9.4", "1.9.5"):
        assert manager.steps[left].history == ["SCHEDULED"]
    manager.steps["1.9.4"].item["00404041"]["Value"] = ["READY"]
    manager.steps["1.9.4"].item["00404010"]["Value"] = ["20261126120001"]
    again = ended(manager, "1.9.4", service)
    assert again.state == "COMPLETED"
    jobs = jobs_of(service, slide[1])
    assert [job["tries"] for job in jobs] == [1], "the same slide is one job"


def test_a_failed_job_cancels_with_its_reason(service: Service, manager: Manager) -> None:
    manager.schedule("1.9.11", [MISSING])
    step = ended(manager, "1.9.11", service)
    assert step.state == "CANCELED"
    (reason,) = values(step.item, "ProcedureStepProgressInformationSequence")
    assert "1.2.3.4" in value(reason, "ReasonForCancellation")
    (named,) = values(reason, "ProcedureStepDiscontinuationReasonCodeSequence")
    assert value(named, "CodeValue") == "110513"


def test_a_cancel_request_cancels_the_job(service: Service, manager: Manager) -> None:
    manager.schedule("1.9.21", [("1.2.3", "1.2.3.21")])
    step = manager.steps["1.9.21"]
    awaited(lambda: any(each.startswith("progress") for each in step.history))
    manager.request_cancel("1.9.21")
    assert ended(manager, "1.9.21", service).state == "CANCELED"
    (job,) = jobs_of(service, "1.2.3.21")
    assert job["status"] == "cancelled"


def test_what_the_manager_takes_away_is_given_up(service: Service, manager: Manager) -> None:
    manager.schedule("1.9.31", [("1.2.3", "1.2.3.31")])
    step = manager.steps["1.9.31"]
    awaited(lambda: any(each.startswith("progress") for each in step.history))
    manager.take_away("1.9.31")
    (job,) = jobs_of(service, "1.2.3.31")
    assert service.ended(job["job"])["status"] in ("cancelled", "failed")
    assert step.history[-1] == "CANCELED by the manager"


def test_it_goes_on_after_all_is_killed(service: Service, manager: Manager, smear: Smear) -> None:
    slide = another_slide(smear, seed=5)
    manager.schedule("1.9.41", [slide])
    step = manager.steps["1.9.41"]
    awaited(lambda: step.lock)
    assert service.process is not None
    family = [service.process, *psutil.Process(service.process.pid).children(recursive=True)]
    for process in family:
        process.send_signal(signal.SIGKILL)
    service.process.wait()
    lock = step.lock
    service.start()
    assert ended(manager, "1.9.41", service).state == "COMPLETED"
    assert step.lock == lock
    assert step.history.count("IN PROGRESS") == 1
    (job,) = jobs_of(service, slide[1])
    assert job["status"] == "completed"


def test_the_own_list_is_performed_and_told_of(service: Service, smear: Smear) -> None:
    reports: list[Any] = []
    address = f"ws{service.url.removeprefix('http')}/dicom-web/subscribers/WATCHER"
    socket = Client(address, headers={"Authorization": f"Bearer {key_of('read')}"})

    def listen() -> None:
        try:
            while True:
                reports.append(json.loads(socket.receive()))
        except (ConnectionClosed, TypeError):
            pass

    path = "/dicom-web/workitems"
    told = service.ask("POST", f"{path}/{WORKLIST}/subscribers/WATCHER", "read")
    assert told.status_code == 201
    threading.Thread(target=listen, daemon=True).start()
    study, series = slide_of(smear)
    slide = attributes(
        StudyInstanceUID=study,
        SeriesInstanceUID=series,
        ReferencedSOPSequence=[attributes(ReferencedSOPClassUID=SM)],
    )
    wanted = workitem(
        ScheduledWorkitemCodeSequence=[OURS], InputInformationSequence=[slide], PatientID="4711"
    )
    headers = {"Content-Type": "application/dicom+json"}
    made = service.ask(
        "POST", f"{path}?1.9.51", "submit", data=json.dumps([wanted]), headers=headers
    )
    assert made.status_code == 201, made.text

    def state() -> str:
        return str(value(service.get(f"{path}/1.9.51")[0], "ProcedureStepState"))

    awaited(lambda: state() == "COMPLETED")
    item = service.get(f"{path}/1.9.51")[0]
    (performed,) = values(item, "UnifiedProcedureStepPerformedProcedureSequence")
    assert len(values(performed, "OutputInformationSequence")) == 3
    awaited(lambda: any(value(each, "ProcedureStepState") == "COMPLETED" for each in reports))
    own = [each for each in reports if value(each, "AffectedSOPInstanceUID") == "1.9.51"]
    states = [value(each, "ProcedureStepState") for each in own if value(each, "EventTypeID") == 1]
    assert states == ["SCHEDULED", "IN PROGRESS", "COMPLETED"]
    socket.close()
    refused = service.ask("POST", f"{path}/1.9.51/cancelrequest", "operate")
    assert refused.status_code == 409
    log = service.log.read_text()
    assert "1.9.51" in log
    assert "Jane" not in log
    assert "4711" not in log


def test_a_page_from_elsewhere_may_not_listen(service: Service) -> None:
    """A browser adds the credentials of HTTP Basic by itself, whoever opens the connection."""
    address = f"ws{service.url.removeprefix('http')}/dicom-web/subscribers/WATCHER"
    known = b64encode(f"read:{key_of('read')}".encode()).decode()
    elsewhere = {"Authorization": f"Basic {known}", "Origin": "https://elsewhere.example"}
    socket = Client(address, headers=elsewhere)
    with pytest.raises(ConnectionClosed):
        socket.receive(timeout=20)
    own = Client(address, headers=elsewhere | {"Origin": service.url})
    assert own.receive(timeout=1) is None
    own.close()


def test_the_own_list_cancels_its_jobs(service: Service) -> None:
    slide = attributes(
        StudyInstanceUID="1.2.3",
        SeriesInstanceUID="1.2.3.61",
        ReferencedSOPSequence=[attributes(ReferencedSOPClassUID=SM)],
    )
    wanted = workitem(ScheduledWorkitemCodeSequence=[OURS], InputInformationSequence=[slide])
    headers = {"Content-Type": "application/dicom+json"}
    path = "/dicom-web/workitems"
    service.ask("POST", f"{path}?1.9.61", "submit", data=json.dumps([wanted]), headers=headers)

    def state() -> str:
        return str(value(service.get(f"{path}/1.9.61")[0], "ProcedureStepState"))

    awaited(lambda: state() == "IN PROGRESS")
    assert service.ask("POST", f"{path}/1.9.61/cancelrequest", "operate").status_code == 202
    awaited(lambda: state() == "CANCELED")


# One step at a time, against the manager


@dataclass
class Bench:
    """A performer whose jobs nobody works on, and the manager of its list."""

    settings: Settings
    manager: Manager
    worklist: WorklistManager
    claims: Claims
    queue: JobQueue
    news: JobNews
    database: WorklistDatabase

    def performer(self) -> Performer:
        def choose(slides: list[tuple[str, str]]) -> Workplace:
            return Workplace.open(self.settings, lambda progress: None)

        return Performer(self.settings, self.worklist, self.claims, self.queue, self.news, choose)


@pytest.fixture(params=["address", "dataset"])
def bench(tmp_path: Path, smear: Smear, request: pytest.FixtureRequest) -> Iterator[Bench]:
    settings = load_settings(smear.settings(), {})
    pacs = replace(settings.pacs, retries=0)
    settings = replace(settings, work_folder=tmp_path / "work", pacs=pacs)
    prepare_database(settings)
    with (
        running_manager(Manager(lock_in=request.param)) as manager,
        closing(worklist_database(settings)) as database,
        open_job_database(settings) as jobs,
    ):
        worklist = WorklistManager(manager.url, pacs, "NODE")
        queue, news = JobQueue(jobs), JobNews(jobs)
        yield Bench(settings, manager, worklist, Claims(database, "m"), queue, news, database)


def test_both_places_of_the_transaction_uid(bench: Bench) -> None:
    bench.manager.schedule("1.9.1", [MISSING])
    bench.performer().look()
    bench.performer().look()
    (claim,) = bench.claims.open()
    assert bench.manager.steps["1.9.1"].lock == claim.transaction_uid
    assert bench.manager.steps["1.9.1"].history == ["SCHEDULED", "IN PROGRESS", "progress 0.0"]
    refused = [status for _, status in bench.manager.refusals]
    assert refused == ([] if bench.manager.lock_in == "address" else [400])
    bench.worklist.update("1.9.1", claim.transaction_uid, progress(50, "half"))
    assert len(bench.manager.refusals) == len(refused), "which place was it is remembered"


def test_a_lost_claim_is_left_alone(bench: Bench) -> None:
    bench.manager.schedule("1.9.1", [MISSING])
    bench.manager.steps["1.9.1"].lock = "2.25.9"  # another performer is just before us
    performer = bench.performer()
    performer.look()
    assert bench.claims.open() == []
    assert bench.queue.list() == []
    assert bench.manager.refusals == [("PUT /rs/workitems/1.9.1/state", 409)]


def test_a_claim_whose_answer_was_lost_is_ours(bench: Bench) -> None:
    """Killed after the manager had said yes, and before that was written down."""
    bench.manager.schedule("1.9.1", [MISSING])
    claim = bench.claims.begin("1.9.1")
    bench.manager.claim_for("1.9.1", claim.transaction_uid)
    bench.performer().look()
    (kept,) = bench.claims.open()
    assert (kept.state, kept.transaction_uid) == ("claimed", claim.transaction_uid)
    bench.performer().look()
    assert [job.series_uid for job in bench.queue.list()] == [MISSING[1]]


def test_a_claim_that_never_came_there_is_made_again(bench: Bench) -> None:
    bench.manager.schedule("1.9.1", [MISSING])
    claim = bench.claims.begin("1.9.1")
    bench.performer().look()
    assert bench.manager.steps["1.9.1"].lock == claim.transaction_uid
    assert bench.manager.steps["1.9.1"].history.count("IN PROGRESS") == 1


def test_a_claim_that_somebody_else_got_meanwhile_is_given_up(bench: Bench) -> None:
    bench.manager.schedule("1.9.1", [MISSING])
    bench.claims.begin("1.9.1")
    bench.manager.claim_for("1.9.1", "2.25.9")
    bench.performer().look()
    assert bench.claims.open() == []
    assert bench.queue.list() == []


def test_a_manager_that_is_down_is_asked_again(bench: Bench) -> None:
    bench.manager.schedule("1.9.1", [MISSING])
    performer = bench.performer()
    bench.manager.down.set()
    with pytest.raises(PacsBusy, match="worklist manager"):
        performer.look()
    bench.manager.down.clear()
    performer.look()
    bench.manager.down.set()
    with pytest.raises(PacsBusy):
        performer.look()
    bench.manager.down.clear()
    performer.look()
    assert bench.manager.steps["1.9.1"].history.count("IN PROGRESS") == 1
    assert len(bench.claims.open()) == 1


def test_a_package_that_is_missing_claims_nothing(bench: Bench) -> None:
    bench.manager.schedule("1.9.1", [MISSING])
    model = replace(bench.settings.model, name="none")
    bench.settings = replace(bench.settings, model=model)
    bench.performer().look()
    assert bench.claims.open() == []
    assert bench.manager.steps["1.9.1"].history == ["SCHEDULED"]


def test_a_workitem_that_the_list_never_answers_for_keeps_no_other_back(bench: Bench) -> None:
    """Neither from being claimed nor from going on."""
    for uid in ("1.9.1", "1.9.2"):
        bench.manager.schedule(uid, [MISSING])
    bench.manager.broken.add("1.9.1")
    performer = bench.performer()
    with pytest.raises(PacsBusy):
        performer.look()
    assert [claim.uid for claim in bench.claims.open()] == ["1.9.2"]
    bench.manager.broken.clear()
    performer.look()
    assert bench.manager.steps["1.9.1"].state == "IN PROGRESS"
    for uid in ("1.9.1", "1.9.2"):
        bench.claims.cancel(uid)
    bench.manager.broken.add("1.9.2")  # which was claimed first
    with pytest.raises(PacsBusy):
        performer.look()
    assert bench.manager.steps["1.9.1"].state == "CANCELED"
    assert [claim.uid for claim in bench.claims.open()] == ["1.9.2"]


def test_a_job_that_two_workitems_wait_for_is_not_cancelled_by_one(bench: Bench) -> None:
    for uid in ("1.9.1", "1.9.2"):
        bench.manager.schedule(uid, [MISSING])
    performer = bench.performer()
    performer.look()
    bench.claims.cancel("1.9.1")
    performer.look()
    assert bench.manager.steps["1.9.1"].state == "CANCELED"
    assert bench.manager.steps["1.9.2"].state == "IN PROGRESS"
    (job,) = bench.queue.list()
    assert job.status not in ENDED
    bench.claims.cancel("1.9.2")
    performer.look()
    performer.look()
    assert bench.manager.steps["1.9.2"].state == "CANCELED"
    assert bench.queue.get(job.job).status == "cancelled"
    assert bench.claims.open() == []


@pytest.mark.parametrize(
    ("before", "callback"), [(True, ""), (False, "http://localhost:1/"), (False, "")]
)
def test_a_job_that_somebody_else_asked_for_is_not_cancelled(
    bench: Bench, before: bool, callback: str
) -> None:
    """Before the workitem; or after it, waiting to be told or not."""
    slide, place = SlideReference(*MISSING, "POST /jobs"), bench.performer()._choose([MISSING])
    performer = bench.performer()
    bench.manager.schedule("1.9.1", [MISSING])
    if before:
        bench.queue.submit(slide, place, "routine", await_arrival=True)
    performer.look()
    if not before:
        bench.queue.submit(slide, place, "routine", callback, await_arrival=True)
    bench.claims.cancel("1.9.1")
    performer.look()
    assert bench.manager.steps["1.9.1"].state == "CANCELED"
    (job,) = bench.queue.list()
    assert job.status not in ENDED
    assert bench.claims.open() == []


def test_killed_between_the_last_update_and_the_end(bench: Bench) -> None:
    """The end that was told twice is the same end."""
    bench.manager.schedule("1.9.1", [MISSING])
    performer = bench.performer()
    performer.look()
    (claim,) = bench.claims.open()
    bench.queue.cancel(claim.jobs[0] if claim.jobs else bench.queue.list()[0].job)
    performer.look()
    assert bench.manager.steps["1.9.1"].state == "CANCELED"
    with bench.database.changing() as connection:
        from sqlalchemy import insert

        from node.worklist_database import CLAIMS

        connection.execute(
            insert(CLAIMS).values(
                worklist="m",
                uid=claim.uid,
                transaction_uid=claim.transaction_uid,
                state="claimed",
                jobs=json.dumps([bench.queue.list()[0].job]),
                cancel=False,
                begun_s=claim.begun_s,
            )
        )
    bench.performer().look()
    assert bench.claims.open() == []
    assert bench.manager.steps["1.9.1"].history.count("CANCELED") == 1


def test_hundreds_of_workitems_are_paged_through(bench: Bench) -> None:
    for number in range(230):
        bench.manager.schedule(f"1.9.{number}", [], workitem_code="other")
    bench.performer().look()
    assert bench.manager.requests == ["GET /rs/workitems"] * 3, "nothing more is asked of others'"


def test_refusals_and_failures_of_a_manager_are_told_apart(bench: Bench) -> None:
    with pytest.raises(WorkitemRefused) as unknown:
        bench.worklist.retrieve("9.9")
    assert unknown.value.why is Refusal.UNKNOWN
    with pytest.raises(WorkitemRefused):
        bench.worklist.change_state("9.9", "2.25.1", COMPLETED)
    bench.manager.token = TOKEN
    with pytest.raises(PacsUnauthorized):
        bench.worklist.retrieve("9.9")


# The own list, without a service


def test_only_the_own_performer_gets_own_cancel_requests(bench: Bench) -> None:
    own = OwnWorklist(workitems := Workitems(bench.database, "label"))
    given = workitem(ScheduledWorkitemCodeSequence=[OURS])
    for uid in ("1.8.1", "1.8.2"):
        workitems.create(given, uid)
    own.claim("1.8.1", "2.25.1")
    workitems.change_state("1.8.2", IN_PROGRESS, "2.25.2")
    assert workitems.request_cancel("1.8.1", {}, "DESK")
    with pytest.raises(WorkitemRefused) as absent:
        workitems.request_cancel("1.8.2", {}, "DESK")
    assert absent.value.why is Refusal.PERFORMER_ABSENT
    assert workitems.cancel_requests() == {"1.8.1"}


@pytest.mark.parametrize(
    ("classes", "found"),
    [([SM], 1), (["1.2.840.10008.5.1.4.1.1.2"], 0), ([], 0), ([SM, SM], 1)],
)
def test_slides_are_inputs_of_their_class(classes: list[str], found: int) -> None:
    given = attributes(
        StudyInstanceUID="1.2",
        SeriesInstanceUID="1.3",
        ReferencedSOPSequence=[attributes(ReferencedSOPClassUID=each) for each in classes],
    )
    item = attributes(InputInformationSequence=[given, given, attributes(StudyInstanceUID="1.2")])
    assert input_series(item, SM) == [("1.2", "1.3")] * found


def test_slides_named_twice_are_one_job(bench: Bench) -> None:
    place = Workplace.open(bench.settings, lambda progress: None)
    slide = SlideReference(*MISSING, "twice")
    jobs = {bench.queue.submit(slide, place, "routine", await_arrival=True).job for _ in "ab"}
    assert len(jobs) == 1


def test_a_workitem_that_was_deleted_keeps_no_other_from_going_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uid in ("1.9.1", "1.9.2"):
        bench.manager.schedule(uid, [(*MISSING[:1], f"1.2.3.{uid[-1]}")])
    performer = bench.performer()
    performer.look()
    performer.look()
    assert len(bench.claims.open()) == 2
    real, made = bench.queue.get, {kind: [["1.2.3", "1.2.3.9", "1.2.3.9.1"]] for kind in OUTPUTS}
    monkeypatch.setattr(
        bench.queue, "get", lambda job: replace(real(job), status="completed", result=made)
    )
    del bench.manager.steps["1.9.1"]
    performer.look()
    assert bench.claims.open() == []
    assert bench.manager.steps["1.9.2"].state == "COMPLETED"


def test_a_workitem_whose_job_was_forgotten_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.manager.schedule("1.9.1", [MISSING])
    performer = bench.performer()
    performer.look()
    performer.look()

    def forgotten(job: str) -> None:
        raise JobNotFound(f"Job {job} is not known here: it was forgotten.")

    monkeypatch.setattr(bench.queue, "get", forgotten)
    performer.look()
    assert bench.claims.open() == []
    assert bench.manager.steps["1.9.1"].state == "CANCELED"
