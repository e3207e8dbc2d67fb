"""Pixels that are not square, as those of some scanners: tiles are those that networks take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pydicom.dataset import Dataset

from dicom_io.frames import read_tiles
from dicom_io.pacs import open_pacs
from dicom_io.slide import open_slide
from models.detect import detect, detection_grid
from models.localise import localise, localiser_grid
from models.package import SHIPPED_PACKAGES, load_package
from models.records import Regions
from models.session import open_session
from tests.conftest import QUICK
from tests.slides import write_slide

SIZE_PX = (2600, 1500)


@pytest.mark.parametrize(
    "spacing_um",
    [(0.455063, 0.456413), (0.456413, 0.455063), (0.2505, 0.2495), (0.25, 0.2503), (0.2, 0.4)],
    ids=str,
)
def test_networks_see_square_tiles_that_lie_where_they_should(
    tmp_path: Path, spacing_um: tuple[float, float]
) -> None:
    def unequal(ds: Dataset, level: int) -> None:
        measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        # Row spacing, which is that along y, comes first.
        measures.PixelSpacing = [spacing_um[1] * 2**level / 1000, spacing_um[0] * 2**level / 1000]

    written = write_slide(
        tmp_path, size_px=SIZE_PX, tile_px=(256, 256), levels=3, encoding="raw", change=unequal
    )
    package = load_package(SHIPPED_PACKAGES / "demo-smear")
    low, fine = package.manifest.localiser, package.manifest.detector
    whole = Regions(np.array([[0.0, 0, *SIZE_PX]]), np.ones(1, np.float32), "all")
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        base = slide.base
        assert_allclose(base.spacing_um, spacing_um)
        grids = (
            (localiser_grid(base.size_px, base.spacing_um, low), low),
            (detection_grid(whole, base.size_px, base.spacing_um, fine, seed=0)[0], fine),
        )
        batches = {}
        for box_px, stage in grids:
            (tiles,) = read_tiles(pacs, slide, box_px, stage.um_per_px, batch_size=len(box_px))
            batches[stage.file] = tiles
            assert tiles.rgb.shape[1:3] == (stage.tile_px, stage.tile_px)
            # A level within a hundredth is given as it is stored.
            assert_allclose(
                tiles.px_per_tile_px * base.spacing_um, stage.um_per_px, rtol=0.0101, err_msg=stage
            )
            assert np.abs(tiles.origin_px - box_px[:, :2]).max() <= 2
    session = open_session(package, "localiser", "cpu", 1)
    localise([batches[low.file]], session, package, base.size_px, base.tile_size_px)
    detect(batches[fine.file], open_session(package, "detector", "cpu", 1), package)
