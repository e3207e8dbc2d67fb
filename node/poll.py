"""``marrow-node poll``: looks for new slides by itself, in the archive and in a folder.

What was seen is remembered with what was decided about it; under other rules it is decided anew.
Searches overlap, and a slide that is found twice is one job, so that neither a restart nor a clock
that jumps loses or doubles one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import date, timedelta

import click
from sqlalchemy import delete, insert, select

from dicom_io.dicom_json import value
from dicom_io.errors import ConfigurationInvalid, PacsNotFound, PacsUnreachable
from dicom_io.pacs import Pacs, open_pacs
from dicom_io.search import Search
from models.errors import MarrowNodeError
from node.attempts import Attempts, OneByOne, run_loops
from node.config import Settings
from node.device import check_device
from node.drop_folder import DropFolder
from node.intake import SLIDE_MODALITY
from node.job_database import prepare_database
from node.job_queue import JobQueue, open_job_queue
from node.pipeline import SlideReference
from node.rules import submit_by_rules
from node.seen_slides import SeenSlides
from node.worklist_database import CURSORS, UNREAD, WorklistDatabase, worklist_database

log = logging.getLogger(__name__)

DATE = "%Y%m%d"


@click.command()
@click.pass_obj
def poll(settings: Settings) -> None:
    """Look for new slides in the archive and in a folder (settings [poll]), until SIGTERM.

    Jobs are queued: a worker ('marrow-node work', or those of 'marrow-node serve') does them.
    """
    if not polls(settings):
        raise ConfigurationInvalid(
            "Nothing is polled: set poll.pacs_every_s for the archive, or poll.folder for a folder."
        )
    check_device(settings.model)  # without it no job could be queued
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    poll_until(settings, stopped)


def polls(settings: Settings) -> bool:
    return settings.poll.pacs_every_s > 0 or settings.poll.folder is not None


def poll_until(settings: Settings, stopped: threading.Event) -> None:
    """Look for new slides until `stopped` is set."""
    prepare_database(settings)
    with closing(worklist_database(settings)) as database, open_job_queue(settings) as queue:
        loops: list[Callable[[], None]] = []
        if settings.poll.pacs_every_s > 0:
            looks = ArchiveLooks(settings, database, queue)
            loops.append(lambda: _look_every(settings.poll.pacs_every_s, looks.look, stopped))
        if settings.poll.folder is not None:
            folder = DropFolder(settings, queue)
            loops.append(lambda: _look_every(settings.poll.folder_every_s, folder.look, stopped))
        run_loops(loops, stopped)


def _look_every(seconds: float, look: Callable[[], None], stopped: threading.Event) -> None:
    looks = Attempts()
    looks.make(look)
    while not stopped.wait(seconds):
        looks.make(look)


class ArchiveLooks:
    """Searches the archive for slides that are new.

    Parameters
    ----------
    settings
    database
    queue
    today
    """

    def __init__(
        self,
        settings: Settings,
        database: WorklistDatabase,
        queue: JobQueue,
        today: Callable[[], date] = date.today,
    ) -> None:
        self._settings, self._database, self._queue = settings, database, queue
        self._today = today
        rules = json.dumps([asdict(rule) for rule in settings.rules], sort_keys=True)
        digest = hashlib.sha256(rules.encode()).hexdigest()[:16]
        self._archive = settings.pacs_url[:256]
        self._seen = SeenSlides(database, f"{self._archive} {digest}")
        self._failed: dict[str, str] = {}

    def look(self) -> None:
        """Queue what is new and fits the rules.

        Raises
        ------
        MarrowNodeError
            The archive cannot be asked at present, or not about one of the studies: the others were
            looked through, and the next look comes back to it, however old it is by then.
        """
        today = self._today()
        since = self._since(today)
        studies, unread = OneByOne(), self._unread()
        with open_pacs(self._settings.pacs_url, self._settings.pacs) as pacs:
            dated = Search("studies", {"StudyDate": f"{since.strftime(DATE)}-"})
            new = list(pacs.search_slide_studies(dated))
            # What could not be read comes last: many of those look like an archive that is away.
            found = dict.fromkeys([*new, *unread], False)
            for study_uid in found:
                try:
                    found[study_uid] = self._is_read(pacs, study_uid, studies)
                except PacsUnreachable:
                    if study_uid in new:
                        raise
                    break
        self._searched(today, [study_uid for study_uid, read in found.items() if not read])
        studies.end()

    def _is_read(self, pacs: Pacs, study_uid: str, studies: OneByOne) -> bool:
        """Look through a study; false where it has to be come back to."""
        with studies.one():
            with suppress(PacsNotFound):  # it is there no more
                self._look_through(pacs, study_uid)
            return True
        return False

    def _look_through(self, pacs: Pacs, study_uid: str) -> None:
        slides = OneByOne()
        for series in pacs.search_series(study_uid):
            series_uid = str(value(series, "SeriesInstanceUID") or "")
            known = (study_uid, series_uid) in self._seen
            if value(series, "Modality") == SLIDE_MODALITY and not known:
                with slides.one():
                    self._decide(SlideReference(study_uid, series_uid, "found by polling"))
        slides.end()

    def _decide(self, slide: SlideReference) -> None:
        try:
            _, decision = submit_by_rules(self._settings, self._queue, slide, "routine")
        except MarrowNodeError as error:
            if error.transient:
                raise
            # One slide that cannot be decided on must not hide the others; it is looked at again.
            if self._failed.get(slide.series_uid) != str(error):
                log.warning("Series %s: %s", slide.series_uid, error)
            self._failed[slide.series_uid] = str(error)
            return
        self._seen.add(slide.study_uid, slide.series_uid, decision.why)

    def _since(self, today: date) -> date:
        """The first day to look through: not later than today, whatever a clock said once."""
        query = select(CURSORS.c.place).where(CURSORS.c.source == self._archive)
        with self._database.reading() as connection:
            told = connection.execute(query).scalar()
        last = date.fromisoformat(told) if told else today
        return min(last, today) - timedelta(days=self._settings.poll.overlap_days)

    def _unread(self) -> list[str]:
        query = select(UNREAD.c.study_uid).where(UNREAD.c.source == self._archive)
        with self._database.reading() as connection:
            return list(connection.execute(query.order_by(UNREAD.c.study_uid)).scalars())

    def _searched(self, today: date, unread: Sequence[str] = ()) -> None:
        """Begin there the next time, and with what could not be read."""
        source = {"source": self._archive}
        with self._database.changing() as connection:
            for table in (CURSORS, UNREAD):
                connection.execute(delete(table).where(table.c.source == self._archive))
            connection.execute(insert(CURSORS).values(place=today.isoformat(), **source))
            for study_uid in unread:
                connection.execute(insert(UNREAD).values(study_uid=study_uid[:64], **source))
