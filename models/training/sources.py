"""A recipe's data sources → annotated images at the network's scale."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from models.composing import UM_PER_PX
from models.errors import TrainingInvalid
from models.records import Int64, UInt8
from models.training.annotated import AnnotatedImage, Annotations
from models.training.data import TYPES
from models.training.label_formats import (
    GROUPS,
    GroupOf,
    Wanted,
    read_coco,
    read_crops,
    read_groups,
    read_pascal_voc,
    read_yolo,
)
from models.training.recipe import Recipe, Source
from models.training.smears import (
    OVERVIEW_UM_PER_PX,
    single_cells,
    smear_fields,
    smear_overviews,
    smear_tiles,
)
from models.training.splits import Split, grouped_folds, leave_one_out, split_of

# Images of a training that choose a threshold where no others may.
MOST_CHOOSING = 100
# Reads a source of the format dicom; given by whoever knows archives.
ReadDicom = Callable[[Source], Sequence[AnnotatedImage]]


@dataclass(frozen=True, slots=True)
class ImageSets:
    """Images of a recipe.

    Attributes
    ----------
    train, validation, test
        To learn from, to choose the best model and thresholds with, and to report.
    """

    train: Sequence[AnnotatedImage]
    validation: Sequence[AnnotatedImage]
    test: Sequence[AnnotatedImage]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what weights come from: images to learn from and to choose with.

        Which are in which set, and their labels. Those to report have no say in them.
        """
        digest = hashlib.sha256()
        for name in ("train", "validation"):
            digest.update(name.encode())
            for image in getattr(self, name):
                digest.update(repr((image.group, image.name, image.size_px)).encode())
                digest.update(image.box_px.tobytes() + image.kind.tobytes())
        return digest.hexdigest()


def load_sources(
    sources: Sequence[Source], recipe: Recipe, read_dicom: ReadDicom
) -> tuple[AnnotatedImage, ...]:
    """Read and check every source; images come at the recipe's scale when they are read.

    Raises
    ------
    TrainingInvalid
        Naming the file.
    """
    images: list[AnnotatedImage] = []
    for source in sources:
        if source.format == "dicom":
            images += read_dicom(source)
            continue
        if source.folder is None or source.um_per_px is None:
            images += _composed(source, recipe)
            continue
        factor = source.um_per_px / recipe.um_per_px
        found = _read(source, source.folder, recipe.types).images
        images += [_scaled(image, factor) for image in found]
    return tuple(images)


def no_archive(source: Source) -> Sequence[AnnotatedImage]:
    """Refuse sources of the format dicom: nobody here knows archives."""
    raise TrainingInvalid(f"Slide {source.series_uid} can be read by 'marrow-node train' only.")


def split_images(recipe: Recipe, read_dicom: ReadDicom = no_archive) -> ImageSets:
    """Read a recipe's images and part them as it says."""
    images = load_sources(recipe.data, recipe, read_dicom)
    if recipe.validation:
        chosen_with = load_sources(recipe.validation, recipe, read_dicom)
        measured = load_sources(recipe.test, recipe, read_dicom) or chosen_with
        return ImageSets(images, chosen_with, measured)
    return parted(images, recipe)


def parted(images: Sequence[AnnotatedImage], recipe: Recipe) -> ImageSets:
    """Part images into those outside and inside the recipe's held-out fold.

    Raises
    ------
    TrainingInvalid
        Nothing is left to train or to test on.
    """
    if recipe.folds == "each":  # one group is too little to choose with, too
        fold = leave_one_out(images)
        split: Split = split_of(images, fold, recipe.held_out, recipe.seed, validation_share=0)
        # What is tested chooses nothing: the score threshold is that of images trained on.
        every = -(-len(split.train) // MOST_CHOOSING)
        split = replace(split, validation=split.train[::every])
    else:
        fold = grouped_folds(images, len(recipe.types), recipe.folds, recipe.seed)
        split = split_of(images, fold, recipe.held_out, recipe.seed)
    rows = (split.train, split.validation, split.test)
    return ImageSets(*([images[int(row)] for row in each] for each in rows))


def _composed(source: Source, recipe: Recipe) -> list[AnnotatedImage]:
    """Images of the kind that the recipe's stage is trained on."""
    seed = recipe.seed + (1000 if source.held_out else 0)
    if recipe.stage == "regions":
        images, scale = smear_overviews(source.images, seed, source.held_out), OVERVIEW_UM_PER_PX
    elif recipe.stage == "tiles":
        images, scale = smear_tiles(source.images, seed, source.held_out), UM_PER_PX
    else:
        unknown = sorted(set(recipe.types) - set(TYPES))
        if unknown:
            raise TrainingInvalid(f"{recipe.name}: no cell of the repository is {unknown}.")
        if recipe.system == "choi2017":
            return [
                _scaled(image, um_per_px / recipe.um_per_px)
                for image, um_per_px in single_cells(recipe.types, source.held_out)
            ]
        images = smear_fields(source.images, recipe.types, seed, source.held_out)
        scale = UM_PER_PX
    return [_scaled(image, scale / recipe.um_per_px) for image in images]


def _read(source: Source, folder: Path, types: Sequence[str]) -> Annotations:
    # A source that calls types by other names, or has more, is read whole, and renamed.
    whole = source.names or source.ignore
    wanted = Wanted(None if whole else types, _group_of(source, folder), source.leave_out)
    match source.format:
        case "pascal_voc":
            found = read_pascal_voc(folder, wanted)
        case "coco":
            if source.file is None:
                raise TrainingInvalid(f"{folder}: the format coco needs 'file'.")
            found = read_coco(source.file, folder, wanted)
        case "crops":
            found = read_crops(folder, wanted)
        case _:
            found = read_yolo(folder, source.types, wanted)
    return _renumbered(found, types, source)


def _renumbered(found: Annotations, types: Sequence[str], source: Source) -> Annotations:
    """Labels in the recipe's order of types, by the recipe's names, without those to ignore."""
    names = [source.names.get(name, name) for name in found.types]
    ignored = [name in source.ignore for name in found.types]
    unknown = sorted({*(n for n, out in zip(names, ignored, strict=True) if not out)} - {*types})
    if unknown:
        raise TrainingInvalid(
            f"{source.folder}: {unknown} are none of the types {list(types)}: rename them under"
            " 'names', or leave them out with 'ignore'."
        )
    order = np.array(
        [-1 if out else list(types).index(n) for n, out in zip(names, ignored, strict=True)],
        np.int64,
    )
    images = [_of_known_types(image, order[image.kind]) for image in found.images]
    # Without its cell, the image of a single one is no image.
    left = [image for image in images if len(image.kind) or source.format != "crops"]
    return Annotations(tuple(types), tuple(left))


def _of_known_types(image: AnnotatedImage, kind: Int64) -> AnnotatedImage:
    """Return the image with the cells whose type is none of those to ignore, −1."""
    return replace(image, box_px=image.box_px[kind >= 0], kind=kind[kind >= 0])


def _group_of(source: Source, folder: Path) -> GroupOf:
    if not source.group:
        return _group_in_table(folder / GROUPS)
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


def _group_in_table(path: Path) -> GroupOf:
    """Groups by the names of files without suffix, for which labels and images share one."""
    table = read_groups(path)
    if table is None:
        return str
    by_stem: dict[str, str] = {}
    for name, group in table.items():
        if by_stem.setdefault(Path(name).stem, group) != group:
            raise TrainingInvalid(
                f"{path} puts files of the name {Path(name).stem} into two groups: give files names"
                " of their own, or name the groups by an expression, 'group'."
            )

    def group_of(stem: str) -> str:
        if stem not in by_stem:
            raise TrainingInvalid(f"{path} has no line for {stem}: add its group.")
        return by_stem[stem]

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
