"""YOLOv4 in numbers: what a place answers, what it learns, that it learns, and that it exports.

Size, shapes, gradients and suppression of all detectors are in test_networks.py.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from models.training.boxes import pairwise_iou  # noqa: E402
from models.training.detector import Truth  # noqa: E402
from models.training.export import _fold_batch_norms  # noqa: E402
from models.training.yolov4 import (  # noqa: E402
    ANSWERS,
    COCO_ANCHORS,
    STRIDES,
    YoloV4,
    _DropBlock,
    assigned,
)

DISCS = ((30, 34, 14, 0), (92, 38, 18, 1), (40, 94, 21, 2), (96, 98, 12, 0))  # x, y, radius, type
COLOURS = ((0.5, 0.1, 0.6), (0.9, 0.3, 0.2), (0.1, 0.3, 0.8))


class Learnt(NamedTuple):
    network: Any
    image: Any
    truth: Any


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def discs() -> tuple[Any, Truth]:
    """An image (3, 128, 128) of coloured discs, and their boxes."""
    image = torch.full((3, 128, 128), 0.9)
    y, x = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    for cx, cy, radius, kind in DISCS:
        inside = (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
        image[:, inside] = torch.tensor(COLOURS[kind])[:, None]
    box = [(cx - r, cy - r, cx + r, cy + r) for cx, cy, r, _ in DISCS]
    kinds = torch.tensor([kind for *_, kind in DISCS])
    return image, Truth(torch.tensor(box, dtype=torch.float32), kinds)


@pytest.fixture(scope="module")
def learnt() -> Learnt:
    """A reduced network after 99 steps with one image."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    image, truth = discs()
    network = YoloV4(3, 0.125, 0.33)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=99)
    for _ in range(99):
        terms = network.losses(image[None], [truth])
        optimiser.zero_grad()
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    return Learnt(network.eval(), image, truth)


def silent(types: int = 2) -> Any:
    """A reduced network whose heads answer their biases everywhere."""
    network = YoloV4(types, 0.125, 0.2, anchors=COCO_ANCHORS).eval()
    with torch.no_grad():
        for head in network.heads:
            head[-1].weight.zero_()
            head[-1].bias.fill_(-20.0)
    return network


def test_one_place_decoded_by_hand() -> None:
    """Stride 16, row 3, column 5, second anchor (76, 55); raw x, y, w, h = 2, -1, 0.3, -0.2."""
    network = silent()
    maps = [torch.full((1, 3 * 7, 128 // s, 192 // s), -20.0) for s in STRIDES]
    maps[1][0, 7:14, 3, 5] = torch.tensor([2.0, -1.0, 0.3, -0.2, 1.5, 0.5, -0.5])
    answers = network._decoded(maps)
    number = 3 * (16 * 24) + (3 * 12 + 5) * 3 + 1
    x = (5 + 1 / (1 + math.exp(-2)) * 1.1 - 0.05) * 16
    y = (3 + 1 / (1 + math.exp(1)) * 1.1 - 0.05) * 16
    width, height = 76 * math.exp(0.3), 55 * math.exp(-0.2)
    by_hand = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    assert answers.box[0, number].tolist() == pytest.approx(by_hand, abs=1e-3)
    assert answers.objectness[0, number] == 1.5
    assert answers.kind[0, number].tolist() == [0.5, -0.5]
    assert answers.box.shape == (1, 3 * (16 * 24 + 8 * 12 + 4 * 6), 4)


def test_the_score_is_objectness_times_the_best_type() -> None:
    network = silent()
    with torch.no_grad():
        bias = network.heads[0][-1].bias.view(3, -1)
        bias[0, 4:] = torch.tensor([1.0, 2.0, -1.0])  # the first anchor alone is sure
        bias[0, :4] = 0
        _, score, kind = network(torch.zeros(1, 3, 64, 64))
    sure = [1 / (1 + math.exp(-logit)) for logit in (1.0, 2.0, -1.0)]
    assert score.max().item() == pytest.approx(sure[0] * sure[1], abs=1e-5)
    best = kind[0, int(score[0].argmax())].tolist()
    assert best == pytest.approx([sure[1] / (sure[1] + sure[2]), sure[2] / (sure[1] + sure[2])])


def test_a_shape_is_learnt_by_every_anchor_like_it() -> None:
    """40 × 40 px, centre (40, 24). Shape IoU by hand with the nine anchors, in their order:

    192/1600 = 0.12, 684/1600 = 0.43, 1120/1600 = 0.70; 1440/2860 = 0.50, 1600/4180 = 0.38,
    1600/10512 = 0.15; 1600/15620 = 0.10 and less. Four are above 0.213.
    """
    sizes = [(64 // s, 96 // s) for s in STRIDES]
    place, row = assigned(torch.tensor([[20.0, 4.0, 60.0, 44.0]]), sizes, COCO_ANCHORS)
    stride_8 = (3 * 12 + 5) * 3  # row 3, column 5
    stride_16 = 3 * 8 * 12 + (1 * 6 + 2) * 3  # row 1, column 2
    assert place.tolist() == [stride_8 + 1, stride_8 + 2, stride_16, stride_16 + 1]
    assert row.tolist() == [0] * 4


def test_a_shape_like_no_anchor_is_learnt_by_the_best_one() -> None:
    """4 × 4 px: 16 / 192 is the best overlap, with (12, 16); far below what it takes otherwise."""
    sizes = [(8, 8), (4, 4), (2, 2)]
    place, row = assigned(torch.tensor([[10.0, 18.0, 14.0, 22.0]]), sizes, COCO_ANCHORS)
    assert place.tolist() == [(2 * 8 + 1) * 3]
    assert row.tolist() == [0]


def test_a_centre_on_the_far_edge_is_learnt_by_the_last_place() -> None:
    sizes = [(8, 8), (4, 4), (2, 2)]
    place, _ = assigned(torch.tensor([[58.0, 56.0, 70.0, 72.0]]), sizes, COCO_ANCHORS)
    assert 8 * 8 * 3 - 3 in place.tolist()


def test_a_near_miss_is_neither_right_nor_wrong() -> None:
    """An unassigned answer that overlaps a truth by more than 0.7 adds nothing to the loss.

    The truth, 12 × 16 px around (24.1, 28), is learnt in row 3, column 3 of stride 8. The place
    left of it is sure of a cell of that shape, once at its right edge and once at its left.
    """

    def loss_of(neighbour: float) -> float:
        network = silent()
        maps = [torch.full((1, 3 * 7, 64 // s, 64 // s), -20.0) for s in STRIDES]
        maps[0][0, :4] = 0
        maps[0][0, 0, 3, 2] = neighbour
        maps[0][0, 4, 3, 2] = 5.0
        network._maps = lambda _: maps
        truth = Truth(torch.tensor([[18.1, 20.0, 30.1, 36.0]]), torch.tensor([0]))
        return float(network.losses(torch.zeros(1, 3, 64, 64), [truth])["objectness"])

    # Right: x = (2 + 1.1) · 8 = 24.8, an IoU of 11.3 / 12.7 = 0.89. Left: 15.2, 3.1 / 20.9 = 0.15.
    # Two positives share the loss: the truth fits (12, 16), and (19, 36) with 192/684 = 0.28.
    wrong = math.log1p(math.exp(5.0)) / 2
    assert loss_of(-20.0) - loss_of(20.0) == pytest.approx(wrong, rel=1e-3)


def test_images_without_cells_teach_objectness_alone() -> None:
    network = YoloV4(2, 0.125, 0.2)
    nothing = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    terms = network.losses(torch.rand(2, 3, 64, 96), [nothing, nothing])
    assert terms["box"] == 0
    assert terms["kind"] == 0
    assert 0 < terms["objectness"] < math.inf


@pytest.mark.parametrize("side", [7, 8, 10, 12, 16, 24])
def test_a_tenth_is_dropped_of_maps_of_every_size(side: int) -> None:
    """Blocks that overlap drop less than their number: never more than is meant."""
    drop = _DropBlock()
    x = torch.ones(64, 64, side, side)
    dropped = drop.train()(x)
    share = (dropped == 0).float().mean().item()
    assert 0.07 < share < 0.105
    assert dropped.mean().item() == pytest.approx(1, abs=1e-4)  # as much as before
    assert torch.equal(drop.eval()(x), x)


def test_a_reduced_network_learns_one_image_by_heart(learnt: Learnt) -> None:
    with torch.no_grad():
        box, score, kind = learnt.network(learnt.image[None])
    best = score[0].topk(len(DISCS)).indices
    overlap = pairwise_iou(learnt.truth.box, box[0, best])
    print(f"IoU with the four best: {overlap.max(1).values.tolist()}, scores {score[0, best]}")
    assert overlap.max(1).values.min() > 0.5
    assert overlap.argmax(1).unique().numel() == len(DISCS)  # each disc has its own
    assert torch.equal(kind[0, best][overlap.argmax(1)].argmax(1), learnt.truth.kind)


def test_padding_moves_no_box(learnt: Learnt) -> None:
    """128 × 128 px cut to 121 × 115: the discs that remain whole stay where they are."""
    with torch.no_grad():
        box, score, _ = learnt.network(learnt.image[None, :, :121, :115])
    assert box.shape == (1, min(ANSWERS, 3 * (16**2 + 8**2 + 4**2)), 4)
    overlap = pairwise_iou(learnt.truth.box, box[0, score[0].topk(8).indices])
    assert overlap.max(1).values.min() > 0.5


@pytest.mark.slow
def test_onnx_runtime_says_the_same_at_another_size(learnt: Learnt, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    free, fixed = torch.export.Dim.DYNAMIC, torch.export.Dim.STATIC
    network = copy.deepcopy(learnt.network)
    _fold_batch_norms(network)  # as every export does; a third of the time
    program = torch.onnx.export(
        network,
        (torch.rand(2, 3, 96, 160),),
        output_names=["box", "score", "type_probability"],
        dynamic_shapes=((free, fixed, free, free),),
        dynamo=True,
        external_data=False,
    )
    program.save(tmp_path / "yolov4.onnx", external_data=False)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(
        tmp_path / "yolov4.onnx", options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    for shape in ((3, 128, 128), (1, 121, 115)):
        count, high, wide = shape
        image = learnt.image[None, :, :high, :wide].repeat(count, 1, 1, 1).contiguous()
        with torch.no_grad():
            expected = [each.numpy() for each in learnt.network(image)]
        answered = session.run(None, {name: image.numpy()})
        sure = expected[1] > 0.05  # below, near ties of a small network change places
        assert sure.sum() >= count * len(DISCS)
        assert np.array_equal(sure, answered[1] > 0.05)
        assert np.abs(expected[0] - answered[0])[sure].max() <= 0.5
        assert np.abs(expected[1] - answered[1]).max() <= 1e-3
        assert np.abs(expected[2] - answered[2])[sure].max() <= 1e-3
