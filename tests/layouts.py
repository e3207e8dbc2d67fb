"""Every layout of a slide: how the test slides are cut, and what must be seen of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.slide_settings import SlideSettings
from tests import layered_slides
from tests.encodings import seen
from tests.layered_slides import Layer, write_layers
from tests.slides import Change, UInt8, WrittenSlide, coarser, picture, write_slide

SIZE_PX, TILE_PX = (90, 70), (32, 32)
CELL_PX = (37, 21, 53, 41)
"""x0, y0, x1, y1 of the known cell on each of the slides, over four tiles of most of them."""
CELL_RGB = (90, 20, 140)
MIRRORED = (0, -1, 0, 1, 0, 0)
TURNED = (float(np.cos(0.3)), float(np.sin(0.3)), 0, -float(np.sin(0.3)), float(np.cos(0.3)), 0)


@dataclass(frozen=True)
class Layout:
    """One way to cut and store a slide.

    Attributes
    ----------
    write
        Writes the slide uncompressed; its change stores each dataset in another way.
    levels
        As they are cut into tiles, finest first.
    tile_px
    left_out
        (column, row) of tiles of the base level that are not stored.
    settings
        With which the slide is opened.
    """

    write: Callable[[Path, Change | None], WrittenSlide]
    levels: tuple[UInt8, ...]
    tile_px: tuple[int, int]
    left_out: frozenset[tuple[int, int]] = frozenset()
    settings: SlideSettings = field(default_factory=SlideSettings)

    def seen(self, encoding: str) -> list[UInt8]:
        """What another decoder sees of each level; white where nothing is stored."""
        levels = [seen(encoding, rgb, self.tile_px) for rgb in self.levels]
        width, height = self.tile_px
        for column, row in self.left_out:
            x, y = column * width, row * height
            levels[0][y : y + height, x : x + width] = 255
        return levels


def _marked() -> UInt8:
    """A picture with the known cell on it."""
    rgb = picture(*SIZE_PX)
    x0, y0, x1, y1 = CELL_PX
    rgb[y0:y1, x0:x1] = CELL_RGB
    return rgb


def _tiled(
    *,
    tile_px: tuple[int, int] = TILE_PX,
    scales: Sequence[float] = (1,),
    left_out: frozenset[tuple[int, int]] = frozenset(),
    **how: Any,
) -> Layout:
    rgb = _marked()

    def write(folder: Path, change: Change | None) -> WrittenSlide:
        return write_slide(
            folder,
            rgb=rgb,
            tile_px=tile_px,
            scales=scales,
            encoding="raw",
            leave_out=lambda column, row: (column, row) in left_out,
            change=change,
            **how,
        )

    return Layout(write, tuple(coarser(rgb, scale) for scale in scales), tile_px, left_out)


def _layered(layers: Sequence[Layer], settings: SlideSettings) -> Layout:
    """The last layer is the one that the settings name."""

    def write(folder: Path, change: Change | None) -> WrittenSlide:
        return write_layers(folder, [layers], change=change)

    return Layout(write, (layers[-1].rgb,), layered_slides.TILE_PX, settings=settings)


def _layers(places: Sequence[tuple[str, float]]) -> list[Layer]:
    """Pictures in which the cell lies elsewhere, but for the last."""
    last = len(places) - 1
    return [
        Layer(path, z_mm, np.roll(_marked(), 30 * (last - number), axis=1))
        for number, (path, z_mm) in enumerate(places)
    ]


SOME = frozenset({(0, 0), (1, 2)})

LAYOUTS: dict[str, Layout] = {
    "TILED_FULL": _tiled(scales=(1, 2, 4)),
    "TILED_SPARSE": _tiled(organization="TILED_SPARSE", scales=(1, 2), left_out=SOME),
    "split over instances": _tiled(organization="TILED_SPARSE", parts=3, left_out=SOME),
    "concatenation": _tiled(parts=3),
    "two optical paths": _layered(
        _layers([("A", 0.0), ("B", 0.0)]), SlideSettings(optical_path="B")
    ),
    "focal planes": _layered(
        _layers([("A", 0.0), ("A", 0.002), ("A", 0.004)]), SlideSettings(focal_plane=3)
    ),
    "tiles not square": _tiled(tile_px=(48, 20)),
    "mirrored": _tiled(orientation=MIRRORED),
    "rotated": _tiled(orientation=TURNED, origin_mm=(18.4, 51.25)),
    "level smaller than a tile": _tiled(tile_px=(64, 64), scales=(1, 6)),
    "no low level": _tiled(),
}
