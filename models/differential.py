"""Cells → the nucleated differential count: shares, intervals, M:E, convergence, sufficiency."""

from __future__ import annotations

import numpy as np

from models.cell_types import CELL_TYPES
from models.manifest import UNCLASSIFIED, DifferentialRules
from models.records import Bool, Cells, Differential, Float64, Int64

# The twelve types of the histogram, Tayebi 2021 §4.4, as `tayebi` in the table of cell types.
TAYEBI_TYPES = (
    "neutrophil",
    "metamyelocyte",
    "myelocyte",
    "promyelocyte",
    "blast",
    "erythroblast",
    "lymphocyte",
    "monocyte",
    "plasma cell",
    "eosinophil",
    "basophil",
    "megakaryocyte",
)

_Z_95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def count_differential(cells: Cells, tiles: int, rules: DifferentialRules) -> Differential:
    """Count the cells of a slide.

    Parameters
    ----------
    cells
        `tile` numbers are the order of reading, see :func:`models.detect.detection_grid`.
    tiles
        Tiles read, including those without a cell.
    rules

    Returns
    -------
    differential
        `share` and `interval` are 0 for types outside the count. Without a single counted cell
        all shares are 0 and the intervals of the counted types are 0 to 1: nothing is known.
        `minimum_cells` is compared with the cells *in* the count (`total`), since those are what
        the percentages rest on; unclassified cells do not make up for them.
    """
    classes = cells.classes
    count = np.bincount(cells.label, minlength=len(classes)).astype(np.int64)
    in_ndc = np.array([CELL_TYPES[key].ndc and key != UNCLASSIFIED for key in classes], dtype=bool)
    total = int(count[in_ndc].sum())
    unclassified = int(sum(count[k] for k, key in enumerate(classes) if key == UNCLASSIFIED))
    myeloid, erythroid = (_side(classes, side) for side in ("myeloid", "erythroid"))
    interval = np.zeros((len(classes), 2))
    interval[in_ndc] = wilson_interval(count[in_ndc], total)
    distance, informative = _convergence(cells, tiles)
    reasons = _insufficiencies(total, unclassified, rules)
    return Differential(
        classes=classes,
        count=count,
        in_ndc=in_ndc,
        share=np.where(in_ndc, count / max(total, 1), 0.0),
        interval=interval,
        total=total,
        nucleated=total + unclassified,
        me_ratio=_ratio(int(count[myeloid].sum()), int(count[erythroid].sum())),
        me_numerator=tuple(np.array(classes)[myeloid].tolist()),
        me_denominator=tuple(np.array(classes)[erythroid].tolist()),
        tiles=tiles,
        chi_square=distance,
        chi_square_threshold=rules.chi_square_threshold,
        chi_square_tiles=rules.chi_square_tiles,
        converged_after=converged_after(
            distance, informative, rules.chi_square_threshold, rules.chi_square_tiles
        ),
        adequate=not reasons,
        reasons=reasons,
    )


def wilson_interval(count: Int64, total: int) -> Float64:
    """Return the Wilson 95 % interval of ``count / total``, (K, 2) for (K,); 0 to 1 for no cells.

    Notes
    -----
    Wilson 1927, as in Brown, Cai and DasGupta 2001, without continuity correction.
    """
    if total == 0:
        return np.tile(np.array([0.0, 1.0]), (len(count), 1))
    share = count / total
    z2 = _Z_95 * _Z_95
    centre = share + z2 / (2 * total)
    spread = _Z_95 * np.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    bounds = np.stack([centre - spread, centre + spread], axis=1) / (1 + z2 / total)
    bounds[count == 0, 0] = 0.0  # exact where rounding is not
    bounds[count == total, 1] = 1.0
    return np.clip(bounds, 0.0, 1.0)


def tile_histograms(cells: Cells, tiles: int) -> Int64:
    """Return the histogram of cell types of each tile (HCT), (T, 12) over `TAYEBI_TYPES`."""
    member = np.array(
        [[CELL_TYPES[key].tayebi == name for name in TAYEBI_TYPES] for key in cells.classes],
        dtype=np.int64,
    )
    return _by_tile(cells, tiles) @ member


def accumulated(histograms: Int64) -> Int64:
    """Return the accumulated histogram (IHCT) after each tile, of the shape of `histograms`."""
    return np.cumsum(histograms, axis=0)


def chi_square_distance(first: Float64, second: Float64) -> Float64:
    """Return ½ Σ (x − y)² / (x + y) over the last axis, a term 0/0 being 0 (Tayebi eq. 1)."""
    square, both = (first - second) ** 2, first + second
    terms = np.divide(square, both, out=np.zeros_like(square), where=both > 0)
    return np.asarray(terms.sum(axis=-1) / 2, dtype=np.float64)


def converged_after(
    distance: Float64, informative: Bool, threshold: float, tiles: int
) -> int | None:
    """Return after how many tiles the distance was below `threshold` for `tiles` in a row.

    A tile without any of the twelve types changes nothing and so shows nothing: it neither
    lengthens a run nor ends it.
    """
    run = 0
    for number in np.nonzero(informative)[0].tolist():
        run = run + 1 if distance[number] < threshold else 0
        if run == tiles:
            return int(number) + 1
    return None


def _convergence(cells: Cells, tiles: int) -> tuple[Float64, Bool]:
    """Return the distance of each tile's IHCT to the one before, and which tiles have cells.

    The vector compared holds the shares of the twelve types and M:E, which counts as 0 while
    there is no erythroid cell. Before the first tile all are 0.
    """
    histogram = tile_histograms(cells, tiles)
    reached = accumulated(histogram).astype(np.float64)
    share = reached / np.maximum(reached.sum(axis=1, keepdims=True), 1)
    by_tile = np.cumsum(_by_tile(cells, tiles), axis=0)
    myeloid = by_tile[:, _side(cells.classes, "myeloid")].sum(axis=1).astype(np.float64)
    erythroid = by_tile[:, _side(cells.classes, "erythroid")].sum(axis=1).astype(np.float64)
    ratio = np.divide(myeloid, erythroid, out=np.zeros_like(myeloid), where=erythroid > 0)
    state = np.concatenate([share, ratio[:, None]], axis=1)
    before = np.concatenate([np.zeros((1, state.shape[1])), state[:-1]])[: len(state)]
    return chi_square_distance(state, before), histogram.sum(axis=1) > 0


def _by_tile(cells: Cells, tiles: int) -> Int64:
    """Return the count of every class in every tile, (T, K)."""
    k = len(cells.classes)
    position = cells.tile.astype(np.int64) * k + cells.label
    return np.bincount(position, minlength=tiles * k).astype(np.int64).reshape(tiles, k)


def _side(classes: tuple[str, ...], side: str) -> Bool:
    """Return which classes stand on one side of M:E (Tayebi eq. 2)."""
    return np.array([CELL_TYPES[key].me == side for key in classes], dtype=bool)


def _ratio(myeloid: int, erythroid: int) -> float | None:
    return myeloid / erythroid if erythroid else None


def _insufficiencies(total: int, unclassified: int, rules: DifferentialRules) -> tuple[str, ...]:
    reasons = []
    if total < rules.minimum_cells:
        reasons.append(f"insufficient: {total} of {rules.minimum_cells} nucleated cells")
    nucleated = total + unclassified
    if nucleated and unclassified / nucleated > rules.unclassified_share_max:
        reasons.append(
            f"insufficient: unclassified {unclassified} of {nucleated} nucleated cells"
            f" ({unclassified / nucleated:.1%}), more than {rules.unclassified_share_max:.0%}"
        )
    return tuple(reasons)
