"""Packages load only if all that they say is true."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from models.errors import DigestMismatch, InferenceFailed, ManifestInvalid, ModelNotFound
from models.manifest import parse_manifest
from models.package import (
    find_package,
    installed_packages,
    load_package,
    open_session,
    provider_for,
)
from tests.tiny_package import CLASSES, tiny_package

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_package(tmp_path / "tiny")


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> bytes:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    return json.dumps(manifest).encode()


def test_a_package_says_what_its_manifest_says(folder: Path) -> None:
    package = load_package(folder)
    assert package.manifest.name == "tiny"
    assert package.manifest.classes == CLASSES
    assert package.manifest.types == CLASSES[:-1]
    assert package.manifest.detector.tile_px == 640
    assert package.manifest.differential.minimum_cells == 500
    written = (folder / "manifest.json").read_bytes()
    assert package.digest == hashlib.sha256(written).hexdigest()


def test_every_missing_field_is_named(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    objects = {
        "": manifest,
        "stages.": manifest["stages"],
        "stages.localiser.": manifest["stages"]["localiser"],
        "stages.detector.": manifest["stages"]["detector"],
        "differential.": manifest["differential"],
    }
    for path, fields in objects.items():
        for key in list(fields):
            value = fields.pop(key)
            with pytest.raises(ManifestInvalid, match=f"tiny: manifest.json: field '{path}{key}'"):
                parse_manifest(json.dumps(manifest).encode(), "tiny")
            fields[key] = value
        fields["surplus"] = 1
        with pytest.raises(ManifestInvalid, match=f"field '{path}surplus' is unknown"):
            parse_manifest(json.dumps(manifest).encode(), "tiny")
        del fields["surplus"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2),
        ("schema", True),
        ("name", "../tiny"),
        ("name", ""),
        ("version", 1),
        ("demonstration", "yes"),
        ("classes", []),
        ("classes", "myeloblast"),
        ("classes", ["myeloblast", "not_a_cell"]),
        ("classes", ["myeloblast", "myeloblast", "unclassified"]),
        ("classes", ["unclassified", "myeloblast"]),
        ("classes", ["myeloblast"]),
        ("stages", []),
        ("stages.localiser.threshold", 1.5),
        ("stages.localiser.threshold", "0.5"),
        ("stages.localiser.output_stride_px", 0),
        ("stages.localiser.um_per_px", 0),
        ("stages.localiser.tile_px", 500),
        ("stages.localiser.context_px", 256),
        ("stages.localiser.dilation", 2),
        ("stages.localiser.sampled_grid", [15]),
        ("stages.localiser.sampled_grid", [15, 0]),
        ("stages.classifier", "choi2017"),
        ("stages.detector.file", "/etc/detector.onnx"),
        ("stages.detector.file", "..\\detector.onnx"),
        ("stages.detector.file", "a..onnx"),
        ("stages.detector.file", "detector.pkl"),
        ("stages.detector.sha256", "abc"),
        ("stages.detector.score_threshold", -0.1),
        ("stages.detector.nms_iou", True),
        ("stages.detector.unclassified_below", 2),
        ("stages.detector.tile_px", 650),
        ("stages.detector.halo_px", 320),
        ("differential.chi_square_threshold", 0),
        ("differential.chi_square_tiles", 2.5),
        ("differential.minimum_cells", 0),
        ("differential.unclassified_share_max", 10),
        ("differential.stop_when_converged", 1),
        ("training", "much"),
        ("metrics", None),
    ],
)
def test_every_wrong_value_is_named(folder: Path, path: str, value: object) -> None:
    def change(manifest: dict[str, Any]) -> None:
        *parents, key = path.split(".")
        for parent in parents:
            manifest = manifest[parent]
        manifest[key] = value

    with pytest.raises(ManifestInvalid, match=f"field '{path}'"):
        parse_manifest(changed(folder, change), "tiny")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"schema": NaN}',
        b'{"schema": 1, "schema": 1}',
        b"[" * 10**5,
    ],
)
def test_what_is_no_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(ManifestInvalid, match="tiny: manifest"):
        parse_manifest(content, "tiny")


def test_a_changed_network_is_refused(folder: Path) -> None:
    path = folder / "detector.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DigestMismatch, match=r"detector\.onnx"):
        load_package(folder)


def test_a_network_changed_after_loading_is_refused(folder: Path) -> None:
    package = load_package(folder)
    (folder / "localiser.onnx").write_bytes(b"other")
    with pytest.raises(DigestMismatch, match=r"localiser\.onnx"):
        open_session(package, "localiser", "cpu", 1)


@pytest.mark.parametrize("name", ["manifest.json", "localiser.onnx", "detector.onnx"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ManifestInvalid, match=name):
        load_package(folder)


def test_packages_are_found_by_name(tmp_path: Path) -> None:
    tiny_package(tmp_path / "b")
    tiny_package(tmp_path / "a")
    assert find_package("a", [tmp_path]).manifest.name == "a"
    names = [package.manifest.name for package in installed_packages([tmp_path])]
    assert {"a", "b"} <= set(names)
    assert names == sorted(names)
    for name in ("c", "../a", "a/../b", ""):
        with pytest.raises(ModelNotFound, match="a, b"):
            find_package(name, [tmp_path])


def test_a_package_under_another_name_is_refused(tmp_path: Path) -> None:
    tiny_package(tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(ManifestInvalid, match="'a'"):
        find_package("b", [tmp_path])


def test_the_provider_is_chosen_logged_and_readable(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="models.package"):
        session = open_session(load_package(folder), "detector", "cpu", 1)
    assert session.provider == provider_for("cpu") == "CPUExecutionProvider"
    assert session.runtime == f"onnxruntime {onnxruntime.__version__}"
    (message,) = (record.getMessage() for record in caplog.records)
    assert all(part in message for part in ("tiny", "0.0.1", "CPUExecutionProvider", "detector"))


@pytest.mark.skipif(HAS_CUDA, reason="this runtime has CUDA")
def test_cuda_is_refused_where_it_does_not_run(folder: Path) -> None:
    with pytest.raises(InferenceFailed, match="cuda"):
        open_session(load_package(folder), "detector", "cuda", 1)
    with pytest.raises(InferenceFailed, match="cuda"):
        provider_for("cuda")
    assert provider_for("auto") == "CPUExecutionProvider"


@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA in this runtime")
def test_cuda_runs_and_agrees_with_the_cpu(folder: Path) -> None:
    package = load_package(folder)
    image = np.random.default_rng(1).integers(0, 255, (2, 64, 96, 3), dtype=np.uint8)
    cuda = open_session(package, "detector", "cuda", 1)
    assert cuda.provider == provider_for("cuda") == provider_for("auto") == "CUDAExecutionProvider"
    expected = open_session(package, "detector", "cpu", 1)(image)
    np.testing.assert_allclose(cuda(image)["score"], expected["score"], atol=1e-4)


def test_a_session_does_not_depend_on_the_batch(folder: Path) -> None:
    session = open_session(load_package(folder), "detector", "cpu", 1)
    image = np.random.default_rng(0).integers(0, 255, (3, 64, 96, 3), dtype=np.uint8)
    together = session(image)
    assert together["type_probability"].shape == (3, 64 * 96 // 16, 10)
    for i in range(3):
        for name, array in session(image[i : i + 1]).items():
            assert array.tobytes() == together[name][i : i + 1].tobytes()


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
        changed(folder, lambda m: m["stages"][stage].update(sha256=digest))
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
