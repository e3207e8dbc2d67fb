"""Names that public ImageNet weights have, and those that the same weights have here.

Wang et al. (2022), §3.2, and Tayebi et al. (2021), §4.3, begin with networks trained on ImageNet.
torchvision's files, and timm's safetensors files of the same networks, name their weights as below.
What is not in a table (``fc``, ``classifier``) answers for ImageNet's thousand types.

torchvision's networks take red, green, blue; wang2022 takes blue, green, red (eq. 16), so that the
inputs of its first layer are turned round. Choi et al. (2017) train from scratch; VGG-16's filters
saw red, green, blue, and not YUV.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

# ResNet → the backbone of wang2022 and liu2022 (models/training/resnet_fpn.py).
_RESNET = (
    ("conv1.", "pyramid.backbone.stem.0."),
    ("bn1.", "pyramid.backbone.stem.1."),
    ("layer1.", "pyramid.backbone.stages.0."),
    ("layer2.", "pyramid.backbone.stages.1."),
    ("layer3.", "pyramid.backbone.stages.2."),
    ("layer4.", "pyramid.backbone.stages.3."),
)
_FIRST_OF_RESNET = "pyramid.backbone.stem.0.weight"
# Layers of VGG-16 and of VGG-16 with batch norms that are convolutions, and those of both of
# choi2017's networks (models/training/dual_stage_cnn.py); a norm comes after its convolution.
_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG16_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
_CHOI2017 = (0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48)
_ONLY_WITH_NORMS = "features.1.weight"
# DenseNet → the tile classifier of tayebi2021: MONAI has the layers of a dense layer one level
# deeper. Older files have a dot before the number.
_DENSE_LAYER = re.compile(r"^(features\.denseblock\d+\.denselayer\d+)\.(norm|conv)\.?([12])\.")


def with_own_names(stored: Mapping[str, Tensor], blue_first: bool) -> dict[str, Tensor]:
    """Tensors of a file by the names they have in it, and by those that they have here.

    A name of this project's means the tensor that the file calls so.

    Parameters
    ----------
    stored
    blue_first
        Whether the network takes blue, green, red.
    """
    prefixes = (*_RESNET, *_vgg_prefixes(_ONLY_WITH_NORMS in stored))
    named = dict(stored)
    for name, tensor in stored.items():
        for own in _own_names(name, prefixes):
            turned = blue_first and own == _FIRST_OF_RESNET
            named.setdefault(own, tensor.flip(1) if turned else tensor)
    return named


def _own_names(name: str, prefixes: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for theirs, own in prefixes:
        if name.startswith(theirs):
            yield own + name.removeprefix(theirs)
    yield _DENSE_LAYER.sub(r"\1.layers.\2\3.", name)


def _vgg_prefixes(with_norms: bool) -> Iterator[tuple[str, str]]:
    for network in ("whole", "local"):
        for theirs, own in zip(_VGG16_BN if with_norms else _VGG16, _CHOI2017, strict=True):
            yield f"features.{theirs}.", f"{network}.features.{own}."
            if with_norms:
                yield f"features.{theirs + 1}.", f"{network}.features.{own + 1}."
