"""Hosts with work folders of their own share what lies in a storage of fsspec."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

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
from node.work_files import open_work_files

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
