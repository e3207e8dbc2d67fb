"""Active learning: rare and uncertain images first, and labels that come back in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from models.records import Cells
from models.selection import Candidate, as_pascal_voc, entropy, rank
from models.training.label_formats import Wanted, read_pascal_voc

CLASSES = ("blast", "band_neutrophil", "unclassified")


def found(labels: list[int], sure: float) -> Cells:
    probability = np.full((len(labels), 3), 0.0, np.float32)
    for row, label in enumerate(labels):
        probability[row, :2] = 1 - sure
        probability[row, label] = sure
    box = np.array([[3.0, 4.0, 13.0, 24.0]] * len(labels)).reshape(-1, 4)
    return Cells(
        box_px=box,
        score=np.ones(len(labels), np.float32),
        probability=probability,
        label=np.array(labels, np.int32),
        tile=np.zeros(len(labels), np.int32),
        classes=CLASSES,
        package_digest="",
    )


def candidate(name: str, labels: list[int], sure: float) -> Candidate:
    return Candidate(Path(f"{name}.png"), (40, 30), found(labels, sure))


def test_rare_and_uncertain_images_come_first() -> None:
    ranked = rank(
        [
            candidate("plain", [1] * 8, 0.99),
            candidate("empty", [], 0.9),
            candidate("rare", [0, 1], 0.95),
            candidate("both", [0], 0.6),
            candidate("doubtful", [1, 1], 0.6),
        ]
    )
    names = [each.candidate.path.stem for each in ranked]
    assert names[0] == "both"
    assert names[-1] == "empty"
    assert names.index("plain") > names.index("rare")
    assert all(0 <= each.score <= 1 for each in ranked)


def test_entropy_is_a_share_of_the_highest() -> None:
    np.testing.assert_allclose(entropy(found([0, 0], 0.5)), 1.0)
    np.testing.assert_allclose(entropy(found([0], 1.0)), 0.0, atol=1e-6)


def test_written_labels_are_read_again(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.xml").write_bytes(as_pascal_voc(candidate("a", [0, 1], 0.9)))
    # One box cannot be two types: a person is asked to decide, so move the second.
    text = (tmp_path / "a.xml").read_text().replace("<xmax>13<", "<xmax>14<", 1)
    (tmp_path / "a.xml").write_text(text)
    (image,) = read_pascal_voc(tmp_path, Wanted(("blast", "band_neutrophil"))).images
    np.testing.assert_allclose(image.box_px, [[3, 4, 14, 24], [3, 4, 13, 24]])
    assert image.kind.tolist() == [0, 1]
