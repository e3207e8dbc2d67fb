"""Find and classify cells, or regions, in whole images: wang2022, tayebi2021 and liu2022."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.detection_evaluation import evaluation_table
from models.detection_table import Findings, above, best_threshold, detection_table, look_at
from models.records import Bool, Float32, UInt8
from models.region_table import boxes_as_places, mean_slide_iou, region_table
from models.training import detector_augment
from models.training.annotated import AnnotatedImage
from models.training.cascade_rcnn import cascade_rcnn
from models.training.detector import Detector, Truth
from models.training.detector_augment import Sample
from models.training.faster_rcnn import faster_rcnn
from models.training.recipe import Recipe
from models.training.sources import ImageSets
from models.training.yolov4 import YoloV4

_ATTACKED_SHARE = 0.1  # of the batches of tayebi2021 that self-adversarial training changes
_THRESHOLDS = np.linspace(0.05, 0.95, 19)
_SHAPE_STEP_PX = 32  # random training shapes of tayebi2021: up to a quarter smaller or larger

Augment = Callable[[np.random.Generator, detector_augment.Draw, int], Sample]

DETECTORS: Mapping[str, tuple[Callable[..., nn.Module], Augment, str]] = {
    # Network, augmentation, and what the paper chooses its model by.
    "wang2022": (cascade_rcnn, detector_augment.wang2022, "mean_recall"),
    "tayebi2021": (YoloV4, detector_augment.tayebi2021, "map_50"),
    "liu2022": (faster_rcnn, detector_augment.liu2022, "map_50"),
}


class DetectionTask:
    """See :class:`.loop.Task`."""

    def __init__(self, recipe: Recipe, images: ImageSets) -> None:
        build, self._augment, self.best_by = DETECTORS[recipe.system]
        if recipe.stage == "regions":
            self._augment = detector_augment.wang2022_regions
        self.network = build(len(recipe.types), **recipe.network)
        self._recipe, self._images = recipe, images

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, list[Truth]]:
        recipe, train = self._recipe, self._images.train
        size = recipe.size_px
        if recipe.system == "tayebi2021":  # random training shapes
            reach = size // 4 // _SHAPE_STEP_PX
            size += _SHAPE_STEP_PX * int(rng.integers(-reach, reach + 1))

        def draw() -> Sample:
            image = train[int(rng.integers(len(train)))]
            return Sample.whole(image.read(), image.box_px, image.kind)

        samples = [self._augment(rng, draw, size) for _ in range(recipe.mini_batch)]
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
        findings = look_at(self._images.validation, detect_with(self.network, device))
        table = detection_table(findings, self._recipe.types, self._threshold(findings))
        names = ("map_50", "mean_recall", "mean_precision", "mean_f1", "score_threshold")
        return {name: float(table[name] or 0.0) for name in names}

    def report(self, device: torch.device) -> tuple[dict[str, Any], Findings]:
        recipe, images = self._recipe, self._images
        detect = detect_with(self.network, device)
        chosen = self._threshold(look_at(images.validation, detect))
        findings = look_at(images.test, detect)
        table = evaluation_table(findings, recipe.types, chosen, recipe.seed, _slides(images.test))
        if recipe.stage == "regions":
            regions = region_table(*_as_places(findings, images.test, chosen), recipe.seed)
            table |= {name: value for name, value in regions.items() if name != "confusion"}
        return table, findings

    def _threshold(self, findings: Findings) -> float:
        """Score from which on the node reports, chosen on the validation images."""
        if self._recipe.stage == "regions":
            return region_threshold(findings, self._images.validation)
        return best_threshold(findings, len(self._recipe.types))


def region_threshold(findings: Findings, images: Sequence[AnnotatedImage]) -> float:
    """Score from which on the areas found and the true ones overlap most.

    Regions need not be told apart, so what counts is the overlap by slide (Wang et al. 2022, §4.3).

    Parameters
    ----------
    findings
        In `images`, whatever their scores.
    images
    """
    overlap = [mean_slide_iou(*_as_places(findings, images, each)) for each in _THRESHOLDS]
    return float(_THRESHOLDS[int(np.argmax(overlap))])


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


def _as_places(
    findings: Findings, images: Sequence[AnnotatedImage], score_threshold: float
) -> tuple[list[Bool], list[Bool], list[str]]:
    """Regions found and true, px by px, and the slide of each image."""
    sure = above(findings.found, score_threshold)
    found, truth = [], []
    for number, image in enumerate(images):
        shape = (image.size_px[1], image.size_px[0])
        found.append(boxes_as_places(sure.box_px[sure.image == number], shape, 1.0))
        truth.append(boxes_as_places(image.box_px, shape, 1.0))
    return found, truth, _slides(images)


def _slides(images: Sequence[AnnotatedImage]) -> list[str]:
    return [image.group for image in images]


def _truth(sample: Sample) -> Truth:
    """The sample's cells that are large enough to be told."""
    large = (sample.box_px[:, 2:] - sample.box_px[:, :2]).min(1, initial=np.inf) >= 1
    return Truth(torch.from_numpy(sample.box_px[large]), torch.from_numpy(sample.kind[large]))
