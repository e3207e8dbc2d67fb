"""Networks → a model package: two ONNX files and their manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from models.records import UInt8

# Tiles that the exporter traces with; the graph takes any multiple of 32.
_TRACED_PX = 256
PARITY = 1e-3


def export(module: nn.Module, outputs: tuple[str, ...], path: Path) -> None:
    """Write a network that takes (N, H, W, 3) uint8 as ONNX, with N, H and W free."""
    batch, height, width = (torch.export.Dim.DYNAMIC for _ in range(3))
    program = torch.onnx.export(
        module.eval(),
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
    onnx.save(model, path)


def largest_difference(module: nn.Module, path: Path, image: UInt8) -> float:
    """Largest absolute difference between PyTorch's and ONNX Runtime's outputs on images."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        mine = module.eval()(torch.from_numpy(image))
    expected = mine if isinstance(mine, tuple) else (mine,)
    found = session.run(None, {"image": image})
    return max(_difference(a, b) for a, b in zip(expected, found, strict=True))


def _difference(expected: Tensor, found: np.ndarray[Any, Any]) -> float:
    return float(np.abs(expected.numpy() - found).max())


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json``, with the SHA-256 of the networks that it names filled in."""
    stages = {
        stage: {
            **fields,
            "sha256": hashlib.sha256((folder / fields["file"]).read_bytes()).hexdigest(),
        }
        for stage, fields in manifest["stages"].items()
    }
    content = json.dumps({**manifest, "stages": stages}, indent=2, ensure_ascii=False)
    (folder / "manifest.json").write_text(content + "\n", encoding="utf-8")
