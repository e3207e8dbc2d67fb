"""A model package without training: real ONNX networks that find purple blobs on light ground.

The mask is ``min(R, B) − G`` above a threshold: chromatin is purple, red cells and glass are not.
A blob's box comes from the first and second moments of the mask around its peak, so round and
elliptic blobs of 20 to 76 px, 100 px apart, get a box that fits; its type is read off its size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.cell_types import ERYTHROID_STAGES, GRANULOCYTIC_STAGES
from models.manifest import UNCLASSIFIED

CLASSES = (*GRANULOCYTIC_STAGES, *ERYTHROID_STAGES, UNCLASSIFIED)
TYPES = len(CLASSES) - 1
STRIDE = 4  # px of the image per value of the detector's maps
CROP_PX = 120  # of the classifier, at 0.2 µm per px: 24 µm
WINDOW = 21  # values over which moments are taken: 84 px


def blob_side_px(label: int) -> float:
    """Return the diameter of the blobs that the tiny detector calls `label`, in tile px."""
    return 24.0 + 5.0 * label


def tiny_package(folder: Path, **changes: Any) -> Path:
    """Write a package named as `folder` and return `folder`.

    `changes` replaces fields of the manifest: ``detector={"score_threshold": 0.9}`` merges;
    ``second_stage=True`` adds a classifier that names a blob by its area; ``costless=True`` takes a
    detector that does not look.
    """
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(localiser(), folder / "localiser.onnx")
    found = costless_detector() if changes.pop("costless", False) else detector()
    onnx.save(found, folder / "detector.onnx")
    manifest = manifest_of(folder)
    if changes.pop("second_stage", False):
        onnx.save(classifier(), folder / "classifier.onnx")
        manifest["stages"]["classifier"] = {
            "file": "classifier.onnx",
            "sha256": hashlib.sha256((folder / "classifier.onnx").read_bytes()).hexdigest(),
            "um_per_px": 0.2,
            "crop_px": CROP_PX,
        }
    for stage in ("localiser", "detector"):
        manifest["stages"][stage].update(changes.pop(stage, {}))
    manifest["differential"].update(changes.pop("differential", {}))
    manifest.update(changes)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def manifest_of(folder: Path) -> dict[str, Any]:
    """Describe the two networks that lie in `folder`."""

    def sha256(name: str) -> str:
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()

    return {
        "schema": 1,
        "name": folder.name,
        "version": "0.0.1",
        "intended_use": "Tests of this project; it finds purple blobs. Not for clinical use.",
        "demonstration": True,
        "licence": "Apache-2.0",
        "classes": list(CLASSES),
        "stages": {
            "localiser": {
                "file": "localiser.onnx",
                "sha256": sha256("localiser.onnx"),
                "um_per_px": 2.0,
                "output_stride_px": 16,
                "tile_px": 512,
                "context_px": 32,
                "dilation": 0.5,
                "sampled_grid": None,
                "threshold": 0.5,
            },
            "detector": {
                "file": "detector.onnx",
                "sha256": sha256("detector.onnx"),
                "um_per_px": 0.25,
                "tile_px": 640,
                "halo_px": 64,
                "score_threshold": 0.3,
                "nms_iou": 0.5,
                "unclassified_below": 0.3,
            },
            "classifier": None,
        },
        "differential": {
            "chi_square_threshold": 0.01,
            "chi_square_tiles": 5,
            "minimum_cells": 500,
            "unclassified_share_max": 0.10,
            "stop_when_converged": False,
        },
        "training": {"data": "none"},
        "metrics": {},
    }


def changed_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The manifest of a package with something changed in place; nothing is written."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    return json.dumps(manifest).encode()


class _Graph:
    """Nodes in order, each named by its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def model(self, outputs: dict[str, list[str | int]]) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])
        made = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in outputs.items()
        ]
        graph = helper.make_graph(self.nodes, "tiny", [image], made, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def purple(self) -> str:
        """Return the mask (N, 1, H, W), 0 to 1."""
        pixels = self.node("Cast", "image", to=TensorProto.FLOAT)
        planes = self.node("Transpose", pixels, perm=[0, 3, 1, 2])
        difference = np.array([[1, -1, 0], [0, -1, 1]]).reshape(2, 3, 1, 1)
        over_green = self.node("Conv", planes, self.constant(difference))
        least = self.node("ReduceMin", over_green, axes=[1], keepdims=1)
        steep = self.node("Div", self.node("Sub", least, self.constant(30.0)), self.constant(3.0))
        return self.node("Sigmoid", steep)

    def average(self, map_: str, side: int) -> str:
        return self.node(
            "AveragePool",
            map_,
            kernel_shape=[side, side],
            pads=[side // 2] * 4,
            count_include_pad=1,
        )


def localiser() -> onnx.ModelProto:
    """Probability that a 16 x 16 px field holds a purple pixel."""
    g = _Graph()
    purple = g.purple()
    highest = g.node("MaxPool", purple, kernel_shape=[16, 16], strides=[16, 16])
    g.node("Squeeze", highest, g.constant([1], np.int64), output="probability")
    return g.model({"probability": ["N", "h", "w"]})


def detector() -> onnx.ModelProto:
    """Peaks of the smoothed mask with boxes from moments and types from sizes."""
    g = _Graph()
    fine = g.purple()
    mask = g.node("AveragePool", fine, kernel_shape=[STRIDE] * 2, strides=[STRIDE] * 2)
    reach = np.arange(-8, 9) / 3.0
    bell = np.exp(-(reach[:, None] ** 2 + reach[None] ** 2) / 2)
    smooth = g.node("Conv", mask, g.constant((bell / bell.sum())[None, None]), pads=[8] * 4)
    ceiling = g.node("MaxPool", smooth, kernel_shape=[15, 15], pads=[7] * 4)
    peak = g.node("Cast", g.node("GreaterOrEqual", smooth, ceiling), to=TensorProto.FLOAT)
    score = g.node("Mul", smooth, peak)

    ones = g.node("Add", g.node("Mul", mask, g.constant(0.0)), g.constant(1.0))
    half = g.constant(0.5)
    mass = g.node("Add", g.average(mask, WINDOW), g.constant(1e-6))
    mean, spread = {}, {}
    for name, axis in (("x", 3), ("y", 2)):
        place = g.node("Sub", g.node("CumSum", ones, g.constant(axis, np.int64)), half)
        first = g.average(g.node("Mul", mask, place), WINDOW)
        second = g.average(g.node("Mul", g.node("Mul", mask, place), place), WINDOW)
        mean[name] = g.node("Div", first, mass)
        square = g.node("Mul", mean[name], mean[name])
        variance = g.node("Sub", g.node("Div", second, mass), square)
        # A uniform ellipse reaches two standard deviations to each side.
        deviation = g.node("Sqrt", g.node("Max", variance, g.constant(0.01)))
        spread[name] = g.node("Mul", deviation, g.constant(2.0))
    edges = [
        g.node("Sub", mean["x"], spread["x"]),
        g.node("Sub", mean["y"], spread["y"]),
        g.node("Add", mean["x"], spread["x"]),
        g.node("Add", mean["y"], spread["y"]),
    ]
    box = g.node("Mul", g.node("Concat", *edges, axis=1), g.constant(float(STRIDE)))
    flat = g.constant([0, -1], np.int64)
    g.node("Reshape", score, flat, output="score")
    four = g.node("Transpose", box, perm=[0, 2, 3, 1])
    g.node("Reshape", four, g.constant([0, -1, 4], np.int64), output="box_px")

    side = g.node("Mul", g.node("Add", spread["x"], spread["y"]), g.constant(float(STRIDE)))
    sizes = np.array([blob_side_px(k) for k in range(TYPES)]).reshape(1, -1, 1, 1)
    off = g.node("Sub", side, g.constant(sizes))
    logit = g.node("Mul", g.node("Mul", off, off), g.constant(-0.5))
    rows = g.node(
        "Reshape",
        g.node("Transpose", logit, perm=[0, 2, 3, 1]),
        g.constant([0, -1, TYPES], np.int64),
    )
    g.node("Softmax", rows, axis=2, output="type_probability")
    return g.model(
        {
            "box_px": ["N", "A", 4],
            "score": ["N", "A"],
            "type_probability": ["N", "A", TYPES],
        }
    )


def costless_detector() -> onnx.ModelProto:
    """One cell in the corner of every tile, whatever it shows: the reading is all that costs."""
    g = _Graph()
    corner = g.node(
        "Slice", "image", *(g.constant(bound, np.int64) for bound in ([0, 0], [1, 1], [1, 2]))
    )
    pixel = g.node(
        "ReduceMax", g.node("Cast", corner, to=TensorProto.FLOAT), axes=[2, 3], keepdims=0
    )
    nothing = g.node("Mul", pixel, g.constant(0.0))  # (N, 1)
    g.node("Add", nothing, g.constant(1.0), output="score")
    deep = g.node("Unsqueeze", nothing, g.constant([2], np.int64))  # (N, 1, 1)
    g.node("Add", deep, g.constant([[[200.0, 200.0, 240.0, 240.0]]]), output="box_px")
    g.node("Add", deep, g.constant(np.full((1, 1, TYPES), 1 / TYPES)), output="type_probability")
    return g.model(
        {
            "box_px": ["N", "A", 4],
            "score": ["N", "A"],
            "type_probability": ["N", "A", TYPES],
        }
    )


def classifier() -> onnx.ModelProto:
    """Types by the area of the purple pixels of a crop, turned round: the largest is the first."""
    g = _Graph()
    area = g.node("ReduceSum", g.purple(), g.constant([1, 2, 3], np.int64), keepdims=0)
    # A disc's diameter, in px of the detector's scale.
    disc = g.node("Mul", area, g.constant(4 / np.pi * (0.2 / 0.25) ** 2))
    side = g.node("Unsqueeze", g.node("Sqrt", disc), g.constant([1], np.int64))
    sizes = np.array([blob_side_px(TYPES - 1 - k) for k in range(TYPES)])
    off = g.node("Sub", side, g.constant(sizes))
    logit = g.node("Mul", g.node("Mul", off, off), g.constant(-0.5))
    g.node("Softmax", logit, axis=1, output="type_probability")
    return g.model({"type_probability": ["N", TYPES]})


def draw_blob(
    rgb: np.ndarray, centre_px: tuple[float, float], side_px: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Draw a purple ellipse on `rgb` in place; return its box in px of `rgb`."""
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]] + 0.5
    cx, cy = centre_px
    inside = ((x - cx) / (side_px[0] / 2)) ** 2 + ((y - cy) / (side_px[1] / 2)) ** 2 <= 1
    rgb[inside] = (110, 50, 150)
    return (
        cx - side_px[0] / 2,
        cy - side_px[1] / 2,
        cx + side_px[0] / 2,
        cy + side_px[1] / 2,
    )
