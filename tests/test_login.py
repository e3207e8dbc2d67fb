"""People sign in with a real OpenID Connect provider, in a real browser."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.fhir_fixture import INSTALLED, NODE, SOURCE
from tests.npm_packages import install
from tests.servers import cannot_run, free_port
from tests.service import Service, service_settings
from tests.smears import small_smear
from tests.viewer.browser import CHROMIUM

SECRET = "word of the pages"  # noqa: S105 - of a provider that lives for this test


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose pages people sign in to."""
    if CHROMIUM is None:
        cannot_run("no Chromium here, so nobody can sign in: apt-get install chromium")
    missing = install(SOURCE, "the provider")
    if missing:
        cannot_run(missing)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    folder = tmp_path_factory.mktemp("login")
    (folder / "secret").write_text(SECRET)
    with _provider(f"{url}/login/callback") as issuer:
        smear = small_smear(folder)
        oidc = {
            "issuer": issuer,
            "audience": "marrow-node",
            "client_id": "marrow-node-pages",
            "client_secret": f"file:{folder / 'secret'}",
        }
        config = service_settings(smear, port, {"serve.oidc": oidc})
        running = Service(url, smear, config, folder / "service.log")
        try:
            running.start()
            yield running
        finally:
            running.stop()


@contextmanager
def _provider(redirect_uri: str) -> Iterator[str]:
    process = subprocess.Popen(
        [str(NODE), "login.mjs", redirect_uri, SECRET],
        cwd=INSTALLED,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    issuer = process.stdout.readline().strip()
    assert issuer.startswith("http://127.0.0.1:"), issuer
    try:
        yield issuer
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def browser(service: Service) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def sign_in(browser: Browser, service: Service, path: str, name: str) -> Page:
    """Ask for a page, sign in and consent with the provider's own forms."""
    page = browser.new_context().new_page()
    page.goto(f"{service.url}{path}")
    page.fill("input[name=login]", name)
    page.fill("input[name=password]", "anything")
    page.click("button[type=submit]")
    page.click("button[type=submit]")
    page.wait_for_url(f"{service.url}/**")
    return page


def test_who_signs_in_comes_to_the_page_that_was_wanted(browser: Browser, service: Service) -> None:
    page = sign_in(browser, service, "/?status=failed", "read,operate")
    assert page.url.startswith(f"{service.url}/?status=failed")
    assert "Dr. Anna Lee" in page.locator("header").inner_text()
    cookie = next(each for each in page.context.cookies() if each["name"] == "session")
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"


def test_roles_are_those_of_the_provider(browser: Browser, service: Service) -> None:
    job = service.submit(study_uid="1.2.3", series_uid="1.2.3.4")["job"]
    service.ended(job)
    reader = sign_in(browser, service, f"/slides/{job}", "read")
    assert reader.locator("main button").count() == 0
    operator = sign_in(browser, service, f"/slides/{job}", "read,operate")
    with operator.expect_navigation():
        operator.click("form[action$='/retry'] button")
    assert service.get(f"/jobs/{job}")["tries"] == 2
    nobody = sign_in(browser, service, "/", "janitor")
    assert "lacks the role read" in nobody.content()


def test_signing_out_ends_it(browser: Browser, service: Service) -> None:
    page = sign_in(browser, service, "/", "read")
    with page.expect_navigation():
        page.click("form[action$='/logout'] button")
    assert page.locator("h1").inner_text() == "Signed out"
    answer = page.context.request.get(f"{service.url}/jobs")
    assert answer.status == 401
    page.click("text=sign out there too")
    page.click("text=Yes, sign me out")
    page.goto(f"{service.url}/")
    assert page.locator("input[name=password]").count() == 1, "the provider asks who it is again"


def test_a_forged_answer_signs_nobody_in(service: Service) -> None:
    answer = service.ask("GET", "/login/callback?code=stolen&state=guessed", None)
    assert answer.status_code == 401
    assert "Set-Cookie" not in answer.headers or "signed_in" not in answer.headers["Set-Cookie"]


def test_machines_are_not_sent_to_sign_in(service: Service) -> None:
    assert service.ask("GET", "/jobs", None).status_code == 401
    assert service.ask("GET", "/", None).status_code == 302
    assert Path(service.log).exists()
