"""Packages load only if all that they say is true."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from models.errors import DigestMismatch, ManifestInvalid, ModelNotFound
from models.manifest import parse_manifest
from models.package import (
    find_package,
    installed_packages,
    load_package,
    network_of,
)
from tests.tiny_package import CLASSES, changed_manifest, tiny_package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_package(tmp_path / "tiny")


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
        ("stages.detector.stitching", "both"),
        ("stages.detector.stitching", "corners"),  # with a halo
        ("stages.detector.fp16", "detector.fp16.onnx"),
        ("stages.detector.fp16.sha256", "abc"),
        ("stages.localiser.fp16.file", "../a.onnx"),
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
        for stage in ("localiser", "detector"):
            if ".fp16" in path:
                manifest["stages"][stage]["fp16"] = {"file": "a.onnx", "sha256": "0" * 64}
        for parent in parents:
            manifest = manifest[parent]
        manifest[key] = value

    with pytest.raises(ManifestInvalid, match=f"field '{path}'"):
        parse_manifest(changed_manifest(folder, change), "tiny")


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


def test_a_16_bit_network_is_verified_and_is_no_duty(folder: Path) -> None:
    plain = load_package(folder)
    assert plain.manifest.detector.fp16 is None
    with pytest.raises(ManifestInvalid, match="tiny has no fp16 network for its detector"):
        network_of(plain, "detector", "fp16")
    content = (folder / "detector.onnx").read_bytes()
    (folder / "detector.fp16.onnx").write_bytes(content)
    fp16 = {"file": "detector.fp16.onnx", "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_bytes(
        changed_manifest(folder, lambda m: m["stages"]["detector"].update(fp16=fp16))
    )
    assert network_of(load_package(folder), "detector", "fp16") == content
    (folder / "detector.fp16.onnx").write_bytes(content + b"\0")
    with pytest.raises(DigestMismatch, match=r"detector\.fp16\.onnx"):
        load_package(folder)


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
