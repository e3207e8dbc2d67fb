"""Augmentation: after every change, the painted rectangle lies where its box says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.records import Bool, UInt8
from models.training.detector_augment import (
    VISIBLE_SHARE,
    Sample,
    cropped,
    cutmix,
    liu2022,
    mosaic,
    noisy,
    quarter_turned,
    recoloured,
    recoloured_hsv,
    rotated,
    tayebi2021,
    translated,
    wang2022,
    wang2022_regions,
)

GROUND, PAINT = (200, 200, 200), (20, 30, 160)
PAINTS = (PAINT, (160, 20, 30), (30, 160, 20), (20, 20, 20))  # one of each kind

Change = Callable[[np.random.Generator, Sample], Sample]
Pipeline = Callable[[np.random.Generator, Callable[[], Sample], int], Sample]

# What changes one image; mosaic and CutMix are given it more than once.
CHANGES: dict[str, Change] = {
    "quarter_turned": quarter_turned,
    "rotated": lambda rng, sample: rotated(rng, sample, 30.0),
    "translated": lambda rng, sample: translated(rng, sample, 0.2),
    "noisy": lambda rng, sample: noisy(rng, sample, 8.0),
    "recoloured": lambda rng, sample: recoloured(rng, sample, 0.3),
    "recoloured_hsv": recoloured_hsv,
    "cropped": lambda rng, sample: cropped(rng, sample, 48),
    "cropped_larger": lambda rng, sample: cropped(rng, sample, 120),
    "mosaic": lambda rng, sample: mosaic(rng, [sample] * 4, 64),
    "cutmix": lambda rng, sample: cutmix(rng, sample, sample),
}
PIPELINES: dict[str, Pipeline] = {
    "wang2022": wang2022,
    "liu2022": liu2022,
    "tayebi2021": tayebi2021,
}
seeds = st.integers(0, 2**32 - 1)


def painted(
    width: int = 90, height: int = 60, at: tuple[int, ...] = (50, 10, 74, 28), kind: int = 0
) -> Sample:
    """One rectangle; nothing may write into the arrays."""
    rgb = np.full((height, width, 3), GROUND, np.uint8)
    x0, y0, x1, y1 = at
    rgb[y0:y1, x0:x1] = PAINTS[kind]
    return sealed(Sample.whole(rgb, np.array([at], np.float32), np.array([kind], np.int64)))


def empty(width: int = 90, height: int = 60) -> Sample:
    rgb = np.full((height, width, 3), GROUND, np.uint8)
    return sealed(Sample.whole(rgb, np.zeros((0, 4), np.float32), np.zeros(0, np.int64)))


def sealed(sample: Sample) -> Sample:
    for array in (sample.rgb, sample.box_px, sample.kind):
        array.flags.writeable = False
    return sample


def paint_of(rgb: UInt8, kind: int = 0) -> Bool:
    """Nearer to the paint of that kind than halfway to the ground."""
    paint: Bool = np.abs(rgb.astype(int) - PAINTS[kind]).max(-1) < 90
    return paint


def extent(inside: Bool) -> list[int]:
    """Box of the pixels that are true."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def is_sound(sample: Sample) -> bool:
    height, width = sample.rgb.shape[:2]
    box = sample.box_px
    return (
        [each.dtype.name for each in (sample.rgb, box, sample.kind)]
        == ["uint8", "float32", "int64"]
        and box.shape == (len(sample.kind), 4)
        and bool((box >= 0).all() and (box <= (width, height) * 2).all())
        and bool((box[:, 2:] > box[:, :2]).all())
    )


@st.composite
def rectangles(draw: st.DrawFn) -> Sample:
    """One painted rectangle anywhere in an image of any shape."""
    width, height = draw(st.integers(2, 70)), draw(st.integers(2, 70))
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
    return painted(width, height, (x0, y0, x1, y1))


@pytest.mark.parametrize(
    "name",
    ["quarter_turned", "translated", "cropped", "cropped_larger"],
)
def test_the_box_follows_the_pixels(name: str) -> None:
    kept = 0
    for seed in range(60):
        sample = CHANGES[name](np.random.default_rng(seed), painted())
        if len(sample.box_px):
            kept += 1
            np.testing.assert_allclose(sample.box_px[0], extent(paint_of(sample.rgb)), atol=1)
    assert kept > 30


@given(rectangles(), seeds)
def test_the_eight_ways_are_exact(given_sample: Sample, seed: int) -> None:
    sample = quarter_turned(np.random.default_rng(seed), given_sample)
    assert sample.box_px.tolist() == [extent(paint_of(sample.rgb))]
    assert sample.kind.tolist() == given_sample.kind.tolist()
    assert sorted(sample.rgb.shape) == sorted(given_sample.rgb.shape)


def test_regions_keep_the_box_of_a_bent_band() -> None:
    """Its box does not tell what box holds it when it is turned by less than a quarter."""
    rgb = np.full((64, 64, 3), GROUND, np.uint8)
    rows, columns = np.mgrid[:64, :64]
    rgb[np.abs(rows - columns) < 6] = PAINTS[0]
    rgb[:8] = rgb[50:] = GROUND
    band = Sample.whole(rgb, np.array([extent(paint_of(rgb))], np.float32), np.zeros(1, np.int64))
    for seed in range(30):
        sample = wang2022_regions(np.random.default_rng(seed), lambda: band, 64)
        seen = np.abs(sample.rgb.astype(int) - np.median(sample.rgb, (0, 1))).max(-1) > 40
        assert sample.box_px.tolist() == [extent(seen)]


def test_all_eight_ways_come() -> None:
    corner = painted(10, 10, (0, 0, 2, 3))
    boxes = {
        tuple(quarter_turned(np.random.default_rng(seed), corner).box_px[0].tolist())
        for seed in range(200)
    }
    wide = {(0, 0, 3, 2), (7, 0, 10, 2), (0, 8, 3, 10), (7, 8, 10, 10)}
    tall = {(0, 0, 2, 3), (8, 0, 10, 3), (0, 7, 2, 10), (8, 7, 10, 10)}
    assert boxes == wide | tall


@pytest.mark.parametrize("crop", [cropped])
@given(given_sample=rectangles(), size_px=st.integers(1, 80), seed=seeds)
def test_a_crop_keeps_what_is_seen_and_only_that(
    crop: Callable[[np.random.Generator, Sample, int], Sample],
    given_sample: Sample,
    size_px: int,
    seed: int,
) -> None:
    sample = crop(np.random.default_rng(seed), given_sample, size_px)
    assert sample.rgb.shape == (size_px, size_px, 3)
    # Where paint covers half of the image, it is the median colour too, and laid around it.
    if paint_of(given_sample.rgb).mean() < 0.5:
        seen = paint_of(sample.rgb)
        share = seen.sum() / paint_of(given_sample.rgb).sum()
        assert sample.box_px.tolist() == ([extent(seen)] if share >= VISIBLE_SHARE else [])
    assert len(sample.kind) == len(sample.box_px)


@given(at=st.tuples(st.integers(0, 60), st.integers(0, 60)), seed=seeds)
def test_what_a_chain_leaves_is_a_share_of_the_whole_cell(at: tuple[int, int], seed: int) -> None:
    """Two cuts that each leave half of a cell leave a quarter of it, which is too little."""
    x, y = at
    first = painted(80, 80, (x, y, x + 20, y + 20))
    rng = np.random.default_rng(seed)
    sample = cropped(rng, cropped(rng, first, 60), 40)
    left = paint_of(sample.rgb).sum() / 400
    assert len(sample.kind) == int(left >= VISIBLE_SHARE)
    np.testing.assert_allclose(sample.shown, [left] * len(sample.kind))


def test_a_translation_is_a_share_of_each_side() -> None:
    """0.2 of 90 × 60 px: by up to 18 across and 12 down."""
    middle = painted(90, 60, (40, 25, 50, 35))
    box = [translated(np.random.default_rng(seed), middle, 0.2).box_px[0] for seed in range(300)]
    shift = np.array(box) - middle.box_px[0]
    assert shift.min(0).tolist() == [-18, -12] * 2
    assert shift.max(0).tolist() == [18, 12] * 2


@pytest.mark.parametrize("half", [(12, 12), (16, 9)])
def test_a_turned_ellipse_keeps_its_box(half: tuple[int, int]) -> None:
    """A cell is round: its box is that of the turned ellipse, not of its box's turned corners."""
    y, x = np.mgrid[:80, :80] + 0.5
    rgb = np.full((80, 80, 3), GROUND, np.uint8)
    rgb[np.hypot((x - 50) / half[0], (y - 32) / half[1]) <= 1] = PAINT
    at = (50 - half[0], 32 - half[1], 50 + half[0], 32 + half[1])
    cell = sealed(Sample.whole(rgb, np.array([at], np.float32), np.array([0])))
    for seed in range(40):
        sample = rotated(np.random.default_rng(seed), cell, 40.0)
        np.testing.assert_allclose(sample.box_px[0], extent(paint_of(sample.rgb)), atol=1)
        assert (sample.rgb[0, 0] == GROUND).all()


def test_a_mosaic_shows_all_four_where_their_boxes_are() -> None:
    """Four paints: every box is its own paint's, in its own part; what is hidden has none."""
    dropped = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        at = [(int(x), int(y)) for x, y in rng.integers(0, 44, (4, 2))]
        given_samples = [
            painted(64, 64, (x, y, x + 20, y + 20), kind) for kind, (x, y) in enumerate(at)
        ]
        sample = mosaic(rng, given_samples, 64)
        assert is_sound(sample)
        box_of = dict(zip(sample.kind.tolist(), sample.box_px.tolist(), strict=True))
        for kind in range(4):
            seen = paint_of(sample.rgb, kind)
            if seen.sum() >= VISIBLE_SHARE * 20 * 20:
                assert box_of.pop(kind) == extent(seen)
            else:
                dropped += 1
        assert not box_of
    assert dropped > 100


def test_a_mosaic_lays_its_images_in_reading_order() -> None:
    given_samples = [painted(64, 64, (0, 0, 64, 64), kind) for kind in range(4)]
    sample = mosaic(np.random.default_rng(1), given_samples, 64)
    corners = sample.rgb[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert [tuple(corner) for corner in corners.tolist()] == list(PAINTS)


def test_a_mosaic_looks_at_both_ends_of_an_image_alike_often() -> None:
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0] = np.arange(64)
    sample = sealed(Sample.whole(ramp, empty().box_px, empty().kind))
    rng = np.random.default_rng(0)
    shown = np.concatenate([mosaic(rng, [sample] * 4, 64).rgb[..., 0].ravel() for _ in range(200)])
    low, high = (shown < 16).mean(), (shown >= 48).mean()
    assert low == pytest.approx(high, rel=0.2)


def test_cutmix_drops_what_it_hides_and_keeps_what_it_brings() -> None:
    """A box stays with 0.7 of the first image's cell, comes with 0.3 of the second's."""
    first, second = painted(64, 64, (10, 10, 30, 30), 0), painted(64, 64, (20, 25, 50, 45), 1)
    counts = np.zeros(4, int)
    for seed in range(200):
        sample = cutmix(np.random.default_rng(seed), first, second)
        assert is_sound(sample)
        old, new = paint_of(sample.rgb, 0), paint_of(sample.rgb, 1)
        kinds = sample.kind.tolist()
        assert (0 in kinds) == (old.sum() >= 0.7 * 400)
        assert (1 in kinds) == (new.sum() >= 0.3 * 600)
        assert kinds == sorted(set(kinds))
        if 0 in kinds:
            assert sample.box_px[0].tolist() == [10, 10, 30, 30]
        if 1 in kinds:
            assert sample.box_px[-1].tolist() == extent(new)
        counts[2 * (0 in kinds) + (1 in kinds)] += 1
    assert (counts > 0).all()


def test_cutmix_keeps_a_cell_that_the_edge_had_cut_and_the_rectangle_does_not_hide() -> None:
    first = replace(painted(64, 64, (0, 10, 20, 30), 0), shown=np.array([0.5]))
    kept = lost = 0
    for seed in range(100):
        sample = cutmix(np.random.default_rng(seed), first, empty(64, 64))
        untouched = paint_of(sample.rgb, 0).sum() == 400
        kept += untouched and sample.kind.tolist() == [0]
        lost += untouched and not len(sample.kind)
    assert kept > 10
    assert not lost


@pytest.mark.parametrize("name", ["noisy", "recoloured", "recoloured_hsv"])
def test_colour_and_noise_leave_boxes_alone(name: str) -> None:
    sample = CHANGES[name](np.random.default_rng(0), painted())
    assert sample.box_px.tolist() == painted().box_px.tolist()
    assert sample.rgb.shape == painted().rgb.shape
    assert (sample.rgb != painted().rgb).any()


def test_noise_neither_darkens_nor_brightens() -> None:
    grey = sealed(Sample.whole(np.full((200, 200, 3), 128, np.uint8), empty().box_px, empty().kind))
    for seed in range(5):
        sample = noisy(np.random.default_rng(seed), grey, 8.0)
        assert sample.rgb.mean() == pytest.approx(128, abs=0.1)
        assert sample.rgb.std() < 8.2


def test_colours_change_within_their_bounds() -> None:
    """Grey has no hue or saturation: only brightness and exposure reach it, by hand."""
    grey = sealed(Sample.whole(np.full((8, 8, 3), 100, np.uint8), empty().box_px, empty().kind))
    for seed in range(50):
        bright = recoloured(np.random.default_rng(seed), grey, 0.3).rgb
        exposed = recoloured_hsv(np.random.default_rng(seed), grey).rgb
        assert 69 <= bright.min() <= bright.max() <= 131
        assert 65 <= exposed.min() <= exposed.max() <= 151
        assert np.ptp(bright) == np.ptp(exposed) == 0


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_seeded_and_leave_their_input_alone(name: str) -> None:
    sample = painted()  # its arrays cannot be written to
    one, two = (CHANGES[name](np.random.default_rng(5), sample) for _ in range(2))
    for field in ("rgb", "box_px", "kind"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
        np.testing.assert_array_equal(getattr(sample, field), getattr(painted(), field))
    assert is_sound(one)


@pytest.mark.parametrize("name", CHANGES)
def test_images_without_boxes_are_changed_too(name: str) -> None:
    sample = CHANGES[name](np.random.default_rng(6), empty())
    assert is_sound(sample)
    assert len(sample.box_px) == 0


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_are_seeded_sound_and_of_one_size(name: str) -> None:
    for seed in range(40):
        one, two = (PIPELINES[name](np.random.default_rng(seed), painted, 64) for _ in range(2))
        for field in ("rgb", "box_px", "kind"):
            np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
        assert is_sound(one)
        assert one.rgb.shape == (64, 64, 3)
        without = PIPELINES[name](np.random.default_rng(seed), empty, 64)
        assert without.rgb.shape == (64, 64, 3)
        assert len(without.box_px) == 0
