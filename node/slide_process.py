"""Processes in which slides are read: they may die or hang alone.

What decodes and parses foreign data can crash, take all memory, or never end. It runs in a process
of its own, which a worker watches: a slide that ends it fails, and the worker goes on. One that
has done its job well is given the next one, as libraries and GPU have taken seconds to load. Such
processes are forked by one that has no threads and has loaded everything already: it is forked
itself when the worker begins, before there are threads or connections that must not be shared.

What is told between them is JSON, and what may be asked for stands in a table from the beginning:
nothing that a slide's process has become can make the worker run anything else.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, is_dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from pydantic import TypeAdapter

from dicom_io.errors import SlideProcessDied
from dicom_io.read_budget import exceeded
from models.errors import MarrowNodeError
from node.budget_settings import BudgetSettings
from node.exit_codes import WORKER_BROKEN, error_classes
from node.log import telling_of
from node.progress import Progress
from node.summary import peak_rss_bytes
from node.workplace import Desk

log = logging.getLogger(__name__)

Json = dict[str, Any]
Stage = Callable[..., Json]
Opener = Callable[[Json, Callable[[Progress], None]], Desk]
"""Opens the workplace of a job, by its arguments, and reports progress to what it is given."""

LOOK_S = 0.2
END_S = 10.0
PID_BYTES = 16
# The kernel kills the slide's process first where memory is short (proc(5), oom_score_adj).
FIRST_TO_KILL = "1000"
# Then a new one is started: what libraries may leak has an end.
MOST_JOBS = 100


@dataclass(frozen=True, slots=True)
class Work:
    """What may be asked of a slide's process.

    Attributes
    ----------
    openers
        By kind of job.
    stages
        Their arguments and results are JSON, or dataclasses of it as annotated.
    load
        Loads what a first slide would wait for; called once, before a process is forked.
    """

    openers: Mapping[str, Opener]
    stages: Sequence[Stage]
    load: Callable[[], None]


@dataclass(slots=True)
class _Reader:
    """A process that reads slides, one after the other.

    Attributes
    ----------
    connection
    end
        Tells of its end.
    pid
    jobs
        How many it was given.
    """

    connection: Connection
    end: socket.socket
    pid: int
    jobs: int = 0

    @property
    def ended(self) -> bool:
        return bool(select.select([self.end], [], [], 0)[0])

    def kill(self) -> None:
        # Its number is another's only after its end was told.
        if not self.ended:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.connection.close()
        self.end.close()

    def forget_peak(self) -> None:
        """Count its largest memory from now on (proc(5), clear_refs)."""
        with suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5", encoding="ascii")


class SlideProcess:
    """The process of one job. Made by :meth:`SlideProcesses.process`; begins with the first stage.

    Parameters
    ----------
    take
        Starts a process, or takes one that has nothing to do.
    kind, arguments
        Of the job, for the opener of its workplace.
    report
        Told of progress; what it raises ends the process.
    try_id
        For the log.
    budget
    """

    def __init__(
        self,
        take: Callable[[], _Reader],
        kind: str,
        arguments: Json,
        report: Callable[[Progress], None],
        try_id: str,
        budget: BudgetSettings,
    ) -> None:
        self._take, self._report, self._budget = take, report, budget
        self._job = {"kind": kind, "arguments": arguments, "try_id": try_id}
        self._reader: _Reader | None = None
        self._begun_s = self._heard_s = 0.0
        self._peak_bytes = 0

    def run(self, stage: Stage, place: Desk, *arguments: Any) -> Json:
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
            reader = self._reader or self._begun()
            asked = {"stage": _name(stage), "arguments": [*map(_as_json, arguments)]}
            return self._asked(reader, asked)
        except BaseException:
            self.close()
            raise

    def peak_rss_mb(self) -> float:
        """Largest resident memory of this process or the slide's, in MB of 10⁶ bytes."""
        self._measure()
        return round(max(self._peak_bytes, peak_rss_bytes()) / 1e6, 1)

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._reader is None:
            return
        self._measure()
        self._reader.kill()
        self._reader = None

    def leave(self) -> _Reader | None:
        """Let the process forget the job; it may be given another one."""
        self._measure()
        reader, self._reader = self._reader, None
        if reader is None:
            return None
        try:
            _tell(reader.connection, {"leave": True})
        except ConnectionError:
            reader.kill()
            return None
        return reader

    def _begun(self) -> _Reader:
        self._reader = reader = self._take()
        self._begun_s = time.monotonic()
        self._asked(reader, self._job)
        return reader

    def _asked(self, reader: _Reader, what: Json) -> Json:
        """Ask for something and follow until it is done."""
        self._heard_s = time.monotonic()
        try:
            _tell(reader.connection, what)
            while True:
                if not reader.connection.poll(LOOK_S):
                    self._watch()
                    continue
                told = _hear(reader.connection)
                self._heard_s = time.monotonic()
                if "done" in told:
                    done: Json = told["done"]
                    return done
                if "failed" in told:
                    raise _error(told["failed"], told["sentence"])
                self._watch()
                self._report(Progress(*told["at"]))
        except (EOFError, ConnectionError) as error:
            raise _death(reader) from error

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
        if self._reader is not None and not self._reader.ended:
            self._peak_bytes = max(self._peak_bytes, peak_rss_bytes(self._reader.pid))


def _death(reader: _Reader) -> SlideProcessDied:
    """What a process died of; waits until that is known."""
    code = int(reader.end.recv(PID_BYTES) or b"0")
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return SlideProcessDied(
        f"The process that read the slide died of {how}{hint}: check the slide's files."
    )


class SlideProcesses:
    """Starts the processes of slides. Made by :func:`slide_processes`; usable from any thread."""

    def __init__(self, control: socket.socket, budget: BudgetSettings) -> None:
        self._control, self._budget = control, budget
        self._idle: list[_Reader] = []
        self._lock = threading.Lock()

    @contextmanager
    def process(
        self, kind: str, arguments: Json, report: Callable[[Progress], None], try_id: str
    ) -> Iterator[SlideProcess]:
        """The process of one job; where all went well, the next job gets it after the block."""
        made = SlideProcess(self._take, kind, arguments, report, try_id, self._budget)
        try:
            yield made
        except BaseException:
            made.close()
            raise
        reader = made.leave()
        if reader is not None and reader.jobs < MOST_JOBS:
            with self._lock:
                self._idle.append(reader)
        elif reader is not None:
            reader.kill()

    def close(self) -> None:
        """End those that have nothing to do."""
        with self._lock:
            while self._idle:
                self._idle.pop().kill()

    def _take(self) -> _Reader:
        with self._lock:
            while self._idle and self._idle[-1].ended:
                self._idle.pop().kill()
            reader = self._idle.pop() if self._idle else None
        if reader is None:
            reader = self._start()
        reader.jobs += 1
        reader.forget_peak()
        return reader

    def _start(self) -> _Reader:
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
        end.settimeout(END_S)
        return _Reader(Connection(ours.detach()), end, int(end.recv(PID_BYTES) or b"0"))


@contextmanager
def slide_processes(budget: BudgetSettings, work: Work) -> Iterator[SlideProcesses]:
    """Fork the process that starts the others; all end with the block, or with this process.

    To be called before threads and connections that must not be shared are made, and before this
    process has looked at a GPU: CUDA does not outlive a fork.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        ours.close()
        _serve(theirs, work)
    theirs.close()
    processes = SlideProcesses(ours, budget)
    try:
        yield processes
    finally:
        processes.close()
        ours.close()
        os.waitpid(pid, 0)


def _serve(control: socket.socket, work: Work) -> NoReturn:
    """Fork a process for each pair of connections that comes, and tell of its end."""
    try:
        # Ctrl-C in a terminal reaches all its processes; the worker decides when these end.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        work.load()
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
                _fork(children, work, *handles)
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    finally:
        os._exit(0)


def _fork(children: dict[int, socket.socket], work: Work, handle: int, end: int) -> None:
    told = socket.socket(fileno=end)
    pid = os.fork()
    if not pid:
        _do(Connection(handle), work)
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


def _do(connection: Connection, work: Work) -> NoReturn:
    """Do what is asked for, until nothing is any more."""
    code = 1
    stages = {_name(stage): stage for stage in work.stages}
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(FIRST_TO_KILL, encoding="ascii")
        with suppress(EOFError, ConnectionError):
            while True:
                _do_job(connection, _hear(connection), work.openers, stages)
        code = 0
    finally:
        os._exit(code)


def _do_job(
    connection: Connection,
    job: Json,
    openers: Mapping[str, Opener],
    stages: Mapping[str, Stage],
) -> None:
    """Open the workplace of a job, and run its stages until it is left."""

    def report(at: Progress) -> None:
        _tell(connection, {"at": astuple(at)})

    opener, arguments = openers[job["kind"]], job["arguments"]
    with telling_of(job["try_id"], arguments["study_uid"]):
        place = _answered(connection, lambda: opener(arguments, report))
        while "leave" not in (asked := _hear(connection)):
            stage = stages[asked["stage"]]
            given = _as_annotated(stage, asked["arguments"])
            _answered(connection, partial(stage, place, *given))


def _answered(connection: Connection, what: Callable[[], Any]) -> Any:
    """Do one thing and tell what came of it; a workplace stays here."""
    try:
        done = what()
    except MarrowNodeError as error:
        _tell(connection, {"failed": type(error).__name__, "sentence": str(error)})
        return None
    except Exception as error:  # noqa: BLE001 - told by its name: its words may be a patient's
        _tell(connection, {"failed": type(error).__name__, "sentence": ""})
        return None
    _tell(connection, {"done": done if isinstance(done, dict) else {}})
    return done


def _error(name: str, sentence: str) -> Exception:
    """The error that a slide's process has told of."""
    known = error_classes().get(name)
    if known is None:
        return RuntimeError(f"{name} in the process that read the slide")
    return known(sentence)


def _tell(connection: Connection, message: Json) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _hear(connection: Connection) -> Json:
    message: Json = json.loads(connection.recv_bytes())
    return message


def _name(stage: Stage) -> str:
    return f"{stage.__module__}.{stage.__qualname__}"


def _as_json(argument: Any) -> Any:
    is_record = is_dataclass(argument) and not isinstance(argument, type)
    return asdict(argument) if is_record else argument


def _as_annotated(stage: Stage, arguments: Sequence[Any]) -> list[Any]:
    """Arguments as the stage's parameters after the workplace are annotated."""
    hints = get_type_hints(stage, include_extras=True)
    hints.pop("return", None)
    kinds = list(hints.values())[1:]
    return [
        TypeAdapter(kind).validate_python(given)
        for kind, given in zip(kinds, arguments, strict=True)
    ]
