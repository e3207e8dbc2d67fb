"""One camera field: from its file to cells, counts and a picture."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, VLMicroscopicImageStorage, generate_uid

from dicom_io.errors import InputError, PixelsUnsupported
from dicom_io.field_image import read_field_image
from tests.forked import marrow_node
from tests.tiny_package import TYPES, blob_side_px, draw_blob, tiny_package


def blobs(width: int = 1500, height: int = 900) -> tuple[np.ndarray, int]:
    """A field larger than two tiles, blobs over their borders."""
    rgb = np.full((height, width, 3), 235, np.uint8)
    count = 0
    for number, x in enumerate(np.arange(90, width - 80, 130)):
        for y in np.arange(90, height - 80, 150):
            draw_blob(rgb, (float(x), float(y)), (blob_side_px(number % TYPES),) * 2)
            count += 1
    return rgb, count


def microscopic(rgb: np.ndarray, **attributes: object) -> Dataset:
    document = Dataset()
    document.SOPClassUID = VLMicroscopicImageStorage
    document.SOPInstanceUID = generate_uid()
    document.Rows, document.Columns = rgb.shape[:2]
    document.SamplesPerPixel, document.PhotometricInterpretation = 3, "RGB"
    document.PlanarConfiguration, document.PixelRepresentation = 0, 0
    document.BitsAllocated, document.BitsStored, document.HighBit = 8, 8, 7
    document.PixelData = rgb.tobytes()
    for name, value in attributes.items():
        setattr(document, name, value)
    document.file_meta = FileMetaDataset()
    document.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    document.file_meta.MediaStorageSOPClassUID = document.SOPClassUID
    document.file_meta.MediaStorageSOPInstanceUID = document.SOPInstanceUID
    return document


def field(
    tmp_path: Path, *arguments: str, detector: Mapping[str, Any] | None = None
) -> subprocess.CompletedProcess[str]:
    tiny_package(tmp_path / "packages" / "tiny", detector=detector or {})
    settings = tmp_path / "node.toml"
    settings.write_text(f"[model]\nfolders = [{json.dumps(str(tmp_path / 'packages'))}]\n")
    return marrow_node("--config", str(settings), "field", *arguments)


@pytest.mark.parametrize("stitching", ["overlap", "corners"])
def test_pieces_are_joined_by_either_rule(tmp_path: Path, stitching: str) -> None:
    """Two tiles side by side, with a cell across their border and one inside."""
    rgb = np.full((640, 1280, 3), 235, np.uint8)
    box = draw_blob(rgb, (640.0, 200.0), (60.0, 60.0))
    draw_blob(rgb, (300.0, 400.0), (60.0, 60.0))
    Image.fromarray(rgb).save(tmp_path / "field.png")
    ended = field(
        tmp_path, "--model", "tiny", "--um-per-px", "0.25", "--json", str(tmp_path / "field.png"),
        detector={"halo_px": 0, "stitching": stitching},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = [cell["box_px"] for cell in json.loads(ended.stdout)["cells"]]
    assert len(found) == 2
    # A piece's box reaches a little over the border, as the network fits an ellipse.
    (whole,) = [each for each in found if each[0] < 620 and each[2] > 660]
    assert whole == pytest.approx(box, abs=15)


def test_every_cell_of_a_large_field_is_found_once(tmp_path: Path) -> None:
    rgb, count = blobs()
    Image.fromarray(rgb).save(tmp_path / "field.png")
    ended = field(
        tmp_path, str(tmp_path / "field.png"), "--um-per-px", "0.25", "--model", "tiny", "--json"
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert len(result["cells"]) == count == sum(result["count"].values())
    assert result["model"]["name"] == "tiny"
    assert result["size_px"] == [1500, 900]
    picture = np.asarray(Image.open(result["picture"]))
    assert picture.shape[2] in (3, 4)
    assert Path(result["picture"]) == tmp_path / "field.cells.png"


def test_a_microscopic_image_states_its_own_scale(tmp_path: Path) -> None:
    rgb, count = blobs(700, 600)
    path = tmp_path / "field.dcm"
    microscopic(rgb, PixelSpacing=[0.00025, 0.00025]).save_as(path, enforce_file_format=True)
    ended = field(tmp_path, str(path), "--model", "tiny", "--json")
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["um_per_px"] == pytest.approx(0.25)
    assert len(result["cells"]) == count


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    Image.fromarray(blobs(200, 200)[0]).save(tmp_path / "field.png")
    ended = field(tmp_path, str(tmp_path / "field.png"), "--model", "tiny")
    assert ended.returncode == 26
    assert "--um-per-px" in ended.stderr
    (tmp_path / "text.png").write_text("no picture")
    for name, kind in (("missing.png", "cannot be read"), ("text.png", "no image")):
        ended = field(tmp_path, str(tmp_path / name), "--um-per-px", "0.25", "--model", "tiny")
        assert ended.returncode == 20
        assert kind in ended.stderr
        assert "Traceback" not in ended.stderr


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "field.png"
    Image.fromarray(blobs(200, 200)[0]).save(path)
    known = (str(path), "--um-per-px", "0.25", "--model", "tiny", "--out")
    for out, code, says in (
        (tmp_path / "missing" / "cells.png", 20, "No such file or directory"),
        (path / "cells.png", 20, "Not a directory"),
        (tmp_path / "cells.bmp", 26, "written as PNG"),
    ):
        ended = field(tmp_path, *known, str(out))
        assert ended.returncode == code, ended.stderr
        assert f"{out}: " in ended.stderr
        assert says in ended.stderr
        assert "Traceback" not in ended.stderr


def test_more_than_eight_bits_are_not_cut_off(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save(tmp_path / "grey.png")
    with pytest.raises(PixelsUnsupported, match="more than 8 bits"):
        read_field_image(tmp_path / "grey.png")


@pytest.mark.parametrize("spacing", [[0, 0], [-0.00025, -0.00025], [], 0.00025])
def test_a_scale_that_is_none_is_not_taken(tmp_path: Path, spacing: object) -> None:
    path = tmp_path / "field.dcm"
    microscopic(np.zeros((8, 8, 3), np.uint8), PixelSpacing=spacing).save_as(
        path, enforce_file_format=True
    )
    assert read_field_image(path).um_per_px is None


def test_only_one_colour_image_of_eight_bits(tmp_path: Path) -> None:
    rgb = np.zeros((8, 8, 3), np.uint8)
    path = tmp_path / "field.dcm"
    microscopic(rgb, NumberOfFrames=2, PixelData=rgb.tobytes() * 2).save_as(
        path, enforce_file_format=True
    )
    with pytest.raises(PixelsUnsupported, match="one colour image of 8 bits"):
        read_field_image(path)
    whole = tmp_path / "whole.dcm"
    microscopic(rgb, PixelSpacing=[0.001, 0.0005]).save_as(whole, enforce_file_format=True)
    assert read_field_image(whole).um_per_px is None  # not square: nobody guesses
    whole.write_bytes(whole.read_bytes()[:300])
    with pytest.raises(InputError):
        read_field_image(whole)
