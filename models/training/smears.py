"""Composed smears as annotated images: what a system can be trained on without any slide.

Real cells of this repository on real red cells, see :mod:`models.composing`; three kinds of images:
fields with cells (``cells``), tiles that suit cytology or do not (``tiles``), and overviews with
trails of cells (``regions``). Every image is made from the seed and its number alone,
so that it is the same in whatever process and among however many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
from joblib import Parallel, delayed
from PIL import Image
from scipy import ndimage

from models.composing import UM_PER_PX, CellImage, load_cells, place, red_cell_field, turned
from models.records import Float32, UInt8
from models.training.annotated import AnnotatedImage
from models.training.augment import imaged, restain
from models.training.data import TYPES, PatchMaker

HELD_OUT_FOLD = 4
TILE_PX = 512
_FIELD_PX = 192
OVERVIEW_UM_PER_PX = 4.0
_OVERVIEW_PX = 256
_CANVAS_UM_PER_PX = 2.0
REGION = "trail"
INAPPROPRIATE, APPROPRIATE = 0, 1
_LEAST_CELLS = 3  # of an appropriate tile
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
    example = PatchMaker(cells, (), (seed, number)).composed()
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
    return AnnotatedImage(label, label, size, read, box.astype(np.float32), kind.astype(np.int64))


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


def _trails(rng: np.random.Generator, cells: Sequence[CellImage]) -> tuple[UInt8, Float32]:
    """Some trails, each a bent line that cells lie along; composed finely, then made coarse."""
    shrink = int(OVERVIEW_UM_PER_PX / _CANVAS_UM_PER_PX)
    side = _OVERVIEW_PX * shrink
    glass = tuple(int(v) for v in rng.integers(215, 252, 3))
    field = red_cell_field(rng, (side, side), rng.uniform(0.1, 0.9), glass, shrink=4)
    canvas = restain(rng, field, 0.5)
    boxes = []
    for _ in range(int(rng.integers(0, 3))):
        along = _trail(rng, side)
        inside = ((along > 0) & (along < side)).all(1)
        if inside.sum() < 20:
            continue
        _film(rng, canvas, along[inside])
        for x, y in along[inside]:
            _lay(rng, canvas, cells, _CANVAS_UM_PER_PX, (x, y))
        low, high = along[inside].min(0), along[inside].max(0)
        boxes.append([*(low / shrink), *(high / shrink)])
    coarse = canvas.reshape(_OVERVIEW_PX, shrink, _OVERVIEW_PX, shrink, 3).mean((1, 3))
    box = np.clip(np.array(boxes, np.float32).reshape(-1, 4), 0, _OVERVIEW_PX)
    return imaged(rng, coarse.astype(np.uint8)), box


def _film(rng: np.random.Generator, canvas: UInt8, along: np.ndarray) -> None:
    """Plasma is thicker where cells lie: a faint stain around them, in place."""
    thickness = np.zeros(canvas.shape[:2], np.float32)
    rows, columns = along[:, 1].astype(int), along[:, 0].astype(int)
    np.add.at(thickness, (rows, columns), 1.0)
    thickness = ndimage.gaussian_filter(thickness, 12)
    thickness = np.clip(thickness / max(float(thickness.max()), 1e-9) * 1.5, 0, 1)
    stain = rng.uniform(0.0, 0.15) * np.array([0.8, 1.0, 0.5], np.float32)
    canvas[:] = canvas * np.exp(-stain * thickness[..., None])


def _trail(rng: np.random.Generator, side: int) -> np.ndarray:
    """Places (n, 2) scattered around an arc."""
    count = int(rng.integers(40, 160))
    start = rng.uniform(0.1, 0.9, 2) * side
    heading, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.8)
    way = np.sort(rng.uniform(0, 1, count))
    angle = heading + bend * way
    length = rng.uniform(0.3, 0.9) * side
    step = np.stack((np.cos(angle), np.sin(angle)), 1) * (length / count)
    spread = rng.normal(0, rng.uniform(0.02, 0.05) * side, (count, 2))
    return np.asarray(start + np.cumsum(step, 0) + spread)


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
