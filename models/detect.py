"""Tiles at the detector's scale → :class:`Detections`; and where those tiles lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from models.boxes import overlapping, suppressed
from models.errors import InferenceFailed
from models.manifest import UNCLASSIFIED, DetectorStage, Manifest
from models.package import ModelPackage
from models.records import Bool, Detections, Float32, Float64, Int32, Int64, Regions, Tiles, UInt8

# So few that the frames which two rows of tiles share are still in memory for the second.
STRIP_TILES = 8


def detection_grid(
    regions: Regions,
    size_px: tuple[int, int],
    spacing_um: tuple[float, float],
    stage: DetectorStage,
    seed: int,
) -> tuple[Float64, Float64]:
    """Lay out the detection tiles that `regions` need.

    Tile cores lie side by side on a grid that starts at the slide's corner, so that a place
    belongs to the same core whatever the regions are. Tayebi 2021 §2.4 accumulates the histogram
    of cell types over tiles; their order is random so that its convergence means something.

    Parameters
    ----------
    regions
    size_px : (width, height)
        Of the base level.
    spacing_um : (x, y)
        Of the base level's pixels: tiles are square in µm, whatever the pixels are.
    stage
    seed
        Of the order.

    Returns
    -------
    box_px : (T, 4) float64
        Tiles to read: cores with the halo around them, which may reach beyond the slide.
    core_px : (T, 4) float64
        The cores that touch a region, in the same order.
    """
    scale = stage.um_per_px / np.array(spacing_um)
    step = (stage.tile_px - 2 * stage.halo_px) * scale
    columns, rows = np.ceil(size_px / step).astype(int).tolist()
    needed = np.zeros((rows, columns), dtype=np.bool_)
    limit = np.array([columns, rows, columns, rows])
    first = np.clip(np.floor(regions.box_px / np.tile(step, 2)), 0, limit).astype(np.int64)
    end = np.clip(np.ceil(regions.box_px / np.tile(step, 2)), 0, limit).astype(np.int64)
    for (x0, y0), (x1, y1) in zip(first[:, :2], end[:, 2:], strict=True):
        needed[y0:y1, x0:x1] = True
    row, column = np.nonzero(needed)
    position = np.stack([column, row], axis=1)
    position = np.random.default_rng(seed).permutation(position, axis=0)
    core = np.concatenate([position * step, (position + 1) * step], axis=1)
    halo = stage.halo_px * scale
    return core + np.concatenate([-halo, halo]), core


def reading_order(core_px: Float64) -> Int64:
    """Order tiles so that neighbours come soon after each other.

    The frames that they share are then fetched and decoded once. The results are the same as in any
    other order: cells know their tile's number, by which they are counted.

    Parameters
    ----------
    core_px : (T, 4) float64
        Of :func:`detection_grid`.

    Returns
    -------
    (T,) int64
        Row by row, in strips that few tiles are wide.
    """
    column = np.floor(core_px[:, 0] / np.ptp(core_px[:, ::2], axis=1) + 0.5)
    return np.lexsort((column, core_px[:, 1], column // STRIP_TILES))


def detect(
    tiles: Tiles, session: Callable[[UInt8], Mapping[str, Float32]], package: ModelPackage
) -> Detections:
    """Find and classify the cells of a batch of tiles.

    Parameters
    ----------
    tiles
    session
        The detector of `package`.
    package

    Returns
    -------
    detections
        By tile, the highest score first. Probabilities are those of the network; where the most
        probable type has less than ``unclassified_below``, the label is ``"unclassified"`` and
        that class's probability is 1 − the highest one, elsewhere it is 0. So a row of an
        unclassified cell sums to more than 1: it is not a distribution over all columns.

    Raises
    ------
    InferenceFailed
        The network failed or its outputs do not have the declared shapes.
    """
    manifest = package.manifest
    box, score, probability = _outputs(session(tiles.rgb), len(tiles.rgb), manifest)
    side = box[..., 2:] - box[..., :2]
    tile, peak = np.nonzero(
        (score >= manifest.detector.score_threshold) & (score > 0) & (side > 0).all(axis=2)
    )
    box, score, probability = box[tile, peak], score[tile, peak], probability[tile, peak]
    kept = _without_rivals(tile, box, score, manifest.detector.nms_iou)
    probability, label = labelled(probability[kept], manifest)
    return Detections(
        tile=tile[kept].astype(np.int32),
        box_tile_px=box[kept],
        score=score[kept],
        probability=probability,
        label=label,
        classes=manifest.classes,
    )


def _outputs(
    outputs: Mapping[str, Float32], tiles: int, manifest: Manifest
) -> tuple[Float32, Float32, Float32]:
    box, score = outputs["box_px"], outputs["score"]
    anchors, types = score.shape[1], len(manifest.types)
    # A second stage names the types: until then nothing is known.
    unknown = np.zeros((tiles, anchors, types), np.float32)
    probability = unknown if manifest.classifier else outputs["type_probability"]
    want = ((tiles, anchors, 4), (tiles, anchors), (tiles, anchors, types))
    if (box.shape, score.shape, probability.shape) != want:
        raise InferenceFailed(
            f"Model network {manifest.detector.file}: outputs have shapes {box.shape},"
            f" {score.shape}, {probability.shape}, expected {want}; the package is defective."
        )
    return box, score, probability


def _without_rivals(tile: Int64, box: Float32, score: Float32, nms_iou: float) -> Int64:
    """Return the rows that survive non-maximum suppression, by tile and falling score."""
    order = np.lexsort((*box.T[::-1], -score, tile))
    tile, box = tile[order], box[order]
    # Tiles are laid out apart, so that one search finds the rivals of all.
    apart = box.astype(np.float64)
    extent = 1.0 + float(box.max(initial=0.0)) - float(box.min(initial=0.0))
    apart[:, [0, 2]] += tile[:, None] * extent
    yields = suppressed(*overlapping(apart, nms_iou), len(order))
    return np.asarray(order[~yields], dtype=np.int64)


def labelled(probability: Float32, manifest: Manifest) -> tuple[Float32, Int32]:
    """Return probability (N, K) over all classes and the reported label (N,).

    See :func:`detect` for what an unclassified cell's row holds.
    """
    if UNCLASSIFIED not in manifest.classes:
        return probability, probability.argmax(axis=1).astype(np.int32)
    highest = probability.max(axis=1)
    doubtful: Bool = highest < manifest.detector.unclassified_below
    doubt = np.where(doubtful, 1 - highest, 0).astype(np.float32)
    label = np.where(doubtful, len(manifest.types), probability.argmax(axis=1))
    return np.concatenate([probability, doubt[:, None]], axis=1), label.astype(np.int32)
