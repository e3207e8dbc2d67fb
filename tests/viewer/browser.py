"""dicom-microscopy-viewer in headless Chromium: slide from a real archive, annotations elsewhere.

The page and the archive share an origin, as behind a hospital's proxy: Orthanc 1.10 answers no
other. The node's results are asked for across origins.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import requests
from flask import Flask, Response, request, send_from_directory
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from requests.adapters import HTTPAdapter

from tests.npm_packages import CACHE, install
from tests.result_folders import listening
from tests.servers import free_port

SOURCE = Path(__file__).parent
PACKAGES = CACHE / SOURCE.name / "node_modules"
SCRIPTS = (
    PACKAGES / "dicom-microscopy-viewer/dist/dynamic-import",
    PACKAGES / "dicomweb-client/build",
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Software rendering of WebGL, which the viewer draws slides and points with.
ARGUMENTS = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")


def missing() -> str:
    """Why there is no viewer here, or nothing."""
    if CHROMIUM is None:
        return "no Chromium here, so no viewer can be looked at: apt-get install chromium"
    return install(SOURCE, "the viewer")


@dataclass(frozen=True)
class Viewer:
    """A page with the viewer.

    Attributes
    ----------
    page
    pacs_url
        The archive's DICOMweb as the page reaches it.
    said
        What the page wrote on the console, warnings and errors only.
    """

    page: Page
    pacs_url: str
    said: list[str]

    def open_slide(self, study_uid: str, series_uid: str) -> None:
        """Open a slide on a fresh page."""
        self.page.reload()
        self.page.evaluate(
            "([url, study, series]) => openSlide(url, study, series)",
            [self.pacs_url, study_uid, series_uid],
        )

    def add_annotations(self, results_url: str, key: str, study_uid: str) -> list[str]:
        """Labels of the groups in all annotations of a study; none is shown yet."""
        labels: list[str] = self.page.evaluate(
            "([url, key, study]) => addAnnotations(url, key, study)", [results_url, key, study_uid]
        )
        return labels

    def show(self) -> float:
        """Show every group; the seconds until all are fetched and drawn."""
        return float(self.page.evaluate("() => show()")) / 1000

    def look_at(self, x_px: float, y_px: float, px_per_pixel: float) -> float:
        """Go there, so many base pixels on one of the screen; seconds until all is drawn."""
        asked = [x_px, y_px, px_per_pixel]
        return float(self.page.evaluate("([x, y, r]) => lookAt(x, y, r)", asked)) / 1000

    def failures(self) -> list[str]:
        """What the viewer itself reported."""
        reported: list[str] = self.page.evaluate("() => failures")
        return reported

    def picture(self) -> NDArray[np.uint8]:
        """The page as it is seen, (H, W, 3)."""
        return np.array(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB"))


@contextmanager
def page_server(dicomweb_url: str) -> Iterator[str]:
    """Serve the page, the viewer's files and the archive (below ``/dicom-web``) on one origin."""
    app = Flask("viewer", static_folder=None)
    session = requests.Session()
    # The archive may close a kept connection in the moment in which it is used again.
    session.mount("http://", HTTPAdapter(max_retries=3))

    @app.get("/")
    def page() -> Response:
        return send_from_directory(SOURCE, "page.html")

    @app.get("/favicon.ico")
    def icon() -> tuple[str, int]:
        return "", 204

    @app.get("/static/js/<name>")
    def script(name: str) -> Response:
        folder = next((each for each in SCRIPTS if (each / name).exists()), SCRIPTS[0])
        return send_from_directory(folder, name)

    @app.get("/dicom-web/<path:path>")
    def archive(path: str) -> Response:
        answer = session.get(
            f"{dicomweb_url}/{path}",
            params=request.args.to_dict(),
            headers={"Accept": request.headers.get("Accept", "*/*"), "Host": request.host},
            timeout=30,
        )
        return Response(
            answer.content, answer.status_code, content_type=answer.headers.get("Content-Type")
        )

    port = free_port()
    with listening(app, port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def open_viewer(origin: str, size_px: tuple[int, int]) -> Iterator[Viewer]:
    """A browser window of that size with the page of `origin`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*ARGUMENTS, "--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": size_px[0], "height": size_px[1]})
        page.set_default_timeout(120_000)
        said: list[str] = []
        page.on(
            "console", lambda m: said.append(m.text) if m.type in ("warning", "error") else None
        )
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(origin)
        yield Viewer(page, f"{origin}/dicom-web", said)
        browser.close()
