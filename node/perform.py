"""``marrow-node perform``: performs workitems, which ``marrow-node serve`` does too."""

from __future__ import annotations

import logging
import signal
import threading
import time
from contextlib import closing

import click

from dicom_io.errors import Refusal, WorkitemRefused
from dicom_io.worklist_manager import WorklistManager
from models.errors import MarrowNodeError
from node.attempts import Attempts, run_loops
from node.claims import Claims
from node.config import Settings
from node.device import check_device
from node.job_database import JobDatabase, open_job_database, prepare_database
from node.job_news import JobNews
from node.job_queue import JobQueue
from node.performer import OwnWorklist, Performer
from node.rule_settings import RuleSettings
from node.rules import decision_for, settings_by
from node.workitems import Workitems
from node.worklist_database import WorklistDatabase, worklist_database
from node.workplace import Workplace

log = logging.getLogger(__name__)

OWN_LOOK_S = 0.5
# While something is being performed, its progress is told as often.
FOLLOW_S = 1.0
PURGE_S = 3600.0
LONGEST_PAUSE_S = 60.0


@click.command()
@click.pass_obj
def perform(settings: Settings) -> None:
    """Perform the workitems of the node's own list and of a manager's, until SIGTERM.

    \b
    A manager's are performed where ups.manager_url names one. Jobs are queued: a worker
    ('marrow-node work', or those of 'marrow-node serve') does them.
    """
    check_device(settings.model)  # without it no job could be queued
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    perform_until(settings, stopped)


def perform_until(settings: Settings, stopped: threading.Event) -> None:
    """Perform workitems until `stopped` is set."""
    prepare_database(settings)
    with closing(worklist_database(settings)) as database, open_job_database(settings) as jobs:
        loops = [lambda: _perform_own(settings, database, jobs, stopped)]
        if settings.ups.manager_url:
            loops.append(lambda: _perform_managed(settings, database, jobs, stopped))
        run_loops(loops, stopped)


def _perform_own(
    settings: Settings, database: WorklistDatabase, jobs: JobDatabase, stopped: threading.Event
) -> None:
    workitems = Workitems(database, settings.ups.worklist_label)
    performer = _performer(settings, OwnWorklist(workitems), database, jobs)
    looks, purges = Attempts(), Attempts()
    seen: tuple[float, int] | None = None
    looked_s = purged_s = -float("inf")

    def look() -> None:
        nonlocal seen, looked_s
        performer.cancel(workitems.cancel_requests())
        version, now_s = workitems.version(), time.monotonic()
        if version == seen and now_s - looked_s < settings.ups.poll_s:
            performer.follow()
            return
        performer.look()
        seen, looked_s = version, now_s

    while not stopped.wait(OWN_LOOK_S):
        looks.make(look)
        if time.monotonic() - purged_s > PURGE_S:
            purged_s = time.monotonic()
            purges.make(lambda: workitems.purge(settings.ups.keep_days))


def _perform_managed(
    settings: Settings, database: WorklistDatabase, jobs: JobDatabase, stopped: threading.Event
) -> None:
    ups = settings.ups
    manager = WorklistManager(ups.manager_url, ups.manager, ups.station)
    performer = _performer(settings, manager, database, jobs)
    due = threading.Event()
    listener = threading.Thread(
        target=_listen, args=(manager, performer, stopped, due), daemon=True
    )
    listener.start()
    looks, looked_s = Attempts(), -float("inf")
    while not stopped.is_set():
        if due.is_set() or time.monotonic() - looked_s >= ups.poll_s:
            due.clear()
            looked_s = time.monotonic()
            looks.make(performer.look)
        else:
            looks.make(performer.follow)
        due.wait(min(FOLLOW_S, ups.poll_s))
    listener.join(FOLLOW_S)


def _listen(
    manager: WorklistManager,
    performer: Performer,
    stopped: threading.Event,
    due: threading.Event,
) -> None:
    """Heed the manager's events; without them its list is only looked at from time to time."""
    pause_s = 1.0
    while not stopped.is_set():
        try:
            manager.subscribe()
            for report in manager.events(stopped.is_set, FOLLOW_S):
                pause_s = 1.0
                if report is not None:
                    performer.heed(report)
                    due.set()
        except (MarrowNodeError, WorkitemRefused) as error:
            log.info("%s", error)
        stopped.wait(pause_s)
        pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
        due.set()  # what was told meanwhile is found by looking


def _performer(
    settings: Settings,
    worklist: OwnWorklist | WorklistManager,
    database: WorklistDatabase,
    jobs: JobDatabase,
) -> Performer:
    name = "own" if isinstance(worklist, OwnWorklist) else settings.ups.manager_url
    claims = Claims(database, name)

    def choose(slides: list[tuple[str, str]]) -> Workplace:
        """The workplace by the rule that all slides fit; without rules, the node's own."""
        chosen = {decided(settings, *slide) for slide in slides}
        if len(chosen) != 1:
            raise WorkitemRefused("its slides go by several rules", Refusal.INAPPROPRIATE)
        return Workplace.open(settings_by(settings, chosen.pop()), lambda progress: None)

    return Performer(settings, worklist, claims, JobQueue(jobs), JobNews(jobs), choose)


def decided(settings: Settings, study_uid: str, series_uid: str) -> RuleSettings | None:
    """The rule that a slide goes by, None without rules.

    Raises
    ------
    WorkitemRefused
        It is not to be analysed.
    """
    decision = decision_for(settings, study_uid, series_uid)
    if not decision.analyse:
        raise WorkitemRefused(f"series {series_uid}: {decision.why}", Refusal.INAPPROPRIATE)
    return decision.rule
