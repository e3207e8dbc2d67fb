"""What goes wrong in one run, and when: all of it follows from the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

from tests.archive_habits import CHANGES, REPEATS, Change, Repeat

# Raised whenever a seed comes to mean another schedule: rows of other versions are not kept.
VERSION = 3

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
SERVERS = ("kill PACS", "stop PACS", "kill EHR", "stop EHR")
DATABASE = ("kill database", "stop database", "restart database")
CLOCK = ("clock forward", "clock back")
CLOCK_STEP_S = 3600
UPGRADE = "upgrade worker"
TOKEN = "token expires"  # noqa: S105 - a kind of fault
# STOW answers about an object that was not stored: (status, Failure Reason).
REFUSALS = ((202, 0xA700), (202, 0x0110), (409, 0x0122), (409, 0xA700))
STORE = 3  # row of `REQUESTS`


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
    reason
        Failure Reason of a STOW answer, where the fault is one.
    seconds
        How long something stays stopped, dead, full, or slow.
    bytes_left
        Of a full disk: the largest file that can be written.
    """

    kind: str
    at: Moment
    times: int = 1
    status: int = 0
    reason: int = 0
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
            "reason": self.reason,
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


@dataclass(frozen=True, slots=True)
class Schedule:
    """What one run happens in, and what goes wrong in it.

    Attributes
    ----------
    repeat, shown_after_s, change
        Habits of the archive, see :class:`tests.archive_habits.ArchiveHabits`.
    database
        Of the jobs.
    hosts
        That work on them: a second one starts once the first has taken the job.
    tokens
        Whether archive and EHR ask for tokens.
    events
    """

    repeat: Repeat
    shown_after_s: float
    change: Change
    database: Literal["SQLite", "PostgreSQL"]
    hosts: int
    tokens: bool
    events: tuple[Event, ...]

    @property
    def needs_clock(self) -> bool:
        return any(event.kind in CLOCK for event in self.events)

    @property
    def told(self) -> tuple[str, ...]:
        """All of it in words."""
        habits: list[str] = [self.repeat] if self.repeat != REPEATS[0] else []
        if self.shown_after_s:
            habits.append(f"shows objects after {self.shown_after_s:g} s")
        habits += [self.change] if self.change else []
        place = [f"{self.hosts} host{'s' * (self.hosts > 1)} on {self.database}"]
        return (
            *(f"archive {habit}" for habit in habits),
            *(place if self.database == "PostgreSQL" else []),
            *(event.told for event in self.events),
        )


def schedule_of(seed: int) -> Schedule:
    """Habits of the archive, a database, and one to three faults."""
    chance = random.Random(f"{VERSION} {seed}")  # noqa: S311 - to be repeated, not to be secret
    postgresql = chance.random() < 0.25
    change = chance.choice(CHANGES[1:]) if chance.random() < 0.12 else ""
    repeat = chance.choice(REPEATS)
    shown_after_s = round(chance.uniform(0.2, 2.0), 2) if chance.random() < 0.25 else 0.0
    events = tuple(_event(chance, postgresql) for _ in range(chance.choice((1, 1, 2, 2, 3))))
    return Schedule(
        repeat,
        shown_after_s,
        change,
        "PostgreSQL" if postgresql else "SQLite",
        chance.choice((1, 2)) if postgresql else 1,
        any(event.kind == TOKEN for event in events),
        events,
    )


def _event(chance: random.Random, postgresql: bool) -> Event:
    make = chance.choices(
        (
            _lost,
            _refused,
            _not_stored,
            _slow,
            _half,
            _twice,
            _expired,
            _hit_worker,
            _hit_server,
            _full,
            _clock,
            _upgrade,
            _hit_database,
        ),
        weights=(4, 4, 1, 1, 2, 2, 1, 5, 3, 2, 1, 1, 4 if postgresql else 0),
    )[0]
    return make(chance)


def _request(chance: random.Random) -> Moment:
    # Those that change something are where most can go wrong.
    which = chance.choices(range(len(REQUESTS)), weights=(1, 1, 1, 4, 1, 1, 2, 1))[0]
    return Moment("request", which, chance.choice((0, 0, 0, 1, 2)), 0.0)


def _lost(chance: random.Random) -> Event:
    return Event(f"reset {chance.choice(RESETS)}", _request(chance), chance.choice((1, 1, 2, 4)))


def _refused(chance: random.Random) -> Event:
    status = chance.choice(STATUSES)
    return Event(f"status {status}", _request(chance), chance.choice((1, 2, 4)), status)


def _slow(chance: random.Random) -> Event:
    return Event("slow trickle", _request(chance), 1, seconds=chance.choice((0.5, 2.0, 4.0)))


def _twice(chance: random.Random) -> Event:
    kind = chance.choice(("request twice", "answer twice"))
    return Event(kind, _request(chance), chance.choice((1, 4)))


def _not_stored(chance: random.Random) -> Event:
    """One object of the three is refused, or all from there on."""
    moment = Moment("request", STORE, chance.choice((0, 1, 2)), 0.0)
    if chance.random() < 0.3:
        return Event("stored with a warning", moment, 1, 202)
    status, reason = chance.choice(REFUSALS)
    return Event(f"not stored, {status}", moment, chance.choice((1, 1, 3)), status, reason)


def _half(chance: random.Random) -> Event:
    kind = chance.choice(("half answer, closed", "half answer as whole"))
    return Event(kind, _request(chance), chance.choice((1, 1, 2)))


def _expired(chance: random.Random) -> Event:
    return Event(TOKEN, replace(_request(chance), skip=chance.choice((0, 1, 2, 5))), 1)


def _clock(chance: random.Random) -> Event:
    return Event(chance.choice(CLOCK), _moment(chance))


def _upgrade(chance: random.Random) -> Event:
    return Event(UPGRADE, _moment(chance))


def _hit_database(chance: random.Random) -> Event:
    kind, seconds = chance.choice(DATABASE), chance.choice((0.0, 0.5, 2.0))
    return Event(kind, _moment(chance), seconds=seconds)


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
