"""A GPU that is asked for by name and does not work: nothing begins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import onnxruntime
import pytest

from models.errors import InferenceFailed
from node.config import ModelSettings
from node.device import check_device
from tests.forked import marrow_node

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
SETTINGS = """
pacs_url = "{archive}"
[model]
device = "cuda"
[receive]
folder = "{received}"
[serve.keys.someone]
sha256 = "{digest}"
roles = ["read"]
"""


@pytest.mark.skipif(HAS_CUDA, reason="this runtime has CUDA")
@pytest.mark.parametrize("command", ["serve", "web", "work", "receive"])
def test_the_node_refuses_to_start(tmp_path: Path, command: str) -> None:
    config, work = tmp_path / "node.toml", tmp_path / "work"
    places = {"archive": tmp_path.as_uri(), "received": tmp_path / "received"}
    config.write_text(SETTINGS.format(**places, digest="0" * 64))
    ended = marrow_node("--config", str(config), "--work", str(work), command, timeout_s=60)
    assert ended.returncode == InferenceFailed.exit_code, ended.stderr
    assert "Model device 'cuda' is not usable here" in ended.stderr
    assert {path.name for path in work.glob("*")} <= {"metrics"}  # no job database, no lock


@pytest.mark.skipif(HAS_CUDA, reason="this runtime has CUDA")
def test_a_trial_that_dies_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(InferenceFailed, match="'cuda' is not usable here, its trial ended with"):
        check_device(ModelSettings(device="cuda"))


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_what_needs_no_gpu_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, device: Literal["auto", "cpu"]
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    check_device(ModelSettings(device=device))
    with pytest.raises(FileNotFoundError):
        check_device(ModelSettings(device="cuda"))
