"""Archives with habits, and a hundred slides through one that fails by a schedule."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from dicom_io.errors import FrameInvalid, PacsNotFound, PacsRefused, PacsTimeout, SlideTooLarge
from dicom_io.pacs import InstanceReference, Pacs, PacsSettings, open_pacs
from dicom_io.search import Search
from dicom_io.slide import open_slide
from tests.faulty_proxy import Fault, Proxy, faulty_proxy
from tests.filed_archive import stored_frames
from tests.loopback_host import Answer, Host
from tests.quirky_proxy import FRAME_FAULTS, HABITS, Habits, QuirkyProxy, quirky_proxy
from tests.servers import Orthanc
from tests.slides import WrittenSlide, write_slide
from tests.test_receiver import until
from tests.token_server import CLIENT_ID, CLIENT_SECRET, TokenServer, token_server

JPEG, JPEG_2000 = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
SETTINGS = PacsSettings(
    timeout_s=5, retries=6, retry_wait_s=0.01, frames_per_request=20, request_deadline_s=1
)


def same(received: list[bytes], stored: list[bytes]) -> bool:
    """Equal but for the byte that pads a fragment to an even length."""
    return [frame.rstrip(b"\0") for frame in received] == [f.rstrip(b"\0") for f in stored]


@pytest.fixture(scope="module")
def slide(
    orthanc_server: Orthanc, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WrittenSlide]:
    """A slide in the archive for all tests of this file."""
    written = write_slide(tmp_path_factory.mktemp("slide"), levels=1)
    orthanc_server.clear()
    orthanc_server.add(*written.paths)
    yield written
    orthanc_server.clear()


@pytest.mark.parametrize("name", HABITS)
def test_habits_of_an_archive_change_no_frame(
    orthanc_server: Orthanc, slide: WrittenSlide, name: str
) -> None:
    reference, syntax, stored = stored_frames(slide.paths[0])
    numbers = random.Random(1).sample(range(48), 48)  # noqa: S311
    with (
        quirky_proxy(orthanc_server.dicomweb_url, HABITS[name]) as proxy,
        open_pacs(proxy.url, SETTINGS) as pacs,
    ):
        received = list(pacs.frames(reference, numbers, syntax))
        faults = pacs.faults
        again = list(pacs.frames(reference, numbers[:3], syntax))
        assert pacs.faults == faults  # what was learnt is not tried again
    assert same(received, [stored[number] for number in numbers])
    assert again == received[:3]


def test_refusals_are_counted_and_told(
    orthanc_server: Orthanc, slide: WrittenSlide, caplog: pytest.LogCaptureFixture
) -> None:
    reference, syntax, _ = stored_frames(slide.paths[0])
    with (
        quirky_proxy(orthanc_server.dicomweb_url, HABITS["few frames, 400"]) as proxy,
        open_pacs(proxy.url, SETTINGS) as pacs,
    ):
        list(pacs.frames(reference, range(48), syntax))
        assert pacs.faults["status 400"] > 0
        assert pacs.faults["fewer frames a request"] > 0
    assert f"fewer frames a request: The PACS {proxy.url[7:]}, instance {reference.sop_uid}" in (
        caplog.text
    )


def test_archive_that_gives_nothing_is_told_with_its_first_refusal(
    orthanc_server: Orthanc, slide: WrittenSlide
) -> None:
    reference, syntax, _ = stored_frames(slide.paths[0])
    elsewhere = reference._replace(sop_uid="1.2.3.4")
    with (
        quirky_proxy(orthanc_server.dicomweb_url, Habits(refused=".")) as proxy,
        open_pacs(proxy.url, SETTINGS) as pacs,
        pytest.raises(PacsRefused, match=r"1\.2\.3\.4 with status 406"),
    ):
        list(pacs.frames(elsewhere, [0, 1], syntax))


@pytest.mark.parametrize("label", [b"", b"Content-Location: /frames/1\r\n"], ids=["none", "one"])
def test_frame_left_out_before_a_cut_gives_no_frame_a_wrong_number(
    host: Host, label: bytes
) -> None:
    """Where labels say nothing, what came after the gap looks like the frames of the gap."""
    frames = {number: b"frame %d" % number for number in (1, 2, 4, 5, 6)}

    def answer(path: str) -> Answer:
        asked = [int(number) for number in path.rpartition("/")[2].split(",")]
        parts = [
            b"--x\r\n%sContent-Length: 7\r\n\r\n%s\r\n" % (label, frames[n])
            for n in asked
            if n in frames
        ]
        cut = len(asked) == 6
        body = b"".join(parts[:4]) + parts[4][:-6] if cut else b"".join(parts) + b"--x--"
        return 200, {"Content-Type": "multipart/related; boundary=x"}, body

    host.answer = answer
    reference = InstanceReference("1.2", "1.3", "1.4")
    settings = replace(SETTINGS, retries=2)
    with open_pacs(host.url, settings) as pacs, pytest.raises(FrameInvalid, match=r"frame 3 of"):
        list(pacs.frames(reference, range(6), JPEG))


def test_whole_instance_is_bounded(orthanc_server: Orthanc, slide: WrittenSlide) -> None:
    reference, syntax, _ = stored_frames(slide.paths[0])
    settings = replace(SETTINGS, max_instance_bytes=20_000)
    with (
        quirky_proxy(orthanc_server.dicomweb_url, Habits(no_frames=True)) as proxy,
        open_pacs(proxy.url, settings) as pacs,
        pytest.raises(SlideTooLarge, match=reference.sop_uid),
    ):
        list(pacs.frames(reference, [0], syntax))


@pytest.fixture
def slow_proxy(orthanc_server: Orthanc) -> Iterator[Proxy]:
    """Gives no frames, and whole instances in 20 s."""
    with faulty_proxy(orthanc_server.dicomweb_url) as running:
        running.faults = [Fault("/frames/", status=404), Fault("/instances/", trickle_s=20)]
        yield running


def test_whole_instance_does_not_hold_up_the_end(slide: WrittenSlide, slow_proxy: Proxy) -> None:
    reference, syntax, _ = stored_frames(slide.paths[0])
    with ThreadPoolExecutor(1) as pool, open_pacs(slow_proxy.url, PacsSettings()) as pacs:
        reading = pool.submit(lambda: list(pacs.frames(reference, [0], syntax)))
        assert until(lambda: len(slow_proxy.requests) == 2)
        begin = time.monotonic()
        pacs.close()
        with pytest.raises(CancelledError):
            reading.result()
    assert time.monotonic() - begin < 10


def test_whole_instance_has_the_slides_deadline(slide: WrittenSlide, slow_proxy: Proxy) -> None:
    reference, syntax, _ = stored_frames(slide.paths[0])
    settings = replace(SETTINGS, slide_deadline_s=2)
    with open_pacs(slow_proxy.url, settings) as pacs, pytest.raises(PacsTimeout, match="more than"):
        list(pacs.frames(reference, [0], syntax))
    assert len([path for _, path in slow_proxy.requests if "/frames/" not in path]) == 1


@pytest.mark.parametrize("first", ["refused", "given"])
def test_transfer_syntax_that_is_refused_changes_nothing_for_others(
    orthanc_server: Orthanc, slide: WrittenSlide, tmp_path: Path, first: str
) -> None:
    other = write_slide(tmp_path, levels=1, encoding="jpeg2000")
    orthanc_server.add(*other.paths)
    asked = [stored_frames(written.paths[0]) for written in (slide, other)]
    if first == "refused":
        asked.reverse()
    with (
        quirky_proxy(orthanc_server.dicomweb_url, Habits(refused="octet-stream")) as proxy,
        open_pacs(proxy.url, SETTINGS) as pacs,
    ):
        for reference, syntax, stored in [*asked, *asked]:
            assert same(list(pacs.frames(reference, range(48), syntax)), stored)
    (whole,) = (path for path in proxy.paths if "/frames/" not in path)
    assert whole.endswith(stored_frames(other.paths[0])[0].sop_uid)


def test_jpeg_is_opened_by_its_name_where_the_wildcard_is_refused(
    orthanc_server: Orthanc, tmp_path: Path
) -> None:
    def lossy(ds: Dataset, level: int) -> None:
        ds.LossyImageCompression = "01"

    written = write_slide(tmp_path, levels=2, change=lossy)
    orthanc_server.add(*written.paths)
    with (
        quirky_proxy(orthanc_server.dicomweb_url, Habits(refused=r"syntax=\*")) as proxy,
        open_pacs(proxy.url, SETTINGS) as pacs,
    ):
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        for level, path in zip(slide.levels, written.paths, strict=True):
            assert level.transfer_syntax_uids == (JPEG,)
            reference, syntax, stored = stored_frames(path)
            assert same(list(pacs.frames(reference, range(len(stored)), syntax)), stored)
    assert not [path for path in proxy.paths if path.rpartition("/")[0].endswith("/instances")]


def test_what_the_header_does_not_call_a_jpeg_is_not_asked_for_as_one(
    orthanc_server: Orthanc, tmp_path: Path
) -> None:
    """Orthanc would make one of it."""
    written = write_slide(tmp_path, levels=1, encoding="jpeg2000")
    orthanc_server.add(*written.paths)
    with (
        quirky_proxy(orthanc_server.dicomweb_url, Habits(refused=r"syntax=\*")) as proxy,
        open_pacs(proxy.url, SETTINGS) as pacs,
    ):
        slide = open_slide(pacs, written.study_uid, written.series_uid)
    assert slide.base.transfer_syntax_uids == (JPEG_2000,)
    assert not [accept for accept in proxy.accepts if "image/jpeg" in accept]


def test_instance_that_is_cut_where_nothing_tells_its_end_is_asked_for_again(
    orthanc_server: Orthanc, slide: WrittenSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, syntax, stored = stored_frames(slide.paths[0])
    monkeypatch.setattr("tests.quirky_proxy.ANY_FAULTS", ("cut",))
    habits = Habits(no_frames=True, framing="close", instance_alone=True)
    with (
        quirky_proxy(orthanc_server.dicomweb_url, habits, seed=4, share=0.5) as proxy,
        open_pacs(proxy.url, SETTINGS) as pacs,
    ):
        received = list(pacs.frames(reference, [47], syntax))
        assert same(received, stored[47:])
        assert proxy.faults == {"cut": 1}
        assert pacs.faults["truncated answer"] == 1


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_instance_without_multipart(
    orthanc_server: Orthanc, slide: WrittenSlide, framing: str
) -> None:
    reference, syntax, stored = stored_frames(slide.paths[0])
    habits = Habits(no_frames=True, framing=framing, instance_alone=True)
    with (
        quirky_proxy(orthanc_server.dicomweb_url, habits) as proxy,
        open_pacs(proxy.url, SETTINGS) as pacs,
    ):
        assert same(list(pacs.frames(reference, range(48), syntax)), stored)
    assert sum("/frames/" not in path for path in proxy.paths) == 1


READS_WITH_LITTLE_ROOM = """
import resource, sys
from dicom_io.errors import DiskFull
from dicom_io.pacs import InstanceReference, PacsSettings, open_pacs

url, room, *uids = sys.argv[1:]
with open_pacs(url, PacsSettings(retries=0)) as pacs:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), hard))
    try:
        list(pacs.frames(InstanceReference(*uids), [0]))
    except DiskFull as error:
        print(error)
"""


def test_instance_of_which_only_a_part_could_be_written_is_not_kept(
    orthanc_server: Orthanc, slide: WrittenSlide
) -> None:
    """The system writes what fits of the last piece, and says so by its length alone."""
    reference, _, _ = stored_frames(slide.paths[0])
    room = slide.paths[0].stat().st_size - 10
    habits = Habits(no_frames=True, instance_alone=True)
    with quirky_proxy(orthanc_server.dicomweb_url, habits) as proxy:
        told = subprocess.run(
            [sys.executable, "-c", READS_WITH_LITTLE_ROOM, proxy.url, str(room), *reference],
            capture_output=True,
            text=True,
            check=False,
        )
    assert told.returncode == 0, told.stderr
    assert f"no room for instance {reference.sop_uid}" in told.stdout


def test_another_instance_than_asked_for_is_not_read(host: Host, tmp_path: Path) -> None:
    """Its frames may well be of the same size."""
    asked_for, other = write_slide(tmp_path, levels=2).paths
    reference, syntax, _ = stored_frames(asked_for)

    def answer(path: str) -> Answer:
        if "/frames/" in path:
            return 404, {}, b""
        return 200, {"Content-Type": "application/dicom"}, other.read_bytes()

    host.answer = answer
    with open_pacs(host.url, SETTINGS) as pacs, pytest.raises(PacsNotFound) as refused:
        list(pacs.frames(reference, [0], syntax))
    assert "gave another instance than" in str(refused.value.__cause__)


def test_a_frame_that_is_sent_twice_is_not_the_next_one(host: Host) -> None:
    def answer(path: str) -> Answer:
        part = b"--x\r\nContent-Location: /frames/1\r\nContent-Length: 7\r\n\r\nframe 1\r\n"
        return 200, {"Content-Type": "multipart/related; boundary=x"}, part * 2 + b"--x--"

    host.answer = answer
    reference = InstanceReference("1.2", "1.3", "1.4")
    with open_pacs(host.url, SETTINGS) as pacs, pytest.raises(FrameInvalid):
        list(pacs.frames(reference, range(2), JPEG))


def test_a_series_of_which_nothing_is_there_is_not_taken_for_cut_off(host: Host) -> None:
    """204 has no length, and no body."""
    host.answer = lambda path: (204, {}, b"")
    with open_pacs(host.url, SETTINGS) as pacs:
        assert pacs.series_metadata_bytes("1.2", "1.3") == b""
    assert len(host.requests) == 1


def test_closing_does_not_wait_for_what_nobody_wants_any_more(host: Host) -> None:
    """An archive that gives a frame a request, and is asked for the rest again and again."""

    def answer(path: str) -> Answer:
        time.sleep(0.1)
        first = path.rpartition("/")[2].split(",")[0]
        where = f"Content-Location: {path.rpartition('/')[0]}/{first}".encode()
        body = b"--x\r\n%s\r\nContent-Length: 5\r\n\r\nframe\r\n--x\r\n\r\ncut" % where
        return 200, {"Content-Type": "multipart/related; boundary=x"}, body

    host.answer = answer
    settings = replace(SETTINGS, slide_deadline_s=0.3)
    reference = InstanceReference("1.2", "1.3", "1.4")
    with pytest.raises(PacsTimeout), open_pacs(host.url, settings) as pacs:
        list(pacs.frames(reference, range(20), JPEG))
    asked = len(host.requests)
    assert asked <= 6, "not for all twenty"
    time.sleep(0.3)
    assert len(host.requests) == asked


def test_frame_that_is_not_there_is_named(orthanc_server: Orthanc, slide: WrittenSlide) -> None:
    reference, syntax, _ = stored_frames(slide.paths[0])
    with (
        open_pacs(orthanc_server.dicomweb_url, SETTINGS) as pacs,
        pytest.raises(FrameInvalid, match=f"not give frame 100 of instance {reference.sop_uid}"),
    ):
        list(pacs.frames(reference, [0, 1, 99, 2], syntax))


def test_searches_carry_the_keys_without_which_they_are_refused(
    orthanc_server: Orthanc, slide: WrittenSlide
) -> None:
    reference, _, _ = stored_frames(slide.paths[0])
    questions: list[Callable[[Pacs], object]] = [
        lambda pacs: pacs.search_studies({}),
        lambda pacs: pacs.search_series(slide.study_uid),
        lambda pacs: pacs.search_instances(slide.study_uid, slide.series_uid),
        lambda pacs: pacs.has_instance(*reference),
        lambda pacs: list(pacs.search_slide_studies(Search("studies", {}))),
    ]
    with quirky_proxy(orthanc_server.dicomweb_url, Habits(needed="PatientID=")) as proxy:
        with open_pacs(proxy.url, SETTINGS) as pacs:
            for ask in questions:
                with pytest.raises(PacsRefused, match="status 400"):
                    ask(pacs)
        settings = replace(SETTINGS, search_keys={"PatientID": "*"})
        with open_pacs(proxy.url, settings) as pacs:
            for ask in questions:
                assert ask(pacs)
            open_slide(pacs, slide.study_uid, slide.series_uid)
            assert not [path for path in proxy.paths if "PatientID" in path and "/metadata" in path]
            assert pacs.search_studies({"PatientID": "TEST-1"})
            assert not pacs.search_studies({"PatientID": "NONESUCH"})
            assert "*" not in proxy.paths[-1]


def test_slow_trickle_is_cut_and_the_rest_asked_for(
    orthanc_server: Orthanc, slide: WrittenSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, syntax, stored = stored_frames(slide.paths[0])
    monkeypatch.setattr("tests.quirky_proxy.FRAME_FAULTS", ("trickle",))
    settings = replace(SETTINGS, request_deadline_s=0.3, connections=1)
    with (
        quirky_proxy(orthanc_server.dicomweb_url, seed=3, share=0.5) as proxy,
        open_pacs(proxy.url, settings) as pacs,
    ):
        received = list(pacs.frames(reference, range(48), syntax))
        assert same(received, stored)
        assert proxy.faults["trickle"] >= 1
        assert pacs.faults["no answer in time"] >= proxy.faults["trickle"]
    asked = [len(path.rpartition("/")[2].split(",")) for path in proxy.paths]
    assert min(asked) < max(asked)  # not all over again


def read_through(
    proxy: QuirkyProxy,
    tokens: TokenServer,
    slides: list[WrittenSlide],
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = replace(
        SETTINGS,
        token_url=tokens.url,
        client_id=CLIENT_ID,
        client_secret="env:MARROW_CLIENT_SECRET",  # noqa: S106
        request_deadline_s=0.5,
    )
    told: set[str] = set()
    with open_pacs(proxy.url, settings) as pacs, ThreadPoolExecutor(1) as reader:

        def read(slide: WrittenSlide) -> None:
            opened = open_slide(pacs, slide.study_uid, slide.series_uid)
            reference, syntax, stored = stored_frames(slide.paths[0])
            assert opened.base.instance_uids == (reference.sop_uid,)
            numbers = random.Random(reference.sop_uid).sample(range(len(stored)), len(stored))  # noqa: S311
            received = list(pacs.frames(reference, numbers, syntax))
            assert same(received, [stored[number] for number in numbers])

        for slide in slides:
            reader.submit(read, slide).result(timeout=60)
        faults = pacs.faults
    told = {kind for kind in faults if f"{kind}: " in caplog.text}
    print(len(slides), "slides,", len(proxy.paths), "requests,", dict(proxy.faults), dict(faults))
    for kind in ("408", "429", "500", "503"):
        assert faults[f"status {kind}"] == proxy.faults[kind]
    assert faults["status 502"] == proxy.faults["error page"]
    # A busy machine is slow by itself, too.
    assert faults["no answer in time"] >= proxy.faults["trickle"]
    assert faults["token refused"] >= (proxy.faults["expire"] > 0)
    assert faults["wrong number of frames"] >= proxy.faults["drop"] + proxy.faults["duplicate"]
    assert faults["truncated answer"] + faults["connection lost"] >= (
        proxy.faults["cut"] + proxy.faults["cut chunked"]
    )
    assert told == set(faults)


def slides_in(orthanc: Orthanc, folder: Path, count: int) -> list[WrittenSlide]:
    encodings = ("jpeg", "jpeg2000", "rle", "raw", "jpegls")
    slides = []
    for index in range(count):
        slides.append(
            write_slide(
                folder / str(index),
                levels=1,
                size_px=(300 + index % 7 * 20, 200),
                encoding=encodings[index % len(encodings)],
            )
        )
        orthanc.add(*slides[-1].paths)
    return slides


@pytest.mark.parametrize(
    "count", [10, pytest.param(100, marks=pytest.mark.slow)], ids=lambda count: f"{count} slides"
)
def test_slides_through_faults(
    orthanc: Orthanc,
    tmp_path: Path,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING")
    monkeypatch.setenv("MARROW_CLIENT_SECRET", CLIENT_SECRET)
    slides = slides_in(orthanc, tmp_path, count)
    with (
        token_server() as tokens,
        quirky_proxy(
            orthanc.dicomweb_url,
            seed=2021,
            share=0.3,
            allowed=tokens.valid,
            expire=tokens.expire,
        ) as proxy,
    ):
        read_through(proxy, tokens, slides, caplog)
    assert count < 100 or set(proxy.faults) == set(FRAME_FAULTS)
