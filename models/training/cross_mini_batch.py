"""Cross mini-batch normalisation, of YOLOv4 (Bochkovskiy et al. 2020, §3.3 and figure 4).

A batch that does not fit into memory is run in parts, mini-batches, and weights are moved once,
when all of them have been run. As weights are the same for all, the statistics of earlier
mini-batches hold for later ones: the k-th is normalised with the average of the k means, and of the
k variances, seen so far in the batch. So the authors' program does it (github.com/AlexeyAB/darknet,
issue 4386). Tayebi et al. (2021), §4.4 trained so: batches of 64 in 16 mini-batches of 4.

A batch of one mini-batch is normalised as by plain batch norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_MOMENTUM = 0.1


class CrossMiniBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics add up over the mini-batches of one batch.

    It is a batch norm in its parameters and in evaluation, and can be folded as one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=_MOMENTUM)
        self.begin_batch(1)

    def begin_batch(self, mini_batches: int) -> None:
        """Forget what was seen; `mini_batches` follow."""
        self._mini_batches, self._seen = mini_batches, 0
        self._sum: Tensor | None = None  # (2, channels): of the means and variances seen so far

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) → the same, normalised; the gradient goes through `input` alone."""
        if not self.training or self._mini_batches == 1:
            plain: Tensor = super().forward(input)
            return plain
        values = input.float()
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        own = torch.stack((mean, variance))
        total = own if self._sum is None else own + self._sum
        self._sum = total.detach()
        self._seen += 1
        mean, variance = total / self._seen
        self._follow(mean.detach(), variance.detach(), values.numel() // values.shape[1])
        factor: Tensor = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = (
            values * factor[:, None, None] + (self.bias - mean * factor)[:, None, None]
        )
        return normalised.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor, values: int) -> None:
        """Move the statistics that evaluation uses, as batch norm does."""
        unbiased = variance * (values / max(values - 1, 1))
        self.get_buffer("running_mean").lerp_(mean, _MOMENTUM)
        self.get_buffer("running_var").lerp_(unbiased, _MOMENTUM)
        self.get_buffer("num_batches_tracked").add_(1)


@contextmanager
def as_if_unseen(network: nn.Module) -> Iterator[None]:
    """Run images through `network` in training mode, of which its batch norms remember nothing."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    moved = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    seen = [
        (layer, layer._sum, layer._seen)
        for layer in layers
        if isinstance(layer, CrossMiniBatchNorm)
    ]
    try:
        yield
    finally:
        for layer, buffers in zip(layers, moved, strict=True):
            for name, buffer in buffers.items():
                layer.get_buffer(name).copy_(buffer)
        for cross, total, number in seen:
            cross._sum, cross._seen = total, number


def begin_batch(network: nn.Module, mini_batches: int) -> None:
    """Tell every layer of `network` that a batch of so many mini-batches begins."""
    for layer in network.modules():
        if isinstance(layer, CrossMiniBatchNorm):
            layer.begin_batch(mini_batches)
