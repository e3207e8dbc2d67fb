"""``make hosts``: two hosts with separate storage, whose workers share slides.

What is measured: how much faster two hosts are than one, where the model takes ten times the
processor time of a slide without taking a core, as on a GPU; and what is repeated when one of them
loses its power in the middle. A slide that is alone takes half to two thirds of the processor time
of one among others, which counts what workers take that wait for slides, so that the sleep is
twenty times as long as what it takes alone. The table and its machine go to
``tests/hosts/table.md``.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from node.job_queue import JobQueue, open_job_queue
from tests.hosts.site import Host, Site, site

LOOK_S = 0.2
CALIBRATING = 8
TABLE = Path(__file__).with_name("table.md")


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one run.

    Attributes
    ----------
    hosts, workers
        How many, and how many workers each has.
    slides
    sleep_s
        Of the model, a slide.
    wall_s
        From the first job's submission to the last job's end.
    cpu_s
        Of the workers that lived to the end, once they had started.
    completed
    begun
        How often a slide was begun to be read.
    delivered
        Objects in the archive and reports in the EHR, by kind.
    """

    hosts: int
    workers: int
    slides: int
    sleep_s: float
    wall_s: float
    cpu_s: float
    completed: int
    begun: int
    delivered: dict[str, int]

    @property
    def once(self) -> bool:
        """Whether each slide has its results once."""
        return self.completed == self.slides and set(self.delivered.values()) == {self.slides}


@click.command()
@click.option("--slides", default=200, show_default=True)
@click.option("--workers", default=5, show_default=True, help="Of each host.")
@click.option(
    "--times", default=20.0, show_default=True, help="Sleep in processor times of a slide alone."
)
def main(slides: int, workers: int, times: float) -> None:
    """Measure, write the table, and tell by the exit code whether each slide came once."""
    with tempfile.TemporaryDirectory() as folder, site(Path(folder), slides) as made:
        few = min(CALIBRATING, slides)
        first = run(made, "calibrating", ["a"], 1, few, 0.0)
        sleep_s = round(times * first.cpu_s / few, 2)
        click.echo(f"{first.cpu_s / few:.2f} s of processor a slide; sleep {sleep_s} s")
        one = run(made, "one", ["a"], workers, slides, sleep_s)
        click.echo(json.dumps(asdict(one)))
        two = run(made, "two", ["a", "b"], workers, slides, sleep_s)
        click.echo(json.dumps(asdict(two)))
        killed = run(made, "killed", ["a", "b"], workers, slides, sleep_s, _kill_first)
        click.echo(json.dumps(asdict(killed)))
    TABLE.write_text(_table(first, one, two, killed), encoding="utf-8")
    click.echo(TABLE.read_text(encoding="utf-8"))
    raise SystemExit(not all(each.once for each in (one, two, killed)))


def run(
    made: Site,
    name: str,
    names: Sequence[str],
    workers: int,
    slides: int,
    sleep_s: float,
    halfway: Callable[[Sequence[Host]], None] | None = None,
) -> Run:
    """Let hosts work until every slide has ended; `halfway` happens when half of them have."""
    hosts = made.fresh(name, names)
    settings = hosts[0].settings
    with open_job_queue(settings) as queue:
        try:
            jobs = made.submit(queue, settings, slides)
            for host in hosts:
                host.start(workers, sleep_s)
            # Starting takes no part: a host works for days.
            _until(lambda: sum(host.begun for host in hosts) > 0)
            begun_s, begun_cpu_s = time.monotonic(), sum(host.cpu_s() for host in hosts)
            if halfway is not None:
                _until(lambda: _ended(queue, jobs) >= slides // 2)
                halfway(hosts)
            _until(lambda: _ended(queue, jobs) == slides)
            wall_s = time.monotonic() - begun_s
            cpu_s = sum(host.cpu_s() for host in hosts) - begun_cpu_s
        finally:
            for host in hosts:
                host.stop()
        completed = sum(queue.get(job).status == "completed" for job in jobs)
    return Run(
        len(hosts),
        workers,
        slides,
        sleep_s,
        round(wall_s, 1),
        round(cpu_s, 1),
        completed,
        sum(host.begun for host in hosts),
        made.delivered(),
    )


def _kill_first(hosts: Sequence[Host]) -> None:
    hosts[0].kill()


def _ended(queue: JobQueue, jobs: Sequence[str]) -> int:
    return len(jobs) - sum(queue.counts().values())


def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(LOOK_S)


def _table(first: Run, one: Run, two: Run, killed: Run) -> str:
    repeated = 100 * (killed.begun - killed.slides) / killed.slides
    rows = "\n".join(
        f"| {name} | {each.wall_s:.0f} | {each.begun} | {each.completed} | "
        f"{', '.join(f'{kind} {count}' for kind, count in each.delivered.items())} |"
        for name, each in (
            ("one host", one),
            ("two hosts", two),
            ("two hosts, the first killed when half was done", killed),
        )
    )
    machine = f"{os.cpu_count()} cores ({platform.processor() or platform.machine()})"
    return "\n".join(
        [
            "# Two hosts",
            "",
            f"{one.slides} slides, {one.workers} workers a host. Each host has its own storage and",
            "core; archive, EHR and PostgreSQL are shared. A slide takes",
            f"{first.cpu_s / first.slides:.2f} s of processor where it is alone and"
            f" {one.cpu_s / one.slides:.2f} s beside others;",
            f"its model sleeps {one.sleep_s} s or up to a fifth longer.",
            f"{machine} for all of it; written by `make hosts`.",
            "",
            "| run | s | begun | completed | delivered |",
            "|---|---:|---:|---:|---|",
            rows,
            "",
            f"Speed-up of two hosts: {one.wall_s / two.wall_s:.2f}.",
            f"Begun again after the kill: {repeated:.1f} % of the slides.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
