"""The type branch of ``demo-smear``: which of K types is the cell in the middle of a crop."""

from __future__ import annotations

import copy
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.crops import CropMaker
from models.training.layers import MEAN, SPREAD, Residual, conv, follow

BATCH = 96
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
LABEL_SMOOTHING = 0.1
EMA_DECAY = 0.99


class TypeBranch(nn.Module):
    """Convolutions to stride 16, a mean over 64 × 64 px, and one linear layer.

    Parameters
    ----------
    types
        K, number of cell types.
    width
        Channels of the first layer.
    """

    def __init__(self, types: int, width: int = 24) -> None:
        super().__init__()
        w = width
        self.features = nn.Sequential(
            conv(3, w, 2),
            conv(w, 2 * w, 2),
            Residual(2 * w),
            conv(2 * w, 4 * w, 2),
            Residual(4 * w),
            Residual(4 * w),
            conv(4 * w, 6 * w, 2),
            Residual(6 * w),
        )
        self.hide = nn.Dropout(0.3)
        self.kind = nn.Linear(6 * w, types)

    def forward(self, crop: Tensor) -> Tensor:
        """(n, 3, 64, 64) → logits (n, K)."""
        pooled = self.features((crop - MEAN) / SPREAD).mean((2, 3))
        logits: Tensor = self.kind(self.hide(pooled))
        return logits


def train_type_branch(crops: CropMaker, types: int, steps: int, seed: int) -> TypeBranch:
    """Train a type branch from scratch; returns the moving average, in evaluation mode."""
    torch.manual_seed(seed)
    model = TypeBranch(types).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average: TypeBranch = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    started = time.monotonic()
    for step in range(1, steps + 1):
        image, label = crops.training_batch(BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(image.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), label, label_smoothing=LABEL_SMOOTHING)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        follow(average, model, min(EMA_DECAY, step / (step + 10)))
        if step % 100 == 0 or step == steps:
            seconds = time.monotonic() - started
            print(
                f"type step {step}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s",
                file=sys.stderr,
            )
    average.eval()
    return average
