"""Which images are trained on and which are measured on: by group, never by file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.errors import TrainingInvalid
from models.records import Bool, Float64, Int64
from models.training.annotated import AnnotatedImage

_IMAGES_WEIGHT = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows of images.

    Attributes
    ----------
    train, validation, test : (n,) int64
        Training learns from the first, chooses the best model on the second, and reports the third.
    """

    train: Int64
    validation: Int64
    test: Int64


def grouped_folds(images: Sequence[AnnotatedImage], types: int, folds: int, seed: int) -> Int64:
    """Deal groups out to folds, those with the rarest type first.

    Wang et al. (2022), §4.2: "image patches with the cell type that has the least number of cells
    are first distributed evenly to each subset, and then the remaining patches with the cell type
    that has the second least number of cells are distributed evenly to each subset. The data
    allocation process continues until there is no remaining patch." Groups take the place of
    patches here, those with most of the type first. No fold stays empty.

    Parameters
    ----------
    images
    types
        K.
    folds
    seed
        Of the order among groups that are alike.

    Returns
    -------
    (len(images),) int64
        Fold of each image. Every group goes to the fold that has fewest of the group's rarest
        type, and among these to the one with fewest cells.

    Raises
    ------
    TrainingInvalid
        There are fewer than two folds, or fewer groups than folds.
    """
    if folds < 2:
        raise TrainingInvalid(f"{folds} folds leave nothing to train on: ask for two or more.")
    names = sorted({image.group for image in images})
    if len(names) < folds:
        raise TrainingInvalid(
            f"{folds} folds need as many groups, and there are {len(names)}: ask for fewer folds."
        )
    row = {name: place for place, name in enumerate(names)}
    count = np.zeros((len(names), types), np.int64)
    for image in images:
        np.add.at(count[row[image.group]], image.kind[image.kind >= 0], 1)
    rarity = np.argsort(count.sum(0), kind="stable")  # rarest type first
    shuffled = np.random.default_rng(seed).permutation(len(names))
    in_fold = np.zeros((folds, types), np.int64)
    members = np.zeros(folds, np.int64)
    fold_of = np.full(len(names), -1, np.int64)
    for kind in rarity:
        holding = [g for g in shuffled if count[g, kind] and fold_of[g] < 0]
        for group in sorted(holding, key=lambda g: -count[g, kind]):
            fold = np.lexsort((members, in_fold.sum(1), in_fold[:, kind]))[0]
            fold_of[group] = fold
            in_fold[fold] += count[group]
            members[fold] += 1
    for group in shuffled[fold_of[shuffled] < 0]:  # groups without a cell of known type
        fold_of[group] = fold = int(np.argmin(members))
        members[fold] += 1
    return np.array([fold_of[row[image.group]] for image in images], np.int64)


def leave_one_out(images: Sequence[AnnotatedImage]) -> Int64:
    """A fold for every group, by name (Wang et al. 2022, §4.2: slide-wise)."""
    names = sorted({image.group for image in images})
    row = {name: place for place, name in enumerate(names)}
    return np.array([row[image.group] for image in images], np.int64)


def split_of(
    images: Sequence[AnnotatedImage],
    fold: Int64,
    held_out: int,
    seed: int,
    validation_share: float = 0.7,
) -> Split:
    """One round of cross-validation.

    Tayebi et al. (2021), §4.4: "The test-validation data portion was split into two main partitions
    (70% validation and 30% test)", on each type individually. Groups stay whole here, too, so the
    shares are as near as :func:`_validating` finds them.

    Parameters
    ----------
    images
    fold : (len(images),) int64
    held_out
        The fold that is not trained on.
    seed
    validation_share
        0 to test on the whole fold; training then chooses by its last state.

    Raises
    ------
    TrainingInvalid
        Nothing is left to train or to test on.
    """
    outside = np.flatnonzero(fold == held_out)
    train = np.flatnonzero(fold != held_out)
    names = sorted({images[int(row)].group for row in outside})
    validating = _validating([images[int(row)] for row in outside], names, seed, validation_share)
    chosen = np.array([images[int(row)].group in validating for row in outside], np.bool_)
    split = Split(train, outside[chosen], outside[~chosen])
    if not len(split.train) or not len(split.test):
        raise TrainingInvalid(
            f"Fold {held_out} leaves {len(split.train)} images to train and {len(split.test)} to"
            " test on: use fewer folds or more slides."
        )
    return split


def _validating(
    images: Sequence[AnnotatedImage], names: Sequence[str], seed: int, share: float
) -> set[str]:
    """Groups that hold `share` of the cells of each type, as nearly as moves and exchanges find.

    Nearest is the least sum, over the types, of squared differences from `share`; between divisions
    that are alike in that, the one whose number of images is nearer. From there, neither moving a
    group to the other part nor exchanging two brings it nearer. No part stays empty, if there are
    two groups or more.
    """
    if share == 0:
        return set()
    part = _shares(images, names)
    order = np.random.default_rng(seed).permutation(len(names))
    inside = np.zeros(len(names), np.bool_)
    inside[order[: min(max(1, round(len(names) * share)), max(1, len(names) - 1))]] = True
    while sum(_improved(part, inside, group, share) for group in order):
        pass
    return {name for name, taken in zip(names, inside, strict=True) if taken}


def _shares(images: Sequence[AnnotatedImage], names: Sequence[str]) -> Float64:
    """What each group holds (G, K + 1) of the cells of each type, and (hardly weighing) of images.

    Columns are weighted so that squares of differences may be summed; a type without a cell is 0.
    """
    row = {name: place for place, name in enumerate(names)}
    types = 1 + max((int(image.kind.max(initial=-1)) for image in images), default=-1)
    count = np.zeros((len(names), types + 1))
    for image in images:
        np.add.at(count[row[image.group]], image.kind[image.kind >= 0], 1)
        count[row[image.group], -1] += _IMAGES_WEIGHT
    total = count.sum(0)
    total[-1] /= _IMAGES_WEIGHT
    return np.asarray(count / np.maximum(total, 1))


def _improved(part: Float64, inside: Bool, group: int, share: float) -> bool:
    """Move `group` to the other part or exchange it, in place, if that brings shares nearer."""
    wanted = share * part.sum(0)
    sign = np.where(inside, -1.0, 1.0)
    now = part[inside].sum(0) - wanted
    moved = now + sign[group] * part[group]
    others = np.flatnonzero(inside != inside[group])
    exchanged = moved + sign[others, None] * part[others]
    alone = np.sum(inside == inside[group]) == 1  # its part would be empty
    far = np.concatenate(([np.inf if alone else (moved**2).sum()], (exchanged**2).sum(1)))
    best = int(far.argmin())
    if far[best] >= (now**2).sum() - 1e-12:
        return False
    inside[group] = not inside[group]
    if best:
        inside[others[best - 1]] = not inside[others[best - 1]]
    return True
