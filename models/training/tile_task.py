"""Accept or reject a tile for cytology: the first stage of tayebi2021 (§4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.networks.nets.densenet import DenseNet121
from torch import Tensor, nn
from torch.nn import functional

from models.errors import TrainingInvalid
from models.evaluation import classification_table, confusion
from models.records import Bool, Float64, Int64, UInt8
from models.region_table import region_table
from models.training import detector_augment
from models.training.annotated import AnnotatedImage, only_kind
from models.training.detector_augment import Sample, cropped, quarter_turned
from models.training.recipe import Recipe
from models.training.sources import ImageSets


class TileTask:
    """See :class:`.loop.Task`."""

    best_by = "precision"

    def __init__(self, recipe: Recipe, images: ImageSets) -> None:
        if len(recipe.types) != 2:
            raise TrainingInvalid(
                f"{recipe.name}: tiles are of two types, the inappropriate one first."
            )
        self.network: nn.Module = tile_classifier(**recipe.network)
        self._recipe, self._images = recipe, images
        kinds = np.array([only_kind(image) for image in images.train])
        self._rows = [np.flatnonzero(kinds == kind) for kind in range(2)]
        if not all(len(rows) for rows in self._rows):
            raise TrainingInvalid(f"{recipe.name}: both types of tiles are needed to train.")

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Both types alike often: the rare one is shown in more ways (§4.2)."""
        kinds = rng.integers(2, size=self._recipe.mini_batch)
        rows = [int(rng.choice(self._rows[kind])) for kind in kinds]
        tiles = [self._tile(rng, self._images.train[row]) for row in rows]
        return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2), torch.from_numpy(kinds)

    def _tile(self, rng: np.random.Generator, image: AnnotatedImage) -> UInt8:
        sample = Sample.whole(image.read(), image.box_px, image.kind)
        sample = quarter_turned(rng, cropped(rng, sample, self._recipe.size_px))
        sample = detector_augment.recoloured_hsv(rng, sample)
        return detector_augment.noisy(rng, sample, 8.0).rgb

    def losses(self, batch: Any, device: torch.device) -> dict[str, Tensor]:
        tile, kind = (each.to(device) for each in batch)
        return {"tile": functional.cross_entropy(self.network(tile.float() / 255), kind)}

    def measure(self, device: torch.device) -> dict[str, float]:
        return as_accepted(*self._probabilities(self._images.validation, device))

    def report(self, device: torch.device) -> tuple[dict[str, Any], None]:
        chosen = _accepting(*self._probabilities(self._images.validation, device))
        probability, true = self._probabilities(self._images.test, device)
        said = probability >= chosen
        table = confusion(true.astype(np.int32), said.astype(np.int32), 2)
        measured = classification_table(table, self._recipe.types, self._recipe.seed)
        # A tile is one place of its slide; which tiles touch is not known, so no objects.
        regions = region_table(
            list(said[:, None, None]),
            list((true == 1)[:, None, None]),
            [image.group for image in self._images.test],
            self._recipe.seed,
        )
        by_slide = {name: value for name, value in regions.items() if "slide" in name}
        return {
            "threshold": chosen,
            **measured,
            **tile_measures(said, true == 1),
            **by_slide,
        }, None

    def _probabilities(
        self, images: Sequence[AnnotatedImage], device: torch.device
    ) -> tuple[Float64, Int64]:
        """How appropriate the network finds each tile, 0 to 1, and whether it is."""
        said = []
        for image in images:
            tile = torch.tensor(image.read(), device=device).permute(2, 0, 1)[None].float() / 255
            with torch.no_grad():
                said.append(float(torch.softmax(self.network(tile), 1)[0, 1]))
        return np.array(said), np.array([only_kind(image) for image in images])


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
    """Of accepted tiles, the measures of Tayebi et al. (2021), §4.5."""
    hits, rejected = int((said & true).sum()), int((~said & ~true).sum())
    return {
        "precision": hits / max(int(said.sum()), 1),
        "recall": hits / max(int(true.sum()), 1),
        "specificity": rejected / max(int((~true).sum()), 1),
        "accuracy": (hits + rejected) / max(len(true), 1),
        "negative_predictive_value": rejected / max(int((~said).sum()), 1),
    }


def as_accepted(probability: Float64, true: Int64) -> dict[str, float]:
    """Measures of the tiles that the node would accept.

    By a fixed probability a network could accept one tile alone, with perfect precision.

    Parameters
    ----------
    probability : (N,) float64
    true : (N,) int64
        1 for appropriate ones.
    """
    return tile_measures(probability >= _accepting(probability, true), true == 1)


def _accepting(probability: Float64, true: Int64) -> float:
    """Probability from which accepted tiles have the best F1.

    The paper chooses its model by precision, and says nothing of a threshold: one by precision
    alone would accept a single tile.
    """
    candidates = np.unique(probability)
    called = probability[None] >= candidates[:, None]
    right = (called & (true == 1)).sum(1)
    f1_of = 2 * right / np.maximum(called.sum(1) + (true == 1).sum(), 1)
    return float(candidates[f1_of.argmax()])
