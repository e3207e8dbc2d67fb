"""Slides with annotations in an archive → annotated images that training takes."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.annotated_slide import annotated_tiles, read_annotations
from dicom_io.pacs import open_pacs
from dicom_io.slide import open_slide
from models.errors import TrainingInvalid
from models.records import UInt8
from node.config import Settings
from node.pictures import as_png, pixels
from node.work_files import write_atomically


def annotated_images(settings: Settings, source: Any, recipe: Any, image: Any) -> list[Any]:
    """The annotated tiles of one slide; their pixels lie as PNG in the recipe's folder.

    Parameters
    ----------
    settings
        For the archive; the source may name another, which is shown no credentials of theirs.
    source, recipe
        :class:`models.training.recipe.Source` of the format ``dicom``, and its recipe.
    image
        :class:`models.training.annotated.AnnotatedImage`, which only training code may import.

    Raises
    ------
    TrainingInvalid
        An annotated cell is of none of the recipe's types, nor of those to ignore.
    InputError, PacsError
        The slide or its annotations cannot be read.
    """
    images = []
    name = hashlib.sha256(source.series_uid.encode()).hexdigest()[:12]
    folder = recipe.out / "tiles" / name
    folder.mkdir(parents=True, exist_ok=True)
    url = source.pacs_url or settings.pacs_url
    with open_pacs(url, settings.pacs) as pacs:
        slide = open_slide(
            pacs, source.study_uid, source.series_uid, settings.max_matrix_px, settings.slide
        )
        cells = read_annotations(pacs, source.study_uid, source.annotation_series_uid, slide)
        for tile in annotated_tiles(
            pacs, slide, cells, recipe.size_px, recipe.um_per_px, settings.read
        ):
            x, y = (round(value) for value in tile.origin_px)
            path = folder / f"x{x:06}_y{y:06}.png"
            write_atomically(path, as_png(tile.rgb))  # another command may read it
            taken = [row for row, key in enumerate(tile.types) if key not in source.ignore]
            images.append(
                image(
                    f"{source.series_uid} at ({x}, {y})",
                    source.series_uid,
                    (tile.rgb.shape[1], tile.rgb.shape[0]),
                    partial(_read, path),
                    tile.box_tile_px[taken].astype(np.float32),
                    np.array([_kind(tile.types[row], source, recipe) for row in taken], np.int64),
                )
            )
    return images


def _kind(key: str, source: Any, recipe: Any) -> int:
    name = source.names.get(key, key)
    if name not in recipe.types:
        raise TrainingInvalid(
            f"Annotations {source.annotation_series_uid}: {key!r} is none of the types"
            f" {list(recipe.types)} of {recipe.name}: add it, rename it under 'names', or leave it"
            " out with 'ignore'."
        )
    return int(recipe.types.index(name))


def _read(path: Path) -> UInt8:
    return pixels(path.read_bytes())
