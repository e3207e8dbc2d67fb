"""What goes wrong in one run, and when: all of it follows from the seed."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Side = Literal["PACS", "EHR"]
Occasion = Literal["step", "stage", "request", "answer"]

# The steps of a job whose slide nobody has analysed before; each end is a boundary.
STEPS = 9
STAGES = (
    "open", "localise", "detect", "count", "write",
    "deliver to PACS", "deliver to EHR", "reconcile",
)  # fmt: skip
# (side, what, method, path): every kind of request that a job makes.
REQUESTS: tuple[tuple[Side, str, str, str], ...] = (
    ("PACS", "metadata", "GET", "/metadata"),
    ("PACS", "frames", "GET", "/frames/"),
    ("PACS", "search", "GET", r"/instances\?"),
    ("PACS", "store", "POST", "/studies"),
    ("PACS", "read back", "GET", r"/instances/[\d.]+$"),
    ("EHR", "search", "GET", r"\?"),
    ("EHR", "transaction", "POST", r"^/?$"),
    ("EHR", "read back", "GET", r"/(Observation|Device)/"),
)
STATUSES = (401, 403, 409, 429, 500, 502, 503)
RESETS = ("before the request", "in the request", "before the answer", "in the answer")
WORKER = ("kill worker", "stop worker")
SERVERS = ("kill PACS", "stop PACS", "stop EHR")


@dataclass(frozen=True, slots=True)
class Moment:
    """When a process is hit.

    Attributes
    ----------
    occasion
        After the n-th step was recorded; in a stage, as the progress file tells; or at the n-th
        request of a kind, before it is passed on (request) or when it was obeyed (answer).
    which
        Number of the step, of the stage, or of the row of `REQUESTS`.
    skip
        Requests of that kind before.
    later_s
        Seconds between that and the hit.
    """

    occasion: Occasion
    which: int
    skip: int
    later_s: float


@dataclass(frozen=True, slots=True)
class Event:
    """One fault.

    Attributes
    ----------
    kind
        Of the summary's table.
    at
        When; of a fault of requests, which one meets it first.
    times
        Requests that it touches.
    status
        Of the answer, where the fault is one.
    seconds
        How long something stays stopped, dead, full, or slow.
    bytes_left
        Of a full disk: the largest file that can be written.
    """

    kind: str
    at: Moment
    times: int = 1
    status: int = 0
    seconds: float = 0.0
    bytes_left: int = 0

    @property
    def told(self) -> str:
        """In words, for a person who looks for what went wrong."""
        names = {
            "step": f"after step {self.at.which}",
            "stage": f"in {STAGES[self.at.which % len(STAGES)]}",
        }
        side, what, *_ = REQUESTS[self.at.which % len(REQUESTS)]
        when = names.get(
            self.at.occasion, f"{self.at.occasion} {self.at.skip + 1} of {side} {what}"
        )
        more = {
            "status": self.status,
            "times": self.times if self.times > 1 else 0,
            "s": self.seconds,
            "bytes": self.bytes_left,
        }
        rest = ", ".join(f"{name} {value:g}" for name, value in more.items() if value)
        return (
            f"{self.kind} {when}"
            + (f" +{self.at.later_s:g} s" if self.at.later_s else "")
            + (f" ({rest})" if rest else "")
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def schedule_of(seed: int) -> tuple[Event, ...]:
    """One to three faults."""
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    return tuple(_event(chance) for _ in range(chance.choice((1, 1, 2, 2, 3))))


def _event(chance: random.Random) -> Event:
    make = chance.choices(
        (_lost, _refused, _slow, _twice, _hit_worker, _hit_server, _full),
        weights=(4, 4, 1, 1, 6, 3, 2),
    )[0]
    return make(chance)


def _request(chance: random.Random) -> Moment:
    return Moment("request", chance.randrange(len(REQUESTS)), chance.choice((0, 0, 0, 1, 2)), 0.0)


def _lost(chance: random.Random) -> Event:
    return Event(f"reset {chance.choice(RESETS)}", _request(chance), chance.choice((1, 1, 2, 4)))


def _refused(chance: random.Random) -> Event:
    status = chance.choice(STATUSES)
    return Event(f"status {status}", _request(chance), chance.choice((1, 2, 4)), status)


def _slow(chance: random.Random) -> Event:
    return Event("slow trickle", _request(chance), 1, seconds=chance.choice((0.5, 2.0, 4.0)))


def _twice(chance: random.Random) -> Event:
    return Event("request twice", _request(chance), chance.choice((1, 4)))


def _moment(chance: random.Random) -> Moment:
    occasion: Occasion = chance.choices(
        ("step", "stage", "request", "answer"), weights=(3, 3, 1, 3)
    )[0]
    later_s = round(chance.choice((0.0, 0.0, chance.uniform(0, 0.3))), 3)
    if occasion == "step":
        return Moment(occasion, chance.randint(1, STEPS), 0, later_s)
    if occasion == "stage":
        return Moment(occasion, chance.randrange(len(STAGES)), 0, later_s)
    return replace(_request(chance), occasion=occasion)


def _hit_worker(chance: random.Random) -> Event:
    kind = chance.choice((WORKER[0], WORKER[0], WORKER[1]))
    seconds = chance.choice((0.0, 0.5)) if kind == WORKER[0] else chance.choice((0.3, 2.5))
    return Event(kind, _moment(chance), seconds=seconds)


def _hit_server(chance: random.Random) -> Event:
    return Event(chance.choice(SERVERS), _moment(chance), seconds=chance.choice((0.3, 1.0, 2.5)))


def _full(chance: random.Random) -> Event:
    left = chance.choice((0, 4096, 65536))
    return Event("disk full", _moment(chance), seconds=chance.choice((0.3, 1.5)), bytes_left=left)
