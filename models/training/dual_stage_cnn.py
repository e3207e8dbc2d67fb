"""The dual-stage network of Choi et al. (2017): ten stages of maturation, then band or segmented.

A global network names one of K types; where it says band or segmented neutrophil, a local network
of the same shape that learnt those two alone decides between them.

Shape legend: n crops of 96 × 96 px, K types, w the width factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.cell_types import ERYTHROID_STAGES, GRANULOCYTIC_STAGES

CROP_PX = 96
TYPES = (*ERYTHROID_STAGES, *GRANULOCYTIC_STAGES)
LOCAL = GRANULOCYTIC_STAGES[-2:]  # band and segmented neutrophil

# The paper says "inspired by VGGnet" and draws thirteen convolutions; that their widths are those
# of VGG-16 (Simonyan and Zisserman 2015, table 1, D) is our reading of its figure 3. It gives no
# widths of the fully connected layers.
# "Dropout was placed between all pairs of convolutional layers": we read pairs that nothing but a
# norm parts, 8 of the 12 gaps, and leave the four with a max pooling alone. So does the Torch7
# network of that time that has the paper's parts, batch norm, 0.3 to 0.5 and MSRA initialisation
# (github.com/szagoruyko/cifar.torch, models/vgg_bn_drop.lua), from which our ratios are, too.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
CONNECTED = 512
_DROPOUT_FIRST, _DROPOUT = 0.3, 0.4  # "in the range 0.3 to 0.5"
_DROPOUT_CONNECTED = 0.5
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_SETTLING_BATCH = 128

# ITU-R BT.601, analogue: Y is 0 to 1, U and V are 0 for grey.
_YUV = ((0.299, 0.587, 0.114), (-0.14713, -0.28886, 0.436), (0.615, -0.51499, -0.10001))


class MaturationCnn(nn.Module):
    """Thirteen convolutions and three fully connected layers on one crop in YUV (figure 3A).

    Parameters
    ----------
    types
        K: ten for the global network, two for the local one.
    width
        Channels as a share of the full network's.
    dropout
        Dropout as a share of the paper's: what a narrow network can spare.

    Attributes
    ----------
    mean, spread : (3,) float
        Of Y, U and V over the training crops; set before training, kept with the weights.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, types: int, width: float = 1.0, dropout: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for block in BLOCKS:
            for place, full in enumerate(block):
                outputs = max(4, round(full * width))
                layers += [
                    nn.Conv2d(inputs, outputs, 3, padding=1),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                ]
                if place < len(block) - 1:  # between convolutions of a block
                    rate = _DROPOUT if len(layers) > 4 else _DROPOUT_FIRST
                    layers.append(nn.Dropout(dropout * rate))
                inputs = outputs
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        places = (CROP_PX // 2 ** len(BLOCKS)) ** 2
        connected = max(8, round(CONNECTED * width))
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout * _DROPOUT_CONNECTED),
            nn.Linear(inputs * places, connected),
            nn.BatchNorm1d(connected),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout * _DROPOUT_CONNECTED),
            nn.Linear(connected, connected),
            nn.ReLU(inplace=True),
            nn.Linear(connected, types),
        )
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("spread", torch.ones(3))
        self.apply(_initialise)

    def forward(self, crop: Tensor) -> Tensor:
        """Crops (n, 3, 96, 96) RGB, 0 to 1 → logits (n, K)."""
        scaled = (yuv(crop) - self.mean[:, None, None]) / self.spread[:, None, None]
        logits: Tensor = self.classifier(self.features(scaled))
        return logits

    @torch.no_grad()
    def normalise_as(self, crop: Tensor) -> None:
        """Take mean and spread of Y, U and V from training crops (n, 3, 96, 96) RGB, 0 to 1."""
        channels = yuv(crop).transpose(0, 1).flatten(1)
        self.mean.copy_(channels.mean(1))
        self.spread.copy_(channels.std(1))

    @torch.no_grad()
    def settle(self, crop: Tensor) -> None:
        """Take the batch norms' statistics anew from crops (n, 3, 96, 96), without dropout.

        Dropout before a batch norm makes its inputs vary more in training than they do afterwards
        (Li et al. 2019, "variance shift"): with thirteen of them in a row, statistics gathered
        while training answer every crop alike.
        """
        norms = [layer for layer in self.modules() if isinstance(layer, _BATCH_NORMS)]
        momentum = [norm.momentum for norm in norms]
        self.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.train()
        # Even parts, as each weighs the same: none may be a few crops, or the only one left.
        for part in crop.tensor_split(-(-len(crop) // _SETTLING_BATCH)):
            self(part)
        for norm, before in zip(norms, momentum, strict=True):
            norm.momentum = before
        self.eval()


class DualStageCnn(nn.Module):
    """Global and local network, combined as for testing (figure 3B).

    Parameters
    ----------
    whole
        Global network, of K types.
    local
        Local network of two types.
    types
        Keys of the K types; the two of :data:`LOCAL` among them.
    """

    def __init__(
        self, whole: MaturationCnn, local: MaturationCnn, types: Sequence[str] = TYPES
    ) -> None:
        super().__init__()
        self.whole = whole
        self.local = local
        self.pair = tuple(types.index(key) for key in LOCAL)

    def forward(self, crop: Tensor) -> Tensor:
        """Crops (n, 3, 96, 96) RGB, 0 to 1 → probabilities (n, K).

        Where the global network's first choice is one of the pair, the local network says which of
        the two gets the higher of their probabilities; all others stay as they are.
        """
        probability = torch.softmax(self.whole(crop), 1)
        band, segmented = self.pair
        first = probability.argmax(1)
        doubtful = (first == band) | (first == segmented)
        says_band = self.local(crop).diff(dim=1)[:, 0] <= 0
        both = probability[:, [band, segmented]]
        higher, lower = both.max(1).values, both.min(1).values
        decided = torch.stack(
            (torch.where(says_band, higher, lower), torch.where(says_band, lower, higher)), 1
        )
        columns = list(probability.unbind(1))
        columns[band] = torch.where(doubtful, decided[:, 0], columns[band])
        columns[segmented] = torch.where(doubtful, decided[:, 1], columns[segmented])
        return torch.stack(columns, 1)


def yuv(rgb: Tensor) -> Tensor:
    """RGB (n, 3, H, W), 0 to 1 → Y, U, V."""
    return torch.einsum("yc,nchw->nyhw", rgb.new_tensor(_YUV), rgb)


def _initialise(layer: nn.Module) -> None:
    """MSRA: a normal distribution of spread √(2 / inputs) (He et al. 2015, eq. 10)."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
