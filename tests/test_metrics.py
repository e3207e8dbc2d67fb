"""What Prometheus reads, beside what tests/test_service.py sees of the whole service."""

from __future__ import annotations

import errno

import pytest

from models.errors import MarrowNodeError
from node import metrics
from node.gpu_use import GpuUse, gpu_use
from node.metrics import exposition


def test_gpus_are_told_one_by_one() -> None:
    text = exposition({}, [GpuUse(0, 0.25, 1024), GpuUse(1, 1.0, 2048)]).decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert float(values['marrow_node_gpu_busy_ratio{gpu="0"}']) == 0.25
    assert float(values['marrow_node_gpu_memory_used_bytes{gpu="1"}']) == 2048


def test_a_host_without_a_gpu_tells_of_none() -> None:
    """Where there are some, each is within its bounds."""
    for gpu in gpu_use():
        assert 0 <= gpu.busy_ratio <= 1
        assert gpu.memory_used_bytes > 0


def test_a_counter_that_cannot_be_written_does_not_fail_what_it_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics, "_counters", full)
    with metrics.stage_timed("open"):
        counted = True
    metrics.count_failure(MarrowNodeError("A sentence: with a remedy."))
    metrics.count_result({"model": {}})
    assert counted
