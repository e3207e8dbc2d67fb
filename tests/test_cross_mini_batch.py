"""Cross mini-batch normalisation, against its definition and against plain batch norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from models.training.cross_mini_batch import CrossMiniBatchNorm, begin_batch  # noqa: E402
from models.training.loop import _step  # noqa: E402
from models.training.recipe import Optimisation  # noqa: E402
from models.training.yolov4 import YoloV4  # noqa: E402


def pair(channels: int = 5) -> tuple[Any, Any]:
    """A cross mini-batch norm and a plain batch norm with the same weights."""
    torch.manual_seed(0)
    cross, plain = CrossMiniBatchNorm(channels), nn.BatchNorm2d(channels)
    plain.weight.data.uniform_(0.5, 2)
    plain.bias.data.uniform_(-1, 1)
    cross.load_state_dict(plain.state_dict())
    return cross, plain


def parts(count: int) -> Any:
    """Mini-batches (3, 5, 6, 4) whose means and variances differ."""
    torch.manual_seed(1)
    return [torch.randn(3, 5, 6, 4) * (1 + k) + 2 * k for k in range(count)]


def test_one_mini_batch_is_plain_batch_norm() -> None:
    cross, plain = pair()
    begin_batch(nn.Sequential(cross), 1)
    (values,) = parts(1)
    mine, theirs = (values.clone().requires_grad_() for _ in range(2))
    a, b = cross(mine), plain(theirs)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    (a**3).sum().backward()
    (b**3).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0)
    assert cross.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(cross.state_dict()[name], value, rtol=0, atol=0)


def test_the_first_of_several_is_as_plain_batch_norm() -> None:
    cross, plain = pair()
    begin_batch(cross, 3)
    values = parts(1)[0].requires_grad_()
    torch.testing.assert_close(cross(values), plain(values), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cross.running_mean, plain.running_mean)
    torch.testing.assert_close(cross.running_var, plain.running_var)


def test_each_is_normalised_by_the_average_of_those_so_far() -> None:
    cross, _ = pair()
    weight, bias = (each.detach().numpy()[:, None, None] for each in (cross.weight, cross.bias))
    for _ in range(2):  # a second batch begins from nothing
        begin_batch(cross, 4)
        means, variances = [], []
        for values in parts(4):
            x = values.numpy()
            means.append(x.mean((0, 2, 3)))
            variances.append(x.var((0, 2, 3)))
            mean, variance = (np.mean(each, 0)[:, None, None] for each in (means, variances))
            expected = (x - mean) / np.sqrt(variance + cross.eps) * weight + bias
            np.testing.assert_allclose(cross(values).detach().numpy(), expected, atol=1e-4)


def test_the_gradient_goes_through_the_own_statistics_alone() -> None:
    cross, _ = pair()
    first, second = (values[:1, :, :2, :2] for values in parts(2))

    def loss(x: Any) -> Any:
        begin_batch(cross, 2)
        cross(first)
        return (cross(x) ** 3).sum()

    second.requires_grad_()
    (slope,) = torch.autograd.grad(loss(second), second)
    step = 1e-2
    for place in ((0, 0, 0, 0), (0, 3, 1, 1)):
        moved = torch.zeros_like(second)
        moved[place] = step
        with torch.no_grad():
            finite = (loss(second + moved) - loss(second - moved)) / (2 * step)
        # Differences in 32 bits: coarse.
        assert float(slope[place]) == pytest.approx(float(finite), rel=0.02, abs=0.02)


def test_evaluation_is_plain_and_follows_what_was_seen() -> None:
    cross, plain = pair()
    for _ in range(200):
        begin_batch(cross, 2)
        for values in parts(2):
            cross(values)
    cross.eval()
    plain.load_state_dict(cross.state_dict())
    values = parts(3)[2]
    torch.testing.assert_close(cross(values), plain.eval()(values), rtol=0, atol=0)
    # Between the first one's mean and the average of both: it moved after each of them.
    first, both = (torch.stack(parts(n)).mean((0, 1, 3, 4)) for n in (1, 2))
    assert ((cross.running_mean > first) & (cross.running_mean < both + 1e-3)).all()


def test_every_batch_norm_of_yolov4_is_one() -> None:
    network = YoloV4(2, 0.125, 0.2)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(layer, CrossMiniBatchNorm) for layer in norms)


class Mean:
    """A task that learns the mean of numbers; no norm, so parts must add up to the whole."""

    def __init__(self) -> None:
        self.network = nn.Linear(1, 1)
        nn.init.constant_(self.network.weight, 0.5)
        nn.init.constant_(self.network.bias, 0.25)

    def losses(self, batch: Any, device: Any) -> dict[str, Any]:
        return {"off": ((self.network(batch) - 3 * batch) ** 2).mean()}


def test_parts_move_weights_as_the_whole_does() -> None:
    torch.manual_seed(2)
    batch = torch.randn(12, 1)
    settings = Optimisation(clip_norm=0)
    weights = []
    for count in (1, 4):
        task: Any = Mean()
        optimiser = torch.optim.SGD(task.network.parameters(), 0.1)
        split = list(batch.chunk(count))
        terms = _step(task, split, optimiser, 0.1, settings, torch.device("cpu"))
        weights.append([*task.network.parameters(), torch.tensor(terms["off"])])
    for whole, summed in zip(*weights, strict=True):
        torch.testing.assert_close(whole, summed)
