"""What an archive's retrieval (WADO-RS, PS3.18 §10.4) can do, and what frames cost there."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

from dicom_io.dicom_json import Json, value
from dicom_io.frame_answers import MEDIA_TYPES
from dicom_io.frame_requests import InstanceReference
from dicom_io.probe_http import Answer, Finding, Http, SeriesFound, Verdict

MOST_FRAMES = 4096
# A step that takes longer than this is not repeated, and nothing larger is asked for.
PATIENCE_S = 5.0
FAR = 100_000
REPEATS = 3
CONNECTIONS = (1, 2, 4, 8)
REQUESTS_EACH = 4
# More connections are worth it as long as they bring a tenth more.
KNEE_SHARE = 0.9
ANY_STORED = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
PARTIAL_CONTENT = 206
BASELINE = "1.2.840.10008.1.2.4.50"


@dataclass(frozen=True, slots=True)
class FrameCosts:
    """What was measured of frames.

    Attributes
    ----------
    most
        Most frames that one request gave.
    is_limit
        Whether more were refused or took too long; else more were not tried.
    request_s, frame_s
        Seconds that a request costs by itself, and each frame in it.
    rates
        Frames a second by number of connections.
    """

    most: int
    is_limit: bool
    request_s: float
    frame_s: float
    rates: Mapping[int, float]

    @property
    def knee(self) -> int:
        """Connections at which more gain nothing more."""
        enough = KNEE_SHARE * max(self.rates.values())
        return min(number for number, rate in self.rates.items() if rate >= enough)


def probe_retrieve(http: Http, series: SeriesFound) -> Iterator[Finding | FrameCosts]:
    """Read a series' metadata and its largest instance in every way; a FrameCosts at last."""
    metadata = http.ask(f"studies/{series.study_uid}/series/{series.series_uid}/metadata")
    found = metadata.datasets()
    if not found:
        yield Finding("wado.metadata", "no", f"metadata of a series: {metadata.said}")
        return
    sentence = f"metadata of a series of {len(found)} instances in {metadata.seconds:.2f} s"
    yield Finding("wado.metadata", "yes", sentence, round(metadata.seconds, 3))
    largest = max(found, key=lambda each: int(value(each, "NumberOfFrames") or 1))
    yield from _probe_instance(http, _reference(series, largest), largest)


def _probe_instance(
    http: Http, reference: InstanceReference, metadata: Json
) -> Iterator[Finding | FrameCosts]:
    path = instance_path(reference)
    frames = int(value(metadata, "NumberOfFrames") or 1)
    size = "x".join(str(value(metadata, each)) for each in ("Columns", "Rows"))
    yield Finding(
        "probed", "yes", f"instance {reference.sop_uid}: {frames} frames of {size} px", frames
    )
    accept, syntaxes = _stored_syntax(http, path, metadata)
    yield syntaxes
    yield from _whole(http, path)
    if syntaxes.verdict != "yes":
        return
    yield _missing(http, path, accept, frames)
    yield from _costs(http, path, accept, frames)


def instance_path(reference: InstanceReference) -> str:
    study_uid, series_uid, sop_uid = reference
    return f"studies/{study_uid}/series/{series_uid}/instances/{sop_uid}"


def _reference(series: SeriesFound, metadata: Json) -> InstanceReference:
    return InstanceReference(*series, str(value(metadata, "SOPInstanceUID")))


def _accept(syntax: str) -> str:
    media = MEDIA_TYPES.get(syntax, "application/octet-stream")
    return f'multipart/related; type="{media}"; transfer-syntax={syntax}'


def _stored_syntax(http: Http, path: str, metadata: Json) -> tuple[str, Finding]:
    """How frames are asked for to come as they are stored, and what was seen of it.

    No other transfer syntax is asked for than the one they are stored in: transcoding is not what
    an archive does every day, and Orthanc 1.10.1 crashes when it is to make JPEG-LS near-lossless.
    """
    any_stored = http.ask(f"{path}/frames/1", ANY_STORED)
    first = (any_stored.parts() or [b""])[0] if any_stored.ok else b""
    syntax = _named_syntax(metadata, any_stored) or (BASELINE if _is_baseline(first) else "")
    name = "wado.frames.transfer_syntax"
    if first and not syntax:
        sentence = "frames come as stored when * is asked for; what they are stored in is not said"
        return ANY_STORED, Finding(name, "yes", sentence, "*")
    syntax = syntax or BASELINE  # what most slides are stored in
    by_name = http.ask(f"{path}/frames/1", _accept(syntax))
    part = (by_name.parts() or [b""])[0] if by_name.ok else b""
    as_stored = bool(part) and part == (first or part)
    if not first and not as_stored:
        return "", Finding(name, "no", f"frames as stored: *: {any_stored.said}, {by_name.said}")
    ways = [way for way, works in (("*", bool(first)), (syntax, as_stored)) if works]
    sentence = f"frames come as stored when asked for in {' and in '.join(ways)}"
    return _accept(syntax) if as_stored else ANY_STORED, Finding(name, "yes", sentence, ways)


def _named_syntax(metadata: Json, answer: Answer) -> str:
    """Transfer syntax that the metadata or a part's Content-Type name, else empty."""
    said = value(metadata, "AvailableTransferSyntaxUID")
    named = re.search(rb'transfer-syntax="?([0-9.]+)', answer.body[:2000]) if answer.ok else None
    return str(said or (named[1].decode() if named else ""))


def _is_baseline(frame: bytes) -> bool:
    """Whether a frame is JPEG baseline: start of image, and its kind of frame header (SOF0)."""
    return frame.startswith(b"\xff\xd8\xff") and b"\xff\xc0" in frame[:4096]


def _whole(http: Http, path: str) -> Iterator[Finding]:
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    instance = http.weigh(path, accept)
    said, seconds = instance.answer.said, instance.answer.seconds
    sentence = f"{said}, {instance.n_bytes} bytes in {seconds:.2f} s"
    whole: Verdict = "yes" if instance.is_dicom else "no"
    yield Finding("wado.instance", whole, sentence, round(seconds, 3))
    # An archive that knows no ranges answers with the whole instance again.
    partial = http.ask_head(path, {"Accept": accept, "Range": "bytes=0-99"})
    ranged = partial.status == PARTIAL_CONTENT
    yield Finding("wado.range", "yes" if ranged else "no", f"Range: {partial.said}")
    rendered = http.ask(f"{path}/frames/1/rendered", "image/jpeg")
    drawn = rendered.ok and rendered.media_type.startswith("image/")
    yield Finding("wado.rendered", "yes" if drawn else "no", f"a rendered frame: {rendered.said}")


def _missing(http: Http, path: str, accept: str, frames: int) -> Finding:
    """PS3.18 §10.4.1.1.6 has frames that are not there answered with an error."""
    # Far beyond the end too: some archives only mistake the frame next to the last.
    answers = [http.ask(f"{path}/frames/1,{frames + more}", accept) for more in (1, FAR)]
    left_out = [answer for answer in answers if answer.ok]
    if not left_out:
        said = " and ".join(dict.fromkeys(answer.said for answer in answers))
        return Finding("wado.missing_frame", "yes", f"a frame that is not there: {said}")
    parts = len(left_out[0].parts())
    sentence = (
        f"a frame that is not there is left out of an answer of {left_out[0].said}"
        f" ({parts} of 2 parts): the node counts them"
    )
    return Finding("wado.missing_frame", "defect", sentence, parts)


def _costs(http: Http, path: str, accept: str, frames: int) -> Iterator[Finding | FrameCosts]:
    one_s = median(_timed(http, path, accept, [1]) or PATIENCE_S for _ in range(REPEATS))
    most, most_s, refused = _most(http, path, accept, min(frames, MOST_FRAMES))
    limit = f"{most} frames in one request ({most_s:.2f} s)"
    is_limit = refused is not None or most_s >= PATIENCE_S
    more = "more were not tried" if refused is None else f"{refused} were refused"
    yield Finding("wado.frames_per_request", "yes", f"{limit}; {more}", most)
    frame_s = max(0.0, (most_s - one_s) / (most - 1)) if most > 1 else 0.0
    request_s = max(0.0, one_s - frame_s)
    cost = f"a request costs {request_s * 1e3:.1f} ms, a frame in it {frame_s * 1e3:.2f} ms"
    yield Finding("wado.request_ms", "yes", cost, round(request_s * 1e3, 2))
    rates = _rates(http, path, accept, min(most, frames, 64))
    costs = FrameCosts(most, is_limit, request_s, frame_s, rates)
    told = ", ".join(f"{number}: {rate:.0f}/s" for number, rate in rates.items())
    sentence = f"frames by connections {told}; no more is gained beyond {costs.knee}"
    yield Finding("wado.connections", "yes", sentence, costs.knee)
    yield costs


def _most(http: Http, path: str, accept: str, limit: int) -> tuple[int, float, int | None]:
    """Double the frames of a request until it is refused or takes too long.

    Returns
    -------
    tuple
        Most frames that came, their seconds, and the number that was refused, if any was.
    """
    most, most_s = 1, 0.0
    while most < limit and most_s < PATIENCE_S:
        wanted = min(2 * most, limit)
        seconds = _timed(http, path, accept, range(1, wanted + 1))
        if seconds is None:
            return most, most_s, wanted
        most, most_s = wanted, seconds
    return most, most_s, None


def _timed(http: Http, path: str, accept: str, numbers: Sequence[int]) -> float | None:
    """Seconds for frames (counted from 1) in one request; None where not all of them come."""
    answer = http.ask(f"{path}/frames/{','.join(map(str, numbers))}", accept)
    return answer.seconds if answer.ok and len(answer.parts()) == len(numbers) else None


def _rates(http: Http, path: str, accept: str, frames: int) -> dict[int, float]:
    """Frames a second by number of connections; stops where a round takes too long."""
    rates: dict[int, float] = {}
    numbers = range(1, frames + 1)
    for connections in CONNECTIONS:
        begin = time.monotonic()
        with ThreadPoolExecutor(connections) as pool:
            asked = [
                pool.submit(_timed, http, path, accept, numbers)
                for _ in range(connections * REQUESTS_EACH)
            ]
            came = sum(each.result() is not None for each in asked)
        seconds = time.monotonic() - begin
        rates[connections] = came * frames / seconds
        if seconds > PATIENCE_S:
            break
    return rates
