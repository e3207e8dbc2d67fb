"""What ``demo-smear`` is trained on: composed patches of real cells, and real blood fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from models.cell_types import ERYTHROID_STAGES, GRANULOCYTIC_STAGES
from models.composing import (
    UM_PER_PX,
    CellImage,
    CutOut,
    place,
    red_cell_field,
    turned,
)
from models.records import Float32, Int64, UInt8
from models.training.augment import greyed, imaged, restain
from models.training.smear_detector import STRIDE

TYPES = (*GRANULOCYTIC_STAGES, *ERYTHROID_STAGES)
PATCH_PX = 192
FIELD_UM_PER_PX = {"raabin": 0.0528, "pbc": 0.0926}  # from red cells of 7.5 um
UNKNOWN = -1
_BEYOND_PX = 24  # how far a part of a blood field reaches over the field's edge
_SLIVER_PX = 5  # less of a cell than this is nothing to find


@dataclass(frozen=True, slots=True)
class Example:
    """One training image.

    Attributes
    ----------
    rgb : (H, W, 3) uint8
    box_px : (M, 4) float32
        Of the nucleated cells, x0, y0, x1, y1.
    kind : (M,) int64
        Index into :data:`TYPES`, −1 where only known to be a nucleated cell.
    """

    rgb: UInt8
    box_px: Float32
    kind: Int64


def load_field(image: Path, um_per_px: float = UM_PER_PX) -> Example:
    """A blood field with its white cells, rescaled.

    Parameters
    ----------
    image
        ``raabin_….jpg`` or ``pbc_….jpg``; the YOLO labels lie beside it or in ``../labels``.
    um_per_px
        Scale wanted.
    """
    labels = image.with_suffix(".txt")
    if not labels.exists():
        labels = image.parent.parent / "labels" / labels.name
    picture = Image.open(image).convert("RGB")
    scale = FIELD_UM_PER_PX[image.name.split("_")[0]] / um_per_px
    size = (round(picture.width * scale), round(picture.height * scale))
    rgb = np.asarray(picture.resize(size, Image.Resampling.BOX))
    rows = [line.split() for line in labels.read_text().splitlines()]
    white = np.array([[float(v) for v in row[1:]] for row in rows if row[0] == "0"])
    white = white.reshape(-1, 4) * np.tile(size, 2)
    box = np.concatenate((white[:, :2] - white[:, 2:] / 2, white[:, :2] + white[:, 2:] / 2), 1)
    return Example(rgb, box.astype(np.float32), np.full(len(box), UNKNOWN, np.int64))


class PatchMaker:
    """An endless, seeded stream of training images.

    Parameters
    ----------
    cells
        The cells that may be shown; a fold's own are left out by the caller.
    fields
        Blood fields at the training scale.
    seed
        One number, or several that are one together.
    """

    def __init__(
        self, cells: Sequence[CellImage], fields: Sequence[Example], seed: int | tuple[int, int]
    ) -> None:
        self._cells = cells
        self._fields = fields
        self._rng = np.random.default_rng(seed)
        kinds = np.array([TYPES.index(cell.type) for cell in cells])
        # Rare types are shown more often than they are, yet not as often as common ones.
        weight = np.bincount(kinds, minlength=len(TYPES))[kinds] ** -0.75
        self._kinds, self._weight = kinds, weight / weight.sum()

    def __iter__(self) -> Iterator[Example]:
        makers = (self.composed, self._fields_patch, self._whole_field_patch)
        shares = (0.65, 0.20, 0.15)
        while True:
            yield makers[int(self._rng.choice(len(makers), p=shares))]()

    def composed(self, bare: float = 0.0) -> Example:
        """One composed image of 192 × 192 px; a share of them, `bare`, shows no nucleated cell."""
        rng = self._rng
        glass = tuple(int(v) for v in rng.integers(205, 252, 3))
        canvas = red_cell_field(rng, (PATCH_PX, PATCH_PX), rng.uniform(0, 1.5), glass)
        canvas = _thick_here_and_there(rng, restain(rng, canvas, 1.0))
        if rng.random() < 0.3:
            place(canvas, *_smudge(rng, self._cells))
        for _ in range(int(rng.integers(0, 9))):
            place(canvas, *_platelet(rng))
        boxes: list[tuple[int, int, int, int]] = []
        kinds: list[int] = []
        cells = 0 if bare and rng.random() < bare else int(rng.integers(3, 10))
        for _ in range(cells):
            index = int(rng.choice(len(self._cells), p=self._weight))
            cut_out = self._cut_out(index)
            spot = _free_spot(rng, cut_out, boxes)
            if spot is None:
                continue
            boxes.append(place(canvas, cut_out, *spot))
            kinds.append(int(self._kinds[index]))
        canvas = restain(rng, canvas, 0.5)
        if rng.random() < 0.25:
            canvas = greyed(rng, canvas)
        return Example(
            imaged(rng, canvas),
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(kinds, np.int64),
        )

    def _cut_out(self, index: int) -> CutOut:
        rng, cell = self._rng, self._cells[index]
        # As it came from its camera, or with neutral glass: others compose slides either way.
        rgb = cell.rgb if rng.random() < 0.35 else cell.white_balanced()
        # The smaller images' scale is an estimate, so theirs varies more, down to the stated one.
        spread = rng.normal(0, 0.10) if cell.um_per_px < 0.15 else rng.uniform(-0.45, 0.12)
        return turned(
            restain(rng, rgb, 1.0),
            cell.outline,
            cell.um_per_px / UM_PER_PX * float(np.exp(spread)),
            rng.uniform(0, 360),
            bool(rng.random() < 0.5),
        )

    def _fields_patch(self) -> Example:
        """Parts of four blood fields side by side, each restained by itself.

        A part may reach over its field's edge onto white: there, and where the part ends, cells are
        cut, and a cut cell's box is that of what is seen of it.
        """
        half = PATCH_PX // 2
        canvas = np.empty((PATCH_PX, PATCH_PX, 3), np.uint8)
        boxes = []
        for corner in range(4):
            field = self._fields[int(self._rng.integers(len(self._fields)))]
            x, y = (corner % 2) * half, (corner // 2) * half
            height, width = field.rgb.shape[:2]
            left = int(self._rng.integers(-_BEYOND_PX, width + _BEYOND_PX - half + 1))
            top = int(self._rng.integers(-_BEYOND_PX, height + _BEYOND_PX - half + 1))
            part = np.full((half, half, 3), 255, np.uint8)
            x0, y0 = max(left, 0), max(top, 0)
            seen = field.rgb[y0 : top + half, x0 : left + half]
            stained = restain(self._rng, seen, 0.7)
            part[y0 - top : y0 - top + len(seen), x0 - left : x0 - left + seen.shape[1]] = stained
            canvas[y : y + half, x : x + half] = part
            box = np.clip(field.box_px - np.array([left, top, left, top], np.float32), 0, half)
            kept = (box[:, 2:] - box[:, :2]).min(1, initial=half) >= _SLIVER_PX
            boxes.append(box[kept] + np.array([x, y, x, y], np.float32))
        box = np.concatenate(boxes)
        return Example(imaged(self._rng, canvas), box, np.full(len(box), UNKNOWN, np.int64))

    def _whole_field_patch(self) -> Example:
        """One whole blood field somewhere on an empty ground, as viewers of single fields pad it.

        Most grounds are white; cells that the field's edge cuts stay cut.
        """
        rng = self._rng
        field = self._fields[int(rng.integers(len(self._fields)))]
        height, width = field.rgb.shape[:2]
        grounds = ((255, 255, 255), (0, 0, 0), tuple(np.median(field.rgb, (0, 1))))
        canvas = np.empty((PATCH_PX, PATCH_PX, 3), np.uint8)
        canvas[:] = grounds[int(rng.choice(3, p=(0.7, 0.1, 0.2)))]
        x, y = (int(rng.integers(0, PATCH_PX - length + 1)) for length in (width, height))
        canvas[y : y + height, x : x + width] = restain(rng, field.rgb, 0.7)
        box = field.box_px + np.array([x, y, x, y], np.float32)
        kept = (box[:, 2:] - box[:, :2]).min(1, initial=PATCH_PX) >= _SLIVER_PX
        box = box[kept]
        return Example(imaged(rng, canvas), box, np.full(len(box), UNKNOWN, np.int64))


def _free_spot(
    rng: np.random.Generator, cut_out: CutOut, boxes: Sequence[tuple[int, int, int, int]]
) -> tuple[int, int] | None:
    """A place where a cell covers at most the rim of those that lie there; None after six tries."""
    height, width = cut_out.alpha.shape
    for _ in range(6):
        centre = rng.uniform(2, PATCH_PX - 2, 2)
        clear = all(
            np.hypot(centre[0] - (x0 + x1) / 2, centre[1] - (y0 + y1) / 2)
            > 0.42 * (max(height, width) + max(x1 - x0, y1 - y0))
            for x0, y0, x1, y1 in boxes
        )
        if clear:
            return round(centre[0] - width / 2), round(centre[1] - height / 2)
    return None


def _smudge(rng: np.random.Generator, cells: Sequence[CellImage]) -> tuple[CutOut, int, int]:
    """A burst nucleus: a cell blurred beyond recognition and spread out. Not a cell to count."""
    cell = cells[int(rng.integers(len(cells)))]
    cut_out = turned(cell.white_balanced(), cell.outline, 0.9, rng.uniform(0, 360))
    stretch = (int(rng.integers(8, 20)), int(rng.integers(8, 40)), 0)
    rgb = ndimage.gaussian_filter(cut_out.rgb, stretch)
    alpha = ndimage.gaussian_filter(cut_out.alpha * 0.7, (5, 5))
    left, top = (int(v) for v in rng.integers(-20, PATCH_PX - 20, 2))
    return CutOut(rgb, alpha), left, top


def _platelet(rng: np.random.Generator) -> tuple[CutOut, int, int]:
    """A platelet of 1.5 to 4.5 µm: pale ground, dark granules. Not a cell to count."""
    side = int(rng.integers(8, 22))
    y, x = np.mgrid[:side, :side] / (side - 1) * 2 - 1
    inside = np.hypot(x * rng.uniform(1.0, 1.7), y) + rng.normal(0, 0.08, (side, side)) < 0.95
    granules = ndimage.gaussian_filter(rng.normal(0, 1, (side, side)), rng.uniform(0.6, 1.2))
    dark = np.array([95, 75, 150]) + rng.normal(0, 20, 3)
    pale = np.array([185, 165, 205]) + rng.normal(0, 15, 3)
    share = np.clip(0.5 + granules * 1.5, 0, 1)[..., None]
    rgb = np.clip(share * dark + (1 - share) * pale, 0, 255).astype(np.uint8)
    alpha = ndimage.gaussian_filter(inside.astype(np.float32), 0.7) * rng.uniform(0.6, 1.0)
    left, top = (int(v) for v in rng.integers(-4, PATCH_PX - 4, 2))
    turned_by = int(rng.integers(4))
    return (
        CutOut(np.rot90(rgb, turned_by), np.rot90(alpha, turned_by).astype(np.float32)),
        left,
        top,
    )


def _thick_here_and_there(rng: np.random.Generator, canvas: UInt8) -> UInt8:
    """Deepen the stain in places: thick, dark red cells are no nuclei."""
    coarse = rng.normal(0, 1, (6, 6))
    depth = ndimage.zoom(coarse, PATCH_PX / 6, order=1)[..., None]
    power = 1 + np.clip(depth - 0.3, 0, 1.5) * rng.uniform(0, 1)
    deepened: UInt8 = (255 * (canvas / 255.0) ** power).astype(np.uint8)
    return deepened


def targets(
    example: Example, size_px: int = PATCH_PX
) -> tuple[Float32, Float32, NDArray[np.bool_]]:
    """What the finder shall answer.

    Returns
    -------
    tuple
        heat (h, w), box (4, h, w) and inside (h, w), as :mod:`models.training.losses` takes them.
    """
    side = size_px // STRIDE
    heat = np.zeros((side, side), np.float32)
    box = np.zeros((4, side, side), np.float32)
    inside = np.zeros((side, side), bool)
    rows, columns = np.mgrid[:side, :side]
    for edges in example.box_px:
        centre = (edges[:2] + edges[2:]) / 2 / STRIDE - 0.5
        column, row = np.round(centre).astype(int)
        sigma = max(0.7, float((edges[2:] - edges[:2]).min()) / STRIDE / 6)
        near = np.exp(-((columns - centre[0]) ** 2 + (rows - centre[1]) ** 2) / (2 * sigma**2))
        heat = np.maximum(heat, near)
        if not (0 <= column < side and 0 <= row < side):
            continue
        heat[row, column] = 1.0
        spot = (np.abs(columns - column) <= 1) & (np.abs(rows - row) <= 1)
        box[:, spot] = edges[:, None]
        inside |= spot
    return heat.astype(np.float32), box, inside
