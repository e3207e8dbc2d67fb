"""How a package's detections become cells: by overlap, or by the corners of their pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from models.corner_stitching import stitch_by_corners
from models.manifest import Stitching
from models.records import Cells, Detections, Float64, Regions
from models.stitching import TileGeometry, stitch

Stitch = Callable[
    [Sequence[tuple[Detections, TileGeometry]], Float64, Regions, tuple[str, ...], str], Cells
]
STITCHERS: Mapping[Stitching, Stitch] = {"overlap": stitch, "corners": stitch_by_corners}
