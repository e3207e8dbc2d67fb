"""Low-magnification tiles → probability of cells → :class:`Regions` of whole frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from models.errors import InferenceFailed
from models.manifest import LocaliserStage
from models.package import ModelPackage
from models.records import Float32, Float64, Int64, Regions, Tiles, UInt8

KIND = "accepted frame"


def localiser_grid(
    size_px: tuple[int, int], spacing_um: tuple[float, float], stage: LocaliserStage
) -> Float64:
    """Lay out localiser tiles so that all but their context covers the slide.

    Parameters
    ----------
    size_px : (width, height)
        Of the base level.
    spacing_um : (x, y)
        Of the base level's pixels: tiles are square in µm, whatever the pixels are.
    stage

    Returns
    -------
    box_px : (T, 4) float64
        Equal boxes, row by row; those at the edges reach beyond the slide. With a sampled grid,
        one of these in the middle of each of its cells.
    """
    scale = stage.um_per_px / np.array(spacing_um)
    side, ring = stage.tile_px * scale, stage.context_px * scale
    step = side - 2 * ring
    columns, rows = np.maximum(np.ceil(size_px / step), 1).astype(int).tolist()
    if stage.sampled_grid is None:
        row, column = np.divmod(np.arange(rows * columns), columns)
    else:
        row, column = _sampled(stage.sampled_grid, rows, columns)
    low = np.stack([column, row], axis=1) * step - ring
    return np.concatenate([low, low + side], axis=1).astype(np.float64)


def _sampled(grid: tuple[int, int], rows: int, columns: int) -> tuple[Int64, Int64]:
    """Tiles in the middle of the cells of a grid, each once: their rows and columns."""
    middle = [
        np.unique(((np.arange(parts) + 0.5) * length / parts).astype(np.int64))
        for parts, length in zip(grid, (rows, columns), strict=True)
    ]
    row, column = np.meshgrid(*middle, indexing="ij")
    return row.ravel(), column.ravel()


def localise(
    tiles: Iterable[Tiles],
    session: Callable[[UInt8], Mapping[str, Float32]],
    package: ModelPackage,
    slide_size_px: tuple[int, int],
    frame_size_px: tuple[int, int],
) -> Regions:
    """Find the frames of the base level that hold assessable cells.

    Parameters
    ----------
    tiles
        Batches of the boxes of :func:`localiser_grid`, in any order.
    session
        The localiser of `package`.
    package
    slide_size_px, frame_size_px : (width, height)
        Of the base level.

    Returns
    -------
    regions
        Frame rectangles clipped to the slide, row by row. The score of a frame is the highest
        probability of a place that reaches into it.

    Raises
    ------
    InferenceFailed
        The network failed or its output does not have the declared stride.
    """
    width, height = slide_size_px
    frame_width, frame_height = frame_size_px
    score = np.zeros(
        (math.ceil(height / frame_height), math.ceil(width / frame_width)), dtype=np.float32
    )
    for batch in tiles:
        place, probability = _accepted(batch, session, package)
        _mark(score, place, probability, frame_size_px)
    row, column = np.nonzero(score)
    box = np.stack(
        [
            column * frame_width,
            row * frame_height,
            np.minimum((column + 1) * frame_width, width),
            np.minimum((row + 1) * frame_height, height),
        ],
        axis=1,
    )
    return Regions(box_px=box.astype(np.float64), score=score[row, column], kind=KIND)


def _accepted(
    batch: Tiles, session: Callable[[UInt8], Mapping[str, Float32]], package: ModelPackage
) -> tuple[Float64, Float32]:
    """Return squares (P, 4) in base px, dilated, where the probability reaches the threshold."""
    stage = package.manifest.localiser
    n, height, width = batch.valid.shape
    stride = stage.output_stride_px
    shape = (n, height // stride, width // stride)
    probability = session(batch.rgb)["probability"]
    if probability.shape != shape or height % stride or width % stride:
        raise InferenceFailed(
            f"Model network {stage.file}: output 'probability' has shape {probability.shape} for"
            f" images of {height} x {width} pixels, expected {shape}; the package is defective."
        )
    seen = batch.valid.reshape(n, shape[1], stride, shape[2], stride).any(axis=(2, 4))
    taken = (probability >= stage.threshold) & (probability > 0) & seen
    taken &= _inner(shape[1:], stage.context_px // stride)
    tile, y, x = np.nonzero(taken)
    position = np.stack([x, y], axis=1).astype(np.float64)
    origin, scale = batch.origin_px[tile], stride * batch.px_per_tile_px
    low = origin + (position - stage.dilation) * scale
    high = origin + (position + 1 + stage.dilation) * scale
    return np.concatenate([low, high], axis=1), probability[taken]


def _inner(shape: tuple[int, ...], ring: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return where a tile's output counts: everywhere but in its outer ring."""
    inner = np.zeros(shape, dtype=np.bool_)
    inner[ring : shape[0] - ring, ring : shape[1] - ring] = True
    return inner


def _mark(
    score: Float32, place: Float64, probability: Float32, frame_size_px: tuple[int, int]
) -> None:
    """Raise the score of every frame that a square of `place` reaches into."""
    side = np.array([*frame_size_px, *frame_size_px], dtype=np.float64)
    first = np.maximum(np.floor(place / side), 0).astype(np.int64)
    end = np.maximum(np.ceil(place / side), 0).astype(np.int64)
    for (x0, y0), (x1, y1), value in zip(first[:, :2], end[:, 2:], probability, strict=True):
        frames = score[y0:y1, x0:x1]
        np.maximum(frames, value, out=frames)
