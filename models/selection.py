"""Active learning: the unlabelled images worth an expert's time (Tayebi et al. 2021, §2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from models.manifest import UNCLASSIFIED
from models.records import Cells, Float64


@dataclass(frozen=True, slots=True)
class Candidate:
    """An unlabelled image and what a model found in it.

    Attributes
    ----------
    path
    size_px
        Width and height.
    cells
    """

    path: Path
    size_px: tuple[int, int]
    cells: Cells


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate with its worth.

    Attributes
    ----------
    candidate
    rarity
        Mean surprise of its cells' types, in bits: −log₂ of the type's share among all cells found.
    uncertainty
        Mean entropy of its cells' type probabilities, as a share of the highest possible.
    score
        Mean of both ranks, 0 to 1.
    """

    candidate: Candidate
    rarity: float
    uncertainty: float
    score: float


def rank(candidates: Sequence[Candidate]) -> list[Ranked]:
    """Order images by how rare and how uncertain the cells in them are, the most worthy first.

    The paper chooses "those including the rare cellular and non-cellular objects" and where the
    model is weak; how it weighs the two it does not say: here, by the mean of both ranks.
    """
    if not candidates:
        return []
    classes = candidates[0].cells.classes
    count = np.zeros(len(classes))
    for each in candidates:
        np.add.at(count, each.cells.label, 1)
    surprise = -np.log2(np.maximum(count, 1) / max(count.sum(), 1))
    rarity = np.array([_mean(surprise[each.cells.label]) for each in candidates])
    doubt = np.array([_mean(entropy(each.cells)) for each in candidates])
    score = (_ranks(rarity) + _ranks(doubt)) / 2
    order = np.argsort(-score, kind="stable")
    return [
        Ranked(candidates[row], float(rarity[row]), float(doubt[row]), float(score[row]))
        for row in order.tolist()
    ]


def entropy(cells: Cells) -> Float64:
    """Entropy of each cell's type probabilities as a share of the highest possible, (N,)."""
    types = [row for row, key in enumerate(cells.classes) if key != UNCLASSIFIED]
    share = cells.probability[:, types].astype(np.float64)
    share = share / np.maximum(share.sum(1, keepdims=True), 1e-12)
    bits = -(share * np.log2(np.maximum(share, 1e-12))).sum(1)
    return np.asarray(bits / np.log2(max(len(types), 2)), dtype=np.float64)


def as_pascal_voc(candidate: Candidate) -> bytes:
    """What the model found, for an annotation program to correct (the paper's was LabelImg)."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = candidate.path.name
    size = ElementTree.SubElement(root, "size")
    for name, value in zip(("width", "height", "depth"), (*candidate.size_px, 3), strict=True):
        ElementTree.SubElement(size, name).text = str(value)
    cells = candidate.cells
    for label, box in zip(cells.label.tolist(), np.round(cells.box_px).tolist(), strict=True):
        found = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(found, "name").text = cells.classes[label]
        frame = ElementTree.SubElement(found, "bndbox")
        # Pascal VOC counts pixels from 1, and the last one belongs to the box.
        corners = (box[0] + 1, box[1] + 1, box[2], box[3])
        for name, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            ElementTree.SubElement(frame, name).text = str(int(value))
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8"))


def _mean(values: Float64) -> float:
    return float(values.mean()) if len(values) else 0.0


def _ranks(values: Float64) -> Float64:
    """Share of the others that are lower; equal values share their rank."""
    if len(values) < 2:
        return np.ones(len(values))
    lower = (values[None] < values[:, None]).sum(1) + (values[None] == values[:, None]).sum(1) / 2
    return np.asarray((lower - 0.5) / (len(values) - 1), dtype=np.float64)
