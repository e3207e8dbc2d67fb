"""Do two forms of a network give the same answers? Measured on real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.records import UInt8
from models.training.half_precision import rounded_to_half

Answers = NDArray[np.floating[Any]]
Ask = Callable[[UInt8], list[Answers]]

# Between PyTorch's outputs and ONNX Runtime's.
PARITY = {"box_px": 0.5, "score": 1e-3, "type_probability": 1e-3, "probability": 1e-3}
# Between the 32-bit network and the 16-bit one, of which every layer rounds to three decimals.
PARITY_FP16 = {"box_px": 0.5, "score": 1e-2, "type_probability": 1e-2, "probability": 1e-2}
_SEEN_SCORE = 0.05  # below it, the order of answers is a matter of rounding


def parity_of(
    module: nn.Module, path: Path, outputs: Sequence[str], images: Sequence[UInt8]
) -> dict[str, float]:
    """Largest absolute difference between PyTorch and ONNX Runtime, by output.

    Of a detector, each answer that may be a cell is compared with the other side's nearest one: of
    two answers with the same score, rounding decides which comes first.
    """
    return _largest(
        outputs, images, _asked_of_module(module), _asked_of_file(path.read_bytes(), outputs)
    )


def are_within(differences: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Tell whether every difference is within its limit; one that is no number is not."""
    return all(difference <= limits[name] for name, difference in differences.items())


def parity_fp16(path: Path, images: Sequence[UInt8]) -> dict[str, float]:
    """Largest absolute difference between a 32-bit network and its 16-bit form, by output.

    Answers are compared as in :func:`parity_of`. The 16-bit form is run in 32 bits, with every
    value that it keeps in 16 rounded to them.
    """
    model = onnx.load(path)
    outputs = [output.name for output in model.graph.output]
    return _largest(
        outputs,
        images,
        _asked_of_file(path.read_bytes(), outputs),
        _asked_of_file(rounded_to_half(model).SerializeToString(), outputs),
    )


def _largest(
    outputs: Sequence[str], images: Sequence[UInt8], one: Ask, other: Ask
) -> dict[str, float]:
    largest = dict.fromkeys(outputs, 0.0)
    for image in images:
        expected, found = one(image), other(image)
        if "score" in outputs:
            expected, found = _paired(expected, found)
        for name, a, b in zip(outputs, expected, found, strict=True):
            largest[name] = float(np.maximum(largest[name], np.abs(a - b).max(initial=0.0)))
    return largest


def _asked_of_module(module: nn.Module) -> Ask:
    def ask(image: UInt8) -> list[Answers]:
        with torch.no_grad():
            mine = module(torch.tensor(image[None]))
        tensors: tuple[Tensor, ...] = mine if isinstance(mine, tuple) else (mine,)
        return [tensor.numpy()[0] for tensor in tensors]

    return ask


def _asked_of_file(content: bytes, outputs: Sequence[str]) -> Ask:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def ask(image: UInt8) -> list[Answers]:
        return [array[0] for array in session.run(list(outputs), {"image": image[None]})]

    return ask


def _paired(
    expected: Sequence[Answers], found: Sequence[Answers]
) -> tuple[list[Answers], list[Answers]]:
    """Answers that may be cells, each beside the other side's nearest box, both ways."""
    sides = []
    for here, there in ((expected, found), (found, expected)):
        rows = np.flatnonzero(~(here[1] < _SEEN_SCORE))  # also what is no number
        apart = np.abs(here[0][rows, None] - there[0][None]).max(2)
        # Among boxes that lie alike, the one of the nearest score.
        apart = apart + np.abs(here[1][rows, None] - there[1][None])
        nearest = apart.argmin(1) if len(rows) else rows
        sides.append(([each[rows] for each in here], [each[nearest] for each in there]))
    (one, its), (two, theirs) = sides
    return (
        [np.concatenate(pair) for pair in zip(one, theirs, strict=True)],
        [np.concatenate(pair) for pair in zip(its, two, strict=True)],
    )
