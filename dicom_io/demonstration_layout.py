"""Where everything lies on the demonstration slide, before a pixel is painted.

A smear of red cells on glass, particles of marrow on it, and behind each particle a curved trail
in which the nucleated cells lie. Positions only; :mod:`dicom_io.demonstration_canvas` paints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from models.records import Bool, Float32, Float64, Int64

# Base pixels per pixel of the maps that say where smear and trails are.
MAP_PX: Final = 64

# The marrow that the slide shows: each type within the reference range that models.cell_types
# states for it, at its upper end, since there are no lymphocytes, monocytes or eosinophils to
# paint; myeloid to erythroid 68 : 32.
COMPOSITION: Final[Mapping[str, float]] = {
    "myeloblast": 0.020,
    "promyelocyte": 0.060,
    "myelocyte": 0.070,
    "metamyelocyte": 0.090,
    "band_neutrophil": 0.160,
    "segmented_neutrophil": 0.280,
    "proerythroblast": 0.015,
    "basophilic_erythroblast": 0.050,
    "polychromatic_erythroblast": 0.175,
    "orthochromatic_erythroblast": 0.080,
}

_TRAIL_PX2_PER_CELL: Final = 18_000.0
_TRAIL_SHARE: Final = (0.06, 0.12)
_OVERLAPPING_SHARE: Final = 0.03
_RED_SPACING_PX: Final = 37.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions on one slide.

    Attributes
    ----------
    size_px : (width, height)
    trail, ground, particle : (height / 64, width / 64)
        Whether a map pixel belongs to a trail; how thick the plasma film (0 to 1) and the ground
        substance of particles (0 to 1) are there.
    cell_px : (N, 2) float64
        Centres of the nucleated cells, sorted by y.
    cell_type : (N,) int64
        Index into ``tuple(COMPOSITION)``.
    red_px, platelet_px, smudge_px : (M, 2) float64
        Centres, sorted by y.
    """

    size_px: tuple[int, int]
    trail: Bool
    ground: Float32
    particle: Float32
    cell_px: Float64
    cell_type: Int64
    red_px: Float64
    platelet_px: Float64
    smudge_px: Float64

    @property
    def trail_share(self) -> float:
        """Area of the trails as a share of the whole matrix."""
        return float(self.trail.mean())


def plan_layout(
    seed: int, size_px: tuple[int, int], cells: int, radius_px: Mapping[str, float]
) -> Layout:
    """Lay out a slide of `size_px` with `cells` nucleated cells.

    Parameters
    ----------
    radius_px
        Typical radius of a cell of each type of :data:`COMPOSITION` in base pixels.

    Raises
    ------
    ValueError
        If the slide is too small for so many cells.
    """
    rng = np.random.default_rng([seed, 1])
    width, height = size_px
    shape = (-(-height // MAP_PX), -(-width // MAP_PX))
    share = float(np.clip(cells * _TRAIL_PX2_PER_CELL / (width * height), *_TRAIL_SHARE))
    depth, particle = _draw_trails(rng, shape, share)
    trail = depth > 0
    types = _draw_types(rng, cells)
    radii = np.array([radius_px[name] for name in COMPOSITION])[types]
    cell_px = _scatter_cells(rng, depth * (particle < 0.35), radii)
    density = _smear_density(rng, shape)
    density = np.where(trail, 0.25 + 0.3 * density, density)
    red_px = _scatter_red(rng, size_px, density)
    red_px = _clear_of(red_px, cell_px, radii + 9.0)
    red_px = red_px[_at(particle, red_px) < rng.uniform(0.2, 0.7, len(red_px))]
    smear = density > 0.05
    area = width * height
    order = np.argsort(cell_px[:, 1], kind="stable")
    return Layout(
        size_px=size_px,
        trail=trail,
        ground=gaussian_filter(0.3 * density + 0.7 * trail, 1.5).astype(np.float32),
        particle=particle,
        cell_px=cell_px[order],
        cell_type=types[order],
        red_px=_by_y(red_px),
        platelet_px=_by_y(
            _clear_of(_scatter(rng, smear, area // 60_000), cell_px, radii + 12.0),
        ),
        smudge_px=_by_y(
            _clear_of(_scatter(rng, smear & ~trail, area // 3_000_000), cell_px, radii + 150.0)
        ),
    )


def _draw_types(rng: np.random.Generator, cells: int) -> Int64:
    """Types in exactly the stated composition (largest remainders), in random order."""
    wanted = np.array(list(COMPOSITION.values())) * cells
    count = np.floor(wanted).astype(np.int64)
    remainder = np.argsort(-(wanted - count), kind="stable")
    count[remainder[: cells - int(count.sum())]] += 1
    return rng.permutation(np.repeat(np.arange(len(count)), count))


def _draw_trails(
    rng: np.random.Generator, shape: tuple[int, int], share: float
) -> tuple[Float32, Float32]:
    """Particles and the curved trails behind them, until they cover `share` of the map.

    Returns the depth (H, W) inside a trail, 0 at its border and outside, 1 on its axis, and the
    thickness (H, W) of the particles' ground substance.
    """
    height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    depth = np.zeros(shape, np.float32)
    particle = np.zeros(shape, np.float32)
    heads: list[tuple[float, float]] = []
    while (depth > 0).mean() < share:
        head = _next_head(rng, shape, heads)
        heads.append(head)
        missing = (share - float((depth > 0).mean())) * height * width
        length = width * rng.uniform(0.2, 0.3)
        half_width = min(max(0.017 * width, 2.6), max(missing / (1.7 * length), 2.2))
        depth = np.maximum(depth, _one_trail(rng, (x, y), head, length, half_width))
        radius = half_width * rng.uniform(0.8, 1.05)
        blob = 1.0 - np.hypot((x - head[0]) / 1.25, y - head[1]) / radius
        particle = np.maximum(particle, np.clip(1.6 * blob, 0, 1))
    ragged = gaussian_filter(rng.normal(size=shape), 1.2) * 1.2
    return depth, np.clip(particle * (1 + 0.5 * ragged), 0, 1).astype(np.float32)


def _next_head(
    rng: np.random.Generator, shape: tuple[int, int], heads: list[tuple[float, float]]
) -> tuple[float, float]:
    """The farthest of a few random places from the particles that are there."""
    height, width = shape
    places = rng.uniform((0.1 * width, 0.12 * height), (0.62 * width, 0.88 * height), (12, 2))
    if not heads:
        return float(places[0, 0]), float(places[0, 1])
    # Trails run along x: a neighbour beside counts more than one behind.
    apart = (places[:, None] - np.array(heads)) * (0.45, 1.0)
    best = places[np.hypot(apart[..., 0], apart[..., 1]).min(axis=1).argmax()]
    return float(best[0]), float(best[1])


def _one_trail(
    rng: np.random.Generator,
    grid: tuple[Float32, Float32],
    head: tuple[float, float],
    length: float,
    half_width: float,
) -> Float32:
    """Depth inside one trail: a band along a slow curve that narrows towards its end."""
    x, y = grid
    t = np.linspace(0.0, 1.0, 80)
    swing = rng.uniform(0.5, 1.2) * rng.choice((-1, 1)) * half_width * 2.2
    axis_x = head[0] + length * t
    axis_y = head[1] + swing * np.sin(np.pi * t * rng.uniform(0.8, 1.6))
    wobble = 1 + 0.15 * np.sin(2 * np.pi * (rng.uniform(1.5, 3) * t + rng.uniform()))
    radius = half_width * (1.1 - 0.45 * t) * wobble
    edge = min(x.shape) * 0.03
    axis_y = np.clip(axis_y, radius + edge, x.shape[0] - 1 - radius - edge)
    depth = np.zeros_like(x)
    for centre_x, centre_y, reach in zip(axis_x, axis_y, radius, strict=True):
        distance = np.hypot(x - centre_x, y - centre_y)
        depth = np.maximum(depth, 1 - distance / reach)
    return depth.astype(np.float32)


def _smear_density(rng: np.random.Generator, shape: tuple[int, int]) -> Float32:
    """How much of the glass is covered by red cells, 0 to 1: a thumb-shaped, uneven smear."""
    height, width = shape
    y, x = np.mgrid[0:height, 0:width]
    u, v = x / width, y / height
    border = 0.05 * gaussian_filter(rng.normal(size=shape), max(shape) / 40) * max(shape) / 20
    inside = 1 - ((np.abs(u - 0.48) / 0.47) ** 4 + (np.abs(v - 0.5) / 0.47) ** 4) + border
    thin = 0.95 - 0.55 * np.clip((u - 0.35) / 0.6, 0, 1)
    uneven = gaussian_filter(rng.normal(size=shape), max(shape) / 60)
    uneven /= float(uneven.std())
    cover = np.clip(3 * inside, 0, 1) * np.clip(thin * (1 + 0.25 * uneven), 0, 1)
    holes = np.clip((uneven + 2.2) * 1.5, 0, 1)
    return np.asarray(np.clip(cover * holes, 0, 1), np.float32)


def _scatter_cells(rng: np.random.Generator, weight: Float32, radii: Float64) -> Float64:
    """Cell centres (N, 2) inside the trails, denser towards the axis, few of them touching."""
    flat = np.sqrt(weight.astype(np.float64)).ravel()
    placed = np.empty((len(radii), 2))
    apart = np.where(rng.random(len(radii)) < _OVERLAPPING_SHARE, 0.72, 1.06)
    proposals = np.empty((0, 2))
    for index, radius in enumerate(radii):
        for _ in range(4000):
            if len(proposals) == 0:
                proposals = _places(rng, flat, weight.shape, 4096)
            place, proposals = proposals[0], proposals[1:]
            gap = np.hypot(*(placed[:index] - place).T)
            if (gap >= apart[index] * (radii[:index] + radius)).all():
                placed[index] = place
                break
        else:
            raise ValueError(
                f"the trails have no room for {len(radii)} cells: make the slide larger"
            )
    return placed


def _places(
    rng: np.random.Generator, weight: Float64, shape: tuple[int, ...], count: int
) -> Float64:
    """Random places (N, 2), px, drawn in proportion to the map's `weight`."""
    chosen = rng.choice(len(weight), count, p=weight / weight.sum())
    row, column = np.divmod(chosen, shape[1])
    corner = np.stack([column, row], axis=1).astype(np.float64)
    return (corner + rng.random((count, 2))) * MAP_PX


def _scatter(rng: np.random.Generator, where: Bool, count: int) -> Float64:
    return _places(rng, where.astype(np.float64).ravel(), where.shape, count)


def _scatter_red(rng: np.random.Generator, size_px: tuple[int, int], cover: Float32) -> Float64:
    """Red cell centres (N, 2): a hexagonal grid, shaken, thinned to the wanted cover."""
    width, height = size_px
    columns = np.arange(-1, width / _RED_SPACING_PX + 1) * _RED_SPACING_PX
    rows = np.arange(-1, height / (_RED_SPACING_PX * 0.866) + 1) * _RED_SPACING_PX * 0.866
    x, y = np.meshgrid(columns, rows)
    x[1::2] += _RED_SPACING_PX / 2
    places = np.stack([x.ravel(), y.ravel()], axis=1)
    places += rng.uniform(-0.4, 0.4, places.shape) * _RED_SPACING_PX
    inside = ((places >= 0) & (places < size_px)).all(axis=1)
    places = places[inside]
    kept: Bool = rng.random(len(places)) < 0.95 * _at(cover, places)
    return np.asarray(places[kept], np.float64)


def _at(field: NDArray[np.float32], places: Float64) -> Float32:
    """Value of a map at each of `places` (N, 2)."""
    column, row = (places // MAP_PX).astype(np.int64).T
    return np.asarray(field[row, column])


def _clear_of(places: Float64, cell_px: Float64, reach_px: Float64) -> Float64:
    """Those of `places` that lie farther from every cell than its reach."""
    covered = np.zeros(len(places), np.bool_)
    tree = cKDTree(places)
    for inside in tree.query_ball_point(cell_px, reach_px):
        covered[inside] = True
    return places[~covered]


def _by_y(places: Float64) -> Float64:
    return places[np.argsort(places[:, 1], kind="stable")]
