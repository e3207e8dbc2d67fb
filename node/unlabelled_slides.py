"""Tiles of slides in an archive as candidates for an expert's time, and their files."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dicom_io.frames import read_tiles
from dicom_io.pacs import Pacs, open_pacs
from dicom_io.slide import Slide, open_slide
from models.classify import Sessions
from models.detect import detection_grid
from models.errors import TrainingInvalid
from models.fields import find_in_field
from models.localise import localise, localiser_grid
from models.package import ModelPackage
from models.records import Float64, Regions
from models.selection import Candidate
from node.config import Settings
from node.networks import open_sessions
from node.pipeline import SlideReference
from node.stages import LOCALISER_BATCH_TILES


@dataclass(frozen=True, slots=True, eq=False)
class SlideTile:
    """Where a candidate lies.

    Attributes
    ----------
    slide
    box_px : (4,) float64
        x0, y0, x1, y1 on the base level.
    """

    slide: SlideReference
    box_px: Float64


def slide_candidates(
    settings: Settings,
    package: ModelPackage,
    slides: Sequence[SlideReference],
    tile_px: int,
    um_per_px: float,
) -> dict[Path, tuple[SlideTile, Candidate]]:
    """Look at the tiles of every slide's accepted regions, as the analysis of a slide would.

    Parameters
    ----------
    settings
        For the archive.
    package
        Its localiser says where cells lie, its detector what they are.
    slides
    tile_px
        Side of a tile at `um_per_px`.
    um_per_px

    Returns
    -------
    dict
        File name of each tile → tile and what was found in it. A name holds a digest of the
        slide's UID and the tile's place: the same tile has the same name whenever it is chosen.

    Raises
    ------
    InputError, PacsError
        A slide cannot be read.
    """
    sessions = open_sessions(settings, package)
    where = open_sessions(settings, package, localiser=True)
    candidates = {}
    for reference in slides:
        name = hashlib.sha256(reference.series_uid.encode()).hexdigest()[:12]
        with _opened(settings, reference) as (pacs, slide):
            regions = _regions(settings, pacs, slide, package, where)
            stage = replace(
                package.manifest.detector, um_per_px=um_per_px, tile_px=tile_px, halo_px=0
            )
            base = slide.base
            boxes, _ = detection_grid(regions, base.size_px, base.spacing_um, stage, seed=0)
            tiles = read_tiles(pacs, slide, boxes, um_per_px, batch_size=1, settings=settings.read)
            for box, tile in zip(boxes, tiles, strict=True):
                rgb = tile.rgb[0]
                cells = find_in_field(rgb, um_per_px, package, sessions)
                path = Path(f"slide_{name}_x{round(box[0]):06}_y{round(box[1]):06}.png")
                found = Candidate(path, (rgb.shape[1], rgb.shape[0]), cells)
                candidates[path] = (SlideTile(reference, box), found)
    return candidates


def write_tiles(
    settings: Settings, tiles: Mapping[Path, SlideTile], um_per_px: float, folder: Path
) -> None:
    """Read tiles again and write them as PNG into a folder.

    Its ``groups.csv`` tells trainings which slide each is of: by its series, as a source of the
    format dicom does.

    Parameters
    ----------
    settings
    tiles
        File name → tile.
    um_per_px
    folder
        It exists.

    Raises
    ------
    TrainingInvalid
        Its ``groups.csv`` is another table.
    """
    for reference in dict.fromkeys(tile.slide for tile in tiles.values()):
        own = {path: tile for path, tile in tiles.items() if tile.slide == reference}
        boxes = np.stack([tile.box_px for tile in own.values()])
        with _opened(settings, reference) as (pacs, slide):
            read = read_tiles(pacs, slide, boxes, um_per_px, batch_size=1, settings=settings.read)
            for path, tile in zip(own, read, strict=True):
                Image.fromarray(tile.rgb[0]).save(folder / path)
    if tiles:
        _add_groups(folder / "groups.csv", {str(p): t.slide.series_uid for p, t in tiles.items()})


def _add_groups(path: Path, groups: Mapping[str, str]) -> None:
    """Write lines of a table with the columns file and group, beside those it has."""
    known: dict[str, str] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            if not {"file", "group"} <= set(table.fieldnames or ()):
                raise TrainingInvalid(f"{path} needs the columns file and group: name them so.")
            known = {row["file"]: row["group"] for row in table}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "group"])
        writer.writerows(sorted({**known, **groups}.items()))


@contextmanager
def _opened(settings: Settings, reference: SlideReference) -> Iterator[tuple[Pacs, Slide]]:
    with open_pacs(settings.pacs_url, settings.pacs) as pacs:
        slide = open_slide(
            pacs,
            reference.study_uid,
            reference.series_uid,
            settings.max_matrix_px,
            settings.slide,
        )
        yield pacs, slide


def _regions(
    settings: Settings, pacs: Pacs, slide: Slide, package: ModelPackage, sessions: Sessions
) -> Regions:
    stage, base = package.manifest.localiser, slide.base
    boxes = localiser_grid(base.size_px, base.spacing_um, stage)
    tiles = read_tiles(
        pacs,
        slide,
        boxes,
        stage.um_per_px,
        batch_size=LOCALISER_BATCH_TILES,
        settings=settings.read,
    )
    return localise(tiles, sessions["localiser"], package, base.size_px, base.tile_size_px)
