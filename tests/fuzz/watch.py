"""Runs inputs in a child process: a crash, a hang or a full memory ends the child, not the run."""

from __future__ import annotations

import logging
import multiprocessing
import resource
import signal
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from node.log import set_up_logging
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS

HANG_S = 5.0
BUDGET_BYTES = 300 * 2**20
POLL_S = 0.1


@dataclass(frozen=True)
class Finding:
    """An input that is not handled."""

    number: int
    data: bytes
    what: str


def watched(target: str, seeds: Sequence[bytes], numbers: Sequence[int]) -> list[Finding]:
    """Run mutations `numbers` of the seeds; a number below zero means a seed as it is."""
    findings: list[Finding] = []
    rest = list(numbers)
    while rest:
        done, what = _one_child(target, seeds, rest)
        if what:
            findings.append(Finding(rest[done], _input(seeds, rest[done]), what))
        rest = rest[done + 1 :] if what else []
    return findings


def _input(seeds: Sequence[bytes], number: int) -> bytes:
    return seeds[-1 - number] if number < 0 else mutated(seeds, number)


def _one_child(target: str, seeds: Sequence[bytes], numbers: Sequence[int]) -> tuple[int, str]:
    """How many inputs passed, and what happened to the next; empty if all passed."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(target, seeds, numbers, theirs), daemon=True)
    child.start()
    theirs.close()
    done, last = 0, time.monotonic()
    while True:
        if ours.poll(POLL_S):
            try:
                said = ours.recv()
            except EOFError:
                child.join()
                return done, "" if done == len(numbers) else f"crash: {_ended(child.exitcode)}"
            if isinstance(said, str):
                child.join()
                return done, said
            done, last = said, time.monotonic()
        elif time.monotonic() - last > HANG_S:
            child.kill()
            child.join()
            return done, f"hang: more than {HANG_S} s"


def _ended(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _work(target: str, seeds: Sequence[bytes], numbers: Sequence[int], said: Connection) -> None:
    run = TARGETS[target].run
    set_up_logging(verbose=False)
    logging.disable(logging.CRITICAL)
    for seed in seeds[:1]:
        run(seed)  # libraries have their working memory before it is measured
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    base = _peak_bytes()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + 4 * BUDGET_BYTES  # address space; what is really used is measured
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for done, number in enumerate(numbers, 1):
        try:
            run(_input(seeds, number))
        except BaseException:  # noqa: BLE001 - whatever gets here is a finding
            said.send("unclear: " + traceback.format_exc(limit=-6))
            return
        if _peak_bytes() - base > BUDGET_BYTES:
            said.send(f"memory: more than {BUDGET_BYTES} bytes")
            return
        said.send(done)


def _peak_bytes() -> int:
    """Most memory held since the child began: a fork's own count starts with its parent's."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # macOS, which counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
