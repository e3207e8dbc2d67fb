"""Training of the cell finder: one loop, read from top to bottom."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from models.composing import CellImage
from models.training.data import Example, PatchMaker, targets
from models.training.layers import follow
from models.training.losses import box_loss, peak_loss
from models.training.smear_detector import CellFinder

BATCH = 32
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
EMA_DECAY = 0.99


class _Stream(IterableDataset[tuple[Any, ...]]):
    """Patches and targets, made in a process of their own while the network trains."""

    def __init__(self, cells: Sequence[CellImage], fields: Sequence[Example], seed: int) -> None:
        self._arguments = (cells, fields, seed)

    def __iter__(self) -> Any:
        for example in PatchMaker(*self._arguments):
            yield (example.rgb, *targets(example))


def train_finder(
    cells: Sequence[CellImage], fields: Sequence[Example], steps: int, seed: int
) -> CellFinder:
    """Train a cell finder from scratch.

    Parameters
    ----------
    cells, fields
        What it may see.
    steps
        Batches of 32 patches of 192 × 192 px.
    seed

    Returns
    -------
    CellFinder
        The exponential moving average of the weights, in evaluation mode.
    """
    torch.manual_seed(seed)
    model = CellFinder().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average: CellFinder = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    stream = DataLoader(_Stream(cells, fields, seed), BATCH, num_workers=1, prefetch_factor=4)
    started = time.monotonic()
    for step, (rgb, heat, box, inside) in zip(range(1, steps + 1), stream, strict=False):
        image = (rgb.permute(0, 3, 1, 2).float() / 255).contiguous(
            memory_format=torch.channels_last
        )
        with torch.autocast("cpu", torch.bfloat16):
            score_out, box_out = model(image)
        peak, boxes = peak_loss(score_out, heat[:, None]), box_loss(box_out, box, inside)
        optimiser.zero_grad(set_to_none=True)
        (peak + boxes).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        follow(average, model, min(EMA_DECAY, step / (step + 10)))
        if step % 50 == 0 or step == steps:
            seconds = time.monotonic() - started
            print(
                f"finder step {step}/{steps}  peak {peak.item():.3f}  box {boxes.item():.3f}"
                f"  {seconds:.0f} s",
                file=sys.stderr,
            )
    average.eval()
    return average
