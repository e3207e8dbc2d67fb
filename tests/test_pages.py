"""The pages, in a real browser: readable, usable by keyboard and screen reader, safe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.npm_packages import CACHE, install
from tests.servers import cannot_run
from tests.service import Service, key_of, running_service
from tests.smears import small_smear
from tests.viewer.browser import CHROMIUM

AXE_SOURCE = Path(__file__).parent / "axe"
AXE = CACHE / AXE_SOURCE.name / "node_modules" / "axe-core" / "axe.min.js"
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    missing = (
        "no Chromium here, so pages cannot be looked at: apt-get install chromium"
        if CHROMIUM is None
        else install(AXE_SOURCE, "axe")
    )
    if missing:
        cannot_run(missing)
    with running_service(small_smear(tmp_path_factory.mktemp("pages"))) as running:
        yield running


@pytest.fixture(scope="module")
def jobs(service: Service) -> dict[str, str]:
    """A completed job, a failed one, and one that waits."""
    completed = service.submit_slide(priority="urgent")
    failed = str(service.submit(study_uid="1.2.3", series_uid="1.2.3.4")["job"])
    service.ended(completed)
    service.ended(failed)
    return {"completed": completed, "failed": failed}


@pytest.fixture(scope="module")
def browser(service: Service) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    """A window of somebody who may do everything; without JavaScript of the pages' own."""
    yield from _window(browser, "admin")


def _window(browser: Browser, role: str) -> Iterator[Page]:
    context = browser.new_context(
        http_credentials={"username": role, "password": key_of(role)},
        viewport={"width": 1280, "height": 900},
    )
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    yield page
    assert not [line for line in said if "Content Security Policy" in line], said
    context.close()


def serious_faults(page: Page) -> list[tuple[str, str, list[Any]]]:
    """What axe finds: rule, help, and where."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run()")
    return [
        (each["id"], each["help"], [node["html"] for node in each["nodes"]])
        for each in found["violations"]
        if each["impact"] in SERIOUS
    ]


def picture(page: Page, name: str) -> None:
    """Keep a screenshot where somebody wants to look at it."""
    folder = os.environ.get("MARROW_NODE_SCREENSHOTS")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_the_worklist_shows_every_job(page: Page, service: Service, jobs: dict[str, str]) -> None:
    page.goto(f"{service.url}/")
    rows = page.locator("tbody th").all_inner_texts()
    assert set(jobs.values()) <= set(rows)
    assert page.locator("progress").count() == len(rows)
    assert "1.2.3.4" in page.locator(".why").first.inner_text()
    picture(page, "worklist")
    assert serious_faults(page) == []
    page.goto(f"{service.url}/?status=failed")
    assert page.locator("tbody th").all_inner_texts() == [jobs["failed"]]


def test_a_slides_page_shows_pictures_and_the_differential(
    page: Page, service: Service, jobs: dict[str, str]
) -> None:
    page.goto(f"{service.url}/slides/{jobs['completed']}")
    widths = page.evaluate("() => [...document.images].map((each) => each.naturalWidth)")
    assert len(widths) == 2
    assert min(widths) > 300
    differential = service.get(f"/jobs/{jobs['completed']}")["result"]["differential"]
    table = page.locator("table").first
    counts = [int(text) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]
    assert sorted(counts) == sorted(row["count"] for row in differential.values())
    picture(page, "slide")
    assert serious_faults(page) == []


def test_pages_work_by_keyboard_alone(page: Page, service: Service, jobs: dict[str, str]) -> None:
    """Tab to the failed job's link and to its button; Enter presses it."""
    page.goto(f"{service.url}/?status=failed&refresh=off")
    _tab_to(page, f"a[href$='{jobs['failed']}']")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/slides/{jobs['failed']}")
    assert service.get(f"/jobs/{jobs['failed']}")["tries"] == 1
    _tab_to(page, "form[action$='/retry'] button")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert service.get(f"/jobs/{jobs['failed']}")["tries"] == 2
    picture(page, "waiting")
    assert serious_faults(page) == []


def test_a_result_is_confirmed_by_keyboard_alone(
    page: Page, service: Service, jobs: dict[str, str]
) -> None:
    page.goto(f"{service.url}/slides/{jobs['completed']}")
    assert "Nobody has reviewed this result." in page.inner_text("main")
    _tab_to(page, "input[value='confirmed'] ~ fieldset button")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    job = page.url.rpartition("/")[2]
    assert service.ended(job)["result"]["standing"] == "final"
    page.goto(f"{service.url}/slides/{job}")
    assert "This result is final: confirmed by Dr. Anna Lee" in page.inner_text("main")
    picture(page, "review")
    assert serious_faults(page) == []


def test_forms_of_other_pages_are_refused(service: Service, jobs: dict[str, str]) -> None:
    """A browser adds the credentials by itself; the form's token it does not."""
    answer = service.ask(
        "POST",
        f"/slides/{jobs['failed']}/retry",
        None,
        auth=("admin", key_of("admin")),
    )
    assert answer.status_code == 400
    assert "CSRF" in answer.json()["detail"]


def test_readers_see_no_buttons(browser: Browser, service: Service, jobs: dict[str, str]) -> None:
    for page in _window(browser, "read"):
        page.goto(f"{service.url}/slides/{jobs['failed']}")
        assert page.locator("main button").count() == 0


def _tab_to(page: Page, selector: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
            return
    raise AssertionError(f"no {selector} can be reached by keyboard")
