"""A 16-bit copy of an exported network, for GPUs.

What costs is done in 16 bits: convolutions, dense layers, and what lies between two of them. What
decides is left in 32: the image's scaling, the last layer of every head, and everything behind it
(sigmoid and softmax, decoding of boxes, choice among them, suppression). The file is read by the
same runtime with the same inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_LAYERS = frozenset({"Conv", "Gemm"})
# What may lie between two layers, and has a 16-bit form in the runtime's CUDA provider.
_BETWEEN = frozenset(
    {
        *("Relu", "Clip", "Sigmoid", "Mish", "HardSwish", "LeakyRelu"),
        *("Add", "Mul", "Concat", "MaxPool", "AveragePool", "Resize", "BatchNormalization"),
    }
)
_IMAGES_ONLY = frozenset({"Resize"})  # its further inputs are sizes, and stay as they are


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` that computes its layers in 16 bits.

    Parameters
    ----------
    model
        As :func:`models.training.export.export` writes it; it stays as it is.

    Notes
    -----
    A layer is done in 16 bits if another one follows it with nothing but `_BETWEEN` on the way;
    what lies on that way is done in 16 bits, too.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    nodes = _without_batch_norms(graph)
    half = _halved(nodes)
    made = {name for place in half for name in nodes[place].output}
    rewritten = _Rewritten(graph, made)
    for place, node in enumerate(nodes):
        if place in half:
            rewritten.add_half(node)
        else:
            rewritten.add_full(node)
    for answer in graph.output:
        rewritten.want_full(answer.name)
    _replace(graph, rewritten.nodes, rewritten.constants.values())
    onnx.checker.check_model(copy, full_check=True)
    return copy


def rounded_to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` that keeps every value in 16 bits which :func:`half_precision` does.

    It is how the 16-bit network's answers are known without a GPU: the CPU provider does 16-bit
    nodes in 32 bits and leaves the rounding between them out, but for a Cast that a graph asks for.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = _without_batch_norms(copy.graph)
    half = _halved(nodes)
    constants = {constant.name: constant for constant in copy.graph.initializer}
    rounding = []
    for place, node in enumerate(nodes):
        rounding.append(node)
        if place not in half:
            continue
        for name in _images(node):
            if name in constants:
                values = _rounded(constants[name]).astype(np.float32)
                constants[name].CopyFrom(numpy_helper.from_array(values, name))
        for slot, name in enumerate(node.output):
            node.output[slot] = f"{name}_exact"
            for kind, given, made in (
                (TensorProto.FLOAT16, f"{name}_exact", f"{name}_rounded"),
                (TensorProto.FLOAT, f"{name}_rounded", name),
            ):
                rounding.append(helper.make_node("Cast", [given], [made], to=kind))
    _replace(copy.graph, rounding, list(copy.graph.initializer))
    onnx.checker.check_model(copy, full_check=True)
    return copy


def _halved(nodes: list[onnx.NodeProto]) -> set[int]:
    """Places of the nodes that are done in 16 bits."""
    after: set[str] = set()  # tensors that come from a layer by way of nothing but _BETWEEN
    reached = set()
    for place, node in enumerate(nodes):
        between = node.op_type in _BETWEEN and not after.isdisjoint(node.input)
        if node.op_type in _LAYERS or between:
            after.update(node.output)
            reached.add(place)
    before: set[str] = set()  # tensors that lead to a layer in the same way
    halved = set()
    for place in sorted(reached, reverse=True):
        node = nodes[place]
        leads = not before.isdisjoint(node.output)
        if leads:
            halved.add(place)
        if leads or node.op_type in _LAYERS:
            before.update(node.input)
    return halved


class _Rewritten:
    """The new graph, node by node: each tensor in 16 bits, in 32, or both where both are wanted."""

    def __init__(self, graph: onnx.GraphProto, made_half: set[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants = {constant.name: constant for constant in graph.initializer}
        self._made_half = made_half
        self._there = {constant.name for constant in graph.initializer}

    def add_half(self, node: onnx.NodeProto) -> None:
        inputs = list(node.input)
        for slot, name in enumerate(_images(node)):
            if name:
                inputs[slot] = self._want_half(name)
        new = onnx.NodeProto()
        new.CopyFrom(node)
        del new.input[:], new.output[:]
        new.input.extend(inputs)
        new.output.extend(_half(name) for name in node.output)
        self._there.update(new.output)
        self.nodes.append(new)

    def add_full(self, node: onnx.NodeProto) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for slot, name in enumerate(node.input):
            if node.op_type == "Shape" and name in self._made_half:
                new.input[slot] = _half(name)
            else:
                self.want_full(name)
        self._there.update(new.output)
        self.nodes.append(new)

    def want_full(self, name: str) -> None:
        if name in self._made_half and name not in self._there:
            self._cast(_half(name), name, TensorProto.FLOAT)

    def _want_half(self, name: str) -> str:
        """Name of a tensor in 16 bits; large weights lie so in the file already."""
        half = _half(name)
        if half not in self._there:
            if name in self.constants:
                values = _rounded(self.constants[name])
                self.constants[half] = numpy_helper.from_array(values, half)
                self._there.add(half)
            else:
                self._cast(name, half, TensorProto.FLOAT16)
        return half

    def _cast(self, name: str, into: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [name], [into], to=kind))
        self._there.add(into)


def _images(node: onnx.NodeProto) -> list[str]:
    """The inputs of a node that are in 16 bits if the node is."""
    return list(node.input[:1] if node.op_type in _IMAGES_ONLY else node.input)


def _rounded(constant: onnx.TensorProto) -> np.ndarray[Any, np.dtype[np.float16]]:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is seen as such
        return numpy_helper.to_array(constant).astype(np.float16)


def _half(name: str) -> str:
    return f"{name}_half"  # as models.training.export calls the weights that it stores


def _without_batch_norms(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes, with each batch norm as what it comes to: a factor and a summand by channel.

    The variances that it divides by may be too small for 16 bits.
    """
    constants: Mapping[str, np.ndarray[Any, Any]] = {
        constant.name: numpy_helper.to_array(constant) for constant in graph.initializer
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "BatchNormalization" or not all(
            name in constants for name in node.input[1:]
        ):
            nodes.append(node)
            continue
        weight, bias, mean, variance = (constants[name] for name in node.input[1:])
        (epsilon,) = [each.f for each in node.attribute if each.name == "epsilon"] or [1e-5]
        factor = (weight / np.sqrt(variance + epsilon)).astype(np.float32)
        summand = (bias - mean * factor).astype(np.float32)
        (out,) = node.output
        for name, values in ((f"{out}_factor", factor), (f"{out}_summand", summand)):
            graph.initializer.append(numpy_helper.from_array(values[:, None, None], name))
        nodes.append(helper.make_node("Mul", [node.input[0], f"{out}_factor"], [f"{out}_scaled"]))
        nodes.append(helper.make_node("Add", [f"{out}_scaled", f"{out}_summand"], [out]))
    return nodes


def _replace(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    constants: Iterable[onnx.TensorProto],
) -> None:
    """Put nodes and constants in place of the graph's, but for those that nobody reads."""
    read = {answer.name for answer in graph.output}
    kept = []
    for node in reversed(nodes):
        if not read.isdisjoint(node.output):
            kept.append(node)
            read.update(node.input)
    wanted = [constant for constant in constants if constant.name in read]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(wanted)
