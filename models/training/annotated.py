"""Annotated images for training, checked before anything is trained on.

Whatever format labels come in, :func:`gathered` checks all of them: what is wrong is one sentence
that names the file. Slides with DICOM annotations come in as the same records, from
:mod:`dicom_io`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from models.errors import TrainingInvalid
from models.records import Float32, Int64, UInt8

# Annotation programs round: a box may reach this far over the edge, and is cut there.
_ROUNDING_PX = 1.5
# What lies as near to an edge was cut there.
_EDGE_PX = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedImage:
    """One image and its cells.

    Attributes
    ----------
    name
        File or region it comes from, for messages.
    group
        Slide, patient or near-duplicate group: no split parts it.
    size_px
        Width and height.
    read
        Gives the pixels, (H, W, 3) uint8 RGB.
    box_px : (M, 4) float32
        x0, y0, x1, y1 with outer corners, within the image.
    kind : (M,) int64
        Index of the type; −1 for a cell of no known type.
    """

    name: str
    group: str
    size_px: tuple[int, int]
    read: Callable[[], UInt8]
    box_px: Float32
    kind: Int64

    def __post_init__(self) -> None:
        if self.box_px.dtype != np.float32 or self.kind.dtype != np.int64:
            raise ValueError(f"{self.name}: boxes are float32 and kinds int64.")
        if self.kind.ndim != 1 or self.box_px.shape != (len(self.kind), 4):
            raise ValueError(f"{self.name}: boxes (M, 4) and kinds (M,) are wanted.")
        if not np.isfinite(self.box_px).all():
            raise ValueError(f"{self.name}: a box is not finite.")
        if (self.box_px < 0).any() or (self.box_px > np.tile(self.size_px, 2)).any():
            raise ValueError(f"{self.name}: a box leaves the image.")
        self.box_px.setflags(write=False)
        self.kind.setflags(write=False)


@dataclass(frozen=True, slots=True)
class Annotations:
    """Images whose labels speak of the same types.

    Attributes
    ----------
    types
        Names, in the order of `kind`.
    images
    """

    types: tuple[str, ...]
    images: tuple[AnnotatedImage, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """One image's labels as a file has them, unchecked.

    Attributes
    ----------
    image
    source
        What to name where a label is wrong.
    group
        See :class:`AnnotatedImage`.
    names
        Type of each cell.
    boxes
        x0, y0, x1, y1 of each, in px of the image with outer corners.
    """

    image: Path
    source: str
    group: str
    names: Sequence[str]
    boxes: Sequence[Sequence[float]]


def only_kind(image: AnnotatedImage) -> int:
    """Index of the type of an image that shows one thing: a single cell, or a tile as a whole.

    Raises
    ------
    TrainingInvalid
        It shows several, none, or something of no known type.
    """
    if len(image.kind) != 1 or image.kind[0] < 0:
        raise TrainingInvalid(
            f"{image.name}: {len(image.kind)} objects are marked, where one of a known type is"
            " wanted: give images of single cells, or of tiles as a whole."
        )
    return int(image.kind[0])


def uncut(image: AnnotatedImage) -> Int64:
    """Rows of the cells of known types that no edge of their image cuts.

    The middle of a piece is not that of its cell. What an image shows alone, it shows whole.
    """
    low, high = image.box_px[:, :2], image.box_px[:, 2:]
    inside = (low > _EDGE_PX).all(1) & (high < np.array(image.size_px) - _EDGE_PX).all(1)
    alone = (high - low >= np.array(image.size_px) - 2 * _EDGE_PX).all(1)
    return np.flatnonzero((inside | alone) & (image.kind >= 0))


def gathered(
    labelled: Iterable[Labelled], types: Sequence[str] | None, source: Path
) -> Annotations:
    """Check the labels of a source and bring them to one order of types.

    Parameters
    ----------
    labelled
    types
        Names in the order wanted; None for all that occur, sorted.
    source
        Folder or file, for messages.

    Raises
    ------
    TrainingInvalid
        Naming the file, and the names of all that are faulty.
    """
    found = list(labelled)
    if not any(each.names for each in found):
        raise TrainingInvalid(f"{source} holds no annotated cell: name a folder with labels.")
    order = tuple(types) if types is not None else _occurring(found)
    index = {name: place for place, name in enumerate(order)}
    seen: set[Path] = set()
    images, faults = [], []
    for each in found:
        try:
            if each.image in seen:
                raise TrainingInvalid(f"{each.source}: {each.image} is annotated twice, keep one.")
            seen.add(each.image)
            images.append(_checked(each, index))
        except TrainingInvalid as fault:
            faults.append((str(fault), each.image.name))
    if faults:
        others = ", ".join(name for _, name in faults[1:])
        raise TrainingInvalid(faults[0][0] + (f" Faulty as well: {others}." if others else ""))
    return Annotations(order, tuple(images))


def _occurring(found: Sequence[Labelled]) -> tuple[str, ...]:
    return tuple(sorted({name for each in found for name in each.names}))


def _checked(each: Labelled, index: Mapping[str, int]) -> AnnotatedImage:
    width, height = image_size_px(each.image)
    box = np.array(each.boxes, np.float64).reshape(-1, 4)
    limit = np.array([width, height, width, height], np.float64)
    for number, (name, corners) in enumerate(zip(each.names, box, strict=True), start=1):
        where = f"{each.source}, object {number}"
        if not name:
            raise TrainingInvalid(f"{where} has no type: name it.")
        if name not in index:
            raise TrainingInvalid(f"{where}: {name!r} is none of the types {list(index)}.")
        if not np.isfinite(corners).all() or (corners[2:] <= corners[:2]).any():
            raise TrainingInvalid(f"{where}: its box is empty or inside out, draw it again.")
        if (corners < -_ROUNDING_PX).any() or (corners > limit + _ROUNDING_PX).any():
            raise TrainingInvalid(
                f"{where}: its box leaves the image of {width} x {height} px, draw it again."
            )
    cut = np.clip(box, 0, limit).astype(np.float32)
    empty = np.flatnonzero((cut[:, 2:] <= cut[:, :2]).any(axis=1))
    if len(empty):
        raise TrainingInvalid(
            f"{each.source}, object {empty[0] + 1}: nothing of its box lies in the image, draw it"
            " again."
        )
    _refuse_doubles(each, cut)
    return AnnotatedImage(
        name=each.image.name,
        group=each.group,
        size_px=(width, height),
        read=partial(read_rgb, each.image),
        box_px=cut,
        kind=np.array([index[name] for name in each.names], np.int64),
    )


def _refuse_doubles(each: Labelled, box: Float32) -> None:
    """One cell twice could never both be found."""
    known: dict[tuple[float, ...], str] = {}
    for name, corners in zip(each.names, box.tolist(), strict=True):
        if (other := known.get(tuple(corners))) is not None:
            what = f"both {other!r} and {name!r}" if other != name else f"{name!r} twice"
            raise TrainingInvalid(
                f"{each.source}: the box {[round(corner, 1) for corner in corners]} px is {what},"
                " keep one."
            )
        known[tuple(corners)] = name


def read_rgb(path: Path) -> UInt8:
    """Decode an image file: (H, W, 3) uint8 RGB.

    Raises
    ------
    TrainingInvalid
        It cannot be decoded.
    """
    with _opened(path) as picture:
        return np.asarray(picture.convert("RGB"))


def image_size_px(path: Path) -> tuple[int, int]:
    """Width and height from the header; nothing is decoded."""
    with _opened(path) as picture:
        return picture.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):  # would be cut off at 255
                raise TrainingInvalid(f"{path} has more than 8 bits: save it as 8-bit RGB.")
            yield picture
    except FileNotFoundError as error:
        raise TrainingInvalid(
            f"{path} is missing: its labels are there, the image is not; add it."
        ) from error
    except UnidentifiedImageError as error:
        raise TrainingInvalid(f"{path} is not an image: remove it or save it again.") from error
    except Image.DecompressionBombError as error:
        raise TrainingInvalid(f"{path} has too many pixels: cut it into smaller fields.") from error
    except (OSError, ValueError, SyntaxError) as error:  # all three come out of broken files
        raise TrainingInvalid(f"{path} cannot be decoded: remove it or save it again.") from error
