"""The ICC transform: off by default, exact, fetched from the archive alone, and recorded."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_io.colour import carried_profile, icc_profile, to_srgb
from dicom_io.errors import PacsBusy, PacsError, PacsRefused, PixelsUnsupported
from dicom_io.frames import read_tiles
from dicom_io.optical_path import OpticalPath
from dicom_io.pacs import Pacs, PacsSettings, open_pacs
from dicom_io.slide import Slide, open_slide
from dicom_io.slide_settings import ReadSettings, SlideSettings
from tests.conftest import QUICK
from tests.faulty_proxy import Proxy
from tests.layered_slides import layers, write_layers
from tests.loopback_host import Host
from tests.slides import WrittenSlide, picture, write_slide

Archive = Callable[[WrittenSlide | None], Pacs]
ADOBE_RGB: bytes = imagecodecs.cms_profile("adobergb")
BOX_PX = np.array([[8.0, 8, 72, 72]])


def with_profile(profile: bytes) -> Callable[[Dataset, int], None]:
    def change(ds: Dataset, level: int) -> None:
        path = Dataset()
        path.OpticalPathIdentifier = "1"
        path.ICCProfile = profile
        ds.OpticalPathSequence = [path]

    return change


def by_littlecms(rgb: np.ndarray, profile: bytes = ADOBE_RGB) -> np.ndarray:
    """The same transform, pixel by pixel."""
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        "RGB",
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    return np.asarray(transform.apply(Image.fromarray(rgb)))


def test_policy_is_followed(archive: Archive, tmp_path: Path) -> None:
    """From a folder the profile lies in the metadata, from Orthanc behind a BulkDataURI."""
    written = write_slide(
        tmp_path, size_px=(100, 90), levels=1, encoding="raw", change=with_profile(ADOBE_RGB)
    )
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    stored = picture(100, 90)[8:72, 8:72]
    (plain,) = read_tiles(pacs, slide, BOX_PX, 0.25)
    assert np.array_equal(plain.rgb[0], stored)
    (srgb,) = read_tiles(pacs, slide, BOX_PX, 0.25, settings=ReadSettings(icc="srgb"))
    assert np.array_equal(srgb.rgb[0], by_littlecms(stored))
    assert not np.array_equal(srgb.rgb[0], stored)


def test_the_profile_of_the_path_that_was_read_is_carried(archive: Archive, tmp_path: Path) -> None:
    """Also from Orthanc, whose metadata only say where it lies."""
    written = write_slide(tmp_path, size_px=(100, 90), levels=1, change=with_profile(ADOBE_RGB))
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    assert carried_profile(slide, pacs.bulk_data) == ADOBE_RGB
    two = Dataset()
    two.OpticalPathSequence = [Dataset(), Dataset()]
    for path, name, profile in zip(
        two.OpticalPathSequence, "12", (b"of another path!", ADOBE_RGB), strict=True
    ):
        path.OpticalPathIdentifier, path.ICCProfile = name, profile
    metadata = two.to_json_dict()
    read = OpticalPath("2", 2, "named in the settings")
    several = replace(slide, colour_metadata=metadata, optical_path=read)
    assert carried_profile(several, pacs.bulk_data) == ADOBE_RGB
    assert carried_profile(replace(slide, colour_metadata={}), pacs.bulk_data) == b""
    neither = replace(several, optical_path=replace(read, identifier="3"))
    assert carried_profile(neither, pacs.bulk_data) == b""  # not that of another path


@pytest.mark.parametrize(
    ("uri", "status", "media_type"),
    [
        ("http://elsewhere.invalid/other/1", 200, "application/octet-stream"),
        *(("{0}/bulk/1", status, "application/json") for status in (400, 401, 403, 404, 406, 501)),
        ("{0}/bulk/1", 200, "text/html"),
    ],
)
def test_documents_do_without_a_profile_that_is_not_given(
    host: Host, tmp_path: Path, uri: str, status: int, media_type: str
) -> None:
    slide, bulk_data = with_profile_at(host, tmp_path, uri)
    host.answer = lambda path: (status, {"Content-Type": media_type}, b"no profile")
    assert carried_profile(slide, bulk_data) == b""


def test_a_profile_that_an_archive_may_give_later_is_waited_for(host: Host, tmp_path: Path) -> None:
    slide, bulk_data = with_profile_at(host, tmp_path, "{0}/bulk/1")
    host.answer = lambda path: (503, {}, b"")
    with pytest.raises(PacsBusy):
        carried_profile(slide, bulk_data)


def with_profile_at(host: Host, folder: Path, uri: str) -> tuple[Slide, Callable[[str], bytes]]:
    """A slide whose metadata say that its profile lies there, and how its archive is asked."""
    written = write_slide(folder, levels=1)
    with open_pacs(f"file://{folder}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
    metadata = {"00282000": {"vr": "OB", "BulkDataURI": uri.format(host.url)}}
    with open_pacs(host.url, QUICK) as asked:
        return replace(slide, colour_metadata=metadata), asked.bulk_data


@pytest.mark.parametrize("split", [False, True], ids=["one instance", "an instance each"])
@pytest.mark.parametrize("name", ["1", "2"])
def test_pixels_are_brought_to_srgb_by_the_profile_of_their_path(
    tmp_path: Path, name: str, split: bool
) -> None:
    every = layers(("1", "2"), planes=1)
    written = write_layers(tmp_path, [[layer] for layer in every] if split else [every])
    profiles = {"1": imagecodecs.cms_profile("srgb"), "2": ADOBE_RGB}
    for file in written.paths:
        ds = dcmread(file)
        for path in ds.OpticalPathSequence:
            path.ICCProfile = profiles[path.OpticalPathIdentifier]
        ds.save_as(file)
    (stored,) = (layer.rgb[8:72, 8:72] for layer in every if layer.path == name)
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(
            pacs, written.study_uid, written.series_uid, settings=SlideSettings(optical_path=name)
        )
        (srgb,) = read_tiles(pacs, slide, BOX_PX, 0.25, settings=ReadSettings(icc="srgb"))
        assert carried_profile(slide, pacs.bulk_data) == profiles[name]
    expected = by_littlecms(stored, profiles[name])
    assert np.array_equal(srgb.rgb[0], expected)
    other = profiles["1" if name == "2" else "2"]
    assert not np.array_equal(expected, by_littlecms(stored, other))


@pytest.mark.parametrize("profile", [None, b"no profile at all", ADOBE_RGB[:500]])
def test_profile_that_cannot_serve(tmp_path: Path, profile: bytes | None) -> None:
    change = None if profile is None else with_profile(profile)
    written = write_slide(tmp_path, levels=1, change=change)
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        with pytest.raises(PixelsUnsupported, match="ICC profile"):
            list(read_tiles(pacs, slide, BOX_PX, 0.25, settings=ReadSettings(icc="srgb")))


def test_grey_profile_is_none_of_an_rgb_device() -> None:
    grey = imagecodecs.cms_profile("gray")
    with pytest.raises(PixelsUnsupported, match="RGB device"):
        to_srgb(grey)


@pytest.mark.parametrize(
    "uri",
    [
        "http://elsewhere.invalid/other/bulk/1",
        "http://127.0.0.1:1/dicom-web/../secrets",
        "file:///etc/passwd",
        "",
    ],
)
def test_address_outside_the_archive_is_refused(uri: str) -> None:
    base = {"00282000": {"vr": "OB", "BulkDataURI": uri}}
    with (
        open_pacs("http://127.0.0.1:1/dicom-web", PacsSettings(retries=0)) as pacs,
        pytest.raises(PacsRefused, match="another address"),
    ):
        icc_profile(base, pacs.bulk_data)


def test_profile_is_fetched_from_the_configured_host_alone(proxy: Proxy) -> None:
    base = {"00282000": {"vr": "OB", "BulkDataURI": "http://elsewhere.invalid/dicom-web/bulk/1"}}
    with (
        open_pacs(f"{proxy.url}/dicom-web", PacsSettings(retries=0)) as pacs,
        pytest.raises(PacsError),
    ):
        icc_profile(base, pacs.bulk_data)
    assert [path for _, path in proxy.requests] == ["/dicom-web/bulk/1"]
