"""The site probe: what an archive can do, and the settings that fit it.

Reads only, unless a test study may be stored. Nothing of what it reads but UIDs is told.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dicom_io.errors import ConfigurationInvalid
from dicom_io.pacs import PacsSettings
from dicom_io.probe_frames import CONNECTIONS, FrameCosts, probe_retrieve
from dicom_io.probe_http import Archive, Finding, archive_http
from dicom_io.probe_query import find_series, needed_keys, probe_keys, probe_search
from dicom_io.probe_store import probe_annotation, probe_delete, probe_store
from dicom_io.probe_study import make_study

# Without these no slide can be read: search, metadata, and frames or whole instances.
NEEDED = (("qido",), ("wado.metadata",), ("wado.frames.transfer_syntax", "wado.instance"))
# Of the time for frames, requests by themselves may take this share.
REQUEST_SHARE = 0.1
# Settings that cost this much more than what was measured as best are told.
WORTH_TELLING = 1.5


@dataclass(frozen=True, slots=True)
class Probed:
    """What was found out about an archive.

    Attributes
    ----------
    findings
        In the order they were made.
    lines
        TOML lines that fit it, where the settings in force do not.
    notes
        What no setting mends: defects, and what was left behind.
    usable
        Whether slides can be read from it at all.
    """

    findings: tuple[Finding, ...]
    lines: tuple[str, ...]
    notes: tuple[str, ...]
    usable: bool


def probe_archive(
    url: str,
    settings: PacsSettings,
    scratch: Path | None,
    tell: Callable[[Finding], None],
) -> Probed:
    """Find out what the archive at `url` can do.

    Parameters
    ----------
    url
        ``https://…/dicom-web`` or ``http://…``.
    scratch
        Empty folder for the test study that is stored; None stores nothing.
    tell
        Told of each finding as it is made.

    Raises
    ------
    ConfigurationInvalid
        When the URL is that of a folder.
    PacsError
        When there is no archive at the address, or it refuses the credentials.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigurationInvalid(f"Only a DICOMweb server can be probed, and {url!r} is none.")
    findings: list[Finding] = []
    costs: FrameCosts | None = None
    keys = needed_keys(archive_http(url, settings).query)
    answered = replace(
        settings,
        search_keys={**settings.search_keys, **keys},
        connections=max(settings.connections, *CONNECTIONS),
    )
    for each in _tried(archive_http(url, answered), keys, scratch):
        if isinstance(each, FrameCosts):
            costs = each
        else:
            findings.append(each)
            tell(each)
    lines = [_search_keys(answered)] if keys else []
    lines += [] if costs is None else _fitting(costs, settings)
    return _concluded(tuple(findings), lines)


def _tried(
    archive: Archive, keys: Mapping[str, str], scratch: Path | None
) -> Iterator[Finding | FrameCosts]:
    """Everything in its order; the test study is stored early, so that something is there."""
    query = archive.query
    yield probe_search(query)
    for name, wanted in keys.items():
        sentence = f"searches without {name}={wanted} are refused, or find nothing"
        yield Finding("qido.without_key", "no", sentence)
    slide, annotations = find_series(query, "SM"), find_series(query, "ANN")
    left = ""
    if scratch is not None:
        study = make_study(scratch)
        for each in probe_store(archive, study):
            yield each
            if each.name.startswith("stow.") and each.verdict == "yes":
                left = str(study["SM"].StudyInstanceUID)
        slide = slide or find_series(query, "SM")
    elif annotations is not None:
        yield from probe_annotation(archive.retrieve, annotations)
    yield from probe_keys(query)
    if slide is None:
        yield Finding("wado", "unknown", "not tried: no slide is listed (--store makes one)")
    else:
        yield from probe_retrieve(archive.retrieve, slide)
    if left:
        yield probe_delete(archive, left)


def _concluded(findings: tuple[Finding, ...], table: list[str]) -> Probed:
    """`table` has the lines of [pacs]."""
    verdicts = {each.name: each.verdict for each in findings}
    lines = ["[pacs]", *table] if table else []
    if "no" in (verdicts.get("stow.ANN"), verdicts.get("stow.SR")):
        lines.insert(0, 'results_url = "dimse://CALLED_AE_TITLE@host:port"')
    usable = all(any(verdicts.get(name) == "yes" for name in names) for names in NEEDED)
    usable = usable or (
        # An archive without a slide: nothing speaks against it.
        verdicts.get("qido") == "yes" and verdicts.get("wado") == "unknown"
    )
    notes = tuple(each.sentence for each in findings if each.verdict == "defect")
    return Probed(findings, tuple(lines), notes, usable)


def _search_keys(settings: PacsSettings) -> str:
    pairs = (f"{name} = {json.dumps(wanted)}" for name, wanted in settings.search_keys.items())
    return f"search_keys = {{ {', '.join(pairs)} }}"


def _fitting(costs: FrameCosts, settings: PacsSettings) -> list[str]:
    """Lines for the table [pacs] where its values in force cannot work, or cost much more."""
    lines = []
    best = best_frames_per_request(costs)
    if _cost_s(costs, settings.frames_per_request) > WORTH_TELLING * _cost_s(costs, best):
        lines.append(f"frames_per_request = {best}")
    measured = [number for number in costs.rates if number <= settings.connections]
    rate = costs.rates[max(measured, default=min(costs.rates))]
    if max(costs.rates.values()) > WORTH_TELLING * rate:
        lines.append(f"connections = {costs.knee}")
    return lines


def best_frames_per_request(costs: FrameCosts) -> int:
    """Fewest frames with which requests by themselves cost little, a power of two."""
    # Where frames cost nothing that can be measured, all that were tried.
    enough: float = costs.most
    if costs.frame_s > 0:
        enough = costs.request_s * (1 - REQUEST_SHARE) / (REQUEST_SHARE * costs.frame_s)
    rounded: int = 2 ** math.ceil(math.log2(max(1.0, enough)))
    return min(costs.most, rounded)


def _cost_s(costs: FrameCosts, frames_per_request: int) -> float:
    """Seconds a frame; endless where so many were refused."""
    if costs.is_limit and frames_per_request > costs.most:
        return math.inf
    return costs.request_s / frames_per_request + costs.frame_s
