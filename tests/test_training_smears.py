"""Composed smears to train on: each image is its seed's and its number's, whoever makes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("torch")

from models.training import smears
from models.training.annotated import AnnotatedImage
from models.training.data import TYPES
from models.training.smears import (
    APPROPRIATE,
    smear_fields,
    smear_overviews,
    smear_tiles,
)

Compose = Callable[[int, int], list[AnnotatedImage]]
KINDS: dict[str, Compose] = {
    "fields": lambda count, seed: smear_fields(count, TYPES, seed, True),
    "tiles": lambda count, seed: smear_tiles(count, seed, True),
    "overviews": lambda count, seed: smear_overviews(count, seed, True),
}


def same(one: list[AnnotatedImage], other: list[AnnotatedImage]) -> bool:
    return len(one) == len(other) and all(
        a.name == b.name
        and a.read().tobytes() == b.read().tobytes()
        and a.box_px.tobytes() == b.box_px.tobytes()
        and a.kind.tobytes() == b.kind.tobytes()
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_other_processes_compose_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = KINDS[kind](6, 3)
    monkeypatch.setattr(smears, "_MANY", 0)
    assert same(KINDS[kind](6, 3), here)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_those_before_it(kind: str) -> None:
    """The last of three is the last of the first three of five; other seeds give others."""
    three, five, other = KINDS[kind](3, 3), KINDS[kind](5, 3), KINDS[kind](3, 4)
    assert same(three, five[:3])
    assert len({image.read().tobytes() for image in (*five, *other)}) == 8


def test_boxes_are_those_of_what_is_seen() -> None:
    """Cells are laid over the edge; a perfect detector cannot answer with what lies beyond."""
    images = smear_fields(20, ("myeloblast", "lymphocyte", "myelocyte"), 3, False)
    box = np.concatenate([image.box_px for image in images])
    assert box.min() == 0
    assert box.max() == 192
    assert (box[:, 2:] - box[:, :2]).min() > 5


def test_labels_are_what_was_laid() -> None:
    fields = smear_fields(40, ("myeloblast", "promyelocyte"), 1, False)
    # A third of them shows red cells alone.
    assert 5 <= sum(not len(image.kind) for image in fields) <= 24
    for image in fields:
        assert set(image.kind.tolist()) <= {0, 1}
        assert len(image.box_px) == len(image.kind)
        assert image.size_px == (image.read().shape[1], image.read().shape[0])
    kinds = [int(image.kind[0]) for image in smear_tiles(4, 1, False)]
    assert kinds == [0, APPROPRIATE] * 2
    for image in smear_overviews(4, 1, False):
        assert ((image.box_px[:, 2:] - image.box_px[:, :2]) > 0).all()
        assert np.all((image.box_px >= 0) & (image.box_px <= 256))
