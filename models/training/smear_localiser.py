"""The localiser of ``demo-smear``: where are nucleated cells, seen at 2 µm per px.

Its training images are composed at 1 µm per px and halved, since a nucleus is only 3 to 5 px wide.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from models.composing import CellImage, CutOut, place, red_cell_field, turned
from models.records import Float32, UInt8
from models.training.augment import imaged, restain
from models.training.layers import MEAN, SPREAD, conv

UM_PER_PX = 2.0
STRIDE = 16
PATCH_PX = 128
_COMPOSED_UM_PER_PX = 1.0
BATCH = 24
LEARNING_RATE = 3e-3
POSITIVE_WEIGHT = 3.0  # a square that is missed costs cells, one too many only bytes


class SmearLocaliser(nn.Module):
    """Squares of 32 × 32 µm, each with the logit that a nucleated cell's centre lies in it.

    Parameters
    ----------
    width
        Channels of the first layer.
    """

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        w = width
        self.layers = nn.Sequential(
            conv(3, w),
            conv(w, 2 * w, 2),
            conv(2 * w, 2 * w),
            conv(2 * w, 3 * w, 2),
            conv(3 * w, 3 * w),
            conv(3 * w, 4 * w, 2),
            conv(4 * w, 4 * w, 2),
            nn.Conv2d(4 * w, 1, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float, 0 to 1 → logits (N, H/16, W/16)."""
        logits: Tensor = self.layers((image - MEAN) / SPREAD)
        return logits[:, 0]


class ExportedLocaliser(nn.Module):
    """The localiser as it is exported: (N, H, W, 3) uint8 → probability (N, H/16, W/16)."""

    def __init__(self, localiser: SmearLocaliser) -> None:
        super().__init__()
        self.localiser = localiser

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.localiser(image.permute(0, 3, 1, 2).float() / 255.0))


def localiser_patch(rng: np.random.Generator, cells: Sequence[CellImage]) -> tuple[UInt8, Float32]:
    """One composed image and its squares.

    Returns
    -------
    rgb : (128, 128, 3) uint8
    holds_cell : (8, 8) float32
        1 where a cell's centre lies in the square.
    """
    side = int(PATCH_PX * UM_PER_PX / _COMPOSED_UM_PER_PX)
    glass = tuple(int(v) for v in rng.integers(205, 252, 3))
    canvas = red_cell_field(rng, (side, side), rng.choice([0.0, 0.3, 0.8, 1.3]), glass, shrink=4)
    canvas = restain(rng, canvas, 0.7)
    if rng.random() < 0.3:
        _smear_over(rng, canvas, cells)
    centres = []
    for _ in range(int(rng.choice([0, 0, 1, 3, 10, 30]))):
        cell = cells[int(rng.integers(len(cells)))]
        cut_out = turned(
            restain(rng, cell.white_balanced() if rng.random() < 0.8 else cell.rgb, 0.7),
            cell.outline,
            cell.um_per_px / _COMPOSED_UM_PER_PX * float(np.exp(rng.uniform(-0.3, 0.15))),
            rng.uniform(0, 360),
        )
        centre = rng.uniform(0, side, 2)
        height, width = cut_out.alpha.shape
        place(canvas, cut_out, round(centre[0] - width / 2), round(centre[1] - height / 2))
        centres.append(centre)
    canvas = restain(rng, canvas, 0.4)
    halved = canvas.reshape(side // 2, 2, side // 2, 2, 3).mean((1, 3)).astype(np.uint8)
    holds_cell = np.zeros((PATCH_PX // STRIDE,) * 2, np.float32)
    for x, y in centres:
        holds_cell[int(y / 2 / STRIDE), int(x / 2 / STRIDE)] = 1.0
    return imaged(rng, halved), holds_cell


def _smear_over(rng: np.random.Generator, canvas: UInt8, cells: Sequence[CellImage]) -> None:
    """A smudge or a clot of stain: broad and blurred, nothing to count."""
    cell = cells[int(rng.integers(len(cells)))]
    cut_out = turned(cell.white_balanced(), cell.outline, 0.5, rng.uniform(0, 360))
    stretch = (int(rng.integers(4, 9)), int(rng.integers(4, 20)), 0)
    blurred = CutOut(
        ndimage.gaussian_filter(cut_out.rgb, stretch),
        ndimage.gaussian_filter(cut_out.alpha * 0.6, (4, 4)),
    )
    left, top = (int(v) for v in rng.integers(-20, canvas.shape[0] - 20, 2))
    place(canvas, blurred, left, top)


class _Stream(IterableDataset[tuple[UInt8, Float32]]):
    def __init__(self, cells: Sequence[CellImage], seed: int) -> None:
        self._cells, self._seed = cells, seed

    def __iter__(self) -> Any:
        rng = np.random.default_rng(self._seed)
        while True:
            yield localiser_patch(rng, self._cells)


def train_localiser(cells: Sequence[CellImage], steps: int, seed: int) -> SmearLocaliser:
    """Train a localiser from scratch; returned in evaluation mode."""
    torch.manual_seed(seed)
    model = SmearLocaliser()
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    stream = DataLoader(_Stream(cells, seed), BATCH, num_workers=1, prefetch_factor=4)
    weight = torch.tensor(POSITIVE_WEIGHT)
    for step, (rgb, holds_cell) in zip(range(1, steps + 1), stream, strict=False):
        logits = model(rgb.permute(0, 3, 1, 2).float() / 255)
        loss = functional.binary_cross_entropy_with_logits(logits, holds_cell, pos_weight=weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            print(f"localiser step {step}/{steps}  loss {loss.item():.3f}", file=sys.stderr)
    return model.eval()
