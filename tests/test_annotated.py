"""Readers of annotated images: what is right is read, what is wrong is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.errors import TrainingInvalid
from models.training.annotated import (
    AnnotatedImage,
    read_rgb,
)
from models.training.label_formats import (
    Wanted,
    read_coco,
    read_crops,
    read_pascal_voc,
    read_yolo,
)


def picture(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 150, 150)).save(path)
    return path


def voc(path: Path, objects: str, filename: str = "a.png") -> None:
    path.write_text(f"<annotation><filename>{filename}</filename>{objects}</annotation>")


def thing(name: str, *corners: object) -> str:
    edges = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{edges}</bndbox></object>"


def test_pascal_voc_counts_pixels_from_one(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    voc(tmp_path / "a.xml", thing("blast", 1, 1, 10, 20) + thing("band", 31, 21, 40, 30))
    found = read_pascal_voc(tmp_path)
    assert found.types == ("band", "blast")
    (image,) = found.images
    assert image.box_px.tolist() == [[0, 0, 10, 20], [30, 20, 40, 30]]
    assert image.kind.tolist() == [1, 0]
    assert image.read().shape == (30, 40, 3)
    assert image.group == "a"


def test_images_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "annotations").mkdir()
    voc(tmp_path / "annotations" / "a.xml", thing("blast", 1, 1, 10, 20))
    assert len(read_pascal_voc(tmp_path).images) == 1


@pytest.mark.parametrize("named", [".", "Annotations"])
def test_the_folders_of_pascal_voc_itself_are_read(tmp_path: Path, named: str) -> None:
    """VOCdevkit's layout, by its folder or by that of the labels."""
    picture(tmp_path / "JPEGImages" / "a.png")
    (tmp_path / "Annotations").mkdir()
    voc(tmp_path / "Annotations" / "a.xml", thing("blast", 1, 1, 10, 20))
    assert len(read_pascal_voc(tmp_path / named).images) == 1


@pytest.mark.parametrize(
    ("objects", "says"),
    [
        (thing("blast", 1, 1, 60, 20), "leaves the image of 40 x 30 px"),
        (thing("blast", 20, 1, 10, 20), "empty or inside out"),
        (thing("blast", "one", 1, 10, 20), "object 1: its box is not four numbers"),
        (thing("cat", 1, 1, 10, 20), "'cat' is none of the types"),
        (thing("blast", 1, 1, 9, 9) + thing("band", 1, 1, 9, 9), "both 'blast' and 'band'"),
        ("<object>", "is not XML"),
        (thing("blast", "nan", 1, 10, 20), "empty or inside out"),
        (thing("blast", 0, 1, 0, 20), "object 1: nothing of its box lies in the image"),
        (thing("", 1, 1, 10, 20), "object 1 has no type"),
        ("", "holds no annotated cell"),
    ],
)
def test_every_wrong_label_is_named(tmp_path: Path, objects: str, says: str) -> None:
    picture(tmp_path / "a.png")
    voc(tmp_path / "a.xml", objects)
    with pytest.raises(TrainingInvalid) as error:
        read_pascal_voc(tmp_path, Wanted(("blast", "band")))
    assert says in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_all_faulty_files_are_named_at_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
        voc(tmp_path / f"{name}.xml", thing("blast", 1, 1, 99, 99), f"{name}.png")
    with pytest.raises(TrainingInvalid, match=r"a\.xml.*Faulty as well: b\.png, c\.png"):
        read_pascal_voc(tmp_path)


def test_entities_and_other_folders_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text('<!DOCTYPE x [<!ENTITY e "boo">]><annotation>&e;</annotation>')
    with pytest.raises(TrainingInvalid, match="entities"):
        read_pascal_voc(tmp_path)
    for name in ("../a.png", "/etc/passwd"):
        voc(tmp_path / "a.xml", thing("blast", 1, 1, 10, 20), name)
        with pytest.raises(TrainingInvalid, match="outside of its folder"):
            read_pascal_voc(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_no_encoding_hides_an_entity(tmp_path: Path, encoding: str) -> None:
    picture(tmp_path / "a.png")
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE x [<!ENTITY e "boo">]>'
        f"<annotation><filename>a.png</filename>{thing('&e;', 1, 1, 10, 20)}</annotation>"
    )
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(TrainingInvalid, match=r"a\.xml declares a document type or entities"):
        read_pascal_voc(tmp_path)


@pytest.mark.parametrize("text", [b"", b'<?xml version="1.0" encoding="none"?><annotation/>'])
def test_what_is_no_xml_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.xml").write_bytes(text)
    with pytest.raises(TrainingInvalid, match=r"a\.xml is not XML"):
        read_pascal_voc(tmp_path)


def test_one_image_is_labelled_once(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for name in ("a.xml", "b.xml"):
        voc(tmp_path / name, thing("blast", 1, 1, 10, 20))
    with pytest.raises(TrainingInvalid, match=r"b\.xml: .*a\.png is annotated twice"):
        read_pascal_voc(tmp_path)


@pytest.mark.parametrize(("dtype", "value"), [(np.uint16, 3000), (np.float32, 0.5)])
def test_images_of_more_than_8_bits_are_refused(tmp_path: Path, dtype: Any, value: float) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((30, 40), value, dtype)).save(path)
    with pytest.raises(TrainingInvalid, match=r"a\.tif has more than 8 bits"):
        read_rgb(path)


@pytest.mark.filterwarnings("ignore")  # Pillow says what it skips
def test_damaged_images_are_sentences_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a"
    pixels = Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8))
    refused = 0
    for suffix in ("PNG", "JPEG", "TIFF", "BMP"):
        pixels.save(path, suffix)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(150):
            broken = whole.copy()
            broken[rng.integers(0, 60, 4)] = rng.integers(0, 256, 4)
            path.write_bytes(broken.tobytes())
            try:
                read_rgb(path)
            except TrainingInvalid as error:
                refused += str(path) in str(error)
    assert refused > 300


def test_a_record_takes_its_own_types_of_array_only() -> None:
    def record(box: Any, kind: Any) -> AnnotatedImage:
        return AnnotatedImage("a", "a", (9, 9), lambda: np.zeros((9, 9, 3), np.uint8), box, kind)

    box, kind = np.array([[0, 0, 5, 5]], np.float32), np.array([-1], np.int64)
    made = record(box, kind)
    assert not made.box_px.flags.writeable
    assert not made.kind.flags.writeable
    for wrong in (
        (box.astype(np.float64), kind),
        (box, kind.astype(np.int32)),
        (box, np.array([0, 1])),
        (box, kind[:, None]),
        (box * np.float32(np.nan), kind),
    ):
        with pytest.raises(ValueError, match=r"^a: "):
            record(*wrong)


def test_missing_and_broken_images_are_named(tmp_path: Path) -> None:
    voc(tmp_path / "a.xml", thing("blast", 1, 1, 10, 20))
    with pytest.raises(TrainingInvalid, match=r"a\.png is missing"):
        read_pascal_voc(tmp_path)
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(TrainingInvalid, match=r"a\.png is not an image"):
        read_pascal_voc(tmp_path)
    whole = picture(tmp_path / "b.png", (400, 300)).read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingInvalid, match=r"b\.png cannot be decoded"):
        read_rgb(tmp_path / "b.png")


def coco(tmp_path: Path, **changes: Any) -> Path:
    picture(tmp_path / "a.png")
    root = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "categories": [{"id": 3, "name": "blast"}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20]}],
    } | changes
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(root))
    return path


def test_coco_has_corner_and_size(tmp_path: Path) -> None:
    (image,) = read_coco(coco(tmp_path), tmp_path).images
    assert image.box_px.tolist() == [[1, 2, 11, 22]]


CELL = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"annotations": [CELL, CELL | {"image_id": 8}]}, "annotation 2 lacks or misnames 8"),
        ({"annotations": [CELL | {"category_id": 9}]}, "annotation 1 lacks or misnames 9"),
        ({"annotations": [CELL | {"bbox": [1, 2]}]}, "annotation 1: its box is not four numbers"),
        ({"annotations": [CELL | {"bbox": None}]}, "annotation 1: its box is not four numbers"),
        ({"annotations": [CELL | {"iscrowd": 1}]}, "annotation 1 is a crowd (iscrowd)"),
        ({"annotations": [None]}, "annotation 1: its box is not four numbers"),
        ({"annotations": [CELL, CELL]}, "is 'blast' twice"),
        ({"annotations": []}, "holds no annotated cell"),
        ({"images": None}, "is not COCO"),
        ({"images": [{"id": 7, "file_name": "../a.png"}]}, "outside of its folder"),
        ({"images": [{"id": 7, "file_name": "/a.png"}]}, "outside of its folder"),
        ({"images": [{"id": 7, "file_name": "a.png"}] * 2}, "one id to two images"),
        ({"images": [{"id": i, "file_name": "a.png"} for i in (7, 8)]}, "annotated twice"),
        ({"categories": [{"id": 3, "name": name} for name in "ab"]}, "one id to two images or"),
        ({"categories": [{"id": 3, "name": None}]}, "has no type"),
    ],
)
def test_a_wrong_coco_file_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TrainingInvalid, match=r"coco\.json") as error:
        read_coco(coco(tmp_path, **changes), tmp_path)
    assert says in str(error.value)


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_coco_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "coco.json").write_bytes(text)
    with pytest.raises(TrainingInvalid, match=r"coco\.json is not (COCO|UTF-8)"):
        read_coco(tmp_path / "coco.json", tmp_path)


def test_yolo_has_centres_and_shares(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "empty.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.5 0.2\n")
    found = read_yolo(tmp_path, ("WBC", "RBC"))
    first, second = found.images
    np.testing.assert_allclose(first.box_px, [[10, 12, 30, 18]])
    assert first.kind.tolist() == [1]
    assert len(second.kind) == 0
    assert len(read_yolo(tmp_path, ("WBC", "RBC"), Wanted(leave_out=["empty"])).images) == 1


@pytest.mark.parametrize("line", ["1 0.5 0.5 0.5", "x 0.5 0.5 0.1 0.1", "2 0.5 0.5 0.1 0.1"])
def test_a_wrong_yolo_line_is_named(tmp_path: Path, line: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(f"0 0.5 0.5 0.5 0.2\n{line}\n")
    with pytest.raises(TrainingInvalid, match=r"a\.txt, line 2"):
        read_yolo(tmp_path, ("WBC", "RBC"))


def test_yolo_labels_and_images_belong_together(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.5 0.2\n")
    (tmp_path / "labels" / "classes.txt").write_text("WBC\nRBC\n")
    assert len(read_yolo(tmp_path, ("WBC", "RBC")).images) == 1
    (tmp_path / "labels" / "b.txt").write_text("1 0.5 0.5 0.5 0.2\n")
    with pytest.raises(TrainingInvalid, match=r"b\.txt has no image"):
        read_yolo(tmp_path, ("WBC", "RBC"))
    picture(tmp_path / "images" / "b.png")
    picture(tmp_path / "images" / "b.jpg")
    with pytest.raises(TrainingInvalid, match=r"b\.png and b\.jpg share one label file"):
        read_yolo(tmp_path, ("WBC", "RBC"))


def test_yolo_labels_that_are_no_text_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(TrainingInvalid, match=r"a\.txt is not UTF-8"):
        read_yolo(tmp_path, ("WBC",))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (b"", "needs the columns file and group"),
        (b"file,group\n", r"has no line for blast/0\.png"),
        (b"file,group\nblast/0.png\n", "line 2: file or group is empty"),
        (b"file,label,group\nblast/0.png,blast,\n", "line 2: file or group is empty"),
        (b"file,group\nblast/0.png,1\nblast/0.png,2\n", r"line 3: blast/0\.png is in two groups"),
        (b"file,group\n\xff,1\n", "is not UTF-8"),
    ],
)
def test_a_wrong_table_of_groups_is_named(tmp_path: Path, table: bytes, says: str) -> None:
    picture(tmp_path / "blast" / "0.png")
    (tmp_path / "groups.csv").write_bytes(table)
    with pytest.raises(TrainingInvalid, match=rf"groups\.csv.*{says}"):
        read_crops(tmp_path)


def test_a_table_of_groups_may_come_from_a_spreadsheet(tmp_path: Path) -> None:
    picture(tmp_path / "blast" / "0.png")
    (tmp_path / "groups.csv").write_bytes(b"\xef\xbb\xbffile,group\r\nblast/0.png,7\r\n")
    assert read_crops(tmp_path).images[0].group == "7"


def test_crops_have_their_folders_type_and_their_tables_group(tmp_path: Path) -> None:
    for name in ("blast/0.png", "blast/1.png", "band/0.png"):
        picture(tmp_path / name)
    found = read_crops(tmp_path)
    assert [image.group for image in found.images] == ["0", "0", "1"]
    (tmp_path / "groups.csv").write_text(
        "file,label,group\nblast/0.png,blast,4\nblast/1.png,blast,4\nband/0.png,band,4\n"
    )
    found = read_crops(tmp_path)
    assert [image.group for image in found.images] == ["4", "4", "4"]  # a group may span types
    assert found.images[0].box_px.tolist() == [[0, 0, 40, 30]]
    (tmp_path / "groups.csv").write_text("file,group\nblast/0.png,4\n")
    with pytest.raises(TrainingInvalid, match=r"groups\.csv has no line for band/0\.png"):
        read_crops(tmp_path)
    with pytest.raises(TrainingInvalid, match="is no type of this training"):
        read_crops(tmp_path, Wanted(("blast",)))
