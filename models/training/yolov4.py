"""YOLOv4 (Bochkovskiy et al. 2020, arXiv 2004.10934): the cell detector of Tayebi et al. (2021).

CSPDarknet53 with Mish → spatial pyramid pooling → path aggregation → three heads at strides 8, 16
and 32, three anchors each. In training: complete IoU, several anchors per truth, label smoothing,
DropBlock, grid sensitivity eliminated, cross mini-batch normalisation; suppression is by distance
IoU.

What Tayebi et al. (2021), §4.4 list and is left out, or otherwise here:

* Spatial attention and weighted residuals are off unless a recipe's ``network`` asks for them, so
  that the network is the one of the published 64.4 M parameters; the shipped package has neither.
* DropBlock is in the neck only and drops the same share from the first step on (Ghiasi et al. 2018
  raise it slowly). In the backbone, where the paper has it, too, it is left out: the reduced
  networks have few channels to spare there (not measured).
* The paper names a polynomial schedule, cosine annealing and steps at 104 000 and 117 000 of
  130 000: one training cannot follow all three. Steps are the default, cosine is a recipe's choice,
  the polynomial is left out. Darknet's warm-up rises with the fourth power of the step; here it
  is a straight line.
* Hyperparameters are not sought by a genetic algorithm: that takes hundreds of trainings.
* Cross mini-batch normalisation is at work where a recipe has more than one mini-batch; the shipped
  package was trained with one.
* Random shapes change with every mini-batch, by up to a quarter, and not with every tenth batch.
* Weights of the loss, the shares of Mosaic, CutMix and self-adversarial training, the clipped
  gradient and the anchors, which are round as cells are, are ours.
* Suppression is among all types at once, not type by type: one cell has one type.

Shape legend: B images of H × W px, h × w places of a head, A = 3 anchors, K types, N = Σ A·h·w
answers of an image before suppression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.box_losses import complete_iou
from models.training.boxes import clipped, pairwise_iou
from models.training.cross_mini_batch import CrossMiniBatchNorm, as_if_unseen
from models.training.detector import Truth, best_of, ranked

STRIDES = (8, 16, 32)
Anchors = tuple[tuple[tuple[float, float], ...], ...]
# Width and height in px, for images of 512 px: those the authors publish, from COCO.
COCO_ANCHORS: Anchors = (
    ((12, 16), (19, 36), (40, 28)),
    ((36, 75), (76, 55), (72, 146)),
    ((142, 110), (192, 243), (459, 401)),
)
# Cells are round, so one side each: from platelets to megakaryocytes at 0.25 µm per px.
CELL_ANCHORS: Anchors = (
    ((12, 12), (20, 20), (30, 30)),
    ((42, 42), (56, 56), (74, 74)),
    ((100, 100), (150, 150), (240, 240)),
)
# The centre may reach a little over its place, so that a sigmoid reaches the edge (§3.4 there).
GRID_SCALES = (1.2, 1.1, 1.05)
# Before suppression. Some five answers learn each cell, and a tile of 640 px may show 200 of them.
ANSWERS = 1200
SUPPRESSION_DIOU = 0.5
# An anchor learns every truth whose shape is that close to its own; and the best one always.
ANCHOR_IOU = 0.213
IGNORE_IOU = 0.7
LABEL_SMOOTHING = 0.1
DROP_SHARE, DROP_BLOCK = 0.1, 7
# Ours. Darknet's, 0.07 (iou_normalizer) against 1 and 1, weigh terms that it adds up otherwise.
BOX_WEIGHT, OBJECT_WEIGHT, KIND_WEIGHT = 3.0, 1.0, 1.0


class _Conv(nn.Sequential):
    """Convolution, cross mini-batch norm, Mish (in the detector, too: Tayebi et al. 2021, §4.4)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            CrossMiniBatchNorm(outputs),
            nn.Mish(),
        )


class _Residual(nn.Module):
    """1 × 1 and 3 × 3 beside a shortcut; `weighted` learns the share of both inputs."""

    def __init__(self, width: int, hidden: int, weighted: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(_Conv(width, hidden, 1), _Conv(hidden, width, 3))
        self.share = nn.Parameter(torch.ones(2)) if weighted else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        if self.share is None:
            return x + y
        # Multi-input weighted residual connections, normalised as in BiFPN (Tan et al. 2020, §3.3).
        share = functional.relu(self.share)
        return (share[0] * x + share[1] * y) / (share.sum() + 1e-4)


class _CspStage(nn.Module):
    """Half the way through residual blocks, half past them (Wang et al. 2020, figure 3b)."""

    def __init__(self, inputs: int, outputs: int, blocks: int, first: bool, weighted: bool) -> None:
        super().__init__()
        half = outputs if first else outputs // 2
        hidden = outputs // 2
        self.down = _Conv(inputs, outputs, 3, 2)
        self.past = _Conv(outputs, half, 1)
        self.into = _Conv(outputs, half, 1)
        self.blocks = nn.Sequential(*(_Residual(half, hidden, weighted) for _ in range(blocks)))
        self.out = _Conv(half, half, 1)
        self.join = _Conv(2 * half, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        y = self.out(self.blocks(self.into(x)))
        joined: Tensor = self.join(torch.cat((y, self.past(x)), 1))
        return joined


class _DropBlock(nn.Module):
    """Leave out square blocks of all channels' places in training (Ghiasi et al. 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if not self.training or min(height, width) < DROP_BLOCK:
            return x
        # Middles of blocks that lie wholly inside, as the rate is meant for (algorithm 1 there).
        edge = DROP_BLOCK // 2
        middle = x[..., edge : height - edge, edge : width - edge]
        rate = DROP_SHARE * height * width / (DROP_BLOCK**2 * middle[0, 0].numel())
        seed = (torch.rand_like(middle) < rate).to(x.dtype)
        seed = functional.pad(seed, (edge, edge, edge, edge))
        kept = 1 - functional.max_pool2d(seed, DROP_BLOCK, 1, edge)
        return x * kept * kept.numel() / kept.sum().clamp(min=1)


class _Attention(nn.Module):
    """Spatial attention at every place and channel (Bochkovskiy et al. 2020, figure 5b)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x))


class _Pyramid(nn.Module):
    """Maxima over 5, 9 and 13 places beside the map itself (He et al. 2014)."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = [functional.max_pool2d(x, size, 1, size // 2) for size in (13, 9, 5)]
        return torch.cat((*pooled, x), 1)


def _five(inputs: int, width: int) -> nn.Sequential:
    """Five convolutions, 1 and 3 wide in turn, DropBlock before the last."""
    return nn.Sequential(
        _Conv(inputs, width, 1),
        _Conv(width, 2 * width, 3),
        _Conv(2 * width, width, 1),
        _Conv(width, 2 * width, 3),
        _DropBlock(),
        _Conv(2 * width, width, 1),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """Every answer of every head, decoded.

    Attributes
    ----------
    box : (B, N, 4)
        In image px.
    objectness : (B, N)
        Logits.
    kind : (B, N, K)
        Logits.
    """

    box: Tensor
    objectness: Tensor
    kind: Tensor


class YoloV4(nn.Module):
    """The detector.

    Parameters
    ----------
    types
        K.
    width, depth
        Channels and blocks as a share of the full network's.
    anchors
        Three of each head.
    attention
        Spatial attention before the heads. The 64.4 M published parameters are without it.
    weighted_residuals
        Learn how much each residual block adds.
    """

    def __init__(
        self,
        types: int,
        width: float = 1.0,
        depth: float = 1.0,
        anchors: Anchors = CELL_ANCHORS,
        attention: bool = False,
        weighted_residuals: bool = False,
    ) -> None:
        super().__init__()
        self.types, self.anchors = types, anchors
        w32, w64, w128, w256, w512, w1024 = (
            max(8, round(full * width / 8) * 8) for full in (32, 64, 128, 256, 512, 1024)
        )
        blocks = [max(1, round(full * depth)) for full in (1, 2, 8, 8, 4)]
        stages = ((w32, w64), (w64, w128), (w128, w256), (w256, w512), (w512, w1024))
        self.stem = _Conv(3, w32, 3)
        self.stages = nn.ModuleList(
            _CspStage(*widths, count, place == 0, weighted_residuals)
            for place, (widths, count) in enumerate(zip(stages, blocks, strict=True))
        )
        self.pool = nn.Sequential(
            _Conv(w1024, w512, 1),
            _Conv(w512, w1024, 3),
            _Conv(w1024, w512, 1),
            _Pyramid(),
            _Conv(4 * w512, w512, 1),
            _Conv(w512, w1024, 3),
            _Conv(w1024, w512, 1),
        )
        self.up32, self.side16 = _Conv(w512, w256, 1), _Conv(w512, w256, 1)
        self.merge16 = _five(2 * w256, w256)
        self.up16, self.side8 = _Conv(w256, w128, 1), _Conv(w256, w128, 1)
        self.merge8 = _five(2 * w128, w128)
        self.down8 = _Conv(w128, w256, 3, 2)
        self.again16 = _five(2 * w256, w256)
        self.down16 = _Conv(w256, w512, 3, 2)
        self.again32 = _five(2 * w512, w512)
        self.heads = nn.ModuleList(self._head(inputs, attention) for inputs in (w128, w256, w512))

    def _head(self, inputs: int, attention: bool) -> nn.Sequential:
        answer = nn.Conv2d(2 * inputs, 3 * (5 + self.types), 1)
        nn.init.constant_(answer.bias, -4.0)  # type: ignore[arg-type]
        with torch.no_grad():
            answer.bias.view(3, -1)[:, :4] = 0  # type: ignore[union-attr]
        gate = [_Attention(2 * inputs)] if attention else []
        return nn.Sequential(_Conv(inputs, 2 * inputs, 3), *gate, answer)

    def losses(self, image: Tensor, truth: Sequence[Truth]) -> dict[str, Tensor]:
        """Terms of the loss, see :class:`.detector.Detector`."""
        maps = self._maps(_padded(image))
        answers = self._decoded(maps)
        sizes = [each.shape[-2:] for each in maps]
        box, objectness, kind = (image.new_zeros(()) for _ in range(3))
        positives = 0
        for number, cells in enumerate(truth):
            place, row = assigned(cells.box, sizes, self.anchors)
            positives += len(place)
            found = answers.box[number]
            wanted = torch.zeros_like(answers.objectness[number])
            counts = torch.ones_like(wanted, dtype=torch.bool)
            if len(place):
                with torch.no_grad():  # near a truth, but not its own: neither right nor wrong
                    counts = pairwise_iou(found, cells.box).max(1).values <= IGNORE_IOU
                    counts[place] = True
                wanted[place] = 1
                close = complete_iou(found[place].float(), cells.box[row].float())
                box = box + (1 - close).sum()
                target = functional.one_hot(cells.kind[row], self.types).to(image.dtype)
                target = target * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / max(self.types, 2)
                kind = kind + functional.binary_cross_entropy_with_logits(
                    answers.kind[number, place], target, reduction="sum"
                )
            each = functional.binary_cross_entropy_with_logits(
                answers.objectness[number], wanted, reduction="none"
            )
            objectness = objectness + (each * counts).sum()
        share = 1 / max(positives, 1)
        return {
            "box": BOX_WEIGHT * box * share,
            "objectness": OBJECT_WEIGHT * objectness * share,
            "kind": KIND_WEIGHT * kind * share,
        }

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and type probabilities, see :class:`.detector.Detector`.

        The score is objectness times the best type's probability; the types' are made to sum to 1.
        """
        height, width = image.shape[-2:]
        answers = self._decoded(self._maps(_padded(image)))
        probability = torch.sigmoid(answers.kind)
        best = probability.max(2).values
        score, place = best_of(torch.sigmoid(answers.objectness) * best, ANSWERS)
        box = torch.gather(answers.box, 1, place[..., None].expand(-1, -1, 4))
        box = clipped(box, width, height)
        kinds = torch.gather(probability, 1, place[..., None].expand(-1, -1, self.types))
        kinds = kinds / kinds.sum(-1, keepdim=True)
        return ranked(box, score, kinds, SUPPRESSION_DIOU, by_distance=True)

    def attacked(self, image: Tensor, step: float = 2 / 255) -> Tensor:
        """Images changed by `step` so that the network sees fewer cells in them.

        The first half of self-adversarial training (Bochkovskiy et al. 2020, §3.3): it is then
        trained on what it was made blind to.
        """
        nothing = [
            Truth(image.new_zeros(0, 4), torch.zeros(0, dtype=torch.int64, device=image.device))
            for _ in image
        ]
        seen = image.detach().requires_grad_()
        with as_if_unseen(self):
            (slope,) = torch.autograd.grad(self.losses(seen, nothing)["objectness"], seen)
        return (image - step * slope.sign()).clamp(0, 1).detach()

    def _maps(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) 0 to 1 → raw answers (B, 3 · (5 + K), h, w) at strides 8, 16, 32."""
        x = self.stem(image)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        c8, c16, c32 = levels[2:]
        p32 = self.pool(c32)
        p16 = self.merge16(torch.cat((self.side16(c16), _doubled(self.up32(p32))), 1))
        p8 = self.merge8(torch.cat((self.side8(c8), _doubled(self.up16(p16))), 1))
        n16 = self.again16(torch.cat((self.down8(p8), p16), 1))
        n32 = self.again32(torch.cat((self.down16(n16), p32), 1))
        return self.heads[0](p8), self.heads[1](n16), self.heads[2](n32)

    def _decoded(self, maps: Sequence[Tensor]) -> _Answers:
        """Raw answers → boxes and logits, head by head, row by row, anchor by anchor."""
        boxes, objectness, kinds = [], [], []
        for raw, stride, scale, shapes in zip(
            maps, STRIDES, GRID_SCALES, self.anchors, strict=True
        ):
            height, width = raw.shape[-2:]
            # In mixed precision the maps are bfloat16, which places boxes by whole pixels.
            each = raw.float().unflatten(1, (3, -1)).permute(0, 3, 4, 1, 2)  # (B, h, w, 3, 5 + K)
            rows = torch.arange(height, device=raw.device)[:, None, None]
            columns = torch.arange(width, device=raw.device)[None, :, None]
            inner = torch.sigmoid(each[..., :2]) * scale - (scale - 1) / 2
            x, y = (inner[..., 0] + columns) * stride, (inner[..., 1] + rows) * stride
            shape = each.new_tensor(shapes)  # (3, 2)
            half = each[..., 2:4].clamp(-8, 8).exp() * shape / 2
            box = torch.stack(
                (x - half[..., 0], y - half[..., 1], x + half[..., 0], y + half[..., 1]), -1
            )
            boxes.append(box.flatten(1, 3))
            objectness.append(each[..., 4].flatten(1, 3))
            kinds.append(each[..., 5:].flatten(1, 3))
        return _Answers(torch.cat(boxes, 1), torch.cat(objectness, 1), torch.cat(kinds, 1))


def assigned(
    box: Tensor, sizes: Sequence[Sequence[int]], anchors: Anchors
) -> tuple[Tensor, Tensor]:
    """Which answers learn which true boxes.

    Parameters
    ----------
    box : (M, 4)
    sizes
        (height, width) of each head's map.
    anchors

    Returns
    -------
    place : (P,) int64
        Number of the answer, 0 to N − 1; each occurs once.
    row : (P,) int64
        Of `box`. Where two boxes want one answer, the smaller one has it.
    """
    if not len(box):
        nothing = torch.zeros(0, dtype=torch.int64, device=box.device)
        return nothing, nothing
    centre = (box[:, :2] + box[:, 2:]) / 2
    side = box[:, 2:] - box[:, :2]
    shape = box.new_tensor([each for head in anchors for each in head])  # (9, 2)
    common = torch.minimum(side[:, None], shape).prod(2)
    overlap = common / (side.prod(1)[:, None] + shape.prod(1) - common)  # (M, 9)
    fits = overlap > ANCHOR_IOU
    fits[torch.arange(len(box)), overlap.argmax(1)] = True
    places, rows = [], []
    start = 0
    for head, ((height, width), stride) in enumerate(zip(sizes, STRIDES, strict=True)):
        row, anchor = fits[:, 3 * head : 3 * head + 3].nonzero(as_tuple=True)
        column = (centre[row, 0] / stride).long().clamp(0, width - 1)
        line = (centre[row, 1] / stride).long().clamp(0, height - 1)
        places.append(start + (line * width + column) * 3 + anchor)
        rows.append(row)
        start += height * width * 3
    place, row = torch.cat(places), torch.cat(rows)
    order = side.prod(1)[row].argsort(descending=True)
    place, row = place[order], row[order]
    by_place = place.argsort(stable=True)  # within a place still the largest first
    place, row = place[by_place], row[by_place]
    last = torch.ones_like(place, dtype=torch.bool)
    last[:-1] = place[1:] != place[:-1]
    return place[last], row[last]


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def _padded(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    return functional.pad(image, (0, -width % 32, 0, -height % 32), value=0.5)
