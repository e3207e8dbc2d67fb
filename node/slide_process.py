"""Processes in which slides are read: one for each job, which may die or hang alone.

What decodes and parses foreign data can crash, take all memory, or never end. It runs in a process
of its own, which a worker watches: a slide that ends it fails, and the worker goes on. Such
processes are forked by one that has no threads and has loaded everything already: it is forked
itself when the worker begins, before there are threads or connections that must not be shared.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from dicom_io.errors import SlideProcessDied
from dicom_io.read_budget import exceeded
from node.budget_settings import BudgetSettings
from node.exit_codes import WORKER_BROKEN
from node.log import telling_of
from node.progress import Progress
from node.summary import peak_rss_bytes
from node.workplace import Desk

log = logging.getLogger(__name__)

Json = dict[str, Any]
Opener = Callable[[Callable[[Progress], None]], Desk]
"""Opens the workplace in the slide's process; can be pickled. Progress is reported to what it is
given."""

LOOK_S = 0.2
END_S = 10.0
PID_BYTES = 16
# The kernel kills the slide's process first where memory is short (proc(5), oom_score_adj).
FIRST_TO_KILL = "1000"


class SlideProcess:
    """The process of one job. Made by :meth:`SlideProcesses.process`; begins with the first stage.

    Parameters
    ----------
    start
        Starts a process: connections to it, and to what tells of its end.
    opener
    report
        Told of progress; what it raises ends the process.
    try_id, study_uid
        For the log.
    budget
    """

    def __init__(
        self,
        start: Callable[[], tuple[Connection, socket.socket]],
        opener: Opener,
        report: Callable[[Progress], None],
        try_id: str,
        study_uid: str,
        budget: BudgetSettings,
    ) -> None:
        self._start, self._opener, self._report = start, opener, report
        self._told, self._budget = (try_id, study_uid), budget
        self._connection: Connection | None = None
        self._end: socket.socket | None = None
        self._pid = 0
        self._begun_s = self._heard_s = 0.0
        self._peak_bytes = 0

    def run(self, stage: Callable[..., Json], place: Desk, *arguments: Any) -> Json:
        """Run a stage there; `place` stays here, the process has its own.

        Raises
        ------
        MarrowNodeError
            As the stage, or the opening of its workplace, raises it.
        BudgetExceeded
            Seconds or memory.
        SlideProcessDied
            By itself, or because it hung.
        """
        try:
            done: Json = self._asked(self._connection or self._begun(), stage, arguments)
            return done
        except BaseException:
            self.close()
            raise

    def peak_rss_mb(self) -> float:
        """Largest resident memory of this process or the slide's, in MB of 10⁶ bytes."""
        self._measure()
        return round(max(self._peak_bytes, peak_rss_bytes()) / 1e6, 1)

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._connection is None or self._end is None:
            return
        self._measure()
        self._kill()
        self._connection.close()
        self._end.close()
        self._connection = self._end = None

    def _begun(self) -> Connection:
        self._connection, self._end = connection, end = self._start()
        end.settimeout(END_S)
        self._pid = int(end.recv(PID_BYTES) or b"0")
        self._begun_s = time.monotonic()
        self._asked(connection, self._opener, self._told)
        return connection

    def _asked(
        self, connection: Connection, what: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> Any:
        """Ask for something and follow until it is done."""
        self._heard_s = time.monotonic()
        try:
            connection.send((what, arguments))
            while True:
                if not connection.poll(LOOK_S):
                    self._watch()
                    continue
                kind, told = connection.recv()
                self._heard_s = time.monotonic()
                if kind == "done":
                    return told
                if kind == "failed":
                    raise told
                self._watch()
                self._report(told)
        except (EOFError, ConnectionError) as error:
            raise self._died() from error

    def _watch(self) -> None:
        now_s, budget = time.monotonic(), self._budget
        self._measure()
        if self._peak_bytes > budget.memory_bytes:
            raise exceeded("bytes of memory", "memory_bytes", budget.memory_bytes)
        if now_s - self._begun_s > budget.seconds:
            raise exceeded("seconds", "seconds", budget.seconds)
        if now_s - self._heard_s > budget.silent_s:
            raise SlideProcessDied(
                f"The process that read the slide told nothing for more than {budget.silent_s:g} s "
                "(budget.silent_s) and was ended: check the slide and its archive."
            )

    def _measure(self) -> None:
        self._peak_bytes = max(self._peak_bytes, peak_rss_bytes(self._pid) if self._pid else 0)

    def _died(self) -> SlideProcessDied:
        """What the process died of; waits until that is known."""
        code = int((self._end.recv(PID_BYTES) if self._end is not None else b"") or b"0")
        self._pid = 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return SlideProcessDied(
            f"The process that read the slide died of {how}{hint}: check the slide's files."
        )

    def _kill(self) -> None:
        # Its number is another's only after its end was told.
        ended = self._end is not None and select.select([self._end], [], [], 0)[0]
        if self._pid and not ended:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._pid = 0


class SlideProcesses:
    """Starts the processes of slides. Made by :func:`slide_processes`; usable from any thread."""

    def __init__(self, control: socket.socket, budget: BudgetSettings) -> None:
        self._control, self._budget = control, budget

    @contextmanager
    def process(
        self, opener: Opener, report: Callable[[Progress], None], try_id: str, study_uid: str
    ) -> Iterator[SlideProcess]:
        """The process of one job, which ends with the block."""
        made = SlideProcess(self._start, opener, report, try_id, study_uid, self._budget)
        try:
            yield made
        finally:
            made.close()

    def _start(self) -> tuple[Connection, socket.socket]:
        ours, theirs = socket.socketpair()
        end, told = socket.socketpair()
        try:
            with theirs, told:
                # One message, so that threads do not get in each other's way.
                socket.send_fds(self._control, [b"+"], [theirs.fileno(), told.fileno()])
        except ConnectionError:
            # Without it no slide can be read: the next worker has one of its own, and goes on.
            log.error("The process that starts those of slides is gone: the worker ends.")
            os._exit(WORKER_BROKEN)
        return Connection(ours.detach()), end


@contextmanager
def slide_processes(budget: BudgetSettings) -> Iterator[SlideProcesses]:
    """Fork the process that starts the others; all end with the block, or with this process.

    To be called before threads and connections that must not be shared are made.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        ours.close()
        _serve(theirs)
    theirs.close()
    try:
        yield SlideProcesses(ours, budget)
    finally:
        ours.close()
        os.waitpid(pid, 0)


def _serve(control: socket.socket) -> NoReturn:
    """Fork a process for each pair of connections that comes, and tell of its end."""
    try:
        # Ctrl-C in a terminal reaches all its processes; the worker decides when these end.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        woken, wakes = os.pipe()
        os.set_blocking(wakes, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(wakes)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        children: dict[int, socket.socket] = {}
        while True:
            ready, _, _ = select.select([control.fileno(), woken], [], [])
            if woken in ready:
                os.read(woken, 4096)
                _tell_ended(children)
            if control.fileno() in ready:
                message, handles, _, _ = socket.recv_fds(control, 1, 2)
                if not message:
                    break
                _fork(children, *handles)
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    finally:
        os._exit(0)


def _fork(children: dict[int, socket.socket], handle: int, end: int) -> None:
    told = socket.socket(fileno=end)
    pid = os.fork()
    if not pid:
        _work(Connection(handle))
    os.close(handle)
    children[pid] = told
    with suppress(OSError):  # the worker has gone meanwhile
        told.send(f"{pid}".encode().ljust(PID_BYTES))


def _tell_ended(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with children.pop(pid) as told, suppress(OSError):
            told.send(f"{os.waitstatus_to_exitcode(status)}".encode())


def _work(connection: Connection) -> NoReturn:
    """Do what is asked for, until nothing is any more."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(FIRST_TO_KILL, encoding="ascii")
        with suppress(EOFError, ConnectionError):
            opener, told = connection.recv()
            with telling_of(*told):
                place = _answered(connection, opener, lambda at: connection.send(("at", at)))
                while True:
                    stage, arguments = connection.recv()
                    _answered(connection, stage, place, *arguments)
        code = 0
    finally:
        os._exit(code)


def _answered(connection: Connection, what: Callable[..., Any], *arguments: Any) -> Any:
    """Do one thing and tell what came of it; a workplace stays here."""
    try:
        done = what(*arguments)
    except Exception as error:  # noqa: BLE001 - raised again by who has asked
        connection.send(("failed", _sendable(error)))
        return None
    connection.send(("done", done if isinstance(done, dict) else None))
    return done


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    except Exception:  # noqa: BLE001 - any class may have its own way of not being pickled
        return RuntimeError(f"{type(error).__name__} in the process that read the slide")
    return error
