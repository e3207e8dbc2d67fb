"""The node's own worklist, over HTTP and as another process sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from flask.testing import FlaskClient
from sqlalchemy import delete

from node.config import Settings
from node.job_database import open_job_database
from node.web.access import digest_of
from node.web.app import create_app
from node.web.settings import KeySettings, ServeSettings
from node.workitems import Workitems
from node.worklist_database import (
    REPORTS,
    SUBSCRIPTIONS,
    WORKITEMS,
    WORKLIST_SUBSCRIPTIONS,
    WorklistDatabase,
    worklist_database,
)
from tests.ups.caller import Caller


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    keys = {
        role: KeySettings(sha256=digest_of(f"mnk_{role}"), roles=(role,))
        for role in ("submit", "read", "operate", "admin")
    }
    serve = ServeSettings(keys=keys, requests_per_s=100_000)
    return replace(Settings(), work_folder=tmp_path_factory.mktemp("ups"), serve=serve)


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[FlaskClient]:
    with open_job_database(settings) as database:
        yield create_app(settings, database).test_client()


@pytest.fixture(scope="module")
def database(settings: Settings) -> WorklistDatabase:
    return worklist_database(settings)


@pytest.fixture
def caller(client: FlaskClient, database: WorklistDatabase) -> Caller:
    """A user agent of a list that is empty."""
    with database.changing() as connection:
        for table in (WORKITEMS, SUBSCRIPTIONS, WORKLIST_SUBSCRIPTIONS, REPORTS):
            connection.execute(delete(table))
    return Caller(client, "admin")


@pytest.fixture
def workitems(database: WorklistDatabase, caller: Caller) -> Workitems:
    """The same list as another process sees it."""
    return Workitems(database, "label")
