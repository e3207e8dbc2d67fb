"""Training of the detector: one loop, read from top to bottom."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from models.composing import CellImage
from models.training.data import TYPES, Example, PatchMaker, targets
from models.training.losses import BOX_WEIGHT, TYPE_WEIGHT, box_loss, peak_loss, type_loss
from models.training.smear_detector import SmearDetector

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


def train_detector(
    cells: Sequence[CellImage], fields: Sequence[Example], steps: int, seed: int
) -> SmearDetector:
    """Train a detector from scratch.

    Parameters
    ----------
    cells, fields
        What it may see.
    steps
        Batches of 32 patches of 192 × 192 px.
    seed

    Returns
    -------
    SmearDetector
        The exponential moving average of the weights, in evaluation mode.
    """
    torch.manual_seed(seed)
    model = SmearDetector(len(TYPES)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    stream = DataLoader(_Stream(cells, fields, seed), BATCH, num_workers=1, prefetch_factor=4)
    started = time.monotonic()
    for step, (rgb, heat, box, inside, kind) in zip(range(1, steps + 1), stream, strict=False):
        image = (rgb.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            score_out, box_out, type_out = model(image)
        losses = (
            peak_loss(score_out, heat[:, None]),
            BOX_WEIGHT * box_loss(box_out, box, inside),
            TYPE_WEIGHT * type_loss(type_out, kind),
        )
        optimiser.zero_grad(set_to_none=True)
        sum(losses, torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        _follow(average, model, min(EMA_DECAY, step / (step + 10)))
        if step % 50 == 0 or step == steps:
            shown = "  ".join(
                f"{name} {loss.item():.3f}"
                for name, loss in zip(("peak", "box", "type"), losses, strict=True)
            )
            print(f"step {step}/{steps}  {shown}  {time.monotonic() - started:.0f} s", file=sys.stderr)  # noqa: T201
    return average.eval()


@torch.no_grad()
def _follow(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
    for kept, new in pairs:
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)

