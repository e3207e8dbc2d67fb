"""TensorRT's engines: whose they are, where they lie, and what becomes of unreadable ones."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from models.engines import engine_folder, tensorrt_options, with_engines
from models.errors import InferenceFailed
from models.package import described_network, find_package
from node.config import Settings
from node.engines import own_engines

ENGINE = "TensorrtExecutionProvider_graph_1_0_sm90.engine"


def test_each_network_and_each_gpu_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """Of the same structure and other weights, engines have the same names."""
    package = find_package("demo-smear", ())
    digests = {
        described_network(package, stage, precision).sha256
        for stage in ("localiser", "detector")
        for precision in ("fp32", "fp16")
    }
    folders = {engine_folder(tmp_path, digest, gpu) for digest in digests for gpu in (0, 1)}
    assert len(folders) == 8
    assert {folder.parent.name for folder in folders if folder} == digests


def test_the_provider_is_told_where_engines_are_kept(tmp_path: Path) -> None:
    folder = engine_folder(tmp_path, "ab" * 32, 1)
    assert tensorrt_options(1, folder) == {
        "device_id": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": f"{tmp_path}/{'ab' * 32}/gpu-1",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": f"{tmp_path}/{'ab' * 32}/gpu-1",
    }
    assert tensorrt_options(2, engine_folder(None, "ab" * 32, 2)) == {"device_id": "2"}


class Runtime:
    """Builds an engine where none lies, and refuses a part of one, in ONNX Runtime's words."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / ENGINE
        self.built = 0

    def run(self) -> str:
        if not self.file.exists():
            self.file.write_text("engine")
            self.built += 1
        if self.file.read_text() != "engine":
            raise RuntimeError(f"TensorRT EP could not deserialize engine from cache: {self.file}")
        return "answer"


def test_an_engine_is_built_once(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "gpu-0"
    runtime = Runtime(folder)
    assert [with_engines(folder, runtime.run) for _ in range(3)] == ["answer"] * 3
    assert runtime.built == 1


def test_what_cannot_be_read_is_built_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "a" / "gpu-0"
    beside = tmp_path / "a" / "gpu-1" / ENGINE
    for file in (folder / ENGINE, beside):
        file.parent.mkdir(parents=True)
        file.write_text("eng")
    runtime = Runtime(folder)
    assert with_engines(folder, runtime.run) == "answer"
    assert runtime.built == 1
    assert f"cannot read the engines in {folder}" in caplog.text
    assert beside.read_text() == "eng", "another GPU's stay"


def test_other_failures_keep_the_engines(tmp_path: Path) -> None:
    (tmp_path / ENGINE).write_text("engine")

    def run() -> None:
        raise RuntimeError("CUDA failure 2: out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        with_engines(tmp_path, run)
    assert (tmp_path / ENGINE).exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InferenceFailed, match=r"cannot be kept in .*file/gpu-0"):
        with_engines(tmp_path / "file" / "gpu-0", lambda: "answer")


HOLDING = """
import sys
from dataclasses import replace
from pathlib import Path

from node.config import Settings
from node.engines import own_engines

settings = replace(Settings(), work_folder=Path(sys.argv[1]), database_url=sys.argv[2])
print(own_engines(settings), flush=True)
sys.stdin.read()
"""


def holding(work: Path, database_url: str = "") -> tuple[subprocess.Popen[str], Path]:
    """A process that keeps engines, and where."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(work), database_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_no_two_live_processes_have_the_same_folder(tmp_path: Path) -> None:
    first, of_first = holding(tmp_path)
    second, of_second = holding(tmp_path)
    first.kill()
    first.communicate()
    third, of_third = holding(tmp_path)
    for process in (second, third):
        process.communicate()
    assert of_first.parent == of_second.parent == tmp_path / "tensorrt"
    assert of_first != of_second
    assert of_third == of_first, "what a dead process has built is gone on with"


def test_a_process_keeps_its_folder(tmp_path: Path) -> None:
    settings = replace(Settings(), work_folder=tmp_path)
    assert own_engines(settings) == own_engines(settings) == tmp_path / "tensorrt" / "worker-0"
    hosts = replace(
        settings,
        database_url="postgresql://nowhere/node",
        jobs=replace(settings.jobs, host="hall-2"),
    )
    assert own_engines(hosts) == tmp_path / "tensorrt" / "hall-2" / "worker-0"
