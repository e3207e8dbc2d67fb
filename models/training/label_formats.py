"""Labels as annotation programs write them: Pascal VOC, COCO, YOLO, and folders of single cells."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from models.errors import TrainingInvalid
from models.training.annotated import Annotations, Labelled, gathered, image_size_px

# Which files of a folder belong together: columns file and group.
GROUPS = "groups.csv"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")

GroupOf = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of a source.

    Attributes
    ----------
    types
        Names in the order wanted; None for all that occur, sorted.
    group_of
        File name without suffix → group.
    leave_out
        Parts of file names that are not looked at.
    """

    types: Sequence[str] | None = None
    group_of: GroupOf = str
    leave_out: Sequence[str] = ()

    def of(self, paths: Iterable[Path]) -> list[Path]:
        """Return the files that are looked at, sorted."""
        return sorted(
            path for path in paths if not any(part in path.name for part in self.leave_out)
        )


EVERYTHING = Wanted()


def read_pascal_voc(folder: Path, wanted: Wanted = EVERYTHING) -> Annotations:
    """Read ``*.xml`` of `folder`, or of its ``annotations/`` or ``Annotations/``.

    Images lie in ``images/`` or ``JPEGImages/``, or beside the labels.

    Raises
    ------
    TrainingInvalid
        Naming the file.
    """
    lower, capital = folder / "annotations", folder / "Annotations"
    files = wanted.of(_existing(lower, _existing(capital, folder)).glob("*.xml"))
    labelled = (_voc(file, folder, wanted.group_of) for file in files)
    return gathered(labelled, wanted.types, folder)


def read_coco(file: Path, folder: Path, wanted: Wanted = EVERYTHING) -> Annotations:
    """Read one COCO ``instances`` file with its images in `folder`; else as `read_pascal_voc`."""
    images, boxes = _coco(file)
    labelled = (
        Labelled(
            _inside(folder, images[key], str(file)),
            f"{file}, image {images[key]}",
            wanted.group_of(Path(images[key]).stem),
            [name for name, _ in entries],
            [box for _, box in entries],
        )
        for key, entries in boxes.items()
        if not any(part in images[key] for part in wanted.leave_out)
    )
    return gathered(labelled, wanted.types, file)


def read_yolo(folder: Path, types: Sequence[str], wanted: Wanted = EVERYTHING) -> Annotations:
    """Read ``images/`` with ``labels/`` beside it, or both in one folder; see `read_pascal_voc`.

    An image without a label file, or with an empty one, holds no cell. In ``labels/`` every file
    but ``classes.txt`` needs its image; beside the images there may be other texts.
    """
    images = wanted.of(_images(_existing(folder / "images", folder)))
    labels = _existing(folder / "labels", folder)
    stems: dict[str, Path] = {}
    for image in images:
        other = stems.setdefault(image.stem, image)
        if other != image:
            raise TrainingInvalid(f"{image} and {other.name} share one label file: rename one.")
    if labels != folder:
        for label in wanted.of(labels.glob("*.txt")):
            if label.stem not in stems and label.name != "classes.txt":
                raise TrainingInvalid(f"{label} has no image: add the image or remove the labels.")
    labelled = (
        _yolo(image, labels / f"{image.stem}.txt", types, wanted.group_of) for image in images
    )
    return gathered(labelled, types, folder)


def read_crops(folder: Path, wanted: Wanted = EVERYTHING) -> Annotations:
    """Read images of single cells, a subfolder for each type; see `read_pascal_voc`.

    ``groups.csv`` in `folder`, with the columns file (relative) and group, says what belongs
    together, also across types; `wanted.group_of` is asked where there is none.
    """
    groups = read_groups(folder / GROUPS)

    def labelled() -> Iterator[Labelled]:
        for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
            if wanted.types is not None and kind.name not in wanted.types:
                raise TrainingInvalid(
                    f"{kind} is no type of this training ({', '.join(wanted.types)}): rename or"
                    " remove it."
                )
            for image in wanted.of(_images(kind)):
                name = image.relative_to(folder).as_posix()
                group = wanted.group_of(image.stem) if groups is None else groups.get(name)
                if group is None:
                    raise TrainingInvalid(
                        f"{folder / GROUPS} has no line for {name}: add its group."
                    )
                width, height = image_size_px(image)
                yield Labelled(image, str(image), group, [kind.name], [[0, 0, width, height]])

    if not folder.is_dir():
        raise TrainingInvalid(f"{folder} is missing: name the folder with one folder per type.")
    return gathered(labelled(), wanted.types, folder)


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


def _voc(file: Path, folder: Path, group_of: GroupOf) -> Labelled:
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
    # Beside the labels, or in a folder beside theirs: `folder` may be that of the labels alone.
    roots = (folder, file.parent.parent)
    places = [root / name for root in roots for name in ("images", "JPEGImages")]
    places[2:2] = [folder, file.parent]
    paths = [_inside(place, wanted, str(file)) for place in places]
    image = next((path for path in paths if path.is_file()), paths[0])
    return Labelled(image, str(file), group_of(file.stem), names, boxes)


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
            if each.get("iscrowd"):
                raise TrainingInvalid(
                    f"{where} is a crowd (iscrowd), which is no cell: mark its cells, or leave the"
                    " image out."
                )
            x, y, width, height = (float(value) for value in each["bbox"])
            entry = (names[each["category_id"]], [x, y, x + width, y + height])
            boxes[each["image_id"]].append(entry)
        except KeyError as error:
            raise TrainingInvalid(f"{where} lacks or misnames {error}: correct it.") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise TrainingInvalid(f"{where}: its box is not four numbers: correct it.") from error
    return images, boxes


def _yolo(image: Path, label: Path, types: Sequence[str], group_of: GroupOf) -> Labelled:
    width, height = image_size_px(image)
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
    return Labelled(image, str(label), group_of(image.stem), names, boxes)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise TrainingInvalid(f"{folder} is missing: name the folder that holds the images.")
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


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


def read_groups(path: Path) -> dict[str, str] | None:
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
