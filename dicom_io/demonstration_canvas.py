"""Paints the demonstration slide strip by strip: light through glass, plasma, red cells, cells.

What lies on the glass is added as optical density, which is what light does when it passes one
thing after another; the nucleated cells are then laid on top by their outline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from dicom_io.demonstration_layout import COMPOSITION, MAP_PX, Layout
from models.composing import GLASS, CellImage, CutOut, load_red_cells, place, turned
from models.records import Float32, Float64, Int64, UInt8

_STRIP_PX: Final = 1024
# Optical density (natural) is kept as whole steps of 1/300: 0.3 % of light, less than a grey level.
_STEPS: Final = 300.0
_NOISE_PX: Final = 1024
_PLASMA: Final = np.array([0.035, 0.055, 0.030])
_GROUND: Final = np.array([0.42, 0.55, 0.22])
_PLATELET: Final = np.array([0.45, 0.62, 0.25])
_SMUDGE: Final = np.array([0.22, 0.34, 0.12])

Density = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class PlacedCells:
    """The nucleated cells as they are painted, in the order of the layout.

    Attributes
    ----------
    cut_outs
    left_top_px : (N, 2) int64
    group : (N,) int64
        Near-duplicate group of the image each was cut from.
    """

    cut_outs: Sequence[CutOut]
    left_top_px: Int64
    group: Int64

    @property
    def box_px(self) -> Float64:
        """Boxes (N, 4) of the outlines, x0, y0, x1, y1."""
        sides = np.array([cut.alpha.shape[::-1] for cut in self.cut_outs], np.int64).reshape(-1, 2)
        return np.hstack([self.left_top_px, self.left_top_px + sides]).astype(np.float64)


def place_cells(
    seed: int, layout: Layout, images: Sequence[CellImage], um_per_px: float
) -> PlacedCells:
    """Choose an image for each cell of the layout, turn it, vary its size and stain a little."""
    rng = np.random.default_rng([seed, 2])
    names = tuple(COMPOSITION)
    of_type = {name: [image for image in images if image.type == name] for name in names}
    balanced = {id(image): image.white_balanced() for image in images}
    cut_outs, corners, groups = [], [], []
    for centre, kind in zip(layout.cell_px, layout.cell_type, strict=True):
        candidates = of_type[names[kind]]
        image = candidates[rng.integers(len(candidates))]
        cut = turned(
            balanced[id(image)],
            image.outline,
            image.um_per_px / um_per_px * rng.uniform(0.94, 1.06),
            rng.uniform(0, 360),
            bool(rng.integers(2)),
        )
        cut = CutOut(_restained(rng, cut.rgb), cut.alpha)
        height, width = cut.alpha.shape
        cut_outs.append(cut)
        corners.append(np.rint(centre - np.array([width, height]) / 2))
        groups.append(image.group)
    return PlacedCells(
        cut_outs, np.array(corners, np.int64).reshape(-1, 2), np.array(groups, np.int64)
    )


def _restained(rng: np.random.Generator, rgb: UInt8) -> UInt8:
    """Optical densities scaled a little, each channel by its own factor."""
    strength = rng.uniform(0.92, 1.08) * rng.uniform(0.97, 1.03, 3)
    ramp = np.arange(256)[:, None] / GLASS
    table = np.clip(GLASS * np.maximum(ramp, 1e-3) ** strength, 0, 255).astype(np.uint8)
    return np.stack([table[rgb[..., channel], channel] for channel in range(3)], axis=-1)


def paint_strips(seed: int, layout: Layout, cells: PlacedCells) -> Iterator[UInt8]:
    """Paint the slide from top to bottom, (h, width, 3) uint8 at a time."""
    height = layout.size_px[1]
    paint = _Paint(seed, layout)
    boxes = cells.box_px
    for top in range(0, height, _STRIP_PX):
        rows = min(_STRIP_PX, height - top)
        strip = paint.background(top, rows)
        for index in np.flatnonzero((boxes[:, 1] < top + rows) & (boxes[:, 3] > top)):
            left, cell_top = cells.left_top_px[index]
            place(strip, cells.cut_outs[int(index)], int(left), int(cell_top) - top)
        yield strip


class _Paint:
    """The stamps and textures of one slide, and what they make of a strip of it."""

    def __init__(self, seed: int, layout: Layout) -> None:
        rng = np.random.default_rng([seed, 3])
        self._layout = layout
        self._noise = _steps(rng.normal(0, 0.006, (_NOISE_PX, _NOISE_PX, 3)))
        self._fibres = _fibres(rng)
        # Each kind of thing: its places, its stamps, and which stamp stands where.
        self._things = [
            (places, stamps, rng.integers(len(stamps), size=len(places)))
            for places, stamps in (
                (layout.smudge_px, _smudges(rng)),
                (layout.red_px, _red_cells()),
                (layout.platelet_px, _platelets(rng)),
            )
        ]
        glass = GLASS * np.exp(-np.arange(3 * int(6 * _STEPS)) / _STEPS)
        self._light = glass.round().astype(np.uint8)

    def background(self, top: int, rows: int) -> UInt8:
        """All but the nucleated cells of the rows `top` to `top` + `rows`, (rows, width, 3)."""
        width = self._layout.size_px[0]
        strip = np.empty((rows, width, 3), np.uint8)
        density = np.empty((rows, width, 3), np.int16)
        for left in range(0, width, _NOISE_PX):
            columns = min(_NOISE_PX, width - left)
            density[:, left : left + columns] = self._film(left, top, columns, rows)
        for places, stamps, chosen in self._things:
            reach = max(max(stamp.shape[:2]) for stamp in stamps)
            first, last = np.searchsorted(places[:, 1], (top - reach, top + rows + reach))
            for (x, y), stamp in zip(places[first:last], chosen[first:last], strict=True):
                _add(density, stamps[stamp], int(x), int(y) - top)
        for left in range(0, width, _NOISE_PX):
            part = np.s_[:, left : left + _NOISE_PX]
            np.take(self._light, density[part], mode="clip", out=strip[part])
        return strip

    def _film(self, left: int, top: int, columns: int, rows: int) -> Density:
        """Noise, plasma film and the ground substance of particles."""
        window = (left, top, columns, rows)
        film = self._noise[:rows, :columns] + _steps(
            _enlarged(self._layout.ground, window)[..., None] * _PLASMA
        )
        particle = _enlarged(self._layout.particle, window)
        if particle.any():
            film += _steps((particle * self._fibres[:rows, :columns])[..., None] * _GROUND)
        return np.asarray(film, np.int16)


def _steps(density: NDArray[np.floating]) -> Density:
    return np.asarray(np.rint(density * _STEPS), np.int16)


def _enlarged(field: Float32, window: tuple[int, int, int, int]) -> Float32:
    """Part of a map, (rows, columns), smoothly brought to base pixels."""
    left, top, columns, rows = window
    box = (left / MAP_PX, top / MAP_PX, (left + columns) / MAP_PX, (top + rows) / MAP_PX)
    box = (*box[:2], min(box[2], field.shape[1]), min(box[3], field.shape[0]))
    part = Image.fromarray(field).resize((columns, rows), Image.Resampling.BILINEAR, box)
    return np.asarray(part)


def _add(density: Density, stamp: Density, x: int, y: int) -> None:
    """Add a stamp centred at (x, y), cropped where it crosses the edge."""
    height, width, _ = stamp.shape
    left, top = x - width // 2, y - height // 2
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, density.shape[1]), min(top + height, density.shape[0])
    if x0 < x1 and y0 < y1:
        density[y0:y1, x0:x1] += stamp[y0 - top : y1 - top, x0 - left : x1 - left]


def _red_cells() -> list[Density]:
    """Each real red cell in its eight ways to lie."""
    stamps = []
    for light in load_red_cells():
        density = _steps(-np.log(light.astype(np.float64)))
        rows, columns = np.flatnonzero(density.any((1, 2))), np.flatnonzero(density.any((0, 2)))
        density = density[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        for turn in range(4):
            stamps.append(np.ascontiguousarray(np.rot90(density, turn)))
            stamps.append(np.ascontiguousarray(np.rot90(density[::-1], turn)))
    return stamps


def _platelets(rng: np.random.Generator) -> list[Density]:
    """Small granular purple discs of 2 to 3.5 um."""
    y, x = np.mgrid[-10:11, -10:11]
    stamps = []
    for _ in range(40):
        radius = rng.uniform(4.0, 7.0)
        stretch = rng.uniform(0.8, 1.25)
        disc = 1 / (1 + np.exp(2.0 * (np.hypot(x * stretch, y / stretch) - radius)))
        grains = 1 + 0.5 * gaussian_filter(rng.normal(size=x.shape), 1.0) * 2.5
        stamps.append(_steps((disc * np.clip(grains, 0.2, 2))[..., None] * _PLATELET))
    return stamps


def _smudges(rng: np.random.Generator) -> list[Density]:
    """Streaks of smeared chromatin, 25 to 60 um long, without an edge."""
    y, x = np.mgrid[-70:71, -120:121]
    stamps = []
    for index in range(24):
        length, breadth = rng.uniform(40, 90), rng.uniform(9, 22)
        bent = y - rng.uniform(-0.002, 0.002) * x**2
        veil = np.exp(-((np.abs(x) / length) ** 3) - (bent / breadth) ** 2)
        streaks = gaussian_filter(rng.normal(size=x.shape), (1.2, 25))
        streaks = np.clip(0.6 + 0.45 * streaks / streaks.std(), 0, 2)
        stamp = _steps((veil * streaks)[..., None] * _SMUDGE)
        stamps.append(np.ascontiguousarray(np.rot90(stamp, index % 4)))
    return stamps


def _fibres(rng: np.random.Generator) -> Float32:
    """Ground substance of a particle: fibrous, with round empty fat vacuoles."""
    shape = (_STRIP_PX, _NOISE_PX)
    cloud = gaussian_filter(rng.normal(size=shape), 14, mode="wrap")
    grain = gaussian_filter(rng.normal(size=shape), (2, 5), mode="wrap")
    fibres = np.clip(0.7 + 0.25 * cloud / cloud.std() + 0.12 * grain / grain.std(), 0.1, 1.6)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    for _ in range(45):
        centre = rng.uniform(0, 1024, 2)
        away = np.hypot((x - centre[0] + 512) % 1024 - 512, ((y - centre[1]) + 512) % 1024 - 512)
        fibres *= 1 / (1 + np.exp((rng.uniform(25, 75) - away) / 2.5))
    return np.asarray(fibres, np.float32)
