"""Splits are by group, the rarest type is dealt out first."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import TrainingInvalid
from models.training.annotated import AnnotatedImage
from models.training.splits import grouped_folds, leave_one_out, split_of


def image(number: int, group: int, kinds: list[int]) -> AnnotatedImage:
    box = np.tile(np.array([[0, 0, 5, 5]], np.float32), (len(kinds), 1))
    return AnnotatedImage(
        f"{number}",
        f"g{group:03d}",
        (10, 10),
        lambda: np.zeros((10, 10, 3), np.uint8),
        box,
        np.array(kinds, np.int64),
    )


many = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.integers(0, 3), max_size=6)),
    min_size=12,
    max_size=60,
)


@settings(deadline=None, max_examples=50)
@given(many, st.integers(2, 5), st.integers(0, 5))
def test_no_group_is_parted_and_the_rarest_type_is_spread(
    rows: list[tuple[int, list[int]]], folds: int, seed: int
) -> None:
    images = [image(number, group, kinds) for number, (group, kinds) in enumerate(rows)]
    if len({each.group for each in images}) < folds:
        with pytest.raises(TrainingInvalid, match="folds need as many groups"):
            grouped_folds(images, 4, folds, seed)
        return
    fold = grouped_folds(images, 4, folds, seed)
    assert fold.shape == (len(images),)
    assert set(fold.tolist()) == set(range(folds))  # no fold stays empty
    for group in {each.group for each in images}:
        assert len({f for f, each in zip(fold, images, strict=True) if each.group == group}) == 1
    np.testing.assert_array_equal(fold, grouped_folds(images, 4, folds, seed))
    total = np.zeros(4, int)
    for each in images:
        np.add.at(total, each.kind, 1)
    present = np.flatnonzero(total)
    if len(present):
        rarest = present[total[present].argmin()]  # the first of equals
        by_group: dict[str, int] = {}
        in_fold = np.zeros(folds, int)
        for f, each in zip(fold, images, strict=True):
            held = int((each.kind == rarest).sum())
            by_group[each.group] = by_group.get(each.group, 0) + held
            in_fold[f] += held
        assert in_fold.max() - in_fold.min() <= max(by_group.values())


def test_a_type_in_as_many_groups_as_folds_is_in_every_fold() -> None:
    images = [image(n, n, [0] * 5 + [1] * (n < 4)) for n in range(40)]
    for seed in range(5):
        fold = grouped_folds(images, 2, 4, seed)
        assert sorted(fold[:4].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("folds", [0, 1])
def test_fewer_than_two_folds_are_refused(folds: int) -> None:
    with pytest.raises(TrainingInvalid, match="ask for two or more"):
        grouped_folds([image(0, 0, [0]), image(1, 1, [0])], 1, folds, seed=0)


def test_leave_one_out_has_a_fold_per_slide() -> None:
    images = [image(n, group, [0]) for n, group in enumerate((2, 0, 2, 1))]
    assert leave_one_out(images).tolist() == [2, 0, 2, 1]


def test_the_held_out_fold_is_divided_by_group() -> None:
    images = [image(n, n // 2, [n % 3]) for n in range(240)]
    fold = grouped_folds(images, 3, 5, seed=0)
    split = split_of(images, fold, 1, seed=0)
    rows = np.concatenate((split.train, split.validation, split.test))
    assert sorted(rows.tolist()) == list(range(240))
    groups = [{images[r].group for r in part} for part in (split.validation, split.test)]
    assert not groups[0] & groups[1]
    share = len(groups[0]) / (len(groups[0]) + len(groups[1]))
    assert share == pytest.approx(0.7, abs=0.1)
    whole = split_of(images, fold, 1, seed=0, validation_share=0)
    assert len(whole.validation) == 0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 30), min_size=12, max_size=60), st.integers(0, 5))
def test_every_image_is_in_one_part_and_every_group_too(groups: list[int], seed: int) -> None:
    images = [image(n, group, [n % 3]) for n, group in enumerate(groups)]
    if len(set(groups)) < 4:
        return
    fold = grouped_folds(images, 3, 2, seed)
    for held_out in range(2):
        if len({images[r].group for r in np.flatnonzero(fold == held_out)}) < 2:
            continue  # one group cannot be divided
        split = split_of(images, fold, held_out, seed)
        parts = (split.train, split.validation, split.test)
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(images)))
        owned = [{images[int(row)].group for row in part} for part in parts]
        assert sum(len(names) for names in owned) == len(set(groups))


def shares(images: list[AnnotatedImage], types: int, seed: int) -> np.ndarray:
    """Share of validation in the cells of each type, of a fold that is all held out but one."""
    fold = np.zeros(len(images), np.int64)
    fold[-1] = 1
    split = split_of(images, fold, 0, seed)
    counts = [
        np.bincount(
            np.concatenate([images[row].kind for row in part] or [[]]).astype(int),
            minlength=types,
        )
        for part in (split.validation, split.test)
    ]
    return np.asarray(counts[0] / np.maximum(counts[0] + counts[1], 1))


@pytest.mark.parametrize("seed", range(5))
def test_each_type_is_divided_70_to_30(seed: int) -> None:
    """Groups of one common and, every tenth, one rare type; dealt blindly the rare one is off."""
    rng = np.random.default_rng(seed)
    images = [
        image(n, n, [0] * int(rng.integers(1, 9)) + [1] * (n % 10 == 0) + [2] * (n % 4 == 1))
        for n in range(200)
    ]
    found = shares([*images, image(200, 200, [0])], 3, seed)
    assert found == pytest.approx(0.7, abs=0.011)  # 14 of 20, 35 of 50


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=2, max_size=8), st.integers(0, 3))
def test_the_division_is_among_the_nearest_of_all(kinds: list[list[int]], seed: int) -> None:
    """Against every division of few groups: a descent may stop beside the best, not far from it."""
    images = [image(n, n, each) for n, each in enumerate(kinds)]
    present = np.unique(np.concatenate(kinds)).astype(int)
    count = np.array([np.bincount(np.array(each, int), minlength=3) for each in kinds])
    if not len(present):
        return

    def far(share: np.ndarray) -> float:
        return float(((share[present] - 0.7) ** 2).sum())

    divisions = np.array(list(product((0, 1), repeat=len(kinds))))
    possible = divisions[(divisions.sum(1) > 0) & (divisions.sum(1) < len(kinds))]
    distance = [far(row @ count / np.maximum(count.sum(0), 1)) for row in possible]
    extra = image(99, 99, [])
    found = far(shares([*images, extra], 3, seed))
    assert found <= min(distance) + 0.1
    assert found <= np.quantile(distance, 0.25) + 1e-9


def test_the_division_is_the_seeds() -> None:
    images = [image(n, n, [n % 3]) for n in range(60)]
    fold = np.arange(60) // 30
    first, again, other = (split_of(images, fold, 0, seed) for seed in (1, 1, 2))
    assert first.test.tolist() == again.test.tolist() != other.test.tolist()


def test_a_split_without_a_test_is_refused() -> None:
    images = [image(n, n, [0]) for n in range(4)]
    with pytest.raises(TrainingInvalid, match="use fewer folds or more slides"):
        split_of(images, np.array([0, 0, 0, 1]), 1, seed=0)
