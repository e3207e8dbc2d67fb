"""``make soak``: 24 hours of operation in twenty minutes, with a real service and real servers.

Slides arrive as on a working day, the archive has its maintenance window, the EHR is down for an
hour, and tokens end every hour. What is measured: whether each slide was delivered once, whether
the queue drained, and whether memory and file handles stay as they were. The run is drawn to
``tests/soak/day.png`` and told in ``tests/soak/day.md``.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil
from matplotlib.figure import Figure

from node.config import JobSettings
from tests.copied_slides import copied_slides
from tests.faulty_proxy import Fault, Proxy, faulty_proxy
from tests.fhir_fixture import running_fhir_server
from tests.hosts.site import delivered, reference
from tests.servers import Orthanc, free_port, running_orthanc
from tests.service import Service, service_settings
from tests.smears import small_smear
from tests.soak.day import EHR_DOWN, HOURS, MAINTENANCE, TOKEN_LIFE_H, WINDOWS, Window, arrivals_h
from tests.token_server import CLIENT_ID, CLIENT_SECRET, token_server

SAMPLE_S = 2.0
DRAINED_WITHIN_H = 2.0
# Of the day, compared with each other: after the first slides, and at the end.
NOON_H, EVENING_H = (11.0, 13.0), (22.0, 24.0)
MOST_GROWTH = 0.10
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Sample:
    """How it looks at one time.

    Attributes
    ----------
    at_h
        Hour of the simulated day.
    arrived, ended, waiting
        Slides so far; jobs that have not ended.
    rss_mb, handles
        Of each lasting process of the service, by its command.
    """

    at_h: float
    arrived: int
    ended: int
    waiting: int
    rss_mb: Mapping[str, float]
    handles: Mapping[str, int]


@click.command()
@click.option("--slides", default=100, show_default=True, help="Of the day.")
@click.option("--minutes", default=20.0, show_default=True, help="That the day takes.")
@click.option("--seed", default=2026, show_default=True)
def main(slides: int, minutes: float, seed: int) -> None:
    """Run the day, draw and tell it; the exit code says whether all held."""
    hour_s = minutes * 60 / HOURS
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        smear = small_smear(Path(folder))
        copies = copied_slides(smear.slide.paths, Path(folder) / "copies", ["20261126"] * slides)
        archive = running.enter_context(running_orthanc(Path(folder) / "orthanc"))
        ehr = running.enter_context(running_fhir_server())
        tokens = running.enter_context(token_server(int(TOKEN_LIFE_H * hour_s)))
        pacs = running.enter_context(faulty_proxy(archive.dicomweb_url, keep_host=True))
        reports = running.enter_context(faulty_proxy(ehr.url, keep_host=True))
        pacs.allowed = tokens.valid
        secret = Path(folder) / "secret"
        secret.write_text(CLIENT_SECRET)
        credentials = (
            f'\ntoken_url = "{tokens.url}"\nclient_id = "{CLIENT_ID}"'
            f'\nclient_secret = "file:{secret}"'
        )
        port = free_port()
        waits = {"retries": JobSettings().retries, "retry_wait_s": _scaled(hour_s)}
        config = service_settings(
            smear, port, {"jobs": waits}, pacs_url=pacs.url, ehr_url=reports.url
        )
        text = config.read_text().replace("timeout_s = 5.0", "timeout_s = 20.0")
        config.write_text(text.replace("[pacs]\n", f"[pacs]{credentials}\n", 1))
        service = Service(f"http://127.0.0.1:{port}", smear, config, Path(folder) / "service.log")
        try:
            service.start()
            samples = _day(service, archive, copies, {"PACS": pacs, "EHR": reports}, hour_s, seed)
        finally:
            service.stop()
        counts = delivered(archive, ehr)
        handed_out = len(tokens.issued)
    verdicts = _verdicts(samples, counts, slides)
    _draw(samples, minutes)
    (HERE / "day.json").write_text(json.dumps([asdict(each) for each in samples]) + "\n")
    told = _told(samples, counts, verdicts, slides, minutes, handed_out)
    (HERE / "day.md").write_text(told, encoding="utf-8")
    click.echo(told)
    raise SystemExit(not all(verdicts.values()))


def _scaled(hour_s: float) -> float:
    """The default wait before a failed job is tried again, shortened as the day is."""
    return JobSettings().retry_wait_s * hour_s / 3600


def _day(
    service: Service,
    archive: Orthanc,
    copies: Sequence[Sequence[Path]],
    proxies: Mapping[str, Proxy],
    hour_s: float,
    seed: int,
) -> list[Sample]:
    """Let the day happen, and look every other second; ends when the queue has drained."""
    samples: list[Sample] = []
    arrived: list[str] = []
    begin_s = time.monotonic()

    def hour() -> float:
        return (time.monotonic() - begin_s) / hour_s

    def arrive() -> None:
        for at_h, paths in zip(arrivals_h(len(copies), seed), copies, strict=True):
            time.sleep(max(0.0, (at_h - hour()) * hour_s))
            archive.add(*paths)
            slide = reference(paths[0])
            body = {"study_uid": slide.study_uid, "series_uid": slide.series_uid}
            arrived.append(str(service.submit(**body)["job"]))

    with _windows(proxies, hour_s, begin_s):
        arriving = threading.Thread(target=arrive, daemon=True)
        arriving.start()
        while hour() < HOURS + DRAINED_WITHIN_H:
            samples.append(_sample(service, hour(), len(arrived)))
            if hour() >= HOURS and not samples[-1].waiting and not arriving.is_alive():
                break
            time.sleep(SAMPLE_S)
        arriving.join(30)
    return samples


@contextmanager
def _windows(proxies: Mapping[str, Proxy], hour_s: float, begin_s: float) -> Iterator[None]:
    """Take archive and EHR away in their windows."""

    def down(window: Window) -> None:
        time.sleep(max(0.0, begin_s + window.begin_h * hour_s - time.monotonic()))
        fault = Fault(status=503)
        proxies[window.what].faults.append(fault)
        time.sleep((window.end_h - window.begin_h) * hour_s)
        proxies[window.what].faults.remove(fault)

    threads = [threading.Thread(target=down, args=(each,), daemon=True) for each in WINDOWS]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


def _sample(service: Service, at_h: float, arrived: int) -> Sample:
    metrics = service.ask("GET", "/metrics", "read").text
    waiting = sum(
        int(float(line.rpartition(" ")[2]))
        for line in metrics.splitlines()
        if line.startswith(("marrow_node_jobs_waiting ", "marrow_node_jobs_queued ",
                            "marrow_node_jobs_running "))
    )  # fmt: skip
    assert service.process is not None
    lasting = {"serve": psutil.Process(service.process.pid)}
    for child in lasting["serve"].children():
        lasting[child.cmdline()[-1]] = child
    return Sample(
        round(at_h, 3),
        arrived,
        arrived - waiting,
        waiting,
        {name: round(each.memory_info().rss / 1e6, 1) for name, each in lasting.items()},
        {name: each.num_fds() for name, each in lasting.items()},
    )


def _verdicts(samples: Sequence[Sample], counts: Mapping[str, int], slides: int) -> dict[str, bool]:
    verdicts = {
        "each slide is delivered once": set(counts.values()) == {slides},
        "the queue drains": samples[-1].waiting == 0,
    }
    for name in samples[-1].rss_mb:
        noon, evening = (_median(samples, hours, name) for hours in (NOON_H, EVENING_H))
        verdicts[f"memory of {name} is flat"] = evening[0] <= noon[0] * (1 + MOST_GROWTH)
        verdicts[f"handles of {name} are flat"] = evening[1] <= noon[1] + 2
    return verdicts


def _median(
    samples: Sequence[Sample], hours: tuple[float, float], name: str
) -> tuple[float, float]:
    """(MB, handles) of a process between two hours."""
    chosen = [each for each in samples if hours[0] <= each.at_h < hours[1] and name in each.rss_mb]
    return (
        statistics.median(each.rss_mb[name] for each in chosen),
        statistics.median(each.handles[name] for each in chosen),
    )


def _told(
    samples: Sequence[Sample],
    counts: Mapping[str, int],
    verdicts: Mapping[str, bool],
    slides: int,
    minutes: float,
    tokens: int,
) -> str:
    rows = []
    for name in samples[-1].rss_mb:
        noon, evening = (_median(samples, hours, name) for hours in (NOON_H, EVENING_H))
        rows.append(
            f"| `{name}` | {noon[0]:.0f} | {evening[0]:.0f} | {noon[1]:.0f} | {evening[1]:.0f} |"
        )
    machine = f"{os.cpu_count()} cores ({platform.processor() or platform.machine()})"
    kinds = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    longest = max(each.waiting for each in samples)
    return "\n".join(
        [
            "# A day",
            "",
            f"{slides} slides in 24 hours that took {minutes:g} minutes, on {machine};",
            f"written by `make soak`. PACS away from {MAINTENANCE.begin_h:g} to",
            f"{MAINTENANCE.end_h:g} o'clock, EHR from {EHR_DOWN.begin_h:g} to {EHR_DOWN.end_h:g};",
            f"{tokens} tokens were handed out. Delivered: {kinds}.",
            f"At most {longest} jobs waited; all had ended at {samples[-1].at_h:.1f} h.",
            "",
            "| process | MB, noon | MB, evening | handles, noon | handles, evening |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            *(f"- {what}: {'yes' if held else '**no**'}" for what, held in verdicts.items()),
            "",
            "![the day](day.png)",
            "",
        ]
    )


def _draw(samples: Sequence[Sample], minutes: float) -> None:
    figure = Figure(figsize=(10, 9), layout="constrained")
    axes = figure.subplots(4, 1, sharex=True)
    at = [each.at_h for each in samples]
    axes[0].plot(at, [each.arrived for each in samples], label="arrived")
    axes[0].plot(at, [each.ended for each in samples], label="ended")
    axes[0].set_ylabel("slides")
    axes[1].plot(at, [each.waiting for each in samples], label="not ended")
    axes[1].set_ylabel("jobs")
    for name in samples[-1].rss_mb:
        axes[2].plot(at, [each.rss_mb.get(name) for each in samples], label=name)
        axes[3].plot(at, [each.handles.get(name) for each in samples], label=name)
    axes[2].set_ylabel("resident MB")
    axes[3].set_ylabel("file handles")
    axes[3].set_xlabel(f"hour of the day (24 h in {minutes:g} minutes)")
    for axis in axes:
        for window in WINDOWS:
            axis.axvspan(window.begin_h, window.end_h, color="0.85")
            axis.text(window.begin_h, 1.01, f"{window.what} down", fontsize=7,
                      transform=axis.get_xaxis_transform())  # fmt: skip
        axis.legend(loc="upper left", fontsize=8)
        axis.set_ylim(bottom=0)
    figure.savefig(HERE / "day.png", dpi=80)


if __name__ == "__main__":
    main()
