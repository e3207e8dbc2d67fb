"""Name the type of a cell in the middle of a crop, in two stages: choi2017."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import TrainingInvalid
from models.evaluation import classification_table, confusion
from models.records import Int64
from models.training.annotated import AnnotatedImage, uncut
from models.training.dual_stage_cnn import LOCAL, DualStageCnn, MaturationCnn
from models.training.recipe import Recipe
from models.training.single_cells import Crops, around, batch, crops_of
from models.training.sources import ImageSets


class SingleCellTask:
    """See :class:`.loop.Task`.

    Both networks are trained in the same steps; they share nothing.
    """

    best_by = "accuracy"

    def __init__(self, recipe: Recipe, images: ImageSets) -> None:
        missing = [key for key in LOCAL if key not in recipe.types]
        if missing:
            raise TrainingInvalid(f"{recipe.name}: choi2017 needs the types {missing}; add them.")
        network = DualStageCnn(
            MaturationCnn(len(recipe.types), **recipe.network),
            MaturationCnn(len(LOCAL), **recipe.network),
            recipe.types,
        )
        self._size = recipe.mini_batch
        self._crops, self._validation = (_crops(each) for each in (images.train, images.validation))
        self._test, self._types, self._seed = images.test, recipe.types, recipe.seed
        for key in LOCAL:
            if not bool((self._crops.kind == recipe.types.index(key)).any()):
                raise TrainingInvalid(
                    f"{recipe.name}: no image to train on shows a {key}, which choi2017's local "
                    "network is for: add some."
                )
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

    def report(self, device: torch.device) -> tuple[dict[str, Any], None]:
        said, true = self._said(_crops(self._test), device)
        table = confusion(true.astype(np.int32), said.astype(np.int32), len(self._types))
        return classification_table(table, self._types, self._seed), None

    def _said(self, crops: Crops, device: torch.device) -> tuple[Int64, Int64]:
        with torch.no_grad():
            parts = [self.network(part.to(device)).cpu() for part in crops.centred().split(64)]
        return torch.cat(parts).argmax(1).numpy(), crops.kind.numpy()


def _crops(images: Sequence[AnnotatedImage]) -> Crops:
    """Every whole cell of images at the network's own scale already."""
    cells = [
        (around(rgb, image.box_px[row]), int(image.kind[row]))
        for image in images
        if len(rows := uncut(image))
        for rgb in (image.read(),)
        for row in rows
    ]
    if not cells:
        raise TrainingInvalid(
            f"{len(images)} images to train on or to measure with show no whole cell: add some."
        )
    return crops_of([rgb for rgb, _ in cells], [kind for _, kind in cells])


def _only(crops: Crops, kinds: Sequence[int]) -> Crops:
    """Crops of some kinds, numbered anew in their order."""
    rows = torch.cat([(crops.kind == kind).nonzero()[:, 0] for kind in kinds])
    number = torch.tensor([list(kinds).index(int(kind)) for kind in crops.kind[rows]])
    return Crops(crops.rgb[rows], number)
