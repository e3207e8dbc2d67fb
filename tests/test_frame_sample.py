"""A bounded sample of frames where no level is low, and the whole way over such a slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom_io.frame_sample import sampled, sampled_frames
from dicom_io.frames import frames_touching, read_tiles
from dicom_io.pacs import open_pacs
from dicom_io.slide import open_slide
from tests.conftest import QUICK
from tests.slides import write_slide
from tests.smears import small_smear


@pytest.mark.parametrize("most", [1, 5, 17, 40, 200, 767])
def test_sample_is_bounded_spread_and_what_is_read(tmp_path: Path, most: int) -> None:
    written = write_slide(tmp_path, size_px=(1000, 760), tile_px=(32, 32), levels=1)
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        within = sampled_frames(slide, 0.25, most)
        assert within is not None
        touched = frames_touching(slide, slide.base, within)
        assert most / 8 <= touched.sum() <= most
        boxes, same = sampled(slide, np.array([[0, 0, 1000, 760.0]]), 0.25, most)
        assert same is not None
        before = pacs.frames_read
        list(read_tiles(pacs, slide, boxes, 0.25, within=within))
        assert pacs.frames_read - before == touched.sum()


def test_small_level_is_read_whole(tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=3)
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
    assert sampled_frames(slide, 0.25, 48) is None
    assert sampled_frames(slide, 0.25, 47) is not None
    assert sampled_frames(slide, 1.0, 47) is None


def test_boxes_that_see_nothing_are_left_out(tmp_path: Path) -> None:
    written = write_slide(tmp_path, size_px=(1000, 760), tile_px=(32, 32), levels=1)
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
    corner = np.stack(np.meshgrid(np.arange(0, 1000, 100), np.arange(0, 760, 100)), 2)
    boxes = np.concatenate([corner.reshape(-1, 2), corner.reshape(-1, 2) + 100.0], axis=1)
    kept, within = sampled(slide, boxes, 0.25, 64)
    assert within is not None
    assert len(within.box_px) == 1
    assert len(kept) < len(boxes)
    x0, y0, x1, y1 = within.box_px[0]
    shared = [b for b in boxes if b[0] < x1 and b[2] > x0 and b[1] < y1 and b[3] > y0]
    assert kept.tolist() == [b.tolist() for b in shared]


def test_slide_without_low_level_is_analysed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smear = small_smear(tmp_path)
    for path in smear.slide.paths[1:]:
        path.unlink()
    monkeypatch.setenv("MARROW_NODE__SLIDE__LOCALISE_FRAMES", "30")
    code, result, said = smear.analyse()
    assert code == 0, said
    assert result["localised_on"] == "a grid of frames"
    assert result["optical_path"]["reason"] == "the only one"
    assert result["focal_plane"] == "the only one"
    # 5 × 5 frames are seen in the middle; a place at their edge reaches into the next ones.
    assert 0 < result["region_frames"] <= 7 * 6
    assert "no low level" in said
