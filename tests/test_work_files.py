"""Work files: content-addressed, whole or not at all."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicom_io.errors import DiskFull, WorkFileMissing
from models.records import Regions
from node.audit import AuditSettings, AuditTrail
from node.config import Settings
from node.progress import Progress, ProgressFile
from node.revisions import keep_first
from node.work_files import WorkFiles
from node.work_lock import live_workers, take_worker
from tests.test_audit import TRANSFER


def test_the_same_content_is_stored_once(tmp_path: Path) -> None:
    work = WorkFiles(tmp_path)
    assert work.put(b"content") == work.put(b"content")
    assert [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()] == [b"content"]


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    work = WorkFiles(tmp_path)
    regions = Regions(np.array([[0.0, 0, 256, 256]]), np.array([0.5], np.float32), "frame")
    digest = work.put_record(regions)
    back = work.get_record(digest)
    assert isinstance(back, Regions)
    assert np.array_equal(back.box_px, regions.box_px)
    assert back.kind == "frame"
    assert work.put_record(back) == digest


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False
    )
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(full_disk: Path) -> None:
    work = WorkFiles(full_disk / "work")
    with pytest.raises(DiskFull, match="cannot be used"):
        work.put(os.urandom(200_000))
    assert [p for p in full_disk.rglob("*") if p.is_file()] == []


def test_on_a_full_disk_results_and_records_are_refused_and_progress_is_left_out(
    full_disk: Path,
) -> None:
    for folder in ("results", "progress", "audit/syslog"):
        (full_disk / folder).mkdir(parents=True)
    with suppress(OSError), (full_disk / "other").open("wb", buffering=0) as other:
        while True:
            other.write(bytes(4096))
    progress = ProgressFile(full_disk / "progress", "job-1")
    progress.report(Progress("detect", 20.0, 3))
    assert progress.read() is None
    with pytest.raises(DiskFull, match="free space"):
        keep_first(replace(Settings(), work_folder=full_disk), "identity", {"revision": 1})
    trail = AuditTrail(AuditSettings(syslog_url="tls://host:6514"), full_disk / "audit")
    with pytest.raises(DiskFull, match="free space"):
        trail.record(TRANSFER)


def test_a_worker_is_dead_when_its_lock_is_free(tmp_path: Path) -> None:
    first, lock = take_worker(tmp_path)
    second, other = take_worker(tmp_path)
    assert (first, second) == ("worker-0", "worker-1")
    assert live_workers(tmp_path) == [first, second]
    lock.close()
    assert live_workers(tmp_path) == [second]
    other.close()


def test_a_file_of_another_host_is_one_sentence_and_passes(tmp_path: Path) -> None:
    digest = WorkFiles(tmp_path / "a").put(b"regions")
    with pytest.raises(WorkFileMissing, match="another host has it") as raised:
        WorkFiles(tmp_path / "b").get(digest)
    assert raised.value.transient
