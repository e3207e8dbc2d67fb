"""A recipe's data sources → annotated images at the network's scale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image

from models.errors import TrainingInvalid
from models.records import UInt8
from models.training.annotated import (
    AnnotatedImage,
    Annotations,
    GroupOf,
    read_coco,
    read_crops,
    read_pascal_voc,
    read_yolo,
)
from models.training.recipe import Recipe, Source
from models.training.splits import Split, grouped_folds, split_of


def load_sources(
    sources: Sequence[Source], types: Sequence[str], um_per_px: float
) -> tuple[AnnotatedImage, ...]:
    """Read and check every source; images come scaled to `um_per_px` when they are read.

    Raises
    ------
    TrainingInvalid
        Naming the file.
    """
    images = []
    for source in sources:
        factor = source.um_per_px / um_per_px
        images += [_scaled(image, factor) for image in _read(source, types).images]
    return tuple(images)


def split_images(recipe: Recipe) -> tuple[list[AnnotatedImage], ...]:
    """Images to train on, to choose the best model with, and to report."""
    images = load_sources(recipe.data, recipe.types, recipe.um_per_px)
    if recipe.validation:
        measured = list(load_sources(recipe.validation, recipe.types, recipe.um_per_px))
        return list(images), measured, measured
    fold = grouped_folds(images, len(recipe.types), recipe.folds, recipe.seed)
    split: Split = split_of(images, fold, recipe.held_out, recipe.seed)
    return tuple(
        [images[int(row)] for row in rows] for rows in (split.train, split.validation, split.test)
    )


def _read(source: Source, types: Sequence[str]) -> Annotations:
    group_of = _group_of(source)
    match source.format:
        case "pascal_voc":
            return read_pascal_voc(source.folder, types, group_of, source.leave_out)
        case "coco":
            if source.file is None:
                raise TrainingInvalid(f"{source.folder}: the format coco needs 'file'.")
            return read_coco(source.file, source.folder, types, group_of, source.leave_out)
        case "crops":
            return read_crops(source.folder, types, group_of, source.leave_out)
        case "yolo":
            found = read_yolo(source.folder, source.types, group_of, source.leave_out)
            return _renumbered(found, types, source)


def _renumbered(found: Annotations, types: Sequence[str], source: Source) -> Annotations:
    """YOLO's class numbers → the recipe's order of types."""
    unknown = sorted(set(found.types) - set(types))
    if unknown:
        raise TrainingInvalid(f"{source.folder}: {unknown} are none of the types {list(types)}.")
    order = np.array([list(types).index(name) for name in found.types], np.int64)
    images = tuple(replace(image, kind=order[image.kind]) for image in found.images)
    return Annotations(tuple(types), images)


def _group_of(source: Source) -> GroupOf:
    if not source.group:
        return str
    try:
        pattern = re.compile(source.group)
    except re.error as error:
        raise TrainingInvalid(
            f"{source.folder}: 'group' is no regular expression ({error})."
        ) from error

    def group_of(stem: str) -> str:
        found = pattern.search(stem)
        if found is None or not pattern.groups:
            raise TrainingInvalid(
                f"{source.folder}: 'group' {source.group!r} finds nothing in the name {stem!r}."
            )
        return found.group(1)

    return group_of


def _scaled(image: AnnotatedImage, factor: float) -> AnnotatedImage:
    size = (
        max(1, round(image.size_px[0] * factor)),
        max(1, round(image.size_px[1] * factor)),
    )
    sides = np.array(size, np.float64) / image.size_px
    return replace(
        image,
        size_px=size,
        read=partial(_read_scaled, image, size),
        box_px=(image.box_px * np.tile(sides, 2)).astype(np.float32),
    )


def _read_scaled(image: AnnotatedImage, size: tuple[int, int]) -> UInt8:
    rgb = image.read()
    if rgb.shape[1::-1] == size:
        return rgb
    shrinks = size[0] < rgb.shape[1]
    resample = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(rgb).resize(size, resample))
