"""Tiles of slides in an archive, ranked for an expert: chosen, written, and trained on."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from node.cli import main
from tests.smears import Smear, small_smear
from tests.tiny_package import CLASSES


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Smear:
    return small_smear(tmp_path_factory.mktemp("smear"))


def select(smear: Smear, *more: str) -> Result:
    arguments = ["--config", str(smear.settings()), "train", "select", *more]
    return CliRunner().invoke(main, arguments)


def of_slide(smear: Smear) -> list[str]:
    uids = (smear.slide.study_uid, smear.slide.series_uid)
    return [
        "--model",
        "demo-smear",
        "--pacs",
        smear.pacs_url,
        "--slide",
        *uids,
        "--tile-px",
        "256",
        "--json",
    ]


def test_tiles_of_a_slide_are_ranked_and_written(smear: Smear, tmp_path: Path) -> None:
    ended = select(smear, *of_slide(smear), "--out", str(tmp_path / "chosen"))
    assert ended.exit_code == 0, ended.output
    rows = json.loads(ended.stdout)
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert {row["series_uid"] for row in rows} == {smear.slide.series_uid}
    read = read_as_training(tmp_path / "chosen")
    # Of the slide, in whatever order and with whatever others it is named.
    name = hashlib.sha256(smear.slide.series_uid.encode()).hexdigest()[:12]
    for row in rows:
        x0, y0, x1, y1 = row["box_px"]
        assert (x1 - x0, y1 - y0) == (256, 256)
        assert row["image"] == f"slide_{name}_x{x0:06}_y{y0:06}.png"
        assert np.asarray(Image.open(tmp_path / "chosen" / row["image"])).shape == (256, 256, 3)
        assert len(read[row["image"]]) == row["cells"]
    # Every true cell lies in a box that was written, at its tile's place on the slide.
    truth = smear.slide.truth.box_px
    middle = (truth[:, :2] + truth[:, 2:]) / 2
    boxes = np.concatenate([read[row["image"]] + np.tile(row["box_px"][:2], 2) for row in rows])
    held = ((middle > boxes[:, None, :2]) & (middle < boxes[:, None, 2:])).all(2)
    assert held.any(0).all()
    assert len(boxes) < 1.5 * len(truth)  # a cell on the border of two tiles is in both


def test_labels_that_are_there_are_left_alone(smear: Smear, tmp_path: Path) -> None:
    """Somebody corrects one tile's labels; the next choice is of other tiles, beside them."""
    first = select(smear, *of_slide(smear), "--top", "1", "--out", str(tmp_path))
    (chosen,) = json.loads(first.stdout)
    label = (tmp_path / chosen["image"]).with_suffix(".xml")
    label.write_text(label.read_text().replace("<name>", "<name>corrected "))
    corrected = label.read_bytes()
    second = select(smear, *of_slide(smear), "--out", str(tmp_path))
    names = {row["image"] for row in json.loads(second.stdout)}
    assert chosen["image"] not in names
    assert label.read_bytes() == corrected
    with (tmp_path / "groups.csv").open(newline="") as file:
        rows = {row["file"]: row["group"] for row in csv.DictReader(file)}
    assert rows.keys() == names | {chosen["image"]}
    assert set(rows.values()) == {smear.slide.series_uid}
    assert select(smear, *of_slide(smear), "--out", str(tmp_path)).exit_code != 0  # none is left


def test_images_of_a_folder_keep_the_groups_they_have(smear: Smear, tmp_path: Path) -> None:
    """Of no slide of the archive: a table of nothing would say that none has a group."""
    pixels = Image.fromarray(np.full((200, 200, 3), 230, np.uint8))
    (tmp_path / "images").mkdir()
    pixels.save(tmp_path / "images" / "a.png")
    known = ("--model", "demo-smear", "--um-per-px", "0.25", "--out", str(tmp_path / "out"))
    ended = select(smear, *known, str(tmp_path / "images"))
    assert ended.exit_code == 0, ended.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.xml"]
    (tmp_path / "out" / "groups.csv").write_text("file;group\n")
    ended = select(smear, *of_slide(smear), "--out", str(tmp_path / "out"))
    assert "needs the columns file and group" in ended.output + str(ended.exception)


def test_only_the_first_are_written(smear: Smear, tmp_path: Path) -> None:
    ended = select(smear, *of_slide(smear), "--top", "2", "--out", str(tmp_path))
    names = {row["image"] for row in json.loads(ended.stdout)}
    assert {path.name for path in tmp_path.glob("*.png")} == names
    assert len(names) == 2


def read_as_training(folder: Path) -> dict[str, np.ndarray]:
    """The boxes of every image, read as a training reads corrected labels."""
    pytest.importorskip("torch")
    from models.training.label_formats import Wanted, read_pascal_voc

    found = read_pascal_voc(folder, Wanted(CLASSES))
    return {image.name: image.box_px for image in found.images}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Name a FOLDER of images, or slides"),
        (["."], "--um-per-px"),
        (["--slide", "1.2", "1.3", "."], "Name a FOLDER of images, or slides"),
        (["--um-per-px", "0.25", "nowhere"], "nowhere cannot be read"),
        (["--um-per-px", "-0.25", "."], "-0.25 is no size of a pixel"),
        (["--um-per-px", "nan", "."], "nan is no size of a pixel"),
    ],
)
def test_what_is_missing_is_said(smear: Smear, arguments: list[str], says: str) -> None:
    ended = select(smear, *arguments)
    assert ended.exit_code != 0
    assert says in ended.output + str(ended.exception or "")


def test_an_unknown_slide_is_named(smear: Smear) -> None:
    ended = select(smear, "--pacs", smear.pacs_url, "--slide", "1.2.3", "1.2.4")
    assert ended.exit_code != 0
    assert "1.2.4" in ended.output + str(ended.exception)
