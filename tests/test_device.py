"""A GPU that is asked for by name and does not work: nothing begins."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal

import onnxruntime
import pytest

from models.errors import InferenceFailed
from node.config import ModelSettings
from node.device import check_device
from tests.forked import marrow_node
from tests.servers import free_port

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
SETTINGS = """
pacs_url = "{archive}"
[model]
device = "cuda"
[receive]
folder = "{received}"
[poll]
folder = "{received}"
[serve.keys.someone]
sha256 = "{digest}"
roles = ["read"]
"""
# A command that notes when its process forks, and when it opens a session of the runtime.
NOTING = """
import os
import sys

import onnxruntime

from node.cli import main


def note(what):
    os.write(1, f"{what} {os.getpid()}\\n".encode())


def noted(*arguments, **named):
    note("session")
    return opened(*arguments, **named)


opened, onnxruntime.InferenceSession = onnxruntime.InferenceSession, noted
os.register_at_fork(before=lambda: note("fork"))
main(sys.argv[1:])
"""


@pytest.mark.skipif(HAS_CUDA, reason="this runtime has CUDA")
@pytest.mark.parametrize("command", ["serve", "web", "work", "receive", "poll", "perform"])
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


@pytest.mark.parametrize("command", [["analyse", "1.2", "1.2.3"], ["receive"]])
def test_what_forks_has_opened_no_session_before(tmp_path: Path, command: list[str]) -> None:
    """A process that is forked from one that has used CUDA cannot use it."""
    config = tmp_path / "node.toml"
    config.write_text(
        f"pacs_url = {json.dumps(tmp_path.as_uri())}\n"
        f"work_folder = {json.dumps(str(tmp_path / 'work'))}\n"
        f"[receive]\nfolder = {json.dumps(str(tmp_path / 'received'))}\nport = {free_port()}\n"
    )
    arguments = [sys.executable, "-c", NOTING, "--config", str(config), *command]
    did: list[str] = []
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        limit = threading.Timer(120, process.kill)
        limit.start()
        for line in process.stdout or ():
            what, _, pid = line.strip().partition(" ")
            if pid == str(process.pid):
                did.append(what)
            if "session" in did:
                process.terminate()
        limit.cancel()
    assert did[0] == "fork"
    assert "session" in did


@pytest.mark.skipif(HAS_CUDA, reason="this runtime has CUDA")
def test_the_benchmark_of_gpus_says_why_it_measures_nothing() -> None:
    command = [sys.executable, "-m", "tests.bench.gpu"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stderr.startswith("skipped: Model device 'cuda' is not usable here")
    assert ended.stdout == ""
