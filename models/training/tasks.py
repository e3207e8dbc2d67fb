"""The four systems as tasks that :mod:`.loop` trains: batches, losses, measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.networks.nets.densenet import DenseNet121
from torch import Tensor, nn
from torch.nn import functional

from models.detection_table import best_threshold, detection_table, look_at
from models.errors import TrainingInvalid
from models.records import Bool, Float32, Float64, Int64, UInt8
from models.training import detector_augment
from models.training.annotated import AnnotatedImage
from models.training.cascade_rcnn import CascadeRcnn
from models.training.detector import Detector, Truth
from models.training.detector_augment import Sample, cropped, quarter_turned
from models.training.dual_stage_cnn import LOCAL, DualStageCnn, MaturationCnn
from models.training.faster_rcnn import FasterRcnn
from models.training.loop import Task
from models.training.recipe import Recipe
from models.training.single_cells import Crops, batch, crops_of
from models.training.yolov4 import YoloV4

_ATTACKED_SHARE = 0.1  # of the batches of tayebi2021 that self-adversarial training changes
_SHAPE_STEP_PX = 32  # random training shapes of tayebi2021: up to a quarter smaller or larger

Augment = Callable[[np.random.Generator, detector_augment.Draw, int], Sample]

DETECTORS: Mapping[str, tuple[Callable[..., nn.Module], Augment, str]] = {
    # Network, augmentation, and what the paper chooses its model by.
    "wang2022": (CascadeRcnn, detector_augment.wang2022, "mean_recall"),
    "tayebi2021": (YoloV4, detector_augment.tayebi2021, "map_50"),
    "liu2022": (FasterRcnn, detector_augment.liu2022, "map_50"),
}


def task_of(
    recipe: Recipe, train: Sequence[AnnotatedImage], validation: Sequence[AnnotatedImage]
) -> Task:
    """The task of a recipe.

    Raises
    ------
    TrainingInvalid
        The recipe's `network` has a setting that the network does not know.
    """
    torch.manual_seed(recipe.seed)
    try:
        if recipe.system == "choi2017":
            return SingleCellTask(recipe, train, validation)
        if recipe.stage == "tiles":
            return TileTask(recipe, train, validation)
        return DetectionTask(recipe, train, validation)
    except TypeError as error:
        raise TrainingInvalid(f"{recipe.name}: field network: {error}.") from error


class DetectionTask:
    """Find and classify cells (or regions) in whole images."""

    def __init__(
        self,
        recipe: Recipe,
        train: Sequence[AnnotatedImage],
        validation: Sequence[AnnotatedImage],
    ) -> None:
        build, self._augment, self.best_by = DETECTORS[recipe.system]
        self.network = build(len(recipe.types), **recipe.network)
        self._recipe, self._train, self._validation = recipe, train, validation

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, list[Truth]]:
        recipe = self._recipe
        size = recipe.size_px
        if recipe.system == "tayebi2021":  # random training shapes
            reach = size // 4 // _SHAPE_STEP_PX
            size += _SHAPE_STEP_PX * int(rng.integers(-reach, reach + 1))

        def draw() -> Sample:
            image = self._train[int(rng.integers(len(self._train)))]
            return Sample(image.read(), image.box_px, image.kind)

        samples = [self._augment(rng, draw, size) for _ in range(recipe.batch)]
        rgb = torch.from_numpy(np.stack([sample.rgb for sample in samples])).permute(0, 3, 1, 2)
        return rgb, [_truth(sample) for sample in samples]

    def losses(self, batch: Any, device: torch.device) -> dict[str, Tensor]:
        rgb, truth = batch
        # Planes one after the other: torch 2.13's convolutions on a CPU corrupt memory in the
        # backward pass of some widths (32 channels) where channels come last.
        image = (rgb.to(device).float() / 255).contiguous()
        truth = [Truth(each.box.to(device), each.kind.to(device)) for each in truth]
        network: Any = self.network
        if isinstance(network, YoloV4) and torch.rand(()) < _ATTACKED_SHARE:
            image = network.attacked(image)
        terms: dict[str, Tensor] = network.losses(image, truth)
        return terms

    def measure(self, device: torch.device) -> dict[str, float]:
        findings = look_at(self._validation, detect_with(self.network, device))
        types = self._recipe.types
        table = detection_table(findings, types, best_threshold(findings, len(types)))
        names = ("map_50", "mean_recall", "mean_precision", "mean_f1", "score_threshold")
        return {name: float(table[name] or 0.0) for name in names}


class SingleCellTask:
    """Name the type of a cell in the middle of a crop, in two stages: choi2017.

    Both networks are trained in the same steps; they share nothing.
    """

    best_by = "accuracy"

    def __init__(
        self,
        recipe: Recipe,
        train: Sequence[AnnotatedImage],
        validation: Sequence[AnnotatedImage],
    ) -> None:
        missing = [key for key in LOCAL if key not in recipe.types]
        if missing:
            raise TrainingInvalid(f"{recipe.name}: choi2017 needs the types {missing}; add them.")
        network = DualStageCnn(
            MaturationCnn(len(recipe.types), **recipe.network),
            MaturationCnn(len(LOCAL), **recipe.network),
            recipe.types,
        )
        self._size = recipe.batch
        self._crops, self._validation = (_crops(images) for images in (train, validation))
        self._pair = _only(self._crops, network.pair)
        network.whole.normalise_as(self._crops.centred())
        network.local.normalise_as(self._pair.centred())
        self.network: nn.Module = network

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        return (*batch(self._crops, rng, self._size), *batch(self._pair, rng, self._size))

    def losses(self, batch: Any, device: torch.device) -> dict[str, Tensor]:
        crop, kind, pair_crop, pair_kind = (each.to(device) for each in batch)
        network: Any = self.network
        return {  # eq. 1 to 3
            "whole": functional.cross_entropy(network.whole(crop), kind),
            "local": functional.cross_entropy(network.local(pair_crop), pair_kind),
        }

    def measure(self, device: torch.device) -> dict[str, float]:
        network: Any = self.network
        network.whole.settle(self._crops.centred().to(device))
        network.local.settle(self._pair.centred().to(device))
        said, true = self._said(self._validation, device)
        right = said == true
        recalls = [right[true == kind].mean() for kind in np.unique(true)]
        return {"accuracy": float(right.mean()), "mean_recall": float(np.mean(recalls))}

    def said_of(self, images: Sequence[AnnotatedImage]) -> tuple[Int64, Int64]:
        """What the network says of images of single cells, and what they are."""
        return self._said(_crops(images), torch.device("cpu"))

    def _said(self, crops: Crops, device: torch.device) -> tuple[Int64, Int64]:
        with torch.no_grad():
            parts = [self.network(part.to(device)).cpu() for part in crops.centred().split(64)]
        return torch.cat(parts).argmax(1).numpy(), crops.kind.numpy()


class TileTask:
    """Accept or reject a tile for cytology: the first stage of tayebi2021 (§4.3)."""

    best_by = "precision"

    def __init__(
        self,
        recipe: Recipe,
        train: Sequence[AnnotatedImage],
        validation: Sequence[AnnotatedImage],
    ) -> None:
        if len(recipe.types) != 2:
            raise TrainingInvalid(
                f"{recipe.name}: tiles are of two types, the inappropriate one first."
            )
        self.network: nn.Module = tile_classifier(**recipe.network)
        self._recipe, self._train, self._validation = recipe, train, validation
        kinds = np.array([int(image.kind[0]) for image in train])
        self._rows = [np.flatnonzero(kinds == kind) for kind in range(2)]
        if not all(len(rows) for rows in self._rows):
            raise TrainingInvalid(f"{recipe.name}: both types of tiles are needed to train.")

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Both types alike often: the rare one is shown in more ways (§4.2)."""
        kinds = rng.integers(2, size=self._recipe.batch)
        rows = [int(rng.choice(self._rows[kind])) for kind in kinds]
        tiles = [self._tile(rng, self._train[row]) for row in rows]
        return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2), torch.from_numpy(kinds)

    def _tile(self, rng: np.random.Generator, image: AnnotatedImage) -> UInt8:
        sample = Sample(image.read(), image.box_px, image.kind)
        sample = quarter_turned(rng, cropped(rng, sample, self._recipe.size_px))
        sample = detector_augment.recoloured_hsv(rng, sample)
        return detector_augment.noisy(rng, sample, 8.0).rgb

    def losses(self, batch: Any, device: torch.device) -> dict[str, Tensor]:
        tile, kind = (each.to(device) for each in batch)
        return {"tile": functional.cross_entropy(self.network(tile.float() / 255), kind)}

    def measure(self, device: torch.device) -> dict[str, float]:
        probability, true = self.probabilities_of(self._validation, device)
        return tile_measures(probability >= 0.5, true == 1)

    def probabilities_of(
        self, images: Sequence[AnnotatedImage], device: torch.device
    ) -> tuple[Float64, Int64]:
        """How appropriate the network finds each tile, 0 to 1, and whether it is."""
        said = []
        for image in images:
            tile = torch.tensor(image.read(), device=device).permute(2, 0, 1)[None].float() / 255
            with torch.no_grad():
                said.append(float(torch.softmax(self.network(tile), 1)[0, 1]))
        return np.array(said), np.array([int(image.kind[0]) for image in images])


def tile_classifier(width: float = 1.0) -> nn.Module:
    """DenseNet-121 with two answers (Tayebi et al. 2021, §4.3).

    Parameters
    ----------
    width
        Growth and first channels as a share of the full network's 32 and 64.
    """
    return DenseNet121(
        spatial_dims=2,
        in_channels=3,
        out_channels=2,
        init_features=max(8, round(64 * width)),
        growth_rate=max(4, round(32 * width)),
    )


def tile_measures(said: Bool, true: Bool) -> dict[str, float]:
    """Precision, recall, specificity and accuracy of accepted tiles (Tayebi et al. 2021, §4.5)."""
    hits, rejected = int((said & true).sum()), int((~said & ~true).sum())
    return {
        "precision": hits / max(int(said.sum()), 1),
        "recall": hits / max(int(true.sum()), 1),
        "specificity": rejected / max(int((~true).sum()), 1),
        "accuracy": (hits + rejected) / max(len(true), 1),
    }


def detect_with(
    network: nn.Module | Detector, device: torch.device
) -> Callable[[UInt8], tuple[Float32, Float32, Float32]]:
    """A detector in PyTorch, called as a package's is: images (N, H, W, 3) uint8."""

    def detect(rgb: UInt8) -> tuple[Float32, Float32, Float32]:
        image = torch.tensor(rgb, device=device).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            box, score, probability = network(image)
        return box.cpu().numpy(), score.cpu().numpy(), probability.cpu().numpy()

    return detect


def _truth(sample: Sample) -> Truth:
    """The sample's cells that are large enough to be told."""
    large = (sample.box_px[:, 2:] - sample.box_px[:, :2]).min(1, initial=np.inf) >= 1
    return Truth(torch.from_numpy(sample.box_px[large]), torch.from_numpy(sample.kind[large]))


def _crops(images: Sequence[AnnotatedImage]) -> Crops:
    """Images at the network's own scale already."""
    return crops_of([image.read() for image in images], [int(image.kind[0]) for image in images])


def _only(crops: Crops, kinds: Sequence[int]) -> Crops:
    """Crops of some kinds, numbered anew in their order."""
    rows = torch.cat([(crops.kind == kind).nonzero()[:, 0] for kind in kinds])
    number = torch.tensor([list(kinds).index(int(kind)) for kind in crops.kind[rows]])
    return Crops(crops.rgb[rows], number)
