"""The demonstration slide in tiles and stitched, against one large piece of it seen in one look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from dicom_io.demonstration import DemonstrationSlide, compose_demonstration_slide
from dicom_io.frames import read_tiles
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import open_slide
from models.detect import detect
from models.evaluation import match
from models.fields import find_in_field
from models.package import ModelPackage, find_package
from models.records import Float32, Float64, Tiles, UInt8
from models.session import open_session
from node.demo import SEED

pytestmark = pytest.mark.slow
SIDE_PX = 6144  # one look at it takes 4 GB
STEP_PX = 512
PEAKS, MORE_PEAKS = 128, 4096  # answers of the shipped graph, and what a piece this large needs


def centres(box: Float64) -> Float64:
    return (box[:, :2] + box[:, 2:]) / 2


def fullest_place(slide: DemonstrationSlide) -> Float64:
    """Box of the square with the most true cells."""
    centre = centres(slide.truth.box_px)
    corners = np.stack(np.meshgrid(np.arange(0, 17_000, STEP_PX), np.arange(0, 9_500, STEP_PX)), 2)
    corners = corners.reshape(-1, 2)
    inside = (centre > corners[:, None]) & (centre < corners[:, None] + SIDE_PX)
    corner = corners[inside.all(2).sum(1).argmax()]
    return np.concatenate((corner, corner + SIDE_PX)).astype(np.float64)


def with_more_answers(package: ModelPackage) -> Callable[[UInt8], Mapping[str, Float32]]:
    """The shipped detector, its list of answers made long enough for one large image."""
    model = onnx.load(package.folder / package.manifest.detector.file)
    changed = 0
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.int64 and (values == PEAKS).any():
            longer = np.where(values == PEAKS, MORE_PEAKS, values)
            weight.CopyFrom(numpy_helper.from_array(longer, weight.name))
            changed += 1
    assert changed  # the graph still says how many answers it gives
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = MORE_PEAKS
    del model.graph.value_info[:]  # shapes for the shorter list
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {"image": image}), strict=True))


def test_tiles_count_what_one_look_counts(tmp_path: Path) -> None:
    """Within 1 %, and cell for cell."""
    made = compose_demonstration_slide(tmp_path / "pacs", SEED)
    package = find_package("demo-smear", ())
    stage = package.manifest.detector
    place = fullest_place(made)
    with open_pacs((tmp_path / "pacs").as_uri(), PacsSettings()) as pacs:
        slide = open_slide(pacs, made.study_uid, made.series_uid, 10**12)
        (piece,) = read_tiles(pacs, slide, place[None], stage.um_per_px, batch_size=1)
    session = open_session(package, "detector", "cpu", 1)
    stitched = find_in_field(piece.rgb[0], stage.um_per_px, package, {"detector": session})

    rim = stage.halo_px  # white around the piece, as tiles have it
    whole = np.full((1, SIDE_PX + 2 * rim, SIDE_PX + 2 * rim, 3), 255, np.uint8)
    whole[:, rim:-rim, rim:-rim] = piece.rgb
    one_look = Tiles(whole, np.zeros((1, 2)), np.ones(2), np.ones(whole.shape[:3], np.bool_))
    found = detect(one_look, with_more_answers(package), package)
    box = found.box_tile_px.astype(np.float64) - rim
    inside = ((centres(box) >= 0) & (centres(box) < SIDE_PX)).all(1)
    uncut, label = box[inside], found.label[inside]

    pairs = match(stitched.box_px, uncut)
    alike = stitched.label[pairs.found] == label[pairs.truth]
    print(
        f"\n{SIDE_PX} px: {len(stitched)} cells in tiles, {len(uncut)} in one look,"
        f" {len(pairs.found)} the same, {alike.mean():.3f} of them of the same type"
    )
    assert len(uncut) > 500
    assert abs(len(stitched) - len(uncut)) <= 0.01 * len(uncut)
    assert len(pairs.found) >= 0.99 * len(uncut)
    assert alike.mean() >= 0.99
