"""Kept inputs and a few hundred mutations; ``make fuzz`` makes ten thousand."""

from __future__ import annotations

import pytest

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS, kept
from tests.fuzz.watch import watched

RUNS = 100  # beside all seeds; `make fuzz` makes 10 000


@pytest.mark.parametrize("target", TARGETS)
def test_no_crash_no_hang_no_memory_and_a_clear_error(target: str) -> None:
    seeds = [*TARGETS[target].seeds(), *kept(target)]
    findings = watched(target, seeds, [*range(-len(seeds), 0), *range(RUNS)])
    assert not findings, "\n".join(f"{finding.number}: {finding.what}" for finding in findings)


def test_mutations_repeat() -> None:
    seeds = list(TARGETS["multipart"].seeds())
    assert mutated(seeds, 7) == mutated(seeds, 7) != mutated(seeds, 8)


def test_mutations_do_not_depend_on_those_before() -> None:
    seeds = [b'[{"00080018": {"vr": "UI", "Value": ["1.2.3"]}}]']
    alone = [mutated(seeds, number) for number in range(500)]
    assert [mutated(seeds, number) for number in range(500)] == alone


def _crash(data: bytes) -> None:
    import ctypes
    import faulthandler

    faulthandler.disable()  # its report would stand in the middle of the tests' own
    ctypes.string_at(0)


def _hang(data: bytes) -> None:
    while True:
        pass


def _fill(data: bytes) -> None:
    bytearray(400 * 2**20)[::4096] = b"x" * (400 * 2**8)


def _unclear(data: bytes) -> None:
    raise KeyError("0020000D")


@pytest.mark.parametrize(
    ("run", "said"),
    [(_crash, "SIGSEGV"), (_hang, "hang"), (_fill, "memory"), (_unclear, "KeyError")],
)
def test_the_watch_sees(run, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fuzz import watch
    from tests.fuzz.targets import Target

    def seldom(data: bytes) -> None:
        if data == b"bad":
            run(data)

    # Filling the memory takes a busy machine longer than a hang has to.
    monkeypatch.setattr(watch, "HANG_S", 1.0 if run is _hang else 30.0)
    monkeypatch.setitem(TARGETS, "seldom", Target(seldom, lambda: iter([b"good", b"bad"])))
    (finding,) = watched("seldom", [b"good", b"bad"], [-1, -2, -1])
    assert (finding.data, finding.number) == (b"bad", -2)
    assert said in finding.what
