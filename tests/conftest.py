"""Fixtures that several test files share: real archives and small slides."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from dicom_io.pacs import Pacs, PacsSettings, open_pacs
from tests.faulty_proxy import Proxy, faulty_proxy
from tests.fhir_fixture import fhir_server, fhir_server_process  # noqa: F401  fixtures
from tests.loopback_host import Host, running_host
from tests.servers import Orthanc, running_orthanc
from tests.slides import WrittenSlide

QUICK = PacsSettings(timeout_s=5, retries=1, retry_wait_s=0.01, frames_per_request=7)


@pytest.fixture(scope="session")
def orthanc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """One Orthanc for the session."""
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def orthanc(orthanc_server: Orthanc) -> Orthanc:
    """Orthanc (``.rest_url``, ``.dicomweb_url``), empty."""
    orthanc_server.clear()
    return orthanc_server


@pytest.fixture
def proxy(orthanc: Orthanc) -> Iterator[Proxy]:
    """A proxy that fails as told, in front of ``orthanc``."""
    with faulty_proxy(orthanc.dicomweb_url) as running:
        yield running


@pytest.fixture
def host() -> Iterator[Host]:
    """A server that answers as told."""
    with running_host() as running:
        yield running


@pytest.fixture
def elsewhere() -> Iterator[Host]:
    """Another one."""
    with running_host() as running:
        yield running


@pytest.fixture(params=["folder", "orthanc"])
def archive(request: pytest.FixtureRequest) -> Iterator[Callable[[WrittenSlide | None], Pacs]]:
    """Opens a folder, or a real Orthanc, that holds a slide."""
    opened: list[Pacs] = []

    def holding(slide: WrittenSlide | None) -> Pacs:
        if request.param == "folder":
            folder = request.getfixturevalue("tmp_path") if slide is None else slide.paths[0].parent
            url = f"file://{folder}"
        else:
            server: Orthanc = request.getfixturevalue("orthanc")
            server.add(*(slide.paths if slide is not None else ()))
            url = server.dicomweb_url
        opened.append(open_pacs(url, QUICK))
        return opened[-1]

    yield holding
    for pacs in opened:
        pacs.close()
