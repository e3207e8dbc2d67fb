"""The 16-bit form of a network: what it computes in 16 bits, and that it says the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from onnx.reference import ReferenceEvaluator  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from models.composing import ASSETS  # noqa: E402
from models.package import SHIPPED_PACKAGES, Stage, load_package, network_of  # noqa: E402
from models.records import UInt8  # noqa: E402
from models.training.data import load_field  # noqa: E402
from models.training.export import export, export_fp16  # noqa: E402
from models.training.half_precision import half_precision, rounded_to_half  # noqa: E402
from models.training.packing import pack  # noqa: E402
from models.training.parity import PARITY_FP16, parity_fp16  # noqa: E402
from models.training.recipe import load_recipe  # noqa: E402

RECIPES = Path(__file__).parent.parent / "models" / "training" / "recipes"
HALF = onnx.TensorProto.FLOAT16
FIELDS = sorted((ASSETS / "fields").glob("*.jpg"))


class Branching(nn.Module):
    """What the networks of this house are made of: a skip, two scales, a head, a decoding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.down = nn.Conv2d(16, 16, 3, 2, 1)
        self.norm = nn.BatchNorm2d(32)  # before a convolution: it cannot be folded
        self.join = nn.Conv2d(32, 32, 3, 1, 1)
        self.head = nn.Conv2d(32, 5, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, 3) uint8 → box_px (N, A, 4), score (N, A)."""
        fine = nn.functional.mish(self.stem(image.permute(0, 3, 1, 2).float() / 255))
        coarse = torch.relu(self.down(fine))
        wide = nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        joined = self.join(torch.relu(self.norm(torch.cat([fine, wide], 1))))
        answers = self.head(torch.relu(joined)).flatten(2).transpose(1, 2)
        box: Tensor = answers[..., :4].exp() * 60.0 + 1000.0
        return box, torch.sigmoid(answers[..., 4])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    network = Branching()
    network.norm.running_mean.uniform_(-0.2, 0.2)
    network.norm.running_var.fill_(1e-6)  # in 16 bits next to nothing is left of it
    network.norm.weight.data.fill_(1e-3)
    path = tmp_path_factory.mktemp("network") / "detector.onnx"
    export(network, ("box_px", "score"), path)
    return path


def images() -> list[UInt8]:
    return [load_field(path).rgb[:96, :96] for path in FIELDS[::20]]


def kinds(model: onnx.ModelProto, operation: str) -> list[int]:
    """Element type of what each node of the operation makes."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    made = {each.name: each.type.tensor_type.elem_type for each in inferred.value_info}
    return [made[node.output[0]] for node in inferred.node if node.op_type == operation]


def answers(content: bytes, image: UInt8) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {"image": image[None]})
    return found


def test_layers_are_halved_and_what_decides_is_not(exported: Path) -> None:
    half = half_precision(onnx.load(exported))
    assert kinds(half, "Conv") == [HALF, HALF, HALF, onnx.TensorProto.FLOAT]  # the head stays
    assert set(kinds(half, "Mish") + kinds(half, "Resize") + kinds(half, "Relu")) == {HALF}
    assert HALF in kinds(half, "Concat")
    assert "BatchNormalization" not in {node.op_type for node in half.graph.node}
    assert kinds(half, "Exp") == [onnx.TensorProto.FLOAT]
    assert [each.type.tensor_type.elem_type for each in half.graph.output] == [1, 1]
    (given,) = half.graph.input
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_real_16_bit_arithmetic_says_what_the_rounding_foretells(exported: Path) -> None:
    """ONNX's reference evaluator computes in 16 bits, slowly: what a GPU does."""
    half = half_precision(onnx.load(exported))
    twin = rounded_to_half(onnx.load(exported)).SerializeToString()
    image = images()[0][:32, :32]
    computed = ReferenceEvaluator(half).run(None, {"image": image[None]})
    foretold = answers(twin, image)
    exact = answers(exported.read_bytes(), image)
    for name, a, b, c in zip(("box_px", "score"), computed, foretold, exact, strict=True):
        assert a.dtype == np.float32
        assert 0 < np.abs(b - c).max() <= PARITY_FP16[name], name  # the rounding is there
        assert np.abs(a - b).max() <= PARITY_FP16[name], name


def test_boxes_far_from_the_corner_keep_their_place(exported: Path) -> None:
    """At 1 000 px, 16 bits know half pixels only: the decoding must not be in them."""
    for name, difference in parity_fp16(exported, images()).items():
        assert difference <= PARITY_FP16[name] / 5, name


def test_a_network_that_16_bits_do_not_suffice_for_gets_none(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = Branching()
    network.stem.weight.data *= 1e6  # beyond 65 504
    path = tmp_path / "detector.onnx"
    export(network, ("box_px", "score"), path)
    path.with_suffix(".fp16.onnx").write_bytes(b"of an earlier training")
    entry, parity = export_fp16(path, images())
    assert entry == {}
    assert set(parity) < {"box_px", "score"}  # what is no number is left out
    assert not path.with_suffix(".fp16.onnx").exists()


@pytest.mark.parametrize("stage", ["localiser", "detector"])
@pytest.mark.parametrize("name", ["demo-smear", "tayebi2021"])
def test_the_shipped_16_bit_networks_are_those_of_the_shipped_32_bit_ones(
    name: str, stage: Stage
) -> None:
    folder = SHIPPED_PACKAGES / name
    made = half_precision(onnx.load(folder / f"{stage}.onnx"))
    shipped = onnx.load_from_string(network_of(load_package(folder), stage, "fp16"))
    assert made.graph == shipped.graph


@pytest.mark.parametrize("system", ["liu2022", "tayebi2021", "wang2022"])
def test_every_system_says_the_same_in_16_bits(system: str) -> None:
    """On real fields that are larger than the exporter's; two-stage networks choose in between."""
    path = SHIPPED_PACKAGES / system / "detector.onnx"
    sheet = np.concatenate([load_field(path).rgb[:96, :96] for path in FIELDS[:2]], 1)
    parity = parity_fp16(path, [np.ascontiguousarray(np.tile(sheet, (2, 1, 1)))])
    assert all(parity[name] <= PARITY_FP16[name] for name in parity), parity


def test_a_package_takes_over_the_16_bit_stages_of_another(tmp_path: Path) -> None:
    recipe = replace(
        load_recipe(RECIPES / "choi2017.toml"), out=tmp_path, together_with="demo-smear"
    )
    shipped = load_package(SHIPPED_PACKAGES / "choi2017").manifest
    (tmp_path / "classifier.onnx").write_bytes(
        (SHIPPED_PACKAGES / "choi2017" / "classifier.onnx").read_bytes()
    )
    fields = {"file": "classifier.onnx", "um_per_px": 0.25, "crop_px": 96}
    described = {"fields": fields, "training": {}, "metrics": dict(shipped.metrics)}
    (tmp_path / "classifier.json").write_text(json.dumps(described))
    folder = pack(recipe)
    assert folder is not None
    package = load_package(folder)
    assert package.manifest.classifier is not None
    assert package.manifest.classifier.fp16 is None
    for stage, outputs in (("localiser", ["probability"]), ("detector", ["box_px", "score"])):
        model = onnx.load_from_string(network_of(package, stage, "fp16"))
        assert [output.name for output in model.graph.output] == outputs
        image = np.stack([image[:96, :96] for image in images()[:1]])
        session = onnxruntime.InferenceSession(model.SerializeToString())
        assert all(np.isfinite(found).all() for found in session.run(outputs, {"image": image}))
