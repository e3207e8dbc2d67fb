"""What a worker does every few seconds goes on while the database is away, and tells of it once."""

from __future__ import annotations

import threading

import pytest

from dicom_io.errors import DiskFull
from node.repeated import repeated


def test_what_fails_again_and_again_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    looks, many = 0, threading.Event()
    away = "The job database cannot be used: check that it runs."

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 7:
            many.set()
        if looks != 4:
            raise DiskFull(away)

    with repeated(look, 0.01, "looks"):
        assert many.wait(10)
    assert [record.message for record in caplog.records] == [away] * 2, "it was back in between"
