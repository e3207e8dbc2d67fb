"""Hosts with work folders of their own share what lies in a storage of fsspec."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dicom_io.errors import ConfigurationInvalid, SharedStorageUnreachable, WorkFileMissing
from models.records import Regions
from node.config import Settings
from node.job_database import prepare_database
from node.job_queue import open_job_queue
from node.retention import purge
from node.revisions import keep_first, keep_next, revisions
from node.shared_storage import SharedStorage
from node.work_files import WorkFiles, open_work_files
from tests.smears import small_smear

LONG_AGO = (1.0, 1.0)


@pytest.fixture(params=["file", "memory"])
def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Settings, Settings]]:
    """Two hosts."""
    url = (tmp_path / "storage").as_uri() if request.param == "file" else "memory://marrow/node"
    yield (
        replace(Settings(), work_folder=tmp_path / "a", shared_storage=url),
        replace(Settings(), work_folder=tmp_path / "b", shared_storage=url),
    )
    MemoryFileSystem.store.clear()


def test_a_record_of_one_host_is_read_on_the_other(hosts: tuple[Settings, Settings]) -> None:
    a, b = map(open_work_files, hosts)
    regions = Regions(np.array([[0.0, 0.0, 2.0, 2.0]]), np.ones(1, np.float32), "box")
    digest = a.put_record(regions)
    assert b.has(digest)
    assert not b.path(digest).exists()
    assert np.array_equal(b.get_record(digest).box_px, regions.box_px)
    assert b.path(digest).read_bytes() == a.path(digest).read_bytes()


def test_what_neither_has_is_missing(hosts: tuple[Settings, Settings]) -> None:
    work = open_work_files(hosts[0])
    assert not work.has("0" * 64)
    with pytest.raises(WorkFileMissing, match="shared_storage"):
        work.get("0" * 64)


def test_a_damaged_file_is_not_taken(hosts: tuple[Settings, Settings]) -> None:
    a, b = map(open_work_files, hosts)
    digest = a.put(b"whole")
    SharedStorage(hosts[0].shared_storage).put(f"files/{digest[:2]}/{digest}", b"who")
    with pytest.raises(WorkFileMissing):
        b.get(digest)
    assert not b.path(digest).exists()


def test_revisions_are_those_of_all_hosts(hosts: tuple[Settings, Settings]) -> None:
    a, b = hosts
    keep_first(a, "1d", {"revision": 1, "of": "a"})
    assert revisions(b, "1d") == [{"revision": 1, "of": "a"}]
    second = {"revision": 2, "of": "b"}
    assert keep_next(b, "1d", second) == second
    # The other host's reviewer was slower: what is there is not replaced.
    assert keep_next(a, "1d", {"revision": 2, "of": "a"}) == second
    assert revisions(a, "1d") == [{"revision": 1, "of": "a"}, second]
    assert revisions(a, "other") == []


def test_a_revision_of_which_a_part_is_there_is_not_taken(
    hosts: tuple[Settings, Settings],
) -> None:
    a, b = hosts
    keep_first(a, "1d", {"revision": 1})
    SharedStorage(a.shared_storage).put("results/1d.2.json", b'{"revision": 2, "o')
    with pytest.raises(SharedStorageUnreachable, match=r"results/1d\.2\.json"):
        revisions(b, "1d")
    assert not (b.work_folder / "results" / "1d.2.json").exists()


def test_what_is_purged_here_goes_there_too(hosts: tuple[Settings, Settings]) -> None:
    settings = hosts[0]
    prepare_database(settings)
    work = open_work_files(settings)
    old, young = work.put(b"old"), work.put(b"young")
    keep_first(settings, "1d", {"revision": 1, "artifacts": {"ANN": {"sha256": young}}})
    os.utime(work.path(old), LONG_AGO)
    storage = SharedStorage(settings.shared_storage)
    with open_job_queue(settings) as queue:
        purge(settings, queue, 1.0)
    assert not storage.has(f"files/{old[:2]}/{old}")
    assert storage.has(f"files/{young[:2]}/{young}")
    assert storage.has("results/1d.json")
    storage.remove("results/not-there.json")


def test_what_anothers_result_names_is_not_purged_there(hosts: tuple[Settings, Settings]) -> None:
    """One host began the analysis; the other went on with its files, and has the result."""
    a, b = hosts
    prepare_database(a)
    work = open_work_files(a)
    cells, left = work.put(b"cells"), work.put(b"left behind")
    open_work_files(b).put(b"cells")
    keep_first(b, "1d", {"revision": 1, "analysis": {"cells": cells}})
    keep_next(b, "1d", {"revision": 2, "analysis": {"cells": cells}})
    for digest in (cells, left):
        os.utime(work.path(digest), LONG_AGO)
    with open_job_queue(a) as queue:
        assert purge(a, queue, 1.0).files == 2
    assert not work.path(cells).exists()
    assert work.get(cells) == b"cells"
    assert not work.has(left)


@pytest.fixture
def told_by(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is fetched from the storage."""
    fetched: list[str] = []
    get = SharedStorage.get

    def heard(storage: SharedStorage, name: str) -> bytes | None:
        fetched.append(name)
        return get(storage, name)

    monkeypatch.setattr(SharedStorage, "get", heard)
    return fetched


def test_anothers_result_is_fetched_once_as_long_as_it_is_the_same(
    hosts: tuple[Settings, Settings], told_by: list[str]
) -> None:
    a, b = hosts
    prepare_database(a)
    work = open_work_files(a)

    def purged(content: bytes) -> bool:
        """Whether an old file of that content goes there too."""
        digest = work.put(content)
        os.utime(work.path(digest), LONG_AGO)
        told_by.clear()
        with open_job_queue(a) as queue:
            purge(a, queue, 1.0)
        assert not work.path(digest).exists()
        return not SharedStorage(a.shared_storage).has(f"files/{digest[:2]}/{digest}")

    def names(content: bytes) -> dict[str, Any]:
        return {"revision": 1, "analysis": {"cells": hashlib.sha256(content).hexdigest()}}

    keep_first(b, "1d", names(b"first"))
    assert purged(b"other")
    assert told_by == ["results/1d.json"]
    assert not purged(b"first")
    assert told_by == []
    keep_first(b, "1d", names(b"again"))
    assert not purged(b"again")
    assert told_by == ["results/1d.json"]
    assert purged(b"first")
    SharedStorage(a.shared_storage).remove("results/1d.json")
    assert purged(b"again")
    assert told_by == []


def test_nothing_goes_before_it_is_known_what_others_need(
    hosts: tuple[Settings, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would stay there for ever: what is gone here is not looked for again."""
    a, b = hosts
    prepare_database(a)
    work, storage = open_work_files(a), SharedStorage(a.shared_storage)
    old = work.put(b"old")
    os.utime(work.path(old), LONG_AGO)
    keep_first(b, "1d", {"revision": 1})

    def away(storage: SharedStorage, name: str) -> bytes | None:
        raise SharedStorageUnreachable("The shared storage cannot be used: check the network.")

    for method in ("get", "remove"):
        with open_job_queue(a) as queue, monkeypatch.context() as meanwhile:
            meanwhile.setattr(SharedStorage, method, away)
            with pytest.raises(SharedStorageUnreachable):
                purge(a, queue, 1.0)
        assert work.path(old).exists()
    with open_job_queue(a) as queue:
        assert purge(a, queue, 1.0).files == 1
    assert not storage.has(f"files/{old[:2]}/{old}")


def test_a_worker_goes_on_where_the_storage_is_away_when_it_would_forget(tmp_path: Path) -> None:
    smear = small_smear(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    old = WorkFiles(smear.work / "files")
    digest = old.put(b"old")
    os.utime(old.path(digest), LONG_AGO)
    config = smear.settings(shared_storage=blocked.as_uri() + "/below")
    said = tmp_path / "said"
    with (
        said.open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "node", "--config", str(config), "work"], stderr=log
        ) as worker,
    ):
        try:
            end = time.monotonic() + 60
            while "shared storage cannot be used" not in said.read_text():
                assert worker.poll() is None, said.read_text()
                assert time.monotonic() < end
                time.sleep(0.1)
            time.sleep(1)
            assert worker.poll() is None, said.read_text()
        finally:
            worker.terminate()
            worker.wait(60)
    assert old.path(digest).exists()


def test_a_storage_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    settings = replace(
        Settings(), work_folder=tmp_path / "work", shared_storage=blocked.as_uri() + "/below"
    )
    with pytest.raises(SharedStorageUnreachable, match="shared_storage") as refused:
        open_work_files(settings).put(b"content")
    assert refused.value.transient


@pytest.mark.parametrize("url", ["nothing-of-that-name://bucket", "dropbox://folder"])
def test_a_storage_that_is_not_known_here_is_a_setting_to_correct(tmp_path: Path, url: str) -> None:
    settings = replace(Settings(), work_folder=tmp_path, shared_storage=url)
    with pytest.raises(ConfigurationInvalid, match="shared_storage"):
        open_work_files(settings).put(b"content")
