"""How the steps of durable jobs run: recorded once, and only by the worker that has the job."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import stamina
from dbos import DBOS, PortableWorkflowError
from sqlalchemy.exc import SQLAlchemyError

from models.errors import MarrowNodeError
from node.config import JobSettings
from node.exit_codes import RECORDING_FAILED, error_classes
from node.metrics import stage_timed
from node.progress import Progress

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Steps:
    """How the steps of jobs run: recorded, and only while the jobs are this worker's.

    Attributes
    ----------
    check
        Does not return where another worker has this one's jobs, or this one is about to end.
    """

    check: Callable[[], None]

    def step(self, name: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a stage, or answer as an earlier process recorded it.

        Raises
        ------
        MarrowNodeError
            As the stage raises it, also where that was in a process that has been killed since.
        """
        try:
            return DBOS.run_step({"name": name}, partial(self._checked, stage))
        except PortableWorkflowError as error:
            # What an earlier process recorded of a failing step has its name and its words alone.
            known = error_classes().get(error.name)
            if known is None:
                raise
            raise known(error.message) from error
        except SQLAlchemyError as error:
            # The outcome could not be recorded, nor could the job's failure: it would stay running
            # for ever. A process that is started again goes on after the last recorded step.
            log.error(
                "The job database cannot be written (%s): the worker ends.", type(error).__name__
            )
            os._exit(RECORDING_FAILED)

    def patient(
        self, name: str, stage: Callable[[], dict[str, Any]], settings: JobSettings
    ) -> dict[str, Any]:
        """Run a step that is tried again, while its job waits, after failures that may pass.

        Raises
        ------
        MarrowNodeError
            As the stage raised it at last.
        """

        def tried() -> dict[str, Any]:
            for attempt in stamina.retry_context(
                on=_may_pass,
                attempts=settings.retries + 1,
                timeout=None,
                wait_initial=settings.retry_wait_s,
                wait_max=LONGEST_WAIT_S,
                wait_jitter=0,
            ):
                with attempt:
                    # Who has lost the job while it waited asks and tells nobody further.
                    self.check()
                    return stage()
            raise RuntimeError("stamina made no attempt")

        return self.step(name, tried)

    def sleep(self, seconds: float) -> None:
        """Wait; a wait that was over before a restart is not waited for again.

        DBOS's own would record until when, which a clock that is turned back makes later.
        """

        def waited() -> dict[str, Any]:
            time.sleep(seconds)
            return {}

        self.step("wait", waited)

    def timed(self, name: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a step whose seconds are measured."""

        def timed() -> dict[str, Any]:
            with stage_timed(name):
                return stage()

        return self.step(name, timed)

    def report_to(self, report: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Progress of a job, which stops where it is no longer this worker's to deliver."""

        def checked(progress: Progress) -> None:
            if progress.stage.startswith("deliver"):
                self.check()
            report(progress)

        return checked

    def _checked(self, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return stage()
        finally:
            # Before DBOS records what came of it: that is another's, once another has the job.
            self.check()


def still_ours() -> None:
    """Check nothing: of a SQLite database nobody takes a job while its worker's lock is held."""


def _may_pass(error: Exception) -> bool:
    return isinstance(error, MarrowNodeError) and error.transient
