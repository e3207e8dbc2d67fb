"""Which task a recipe asks for."""

from __future__ import annotations

import torch

from models.errors import TrainingInvalid
from models.training.detection_task import DetectionTask
from models.training.loop import Task
from models.training.recipe import Recipe
from models.training.single_cell_task import SingleCellTask
from models.training.sources import ImageSets
from models.training.tile_task import TileTask


def task_of(recipe: Recipe, images: ImageSets) -> Task:
    """The task of a recipe.

    Raises
    ------
    TrainingInvalid
        The recipe's `network` has a setting that the network does not know, or cannot have.
    """
    torch.manual_seed(recipe.seed)
    try:
        if recipe.system == "choi2017":
            return SingleCellTask(recipe, images)
        if recipe.stage == "tiles":
            return TileTask(recipe, images)
        return DetectionTask(recipe, images)
    except (TypeError, ValueError) as error:
        raise TrainingInvalid(f"{recipe.name}: field network: {error}.") from error
