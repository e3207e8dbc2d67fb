"""Annotated images for training, from the formats that annotation programs write.

Pascal VOC, COCO, YOLO, and folders of single cells. Every reader checks all of its labels before
anything is trained on: what is wrong is one sentence that names the file. Slides with DICOM
annotations come in as the same records, from :mod:`dicom_io`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image, UnidentifiedImageError

from models.errors import TrainingInvalid
from models.records import Float32, Int64, UInt8

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
UNKNOWN = -1
# Annotation programs round: a box may reach this far over the edge, and is cut there.
_ROUNDING_PX = 1.5

GroupOf = Callable[[str], str]


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
class _Labelled:
    """One image's labels as a file has them: type names, and boxes in px."""

    image: Path
    source: str
    group: str
    names: Sequence[str]
    boxes: Sequence[Sequence[float]]


def read_pascal_voc(
    folder: Path,
    types: Sequence[str] | None = None,
    group_of: GroupOf = str,
    leave_out: Sequence[str] = (),
) -> Annotations:
    """Read ``*.xml`` of `folder` or its ``annotations/``; images lie beside or in ``images/``.

    Parameters
    ----------
    folder
    types
        Names in the order wanted; None for all that occur, sorted.
    group_of
        File name without suffix → group.
    leave_out
        Parts of file names that are not looked at.

    Raises
    ------
    TrainingInvalid
        Naming the file.
    """
    files = _wanted((_existing(folder / "annotations", folder)).glob("*.xml"), leave_out)
    return _gathered((_voc(file, folder, group_of) for file in files), types, folder)


def read_coco(
    file: Path,
    folder: Path,
    types: Sequence[str] | None = None,
    group_of: GroupOf = str,
    leave_out: Sequence[str] = (),
) -> Annotations:
    """Read one COCO ``instances`` file with its images in `folder`; else as `read_pascal_voc`."""
    images, boxes = _coco(file)
    labelled = (
        _Labelled(
            _inside(folder, images[key], str(file)),
            f"{file}, image {images[key]}",
            group_of(Path(images[key]).stem),
            [name for name, _ in entries],
            [box for _, box in entries],
        )
        for key, entries in boxes.items()
        if not any(part in images[key] for part in leave_out)
    )
    return _gathered(labelled, types, file)


def read_yolo(
    folder: Path,
    types: Sequence[str],
    group_of: GroupOf = str,
    leave_out: Sequence[str] = (),
) -> Annotations:
    """Read ``images/`` with ``labels/`` beside it, or both in one folder; see `read_pascal_voc`.

    An image without a label file, or with an empty one, holds no cell. In ``labels/`` every file
    but ``classes.txt`` needs its image; beside the images there may be other texts.
    """
    images = _wanted(_images(_existing(folder / "images", folder)), leave_out)
    labels = _existing(folder / "labels", folder)
    stems: dict[str, Path] = {}
    for image in images:
        other = stems.setdefault(image.stem, image)
        if other != image:
            raise TrainingInvalid(f"{image} and {other.name} share one label file: rename one.")
    if labels != folder:
        for label in _wanted(labels.glob("*.txt"), leave_out):
            if label.stem not in stems and label.name != "classes.txt":
                raise TrainingInvalid(f"{label} has no image: add the image or remove the labels.")
    return _gathered(
        (_yolo(image, labels / f"{image.stem}.txt", types, group_of) for image in images),
        types,
        folder,
    )


def read_crops(
    folder: Path,
    types: Sequence[str] | None = None,
    group_of: GroupOf = str,
    leave_out: Sequence[str] = (),
) -> Annotations:
    """Read images of single cells, a subfolder for each type; see `read_pascal_voc`.

    ``groups.csv`` in `folder`, with the columns file (relative) and group, says what belongs
    together, also across types; `group_of` is asked where there is none.
    """
    groups = _groups(folder / "groups.csv")

    def labelled() -> Iterator[_Labelled]:
        for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
            if types is not None and kind.name not in types:
                raise TrainingInvalid(
                    f"{kind} is no type of this training ({', '.join(types)}): rename or remove it."
                )
            for image in _wanted(_images(kind), leave_out):
                name = image.relative_to(folder).as_posix()
                group = group_of(image.stem) if groups is None else groups.get(name)
                if group is None:
                    raise TrainingInvalid(
                        f"{folder / 'groups.csv'} has no line for {name}: add its group."
                    )
                width, height = _size(image)
                yield _Labelled(image, str(image), group, [kind.name], [[0, 0, width, height]])

    if not folder.is_dir():
        raise TrainingInvalid(f"{folder} is missing: name the folder with one folder per type.")
    return _gathered(labelled(), types, folder)


class _Doctype(Exception):
    """The XML declares a document type, and may declare entities in it."""


class _WithoutDoctype(ElementTree.TreeBuilder):
    """Stops before any entity is declared, in whatever encoding the file is."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse."""
        raise _Doctype


def _xml(file: Path) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_WithoutDoctype())  # noqa: S314 - no entity is expanded
    try:
        parser.feed(file.read_bytes())
        root: ElementTree.Element = parser.close()
    except _Doctype as error:
        raise TrainingInvalid(
            f"{file} declares a document type or entities, which labels need not: remove them."
        ) from error
    except OSError as error:
        raise TrainingInvalid(f"{file} cannot be read ({error.strerror}): check it.") from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise TrainingInvalid(f"{file} is not XML ({error}): write it again.") from error
    return root


def _voc(file: Path, folder: Path, group_of: GroupOf) -> _Labelled:
    root = _xml(file)
    names, boxes = [], []
    for number, found in enumerate(root.iter("object"), start=1):
        try:
            corners = [
                float(str(found.findtext(f"bndbox/{key}")))
                for key in ("xmin", "ymin", "xmax", "ymax")
            ]
        except ValueError as error:
            raise TrainingInvalid(
                f"{file}, object {number}: its box is not four numbers."
            ) from error
        names.append((found.findtext("name") or "").strip())
        # Pascal VOC counts pixels from 1, and the last one belongs to the box.
        boxes.append([corners[0] - 1, corners[1] - 1, corners[2], corners[3]])
    wanted = (root.findtext("filename") or "").strip() or f"{file.stem}.jpg"
    places = [folder / "images", folder / "JPEGImages", folder, file.parent]
    paths = [_inside(place, wanted, str(file)) for place in places]
    image = next((path for path in paths if path.is_file()), paths[0])
    return _Labelled(image, str(file), group_of(file.stem), names, boxes)


def _coco(file: Path) -> tuple[dict[Any, str], dict[Any, list[tuple[str, list[float]]]]]:
    """File name and (type, box) of the cells, both by the image's id."""
    try:
        root = json.loads(_text(file))
        names = {each["id"]: str(each["name"] or "") for each in root["categories"]}
        images = {each["id"]: str(each["file_name"]) for each in root["images"]}
        annotations = list(root["annotations"])
        unique = (len(root["categories"]), len(root["images"])) == (len(names), len(images))
    except KeyError as error:
        raise TrainingInvalid(f"{file} lacks {error}: export COCO again.") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise TrainingInvalid(f"{file} is not COCO ({error}): export it again.") from error
    if not unique:
        raise TrainingInvalid(f"{file} gives one id to two images or categories: export it again.")
    boxes: dict[Any, list[tuple[str, list[float]]]] = {key: [] for key in images}
    for number, each in enumerate(annotations, start=1):
        where = f"{file}, annotation {number}"
        try:
            x, y, width, height = (float(value) for value in each["bbox"])
            entry = (names[each["category_id"]], [x, y, x + width, y + height])
            boxes[each["image_id"]].append(entry)
        except KeyError as error:
            raise TrainingInvalid(f"{where} lacks or misnames {error}: correct it.") from error
        except (ValueError, TypeError) as error:
            raise TrainingInvalid(f"{where}: its box is not four numbers: correct it.") from error
    return images, boxes


def _yolo(image: Path, label: Path, types: Sequence[str], group_of: GroupOf) -> _Labelled:
    width, height = _size(image)
    names, boxes = [], []
    lines = _text(label).splitlines() if label.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            kind, x, y, wide, high = line.split()
            index, centre = int(kind), np.array([float(x) * width, float(y) * height])
            half = np.array([float(wide) * width, float(high) * height]) / 2
        except ValueError as error:
            raise TrainingInvalid(
                f"{label}, line {number}: not 'class x y width height' in shares of the image."
            ) from error
        if not 0 <= index < len(types):
            raise TrainingInvalid(
                f"{label}, line {number}: class {index} is none of the {len(types)} types."
            )
        names.append(types[index])
        boxes.append([*(centre - half), *(centre + half)])
    return _Labelled(image, str(label), group_of(image.stem), names, boxes)


def _gathered(
    labelled: Iterable[_Labelled], types: Sequence[str] | None, source: Path
) -> Annotations:
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


def _occurring(found: Sequence[_Labelled]) -> tuple[str, ...]:
    return tuple(sorted({name for each in found for name in each.names}))


def _checked(each: _Labelled, index: Mapping[str, int]) -> AnnotatedImage:
    width, height = _size(each.image)
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
    _refuse_contradictions(each, cut)
    return AnnotatedImage(
        name=each.image.name,
        group=each.group,
        size_px=(width, height),
        read=partial(read_rgb, each.image),
        box_px=cut,
        kind=np.array([index[name] for name in each.names], np.int64),
    )


def _refuse_contradictions(each: _Labelled, box: Float32) -> None:
    known: dict[tuple[float, ...], str] = {}
    for name, corners in zip(each.names, box.tolist(), strict=True):
        other = known.setdefault(tuple(corners), name)
        if other != name:
            raise TrainingInvalid(
                f"{each.source}: the box {[round(corner, 1) for corner in corners]} px is both"
                f" {other!r} and {name!r}, keep one."
            )


def read_rgb(path: Path) -> UInt8:
    """Decode an image file: (H, W, 3) uint8 RGB.

    Raises
    ------
    TrainingInvalid
        It cannot be decoded.
    """
    with _opened(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _size(path: Path) -> tuple[int, int]:
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


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise TrainingInvalid(f"{folder} is missing: name the folder that holds the images.")
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _wanted(paths: Iterable[Path], leave_out: Sequence[str]) -> list[Path]:
    return sorted(path for path in paths if not any(part in path.name for part in leave_out))


def _existing(folder: Path, otherwise: Path) -> Path:
    return folder if folder.is_dir() else otherwise


def _inside(folder: Path, name: str, source: str) -> Path:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise TrainingInvalid(f"{source} names {name!r}, outside of its folder: correct it.")
    return folder / path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark before the text
    except OSError as error:
        raise TrainingInvalid(f"{path} cannot be read ({error.strerror}): check it.") from error
    except UnicodeDecodeError as error:
        raise TrainingInvalid(f"{path} is not UTF-8 text: save it as UTF-8.") from error


def _groups(path: Path) -> dict[str, str] | None:
    """Group of each file; None where there is no table."""
    if not path.exists():
        return None
    table = csv.DictReader(io.StringIO(_text(path), newline=""))
    groups: dict[str, str] = {}
    try:
        if not {"file", "group"} <= set(table.fieldnames or ()):
            raise TrainingInvalid(f"{path} needs the columns file and group: name them so.")
        for row in table:
            if not row["file"] or not row["group"]:
                raise TrainingInvalid(
                    f"{path}, line {table.line_num}: file or group is empty, fill it in."
                )
            if groups.setdefault(row["file"], row["group"]) != row["group"]:
                raise TrainingInvalid(
                    f"{path}, line {table.line_num}: {row['file']} is in two groups, keep one."
                )
    except csv.Error as error:
        raise TrainingInvalid(f"{path} is not CSV ({error}): save it again.") from error
    return groups
