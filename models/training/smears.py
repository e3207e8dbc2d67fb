"""Composed smears as annotated images: what a system can be trained on without any slide.

Real cells of this repository on real red cells, see :mod:`models.composing`; three kinds of images:
fields with cells (``cells``), tiles that suit cytology or do not (``tiles``), and overviews with
trails of cells (``regions``). Every image is made from the seed and its number alone,
so that it is the same in whatever process and among however many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from joblib import Parallel, delayed
from PIL import Image
from scipy import ndimage

from models.composing import UM_PER_PX, CellImage, load_cells, place, red_cell_field, turned
from models.records import Float32, Float64, UInt8
from models.training.annotated import AnnotatedImage
from models.training.augment import imaged, restain
from models.training.data import TYPES, PatchMaker
from models.training.detector_augment import Sample, cut_at_edges

HELD_OUT_FOLD = 4
TILE_PX = 512
# Fields without a nucleated cell: most of a slide is red cells alone, dark ones and overlaps too.
_BARE = 0.35
OVERVIEW_UM_PER_PX = 4.0
_OVERVIEW_PX = 256
_CANVAS_UM_PER_PX = 2.0
REGION = "trail"
INAPPROPRIATE, APPROPRIATE = 0, 1
_LEAST_CELLS = 3  # of an appropriate tile
_LEAST_OF_TRAIL, _MOST_OF_TRAIL = 15, 400  # cells in sight
_CELLS_PER_MM2 = (400.0, 1600.0)
_WITH_PARTICLE = 0.6
_MANY = 64  # images that are worth the start of other processes


def smear_fields(
    count: int, types: Sequence[str], seed: int, held_out: bool
) -> list[AnnotatedImage]:
    """Fields of 192 × 192 px at 0.25 µm per px with cells of `types`.

    Parameters
    ----------
    count
    types
        Keys of cell types.
    seed
    held_out
        Take the cells of fold 4, which no shipped model has seen, instead of all others.
    """
    return _composed(partial(_field, tuple(types), seed, held_out), count)


def single_cells(types: Sequence[str], held_out: bool) -> list[tuple[AnnotatedImage, float]]:
    """The repository's images of single cells as published, each with its scale in µm per px."""
    cells = [cell for cell in _cells(held_out) if cell.type in types]
    return [
        (
            AnnotatedImage(
                f"cell{number:04d}",
                f"group{cell.group}",
                (cell.rgb.shape[1], cell.rgb.shape[0]),
                partial(_same, cell.rgb),
                np.array([[0, 0, cell.rgb.shape[1], cell.rgb.shape[0]]], np.float32),
                np.array([types.index(cell.type)], np.int64),
            ),
            cell.um_per_px,
        )
        for number, cell in enumerate(cells)
    ]


def smear_tiles(count: int, seed: int, held_out: bool) -> list[AnnotatedImage]:
    """Tiles of 512 × 512 px at 0.25 µm per px, half of them appropriate (Tayebi et al. 2021, §4.3).

    Appropriate ones are spread and thin and hold cells; the others hold none, or are empty, or
    thick.
    """
    return _composed(partial(_tile, seed, held_out), count)


def smear_overviews(count: int, seed: int, held_out: bool) -> list[AnnotatedImage]:
    """Overviews of 256 × 256 px at 4 µm per px: trails of cells in a smear, with their boxes."""
    return _composed(partial(_overview, seed, held_out), count)


def _composed(compose: Callable[[int], AnnotatedImage], count: int) -> list[AnnotatedImage]:
    """Images 0 to `count`, on all cores where there are many."""
    if count < _MANY:
        return [compose(number) for number in range(count)]
    # Processes that begin anew: none inherits PyTorch's threads.
    return list(Parallel(n_jobs=-1, backend="loky")(delayed(compose)(n) for n in range(count)))


def _field(types: tuple[str, ...], seed: int, held_out: bool, number: int) -> AnnotatedImage:
    cells = [cell for cell in _cells(held_out) if cell.type in types]
    example = PatchMaker(cells, (), (seed, number)).composed(_BARE)
    order = np.array([types.index(key) if key in types else -1 for key in TYPES])
    return _image("smear", number, example.rgb, example.box_px, order[example.kind])


def _tile(seed: int, held_out: bool, number: int) -> AnnotatedImage:
    rng, cells = np.random.default_rng((seed, number)), _cells(held_out)
    kind = number % 2
    rgb = _appropriate(rng, cells) if kind == APPROPRIATE else _inappropriate(rng, cells)
    whole = np.array([[0, 0, TILE_PX, TILE_PX]], np.float32)
    return _image("tile", number, rgb, whole, np.array([kind]))


def _overview(seed: int, held_out: bool, number: int) -> AnnotatedImage:
    rgb, box = _trails(np.random.default_rng((seed, number)), _cells(held_out))
    return _image("overview", number, rgb, box, np.zeros(len(box), np.int64))


@cache
def _cells(held_out: bool) -> tuple[CellImage, ...]:
    """Read once in each process."""
    return tuple(
        cell for cell in load_cells() if cell.is_whole and (cell.fold == HELD_OUT_FOLD) == held_out
    )


def _image(name: str, number: int, rgb: UInt8, box: Float32, kind: np.ndarray) -> AnnotatedImage:
    label = f"{name}{number:05d}"
    read: Callable[[], UInt8] = partial(_same, rgb)
    size = (rgb.shape[1], rgb.shape[0])
    # Cells may have been laid over the edge.
    seen = cut_at_edges(Sample.whole(rgb, box.astype(np.float32), kind.astype(np.int64)))
    return AnnotatedImage(label, label, size, read, seen.box_px, seen.kind)


def _same(rgb: UInt8) -> UInt8:
    return rgb


def _appropriate(rng: np.random.Generator, cells: Sequence[CellImage]) -> UInt8:
    canvas = _ground(rng, rng.uniform(0.1, 0.8))
    for _ in range(int(rng.integers(_LEAST_CELLS, 12))):
        _lay(rng, canvas, cells, UM_PER_PX)
    return imaged(rng, canvas)


def _inappropriate(rng: np.random.Generator, cells: Sequence[CellImage]) -> UInt8:
    chance = rng.random()
    if chance < 0.4:  # no cell
        return imaged(rng, _ground(rng, rng.uniform(0, 1.3)))
    if chance < 0.6:  # nothing at all
        return imaged(rng, _ground(rng, rng.uniform(0, 0.05)))
    canvas = _ground(rng, rng.uniform(0.8, 1.5))
    for _ in range(int(rng.integers(0, 6))):
        _lay(rng, canvas, cells, UM_PER_PX)
    if chance < 0.8:  # out of focus
        return np.asarray(ndimage.gaussian_filter(canvas, (4, 4, 0)))
    return (255 * (canvas / 255.0) ** rng.uniform(2, 3.5)).astype(np.uint8)  # overstained, thick


def _ground(rng: np.random.Generator, cover: float) -> UInt8:
    glass = tuple(int(v) for v in rng.integers(205, 252, 3))
    return restain(rng, red_cell_field(rng, (TILE_PX, TILE_PX), cover, glass), 0.7)


@dataclass(frozen=True, slots=True)
class _Trail:
    """A bent band behind a particle, in px of the canvas; it may reach beyond it.

    Attributes
    ----------
    axis_px : (n, 2) float64
        From the particle on.
    reach_px : (n,) float64
        Half the band's width there.
    """

    axis_px: Float64
    reach_px: Float64


def _trails(rng: np.random.Generator, cells: Sequence[CellImage]) -> tuple[UInt8, Float32]:
    """Trails of cells in an uneven smear; composed finely, then made coarse."""
    shrink = int(OVERVIEW_UM_PER_PX / _CANVAS_UM_PER_PX)
    side = _OVERVIEW_PX * shrink
    trails = [_trail(rng, side) for _ in range(int(rng.integers(0, 4)))]
    depth = [_depth(trail, side) for trail in trails]
    thinned = 1 - rng.uniform(0, 0.8) * np.max([np.zeros((side, side)), *depth], axis=0)
    canvas = _smear(rng, side, thinned)
    boxes = []
    for trail, inside in zip(trails, depth, strict=True):
        _film(rng, canvas, inside)
        if rng.random() < _WITH_PARTICLE:
            _particle(rng, canvas, trail)
        places = _scattered(rng, inside)
        if len(places) < _LEAST_OF_TRAIL:
            continue
        for x, y in places:
            _lay(rng, canvas, cells, _CANVAS_UM_PER_PX, (x, y))
        boxes.append([*(places.min(0) / shrink), *(places.max(0) / shrink)])
    coarse = canvas.reshape(_OVERVIEW_PX, shrink, _OVERVIEW_PX, shrink, 3).mean((1, 3))
    return imaged(rng, coarse.astype(np.uint8)), np.array(boxes, np.float32).reshape(-1, 4)


def _smear(rng: np.random.Generator, side: int, thinned: Float64) -> UInt8:
    """Red cells on glass, uneven, with bare places and where `thinned` fewer of them."""
    glass = tuple(int(v) for v in rng.integers(215, 252, 3))
    fine = red_cell_field(rng, (2 * side, 2 * side), rng.uniform(0.1, 1.8), glass, shrink=4)
    field = fine.reshape(side, 2, side, 2, 3).mean((1, 3))
    uneven = _cloud(rng, (side, side), side / rng.uniform(3, 15))
    cover = np.clip(rng.uniform(0.5, 1.5) + rng.uniform(0, 0.6) * uneven, 0, 1) * thinned
    mixed = glass + (field - glass) * cover[..., None]
    return restain(rng, mixed.clip(0, 255).astype(np.uint8), 0.5)


def _cloud(rng: np.random.Generator, shape: tuple[int, int], sigma_px: float) -> Float64:
    """Smooth noise of mean 0 and deviation 1."""
    # Drawn eight times as coarse: filters as wide as these would take most of the time.
    coarse = rng.normal(size=(shape[0] // 8, shape[1] // 8))
    cloud = ndimage.gaussian_filter(coarse, sigma_px / 8, mode="wrap")
    smooth = Image.fromarray(cloud.astype(np.float32)).resize(shape[::-1])
    fine: Float64 = np.asarray(smooth, np.float64)
    return np.asarray((fine - fine.mean()) / max(float(fine.std()), 1e-9))


def _trail(rng: np.random.Generator, side: int) -> _Trail:
    """Begins within the canvas or a little outside of it, and narrows towards its end."""
    along = np.linspace(0, 1, 60)
    start = rng.uniform(-0.3, 1.1, 2) * side
    angle = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.8) * along
    step = rng.uniform(0.3, 1.6) * side / len(along)
    axis = start + np.cumsum(np.stack((np.cos(angle), np.sin(angle)), 1) * step, 0)
    reach = rng.uniform(0.03, 0.13) * side * (1.1 - 0.45 * along)
    return _Trail(axis, reach)


def _depth(trail: _Trail, side: int) -> Float64:
    """How far inside the trail (side, side): 0 at its border and outside, 1 on its axis."""
    y, x = np.mgrid[0:side:4, 0:side:4] + 2.0
    away = [
        np.hypot(x - px, y - py) / reach
        for (px, py), reach in zip(trail.axis_px, trail.reach_px, strict=True)
    ]
    coarse = np.clip(1 - np.min(away, axis=0), 0, 1).astype(np.float32)
    smooth = Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(smooth, np.float64)


def _scattered(rng: np.random.Generator, depth: Float64) -> Float64:
    """Places (n, 2) of a trail's cells, denser towards its axis."""
    mm2 = float((depth > 0).sum()) * (_CANVAS_UM_PER_PX / 1000) ** 2
    count = min(int(mm2 * rng.uniform(*_CELLS_PER_MM2)), _MOST_OF_TRAIL)
    weight = np.sqrt(depth).ravel()
    if not count or not weight.any():
        return np.zeros((0, 2))
    chosen = rng.choice(len(weight), count, p=weight / weight.sum())
    row, column = np.divmod(chosen, depth.shape[1])
    return np.stack((column, row), 1) + rng.random((count, 2))


def _film(rng: np.random.Generator, canvas: UInt8, depth: Float64) -> None:
    """Plasma is thicker where cells lie: a faint stain, in place."""
    stain = 0.15 * rng.uniform() ** 2 * np.array([0.8, 1.0, 0.5])
    thickness = ndimage.gaussian_filter((depth > 0).astype(np.float32), 6)
    canvas[:] = canvas * np.exp(-stain * thickness[..., None])


def _particle(rng: np.random.Generator, canvas: UInt8, trail: _Trail) -> None:
    """Fibrous, purple ground substance with round empty vacuoles at the trail's head, in place."""
    side = len(canvas)
    y, x = np.mgrid[0:side, 0:side]
    (left, top), reach = trail.axis_px[0], trail.reach_px[0] * rng.uniform(0.6, 1.2)
    stretch = rng.uniform(0.8, 1.4)
    blob = np.clip(1.6 * (1 - np.hypot((x - left) / stretch, y - top) / reach), 0, 1)
    blob *= np.clip(0.8 + 0.3 * _cloud(rng, canvas.shape[:2], 24), 0.2, 1.6)
    for _ in range(int(rng.integers(0, 12))):
        across, down = rng.normal(0, reach / 2, 2)
        blob *= np.hypot(x - left - across, y - top - down) > rng.uniform(5, 18)
    stain = rng.uniform(0.4, 1.3) * np.array([0.42, 0.55, 0.22]) * rng.uniform(0.8, 1.2, 3)
    canvas[:] = canvas * np.exp(-stain * blob[..., None])


def _lay(
    rng: np.random.Generator,
    canvas: UInt8,
    cells: Sequence[CellImage],
    um_per_px: float,
    centre: tuple[float, float] | None = None,
) -> None:
    """Lay one cell on the canvas, in place."""
    cell = cells[int(rng.integers(len(cells)))]
    rgb, outline, scale = restain(rng, cell.white_balanced(), 0.7), cell.outline, cell.um_per_px
    if um_per_px > 1:  # far smaller than it is held
        rgb, outline, scale = _quartered(rgb), _quartered(outline), scale * 4
    cut_out = turned(rgb, outline, scale / um_per_px, rng.uniform(0, 360))
    height, width = cut_out.alpha.shape
    x, y = centre if centre is not None else rng.uniform(20, canvas.shape[0] - 20, 2)
    place(canvas, cut_out, round(x - width / 2), round(y - height / 2))


def _quartered(image: np.ndarray) -> np.ndarray:
    """A quarter of the size."""
    size = (image.shape[1] // 4, image.shape[0] // 4)
    if image.dtype == np.bool_:
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
