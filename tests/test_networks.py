"""The four papers' networks: sizes against published ones, shapes, and that answers are boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from models.training.boxes import encode, suppress  # noqa: E402
from models.training.cascade_rcnn import MEAN_BGR, cascade_rcnn  # noqa: E402
from models.training.cascade_rcnn import _normalised as cascade_normalised  # noqa: E402
from models.training.cross_mini_batch import CrossMiniBatchNorm, begin_batch  # noqa: E402
from models.training.detector import Truth, surviving  # noqa: E402
from models.training.dual_stage_cnn import TYPES, DualStageCnn, MaturationCnn, yuv  # noqa: E402
from models.training.faster_rcnn import _head_losses, answered_iou, faster_rcnn  # noqa: E402
from models.training.region_proposals import RegionProposals  # noqa: E402
from models.training.resnet_fpn import ResNetFpn, resnet  # noqa: E402
from models.training.tile_task import tile_classifier  # noqa: E402
from models.training.yolov4 import COCO_ANCHORS, STRIDES, YoloV4, assigned  # noqa: E402

NO_CELL = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
SMALL = {"depth": 18, "width": 0.125, "channels": 16, "connected": 32, "proposals": 40}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def millions(module: Any) -> float:
    return sum(weight.numel() for weight in module.parameters()) / 1e6


def test_yolov4_has_the_published_size() -> None:
    """64.4 M at 80 classes (the darknet model zoo's yolov4, 64.36 M); batch norms counted."""
    assert millions(YoloV4(80, anchors=COCO_ANCHORS)) == pytest.approx(64.4, rel=0.01)


def test_densenet_has_the_published_size() -> None:
    """6.95 M features, and a head of 1024 × 2 + 2."""
    network = tile_classifier()
    assert millions(network.features) == pytest.approx(6.95, rel=0.01)
    assert millions(network) == pytest.approx(6.954 + 0.00205, rel=0.01)


def test_resnet_101_has_the_published_size() -> None:
    assert millions(resnet(101)) == pytest.approx(42.5, rel=0.01)


def test_the_thirteen_convolutions_are_vgg_16s() -> None:
    """14.7 M; the batch norms are the paper's addition and the head is not VGG's."""
    layers = [m for m in MaturationCnn(10).features if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) == 13
    assert sum(millions(layer) for layer in layers) == pytest.approx(14.7, rel=0.01)


def test_full_size_is_the_default_of_both_r_cnns() -> None:
    """ResNet-101 and the pyramid, 3.3 M, are the same in both."""
    trunk = millions(ResNetFpn())
    assert trunk == pytest.approx(42.5 + 3.34, rel=0.01)
    head = 256 * 49 * 1024 + 1024 + 1024**2 + 1024
    proposals = millions(RegionProposals(256))
    faster = head + 1025 * 20 + 1025 * 80
    assert millions(faster_rcnn(20)) == pytest.approx(trunk + proposals + faster / 1e6)
    cascade = 3 * (head + 1025 * 17 + 1025 * 4)
    assert millions(cascade_rcnn(16)) == pytest.approx(trunk + proposals + cascade / 1e6)


DETECTORS: list[Callable[[], Any]] = [
    lambda: YoloV4(3, 0.125, 0.2),
    lambda: YoloV4(3, 0.125, 0.2, attention=True, weighted_residuals=True),
    lambda: faster_rcnn(3, **SMALL),
    lambda: cascade_rcnn(3, **SMALL),
]


@pytest.mark.parametrize("build", DETECTORS)
def test_answers_are_boxes_scores_and_shares(build: Callable[[], Any]) -> None:
    network = build().eval()
    with torch.no_grad():
        box, score, kind = network(torch.rand(2, 3, 70, 101))
    assert box.shape == (*score.shape, 4)
    assert kind.shape == (*score.shape, 3)
    assert torch.isfinite(box).all()
    assert (box[..., 0::2] <= 101).all()
    assert (box[..., 1::2] <= 70).all()
    assert (box >= 0).all()
    assert ((score >= 0) & (score <= 1)).all()
    kept = score > 0
    assert (box[kept][:, 2:] > box[kept][:, :2]).all()  # nothing in the padding
    torch.testing.assert_close(kind[kept].sum(-1), torch.ones(int(kept.sum())))


@pytest.mark.parametrize("build", DETECTORS)
def test_losses_have_gradients_with_and_without_cells(build: Callable[[], Any]) -> None:
    network = build()
    image = torch.rand(2, 3, 96, 96)
    nothing = NO_CELL
    cells = Truth(torch.tensor([[10.0, 10, 40, 40], [50, 50, 90, 80]]), torch.tensor([0, 2]))
    for truth in ([cells, nothing], [nothing, nothing]):
        terms = network.losses(image, truth)
        total = sum(terms.values())
        assert torch.isfinite(total), terms
        network.zero_grad()
        total.backward()
        assert all(torch.isfinite(w.grad).all() for w in network.parameters() if w.grad is not None)


@pytest.mark.parametrize("build", DETECTORS)
def test_mixed_precision_learns_what_full_precision_does(build: Callable[[], Any]) -> None:
    """As on a GPU: layers in bfloat16, whose eight bits place a box at 500 px to 2 px."""
    image = torch.rand(1, 3, 512, 512)
    box = torch.tensor([[401.0, 421, 447, 469], [31, 33, 71, 77], [469, 101, 509, 139]])
    truth = [Truth(box, torch.tensor([0, 2, 1]))]
    network = build()
    terms = []
    for mixed in (False, True):
        torch.manual_seed(1)  # of what is drawn from the proposals
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            terms.append(network.losses(image, truth))
        network.zero_grad()
        sum(terms[-1].values()).backward()
    for name, full in terms[0].items():
        assert float(terms[1][name]) == pytest.approx(float(full), rel=0.1, abs=0.01), name


@pytest.mark.parametrize("build", [faster_rcnn, cascade_rcnn])
def test_scores_are_told_apart_in_mixed_precision(build: Callable[..., Any]) -> None:
    """In bfloat16 there are six values between -4 and -3.9, and what is ranked are ties."""
    network = build(10, **SMALL)
    head = network.head if build is faster_rcnn else network.heads[0]
    with torch.autocast("cpu", torch.bfloat16):
        score, offset = head(torch.rand(500, 16 * 49))
        (logits, *_) = network.pyramid.proposals([torch.rand(1, 16, 32, 32)] * 5).logits
    for each in (score, offset, logits):
        assert each.dtype == torch.float32
        assert len(each.unique()) > 0.9 * each.numel()


def test_yolov4_places_boxes_in_32_bits() -> None:
    """In 16 of mixed precision, neighbouring places at 500 px would be the same."""
    network = YoloV4(2, 0.125, 0.2)
    maps = [torch.zeros(1, 21, 512 // stride, 512 // stride) for stride in STRIDES]
    placed = network._decoded([each.bfloat16() for each in maps])
    torch.testing.assert_close(placed.box, network._decoded(maps).box, rtol=0, atol=0)


@pytest.mark.parametrize("by_distance", [False, True])
def test_survivors_are_those_of_the_greedy_suppression(by_distance: bool) -> None:
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        corner = torch.rand(60, 2, generator=random) * 60
        box = torch.cat((corner, corner + 5 + torch.rand(60, 2, generator=random) * 40), 1)
        score = torch.rand(60, generator=random).sort(descending=True).values
        kept = surviving(box[None], score[None], 0.4, by_distance)[0]
        greedy = suppress(box, score, 0.4, by_distance)
        assert kept.nonzero()[:, 0].tolist() == sorted(greedy.tolist())


def test_what_is_no_candidate_suppresses_nothing() -> None:
    box = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10]]])
    assert surviving(box, torch.tensor([[0.0, 0.0]]), 0.5).tolist() == [[False, False]]


def test_a_box_is_learnt_where_its_centre_and_shape_lie() -> None:
    """Hand-read: a 12 × 16 px box belongs to the first anchor of stride 8."""
    sizes = [(64 // s, 96 // s) for s in STRIDES]
    box = torch.tensor([[34.0, 16.0, 46.0, 32.0]])  # centre (40, 24): column 5, row 3 of stride 8
    place, row = assigned(box, sizes, COCO_ANCHORS)
    assert (3 * 12 + 5) * 3 + 0 in place.tolist()
    assert row.unique().tolist() == [0]
    large = torch.tensor([[0.0, 0.0, 64.0, 64.0]])  # (76, 55) fits best: second of stride 16
    place, _ = assigned(large, sizes, COCO_ANCHORS)
    stride_8 = 8 * 12 * 3
    assert stride_8 + (2 * 6 + 2) * 3 + 1 in place.tolist()


def test_the_smaller_of_two_boxes_has_the_answer() -> None:
    sizes = [(8, 8), (4, 4), (2, 2)]
    boxes = torch.tensor([[20.0, 20, 44, 44], [24.0, 24, 42, 42]])
    place, row = assigned(boxes, sizes, COCO_ANCHORS)
    assert len(place.unique()) == len(place)
    assert 1 in row.tolist()


def test_an_attack_leaves_no_trace_in_the_batch_norms() -> None:
    torch.manual_seed(0)
    network = YoloV4(2, 0.125, 0.2)
    begin_batch(network, 2)
    network.losses(torch.rand(1, 3, 64, 64), [NO_CELL])
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    layers = [each for each in network.modules() if isinstance(each, CrossMiniBatchNorm)]
    seen = [(layer._seen, layer._sum) for layer in layers]
    network.attacked(torch.rand(1, 3, 64, 64))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.named_buffers())
    assert all(
        layer._seen == number and layer._sum is total
        for layer, (number, total) in zip(layers, seen, strict=True)
    )


def test_an_attack_hides_what_the_network_sees() -> None:
    network = YoloV4(2, 0.125, 0.2)
    image = torch.rand(1, 3, 64, 64)
    changed = network.attacked(image, 1 / 255)
    assert 0 < (changed - image).abs().max() <= 1 / 255 + 1e-6


def test_scores_are_ranked_by_how_well_the_answered_box_fits() -> None:
    """Liu et al. (2022): "y is the IOU value of the prediction box and GTbox"."""
    candidate = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 14], [0, 0, 20, 12]])
    cells = Truth(torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([1]))
    offset = torch.zeros(3, 4)
    offset[0, 0] = 5.0  # fits, and is moved 10 px aside: a tenth of a width is 1
    offset[1] = encode(cells.box, candidate[1:2], (10.0, 10.0, 5.0, 5.0))[0]  # is made whole
    fits = answered_iou(offset, candidate, cells.box.expand(3, 4))
    assert fits.tolist() == pytest.approx([10 / 30, 1.0, 12 / 20], abs=1e-5)

    # The loss knows: those that fit worse stand before those that fit better, or the other way.
    logit = torch.tensor([[-9.0, 2.0], [-9.0, 0.0], [-9.0, 1.0]])
    answers = torch.stack((torch.zeros(3, 4), offset), 1)
    plain = torch.zeros(3, 2, 4)
    moved, _ = _head_losses(logit, answers, candidate, cells)
    still, _ = _head_losses(logit, plain, candidate, cells)
    assert moved > still + 0.01


def test_cascade_takes_blue_green_red_less_imagenets_mean() -> None:
    image = torch.zeros(1, 3, 1, 1)
    image[0, 0] = 1.0  # red
    blue, green, red = cascade_normalised(image)[0, :, 0, 0].tolist()
    assert (blue, green, red) == (-MEAN_BGR[0], -MEAN_BGR[1], 255 - MEAN_BGR[2])


def test_yuv_of_grey_has_no_colour() -> None:
    y, u, v = yuv(torch.full((1, 3, 1, 1), 0.5))[0, :, 0, 0].tolist()
    assert y == pytest.approx(0.5, abs=1e-4)
    assert (u, v) == pytest.approx((0, 0), abs=1e-4)


class _Says(torch.nn.Module):
    """Answers the same logits to every crop."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, crop: Any) -> Any:
        return self.logits.expand(len(crop), -1)


def test_the_local_network_decides_between_band_and_segmented_alone() -> None:
    band, segmented = TYPES.index("band_neutrophil"), TYPES.index("segmented_neutrophil")
    crop = torch.zeros(1, 3, 96, 96)
    logits = [0.0] * 10
    logits[band], logits[segmented] = 3.0, 1.0
    dual = DualStageCnn(_Says(logits), _Says([-1.0, 1.0]))
    said = dual(crop)[0]
    before = torch.softmax(torch.tensor(logits), 0)
    assert said.argmax() == segmented
    torch.testing.assert_close(said[segmented], before[band])
    torch.testing.assert_close(said.sum(), torch.tensor(1.0))
    logits[0] = 5.0  # another type: the local network is not asked
    dual = DualStageCnn(_Says(logits), _Says([-1.0, 1.0]))
    torch.testing.assert_close(dual(crop)[0], torch.softmax(torch.tensor(logits), 0))


@pytest.mark.parametrize("count", [64, 129])  # the latter is one more than are settled at a time
def test_settled_norms_answer_without_dropout_as_they_learnt(count: int) -> None:
    network = MaturationCnn(4, 0.0625)
    crops = torch.rand(count, 3, 96, 96)
    network.train()
    for _ in range(3):
        network(crops)
    network.settle(crops)
    with torch.no_grad():
        logits = network(crops)
    assert not network.training
    assert logits.std(0).min() > 1e-3  # crops are told apart
