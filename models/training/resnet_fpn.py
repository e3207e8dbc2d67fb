"""ResNet with a feature pyramid: the backbone of ``wang2022`` and ``liu2022``.

Both papers name ResNet-101 (He et al. 2016, table 1). The feature pyramid (Lin et al. 2017) is our
addition, stated in the packages: cells at 0.25 µm per px are too small for stride 16 alone.

Shape legend: B images of H × W px; maps P2 to P6 have C channels and strides 4, 8, 16, 32, 64.
"""

from __future__ import annotations

from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (4, 8, 16, 32, 64)
CHANNELS = 256
# Depth: kind of block, and how many of it in each of the four stages.
_DEPTHS = {
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
}
_PLANES = (64, 128, 256, 512)


def resnet(depth: int = 101, width: float = 1.0) -> ResNet:
    """ResNet without its classifier.

    Parameters
    ----------
    depth
        18, 34, 50 or 101; the papers use 101.
    width
        Channels as a share of the full network's.

    Raises
    ------
    ValueError
        There is no such depth.
    """
    if depth not in _DEPTHS:
        raise ValueError(f"A ResNet of depth {depth} is not known: use {sorted(_DEPTHS)}.")
    block, layers = _DEPTHS[depth]
    return ResNet(
        block,
        layers,
        block_inplanes=[max(8, round(planes * width)) for planes in _PLANES],
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_size=7,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
    )


class ResNetFpn(nn.Module):
    """Feature pyramid over a ResNet.

    Parameters
    ----------
    depth, width
        See :func:`resnet`.
    channels
        C; 256 in the full network.
    """

    def __init__(self, depth: int = 101, width: float = 1.0, channels: int = CHANNELS) -> None:
        super().__init__()
        body = resnet(depth, width)
        self.stem = nn.Sequential(body.conv1, body.bn1, body.act, body.maxpool)  # stride 4
        self.stages = nn.ModuleList([body.layer1, body.layer2, body.layer3, body.layer4])
        expansion = 4 if depth >= 50 else 1
        widths = [max(8, round(planes * width)) * expansion for planes in _PLANES]
        self.lateral = nn.ModuleList([nn.Conv2d(inputs, channels, 1) for inputs in widths])
        self.smooth = nn.ModuleList([nn.Conv2d(channels, channels, 3, 1, 1) for _ in widths])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) → P2 to P6, each (B, C, H / stride, W / stride).

        H and W are multiples of 64.
        """
        x = self.stem(image)
        columns = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            columns.append(lateral(x))
        merged = columns[-1]
        maps = [merged]
        for column in columns[-2::-1]:
            up = functional.interpolate(merged, size=column.shape[-2:], mode="nearest")
            merged = column + up
            maps.insert(0, merged)
        pyramid = [smooth(each) for smooth, each in zip(self.smooth, maps, strict=True)]
        return (*pyramid, functional.max_pool2d(pyramid[-1], 1, 2))


def padded(image: Tensor, multiple: int = STRIDES[-1]) -> Tensor:
    """Images (B, 3, H, W) with zeros to the right and below, to a multiple of `multiple` px."""
    height, width = image.shape[-2:]
    below, beside = -height % multiple, -width % multiple
    return functional.pad(image, (0, beside, 0, below))
