"""Networks → a model package: two ONNX files and their manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.records import UInt8
from models.training.half_precision import half_precision
from models.training.parity import PARITY_FP16, are_within, parity_fp16

# Tiles that the exporter traces with; the graph takes any multiple of 32.
_TRACED_PX = 256
_LARGE = 1024


def export(module: nn.Module, outputs: tuple[str, ...], path: Path) -> None:
    """Write a network that takes (N, H, W, 3) uint8 as ONNX, with N, H and W free.

    Batch norms are folded into the convolutions before them, and large weights rounded to 16 bits
    and stored so, in the module too: it says afterwards what the file says.
    """
    _fold_batch_norms(module.eval())
    with torch.no_grad():
        for weight in module.parameters():
            if weight.numel() >= _LARGE:
                weight.copy_(weight.half())
    batch, height, width = (torch.export.Dim.DYNAMIC for _ in range(3))
    program = torch.onnx.export(
        module,
        (torch.zeros(2, _TRACED_PX, _TRACED_PX + 64, 3, dtype=torch.uint8),),
        input_names=["image"],
        output_names=list(outputs),
        dynamic_shapes=((batch, height, width, None),),
        dynamo=True,
        external_data=False,
    )
    if program is None:
        raise RuntimeError(f"PyTorch exported nothing for {path.name}.")
    program.save(path, external_data=False)
    model = onnx.load(path)
    # The exporter notes where in the source each node came from, with the paths of this machine.
    del model.metadata_props[:]
    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    _store_as_half(graph)
    onnx.save(model, path)


def export_fp16(
    path: Path, images: Sequence[UInt8]
) -> tuple[dict[str, dict[str, str]], dict[str, float]]:
    """Write ``<name>.fp16.onnx`` beside ``<name>.onnx``, if it gives the same answers on `images`.

    Returns
    -------
    entry
        What a stage of a manifest says of it; empty where 16 bits do not suffice (`PARITY_FP16`).
    parity
        As :func:`models.training.parity.parity_fp16` measures it, without what is no number.
    """
    beside = path.with_suffix(".fp16.onnx")
    beside.unlink(missing_ok=True)
    parity = parity_fp16(path, images)
    if not are_within(parity, PARITY_FP16):
        return {}, {name: value for name, value in parity.items() if np.isfinite(value)}
    onnx.save(half_precision(onnx.load(path)), beside)
    return {"fp16": {"file": beside.name}}, parity


def _fold_batch_norms(module: nn.Module) -> None:
    for layers in module.modules():
        children = dict(layers.named_children())
        for name, after in _followers(layers, list(children)):
            first, second = children[name], children[after]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(layers, name, fuse_conv_bn_eval(first, second))
                setattr(layers, after, nn.Identity())


def _followers(layers: nn.Module, names: Sequence[str]) -> list[tuple[str, str]]:
    """Names of layers, and of those that take what they give."""
    if isinstance(layers, nn.Sequential):
        return list(pairwise(names))
    # Residual blocks (MONAI's ResNet) call them conv1 and bn1.
    followed = ((name, name.replace("conv", "bn")) for name in names if name.startswith("conv"))
    return [(name, after) for name, after in followed if after in names]


def _store_as_half(graph: onnx.GraphProto) -> None:
    """Keep large weights in 16 bits in the file; the runtime widens them once, when it loads."""
    casts = []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type != onnx.TensorProto.FLOAT or values.size < _LARGE:
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(
            onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def largest_differences(module: nn.Module, path: Path, image: UInt8) -> dict[str, float]:
    """Largest absolute difference between PyTorch and ONNX Runtime on images, by output."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        mine = module.eval()(torch.from_numpy(image))
    expected: tuple[Tensor, ...] = mine if isinstance(mine, tuple) else (mine,)
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {"image": image})
    return {
        name: float(np.abs(a.numpy() - b).max())
        for name, a, b in zip(names, expected, found, strict=True)
    }


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json``, with the SHA-256 of the networks that it names filled in."""

    def digested(entry: Mapping[str, Any]) -> dict[str, Any]:
        digest = hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
        inner = {"fp16": digested(entry["fp16"])} if "fp16" in entry else {}
        return {**entry, "sha256": digest, **inner}

    stages = {
        stage: None if entry is None else digested(entry)
        for stage, entry in manifest["stages"].items()
    }
    content = json.dumps({**manifest, "stages": stages}, indent=2, ensure_ascii=False)
    (folder / "manifest.json").write_text(content + "\n", encoding="utf-8")
