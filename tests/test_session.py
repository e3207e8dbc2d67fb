"""Sessions: which device, what is refused, and what does not change a result."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from models.composing import ASSETS
from models.errors import DigestMismatch, InferenceFailed, ManifestInvalid
from models.package import described_network, find_package, load_package, network_of
from models.records import UInt8
from models.session import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    Session,
    _BatchSize,
    _gpus,
    _together,
    open_session,
    precision_for,
    provider_for,
)
from tests.tiny_package import changed_manifest, tiny_package

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_package(tmp_path / "tiny")


def test_a_network_changed_after_loading_is_refused(folder: Path) -> None:
    package = load_package(folder)
    (folder / "localiser.onnx").write_bytes(b"other")
    with pytest.raises(DigestMismatch, match=r"localiser\.onnx"):
        open_session(package, "localiser", "cpu", 1)


def test_the_provider_is_chosen_logged_and_readable(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="models.session"):
        session = open_session(load_package(folder), "detector", "cpu", 1)
    assert session.provider == provider_for("cpu") == "CPUExecutionProvider"
    assert session.runtime == f"onnxruntime {onnxruntime.__version__}"
    (message,) = (record.getMessage() for record in caplog.records)
    assert all(part in message for part in ("tiny", "0.0.1", "CPUExecutionProvider", "detector"))


@pytest.mark.skipif(HAS_CUDA, reason="this runtime has CUDA")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_is_refused_where_it_does_not_run(
    folder: Path, device: Literal["cuda", "tensorrt"]
) -> None:
    with pytest.raises(InferenceFailed, match=device):
        open_session(load_package(folder), "detector", device, 1)
    with pytest.raises(InferenceFailed, match=device):
        provider_for(device)
    assert provider_for("auto") == "CPUExecutionProvider"


@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA in this runtime")
def test_cuda_runs_and_agrees_with_the_cpu(folder: Path) -> None:
    package = load_package(folder)
    image = np.random.default_rng(1).integers(0, 255, (2, 64, 96, 3), dtype=np.uint8)
    cuda = open_session(package, "detector", "cuda", 1)
    assert cuda.provider == provider_for("cuda") == provider_for("auto") == "CUDAExecutionProvider"
    expected = open_session(package, "detector", "cpu", 1)(image)
    np.testing.assert_allclose(cuda(image)["score"], expected["score"], atol=1e-4)


def test_a_cpu_runs_32_bits_whatever_is_asked_for() -> None:
    package = find_package("demo-smear", ())
    asked = open_session(package, "localiser", "cpu", 1, "fp16")
    assert (asked.precision, asked.file) == ("fp32", "localiser.onnx")
    assert precision_for("cpu", "fp16") == precision_for("cpu", "fp32") == "fp32"
    image = np.random.default_rng(1).integers(0, 255, (1, 64, 96, 3), dtype=np.uint8)
    plain = open_session(package, "localiser", "cpu", 1)
    assert asked(image)["probability"].tobytes() == plain(image)["probability"].tobytes()


@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA in this runtime")
def test_cuda_runs_16_bits_and_agrees_with_the_cpu() -> None:
    package = find_package("demo-smear", ())
    rgb = np.asarray(Image.open(next((ASSETS / "fields").glob("*.jpg"))).convert("RGB"))
    image = rgb[None, :224, :224].copy()
    fast = open_session(package, "detector", "cuda", 1, "fp16")
    assert (fast.precision, fast.file) == ("fp16", "detector.fp16.onnx")
    expected = open_session(package, "detector", "cpu", 1)(image)
    np.testing.assert_allclose(np.sort(fast(image)["score"]), np.sort(expected["score"]), atol=1e-2)


def test_a_session_does_not_depend_on_the_batch(folder: Path) -> None:
    session = open_session(load_package(folder), "detector", "cpu", 1)
    image = np.random.default_rng(0).integers(0, 255, (3, 64, 96, 3), dtype=np.uint8)
    together = session(image)
    assert together["type_probability"].shape == (3, 64 * 96 // 16, 10)
    for i in range(3):
        for name, array in session(image[i : i + 1]).items():
            assert array.tobytes() == together[name][i : i + 1].tobytes()


def test_cells_of_images_together_are_those_of_each_alone() -> None:
    """As a GPU is given them: the crops of several images are filled up, those of one are not."""
    network = network_of(find_package("demo-smear", ()), "detector", "fp32")
    runtime = onnxruntime.InferenceSession(network, providers=[CPU_PROVIDER])
    fields = sorted((ASSETS / "fields").glob("*.jpg"))[:3]
    image = np.stack([np.asarray(Image.open(field).convert("RGB"))[:352, :352] for field in fields])
    together = runtime.run(None, {"image": image})
    assert (together[1] > 0.5).any()  # a cell
    for number in range(len(image)):
        alone = runtime.run(None, {"image": image[number : number + 1]})
        for one, all_ in zip(alone, together, strict=True):
            np.testing.assert_allclose(all_[number : number + 1], one, atol=1e-4)


def test_what_the_runtime_refuses_is_an_inference_failure(folder: Path) -> None:
    session = open_session(load_package(folder), "detector", "cpu", 1)
    with pytest.raises(InferenceFailed, match=r"detector\.onnx"):
        session(np.zeros((1, 64, 64, 4), np.uint8))
    with pytest.raises(InferenceFailed, match=r"detector\.onnx"):
        session(np.zeros((1, 64, 64, 3), np.float32))  # type: ignore[arg-type]


def replace_network(folder: Path, stage: str, content: bytes) -> None:
    (folder / f"{stage}.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_bytes(
        changed_manifest(folder, lambda m: m["stages"][stage].update(sha256=digest))
    )


def test_a_file_that_is_no_network_is_refused(folder: Path) -> None:
    replace_network(folder, "detector", b"this is not a network")
    with pytest.raises(InferenceFailed, match=r"cannot load detector\.onnx"):
        open_session(load_package(folder), "detector", "cpu", 1)


def test_a_network_of_another_stage_is_refused(folder: Path) -> None:
    replace_network(folder, "detector", (folder / "localiser.onnx").read_bytes())
    with pytest.raises(ManifestInvalid, match="output 'box_px'"):
        open_session(load_package(folder), "detector", "cpu", 1)


def test_classes_and_network_must_agree(tmp_path: Path) -> None:
    folder = tiny_package(tmp_path / "tiny", classes=["myeloblast", "unclassified"])
    with pytest.raises(ManifestInvalid, match="type_probability"):
        open_session(load_package(folder), "detector", "cpu", 1)


def network(node: onnx.NodeProto, element: int, shape: list[str | int]) -> bytes:
    """Return a localiser-like network of one node."""
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("image", element, shape)],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, None)],
    )
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


@pytest.mark.parametrize(
    ("element", "shape"),
    [
        (TensorProto.FLOAT, ["N", "H", "W", 3]),
        (TensorProto.UINT8, [1, 640, 640, 3]),
        (TensorProto.UINT8, ["N", 3, "H", "W"]),
        (TensorProto.UINT8, ["N", "H", "W"]),
    ],
)
def test_a_wrong_input_is_refused(folder: Path, element: int, shape: list[str | int]) -> None:
    node = helper.make_node("Cast", ["image"], ["probability"], to=TensorProto.FLOAT)
    replace_network(folder, "localiser", network(node, element, shape))
    with pytest.raises(ManifestInvalid, match=r"localiser\.onnx.*image"):
        open_session(load_package(folder), "localiser", "cpu", 1)


def test_an_output_that_is_not_finite_is_an_inference_failure(folder: Path) -> None:
    model = onnx.load(folder / "localiser.onnx")
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]))
    model.graph.node.append(helper.make_node("Div", ["zero", "zero"], ["nan"]))
    model.graph.node.append(helper.make_node("Add", ["before", "nan"], ["probability"]))
    replace_network(folder, "localiser", model.SerializeToString())
    session = open_session(load_package(folder), "localiser", "cpu", 1)
    with pytest.raises(InferenceFailed, match=r"'probability'.*not finite"):
        session(np.zeros((1, 32, 32, 3), np.uint8))


def gpu_session(runs: Sequence[Callable[[UInt8], list[np.ndarray]]], images: int) -> Session:
    """A session as on so many GPUs, each of which takes so many images at a time."""
    return Session(
        "localiser", "x.onnx", "CUDA", "fp32", "test", runs, ("probability",), _BatchSize(images)
    )


def test_a_batch_that_memory_does_not_hold_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[int] = []

    def run(image: UInt8) -> list[np.ndarray]:
        asked.append(len(image))
        if len(image) > 2:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
        return [image[:, 0, 0, :1].astype(np.float32)]

    session = Session(
        "localiser", "x.onnx", "CUDA", "fp32", "test", [run], ("probability",), _BatchSize(99)
    )
    image = np.arange(7, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    with caplog.at_level(logging.WARNING):
        assert session(image)["probability"].ravel().tolist() == list(range(7))
    assert asked == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert "From now on 1 at a time" in caplog.text
    asked.clear()
    session(image[:3])
    assert asked == [1, 1, 1]


def test_a_gpu_is_given_as_many_images_each_time() -> None:
    asked: list[int] = []

    def run(image: UInt8) -> list[np.ndarray]:
        asked.append(len(image))
        return [image[:, 0, 0, :1].astype(np.float32)]

    session = gpu_session([run], 99)
    image = np.arange(8, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    for images in (3, 8, 5, 1):
        answers = session(image[:images])["probability"]
        assert answers.ravel().tolist() == list(range(images))
    assert asked == [3, 8, 8, 8]


def test_a_cpu_is_given_one_image_each_time() -> None:
    asked: list[int] = []

    def run(image: UInt8) -> list[np.ndarray]:
        asked.append(len(image))
        return [image[:, 0, 0, :1].astype(np.float32)]

    gpu_session([run], 1)(np.zeros((3, 2, 2, 3), np.uint8))
    assert asked == [1, 1, 1]


def test_a_failure_that_comes_late_does_not_raise_the_limit_again() -> None:
    """Of two GPUs the first holds its batch until the second was given single images."""
    begun, goes_on = threading.Event(), threading.Event()
    asked: list[int] = []

    def run(image: UInt8) -> list[np.ndarray]:
        if not begun.is_set():
            begun.set()
            assert goes_on.wait(10)
        asked.append(len(image))
        if len(image) > 1:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
        return [image[:, 0, 0, :1].astype(np.float32)]

    session = gpu_session([run, run], 8)
    images = np.zeros((8, 2, 2, 3), np.uint8)
    with ThreadPoolExecutor(1) as thread:
        late = thread.submit(session, images)
        assert begun.wait(10)
        session(images[:7])
        assert asked == [8, 4, 2, 1, 1, 1, 1, 1, 1, 1]
        asked.clear()
        goes_on.set()
        assert len(late.result()["probability"]) == 8
    assert asked == [8, *[1] * 8]


class OnProvider:
    """A session of the runtime, as far as it tells which provider it got."""

    def __init__(self, provider: str) -> None:
        self._provider = provider

    def get_providers(self) -> list[str]:
        return [self._provider, CPU_PROVIDER]


def test_every_gpu_has_to_work() -> None:
    works, fell_back = OnProvider(CUDA_PROVIDER), OnProvider(CPU_PROVIDER)
    assert _together([works, works], "cuda") == (CUDA_PROVIDER, [works, works])
    with pytest.raises(InferenceFailed, match="'cuda' is not usable here"):
        _together([works, fell_back], "cuda")
    assert _together([works, fell_back, works], "auto") == (CUDA_PROVIDER, [works, works])


class OnTwoGpus:
    """A runtime with TensorRT and two GPUs, which computes on the CPU.

    Attributes
    ----------
    told
        Options of the TensorRT provider of every session that has one.
    """

    def __init__(self) -> None:
        self.told: list[dict[str, str]] = []
        self.cpu = onnxruntime.InferenceSession

    def get_available_providers(self) -> list[str]:
        return [TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER]

    def open(
        self, content: bytes, *options: Any, providers: Sequence[Any], enable_fallback: int
    ) -> Any:
        assert not enable_fallback  # of the runtime's own, which prints
        name, told = providers[0]
        if int(told["device_id"]) > 1:
            raise RuntimeError("there are two")
        if name == TENSORRT_PROVIDER:
            self.told.append(told)
        session = self.cpu(content, *options, providers=[CPU_PROVIDER])
        session.get_providers = lambda: [name, CPU_PROVIDER]
        return session


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[OnTwoGpus]:
    runtime = OnTwoGpus()
    monkeypatch.setattr(onnxruntime, "get_available_providers", runtime.get_available_providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", runtime.open)
    _gpus.cache_clear()
    yield runtime
    _gpus.cache_clear()


def test_where_a_gpu_cannot_be_used_any_device_is_the_cpu(
    folder: Path,
    two_gpus: OnTwoGpus,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    works = onnxruntime.InferenceSession

    def broken(content: bytes, *options: Any, providers: Sequence[Any], **named: Any) -> Any:
        if CPU_PROVIDER in providers[:1]:
            return two_gpus.cpu(content, *options, providers=providers)
        if len(content) < 100:  # the network that tells whether there is a GPU
            return works(content, *options, providers=providers, **named)
        raise RuntimeError("CUDA failure 35: driver version is insufficient")

    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    package = load_package(folder)
    assert open_session(package, "detector", "auto", 1).provider == CPU_PROVIDER
    assert "CUDA failure 35" in caplog.text
    with pytest.raises(InferenceFailed, match="CUDA failure 35"):
        open_session(package, "detector", "cuda", 1)
    assert capfd.readouterr().out == ""


def test_a_gpu_whose_provider_raises_is_refused(
    two_gpus: OnTwoGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(content: bytes, *options: Any, providers: Sequence[Any], **named: Any) -> Any:
        if CPU_PROVIDER in providers[:1]:
            return two_gpus.cpu(content, *options, providers=providers)
        raise RuntimeError("CUDA failure 35: driver version is insufficient")

    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    with pytest.raises(InferenceFailed, match="'cuda' is not usable here, CUDA failure 35"):
        provider_for("cuda")
    assert provider_for("auto") == CPU_PROVIDER


def test_tensorrt_keeps_the_engines_of_each_network(
    folder: Path, tmp_path: Path, two_gpus: OnTwoGpus
) -> None:
    package = load_package(folder)
    for stage in ("localiser", "detector", "detector"):
        session = open_session(package, stage, "tensorrt", 1, engines=tmp_path / "engines")
        assert (session.provider, session.parallel) == (TENSORRT_PROVIDER, 2)
        session(np.zeros((1, 32, 32, 3), np.uint8))
    digests = [
        described_network(package, stage, "fp32").sha256
        for stage in ("localiser", "detector", "detector")
    ]
    kept = [tmp_path / "engines" / digest / f"gpu-{gpu}" for digest in digests for gpu in (0, 1)]
    assert [Path(told["trt_engine_cache_path"]) for told in two_gpus.told] == kept
    assert all(each.is_dir() for each in kept), "the runtime makes no folders inside of others"
    two_gpus.told.clear()
    open_session(package, "detector", "tensorrt", 1)
    assert two_gpus.told == [{"device_id": "0"}, {"device_id": "1"}]


def test_cuda_keeps_no_engines(folder: Path, tmp_path: Path, two_gpus: OnTwoGpus) -> None:
    open_session(load_package(folder), "detector", "cuda", 1, engines=tmp_path / "engines")
    assert not (tmp_path / "engines").exists()


def test_memory_that_does_not_hold_one_image_is_a_failure() -> None:
    def run(image: UInt8) -> list[np.ndarray]:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 123")

    session = Session(
        "localiser", "x.onnx", "CUDA", "fp32", "test", [run], ("probability",), _BatchSize(4)
    )
    with pytest.raises(InferenceFailed, match="Failed to allocate"):
        session(np.zeros((4, 8, 8, 3), np.uint8))


def test_each_device_runs_one_batch_at_a_time() -> None:
    """Two runs of one session, as with two GPUs: called from three threads, both work."""
    together = threading.Barrier(2, timeout=10)
    busy = [threading.Lock(), threading.Lock()]

    def on(device: int, image: UInt8) -> list[np.ndarray]:
        assert busy[device].acquire(blocking=False)
        together.wait()
        busy[device].release()
        return [image[:, 0, 0, :1].astype(np.float32)]

    session = gpu_session([partial(on, 0), partial(on, 1)], 9)
    assert session.parallel == 2
    images = [np.full((1, 2, 2, 3), value, np.uint8) for value in range(8)]
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(session, images))
    assert [float(answer["probability"][0, 0]) for answer in answers] == list(range(8))
