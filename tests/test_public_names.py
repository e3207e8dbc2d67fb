"""Files with torchvision's names begin the networks of this project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from models.errors import TrainingInvalid  # noqa: E402
from models.training.cascade_rcnn import cascade_rcnn  # noqa: E402
from models.training.dual_stage_cnn import BLOCKS, DualStageCnn, MaturationCnn  # noqa: E402
from models.training.faster_rcnn import faster_rcnn  # noqa: E402
from models.training.loop import begin_with  # noqa: E402
from models.training.resnet_fpn import resnet  # noqa: E402
from models.training.tile_task import tile_classifier  # noqa: E402
from models.training.yolov4 import YoloV4  # noqa: E402

WIDTH = 0.125
SMALL = {"depth": 101, "width": WIDTH, "channels": 16, "connected": 32, "proposals": 40}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def filled(network: Any) -> Any:
    """The network with a number of its own in every place, statistics included."""
    for tensor in network.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) * 100)
    return network


def written(path: Path, tensors: Mapping[str, Any]) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path))
    return str(path)


def same(first: Any, second: Any) -> bool:
    """Whether two parts hold the same, name by name."""
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


@pytest.mark.parametrize("build", [faster_rcnn, cascade_rcnn])
def test_a_public_resnet_is_the_backbone(tmp_path: Path, build: Callable[..., Any]) -> None:
    public = filled(resnet(101, WIDTH))
    tensors = public.state_dict()
    for name in (
        *("conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer4.2.bn3.bias"),
        *("layer1.0.downsample.0.weight", "layer3.22.bn2.weight"),
    ):
        assert name in tensors  # as torchvision calls them
    answers = {"fc.weight": torch.zeros(1000, 256), "fc.bias": torch.zeros(1000)}
    network = build(3, **SMALL)
    taken = begin_with(network, written(tmp_path / "resnet101.safetensors", tensors | answers))
    assert taken == len(tensors)
    backbone = network.pyramid.backbone
    seen = public.conv1.weight.flip(1) if build is cascade_rcnn else public.conv1.weight
    assert torch.equal(backbone.stem[0].weight, seen)  # blue, green, red; red, green, blue
    assert same(backbone.stem[1], public.bn1)
    for stage, theirs in zip(
        backbone.stages, (public.layer1, public.layer2, public.layer3, public.layer4), strict=True
    ):
        assert same(stage, theirs)


@pytest.mark.parametrize("dot", ["", "."])
def test_a_public_densenet_is_the_tile_classifier(tmp_path: Path, dot: str) -> None:
    """Of 2017 its files say ``norm.1``, of today ``norm1``."""
    own = filled(tile_classifier(WIDTH))
    tensors = {}
    for name, tensor in own.features.state_dict().items():
        public = name.replace(".layers.", ".")
        if public != name:
            for layer in ("norm1", "conv1", "norm2", "conv2"):
                public = public.replace(f".{layer}.", f".{layer[:-1]}{dot}{layer[-1]}.")
        tensors[f"features.{public}"] = tensor
    assert f"features.denseblock1.denselayer1.norm{dot}1.weight" in tensors
    assert "features.conv0.weight" in tensors
    features = len(tensors)
    tensors |= {"classifier.weight": torch.zeros(1000, 8), "classifier.bias": torch.zeros(1000)}
    network = tile_classifier(WIDTH)
    assert begin_with(network, written(tmp_path / "densenet121.safetensors", tensors)) == features
    assert same(network.features, own.features)


def vgg16(norms: bool) -> Any:
    """The convolutions of VGG-16 as torchvision lays them out: a pooling ends each block."""
    layers: list[Any] = []
    inputs = 3
    for block in BLOCKS:
        for full in block:
            outputs = round(full * WIDTH)
            layers.append(torch.nn.Conv2d(inputs, outputs, 3, padding=1))
            layers += [torch.nn.BatchNorm2d(outputs)] if norms else []
            layers.append(torch.nn.ReLU())
            inputs = outputs
        layers.append(torch.nn.MaxPool2d(2, 2))
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize("norms", [False, True])
def test_a_public_vgg_16_is_both_networks_convolutions(tmp_path: Path, norms: bool) -> None:
    public = filled(vgg16(norms))
    tensors = {f"features.{name}": tensor for name, tensor in public.state_dict().items()}
    assert ("features.40.weight" if norms else "features.28.weight") in tensors
    network = DualStageCnn(MaturationCnn(10, WIDTH), MaturationCnn(2, WIDTH))
    answers = {"classifier.6.weight": torch.zeros(1000, 32)}
    taken = begin_with(network, written(tmp_path / "vgg16.safetensors", tensors | answers))
    assert taken == 2 * len(tensors)
    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d) if norms else torch.nn.Conv2d
    theirs = [layer for layer in public if isinstance(layer, kinds)]
    for part in (network.whole, network.local):
        mine = [layer for layer in part.features if isinstance(layer, kinds)]
        assert all(same(one, other) for one, other in zip(mine, theirs, strict=True))


def test_a_public_network_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "resnet18.safetensors", resnet(18, WIDTH).state_dict())
    with pytest.raises(TrainingInvalid, match="holds no weight of this network"):
        begin_with(YoloV4(2, WIDTH, 0.2), path)
