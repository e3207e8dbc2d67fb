"""The array records that pass between the stages of an analysis.

Structure of arrays, frozen, checked and made read-only when made. Coordinates: ``_px`` are
continuous base-level total-pixel-matrix coordinates, (0, 0) at the outer corner of the top-left
pixel, points as (x, y); ``_tile_px`` the same inside one tile. Images are (height, width, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]


def _sealed(record: object, name: str, dtype: Any, shape: Sequence[int | None]) -> None:
    """Check one array of `record` and make it read-only; ``None`` in `shape` fits any length."""
    array = getattr(record, name)
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype):
        raise TypeError(f"{type(record).__name__}.{name} must be an array of {np.dtype(dtype)}")
    fits = array.ndim == len(shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{type(record).__name__}.{name} has shape {array.shape}, expected {tuple(shape)}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{type(record).__name__}.{name} holds values that are not finite")
    view = array.view()
    view.flags.writeable = False
    object.__setattr__(record, name, view)


@dataclass(frozen=True, slots=True)
class Tiles:
    """A batch of decoded pixels.

    Attributes
    ----------
    rgb : (N, H, W, 3) uint8
    origin_px : (N, 2) float64
        Base-level position of each tile's top-left corner.
    px_per_tile_px : (2,) float64
        Base-level pixels per tile pixel, along x and y.
    valid : (N, H, W) bool
        False where the slide has no pixels or they were not read.
    """

    rgb: UInt8
    origin_px: Float64
    px_per_tile_px: Float64
    valid: Bool

    def __post_init__(self) -> None:
        n, height, width = self.valid.shape
        _sealed(self, "rgb", np.uint8, (n, height, width, 3))
        _sealed(self, "origin_px", np.float64, (n, 2))
        _sealed(self, "px_per_tile_px", np.float64, (2,))
        _sealed(self, "valid", np.bool_, (n, height, width))


@dataclass(frozen=True, slots=True)
class Regions:
    """Where the cells lie: boxes that do not overlap.

    Attributes
    ----------
    box_px : (M, 4) float64
        x0, y0, x1, y1.
    score : (M,) float32
        Probability that the box holds assessable cells.
    kind
        What a box is, for example ``"accepted frame"``.
    """

    box_px: Float64
    score: Float32
    kind: str

    def __post_init__(self) -> None:
        _sealed(self, "box_px", np.float64, (None, 4))
        _sealed(self, "score", np.float32, (len(self.box_px),))


@dataclass(frozen=True, slots=True)
class Detections:
    """Cells as found in a batch of tiles, before stitching.

    Attributes
    ----------
    tile : (N,) int32
        Index of the tile in its batch.
    box_tile_px : (N, 4) float32
    score : (N,) float32
        Probability that the box holds a nucleated cell.
    probability : (N, K) float32
        Probability of each type, given that it is a cell.
    label : (N,) int32
        Index into `classes` of the type that is reported.
    classes
        Cell type keys, see :mod:`models.cell_types`.
    """

    tile: Int32
    box_tile_px: Float32
    score: Float32
    probability: Float32
    label: Int32
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.tile)
        _sealed(self, "tile", np.int32, (n,))
        _sealed(self, "box_tile_px", np.float32, (n, 4))
        _sealed(self, "score", np.float32, (n,))
        _sealed(self, "probability", np.float32, (n, len(self.classes)))
        _sealed(self, "label", np.int32, (n,))


@dataclass(frozen=True, slots=True)
class Cells:
    """One row per cell of the slide.

    Attributes
    ----------
    box_px : (N, 4) float64
        x0, y0, x1, y1.
    score : (N,) float32
        Probability that the box holds a nucleated cell.
    probability : (N, K) float32
    label : (N,) int32
        Index into `classes`.
    tile : (N,) int32
        Number of the detection tile, in the order of reading, that holds the cell's centre.
    classes
        Cell type keys; the last one is ``"unclassified"`` where the package can say so.
    package_digest
        SHA-256 of the model package that found them.
    """

    box_px: Float64
    score: Float32
    probability: Float32
    label: Int32
    tile: Int32
    classes: tuple[str, ...]
    package_digest: str

    def __post_init__(self) -> None:
        n = len(self.box_px)
        _sealed(self, "box_px", np.float64, (n, 4))
        _sealed(self, "score", np.float32, (n,))
        _sealed(self, "probability", np.float32, (n, len(self.classes)))
        _sealed(self, "label", np.int32, (n,))
        _sealed(self, "tile", np.int32, (n,))

    def __len__(self) -> int:
        return len(self.box_px)

    def sorted(self) -> Cells:
        """Sort by y, then x: the same cells give the same bytes, whoever was found first."""
        x0, y0, x1, y1 = self.box_px.T
        order = np.lexsort((y1, x1, x0, y0))
        return replace(
            self,
            box_px=self.box_px[order],
            score=self.score[order],
            probability=self.probability[order],
            label=self.label[order],
            tile=self.tile[order],
        )


@dataclass(frozen=True, slots=True)
class Differential:
    """The nucleated differential count (NDC) of one slide.

    Attributes
    ----------
    classes
        Cell type keys, the rows of the arrays below.
    count : (K,) int64
    in_ndc : (K,) bool
        Whether the type belongs to the NDC denominator.
    share : (K,) float64
        Fraction (0 to 1) of the NDC; 0 for types outside it and where `total` is 0.
    interval : (K, 2) float64
        Wilson 95 % interval of `share`.
    total
        Cells in the NDC denominator.
    nucleated
        `total` plus the unclassified nucleated cells.
    me_ratio
        Myeloid to erythroid ratio (Tayebi 2021 eq. 2), None where no erythroid cell was counted.
    me_numerator, me_denominator
        Keys of the types on either side that this package can report.
    tiles
        Tiles counted.
    chi_square : (T,) float64
        Distance (Tayebi 2021 eq. 1) between the accumulated histograms after n and n − 1 tiles.
    chi_square_threshold, chi_square_tiles
        Convergence is `chi_square` below the threshold for that many tiles in a row.
    converged_after
        Tiles after which convergence was first reached, None if it was not.
    adequate
        Whether the count suffices for a differential.
    reasons
        Why it does not, for example ``"insufficient: 312 of 500 nucleated cells"``.
    """

    classes: tuple[str, ...]
    count: Int64
    in_ndc: Bool
    share: Float64
    interval: Float64
    total: int
    nucleated: int
    me_ratio: float | None
    me_numerator: tuple[str, ...]
    me_denominator: tuple[str, ...]
    tiles: int
    chi_square: Float64
    chi_square_threshold: float
    chi_square_tiles: int
    converged_after: int | None
    adequate: bool
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        k = len(self.classes)
        _sealed(self, "count", np.int64, (k,))
        _sealed(self, "in_ndc", np.bool_, (k,))
        _sealed(self, "share", np.float64, (k,))
        _sealed(self, "interval", np.float64, (k, 2))
        _sealed(self, "chi_square", np.float64, (None,))
