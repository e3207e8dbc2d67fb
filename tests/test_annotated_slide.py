"""Annotations in an archive are training data: what the node wrote is read back as images."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_io.annotated_slide import annotated_tiles, read_annotations
from dicom_io.codes import cell_type_code
from dicom_io.errors import InputError
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import open_slide
from models.errors import TrainingInvalid
from models.training.annotated import AnnotatedImage
from models.training.recipe import load_recipe
from models.training.sources import split_images
from node.annotated_slides import annotated_images
from node.config import load_settings
from tests.smears import Smear, small_smear

RECIPE = """
system = "tayebi2021"
name = "corrected"
out = "run"
types = {types}
steps = 1
size_px = 256
folds = 2

[[data]]
format = "dicom"
pacs_url = "{pacs}"
study_uid = "{study}"
series_uid = "{series}"
annotation_series_uid = "{annotations}"
ignore = ["unclassified"]
"""


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Smear, list[str], int]:
    smear = small_smear(tmp_path_factory.mktemp("smear"))
    code, result, said = smear.analyse()
    assert code == 0, said
    return smear, result["ann"][0], result["cells"]


def shown(box: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Which boxes a tile of 256 px shows three tenths of."""
    low, high = np.maximum(box[:, :2], corner), np.minimum(box[:, 2:], corner + 256)
    return np.clip(high - low, 0, None).prod(1) >= 0.3 * (box[:, 2:] - box[:, :2]).prod(1)


def test_every_annotated_cell_is_in_the_tiles_that_show_it(
    analysed: tuple[Smear, list[str], int],
) -> None:
    smear, (study, series, _), cells = analysed
    with open_pacs(smear.pacs_url, PacsSettings()) as pacs:
        slide = open_slide(pacs, smear.slide.study_uid, smear.slide.series_uid, 10**12)
        found = read_annotations(pacs, study, series)
        tiles = list(annotated_tiles(pacs, slide, found, 256, 0.25))
        written = np.concatenate([each.box_px for each in found])
        seen = [shown(written, np.array(tile.origin_px)) for tile in tiles]
        assert [len(tile.types) for tile in tiles] == [each.sum() for each in seen]
        assert np.any(seen, axis=0).sum() == len(written) == cells
        read = []
        for tile in tiles:
            assert tile.rgb.shape == (256, 256, 3)
            assert len(tile.types)
            corner = np.tile(tile.origin_px, 2)
            whole = (tile.box_tile_px > 0).all(1) & (tile.box_tile_px < 256).all(1)
            read += (tile.box_tile_px[whole] + corner).tolist()
        assert len(read) > cells / 3
        for box in read:  # what no tile's edge cuts lies where it was written
            assert np.abs(written - box).max(1).min() < 1e-3
        with pytest.raises(InputError, match="holds no annotations"):
            read_annotations(pacs, smear.slide.study_uid, smear.slide.series_uid)


def test_a_recipe_trains_on_them(analysed: tuple[Smear, list[str], int], tmp_path: Path) -> None:
    smear, (study, series, _), _ = analysed
    every = list(small_classes())

    def written(types: list[str]) -> Path:
        path = tmp_path / "recipe.toml"
        text = RECIPE.format(
            types=str(types).replace("'", '"'),
            pacs=smear.pacs_url,
            study=smear.slide.study_uid,
            series=smear.slide.series_uid,
            annotations=series,
        )
        path.write_text(text)
        return path

    assert study == smear.slide.study_uid
    recipe = load_recipe(written(every))
    settings = load_settings(None, {})
    images = annotated_images(settings, recipe.data[0], recipe, AnnotatedImage)
    cells = named_cells(smear, study, series)
    assert sum(len(image.kind) for image in images) >= cells  # one that an edge cuts is in both
    assert {image.group for image in images} == {smear.slide.series_uid}
    with pytest.raises(
        TrainingInvalid, match="folds need as many groups"
    ):  # one slide is one group
        split_images(recipe, lambda source: images)
    few = load_recipe(written(["megakaryocyte"]))
    with pytest.raises(TrainingInvalid, match="is none of the types"):
        annotated_images(settings, few.data[0], few, AnnotatedImage)


def test_what_a_viewer_corrected_comes_back(
    analysed: tuple[Smear, list[str], int], tmp_path: Path
) -> None:
    """One cell is given another type and another box, and the ANN is stored as a new series."""
    smear, (study, series, instance), _ = analysed
    cells = named_cells(smear, study, series)
    with open_pacs(smear.pacs_url, PacsSettings()) as pacs:
        document = pacs.retrieve_instance(study, series, instance)
        first, corrected = corrected_by_hand(document)
        pacs.store([document])
    path = tmp_path / "recipe.toml"
    text = RECIPE.format(
        types=str([*small_classes(), "eosinophil"]).replace("'", '"'),
        pacs=smear.pacs_url,
        study=study,
        series=smear.slide.series_uid,
        annotations=document.SeriesInstanceUID,
    )
    path.write_text(text)
    recipe = load_recipe(path)
    images = annotated_images(load_settings(None, {}), recipe.data[0], recipe, AnnotatedImage)
    assert sum(len(image.kind) for image in images) >= cells  # one that an edge cuts is in both
    eosinophil = recipe.types.index("eosinophil")
    (image,) = [image for image in images if (image.kind == eosinophil).any()]
    (box,) = image.box_px[image.kind == eosinophil]
    size = np.minimum(corrected[2:] - corrected[:2], 256)
    assert ((box[2:] - box[:2]) <= size + 0.01).all()
    assert (corrected != first).any()


def test_two_revisions_in_one_series_are_not_learnt_from(
    analysed: tuple[Smear, list[str], int],
) -> None:
    """A cell that is there twice could never both be found: the series is named instead."""
    smear, (study, series, instance), _ = analysed
    with open_pacs(smear.pacs_url, PacsSettings()) as pacs:
        again = pacs.retrieve_instance(study, series, instance)
        both = generate_uid()
        for document in (again, deepcopy(again)):
            document.SeriesInstanceUID, document.SOPInstanceUID = both, generate_uid()
            document.file_meta.MediaStorageSOPInstanceUID = document.SOPInstanceUID
            pacs.store([document])
        slide = open_slide(pacs, smear.slide.study_uid, smear.slide.series_uid, 10**12)
        found = read_annotations(pacs, study, both, slide)
        assert len(found) == 2
        with pytest.raises(InputError, match="are there twice"):
            next(annotated_tiles(pacs, slide, found, 256, 0.25))


def corrected_by_hand(document: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Give the first cell of the largest group a group of its own: its box before and after."""
    group = max(document.AnnotationGroupSequence, key=lambda each: each.NumberOfAnnotations)
    corners = np.frombuffer(group.PointCoordinatesData, np.float32).reshape(-1, 4, 2)
    moved = corners[:1] + np.array([3, 2], np.float32)
    group.PointCoordinatesData = corners[1:].tobytes()
    group.NumberOfAnnotations = len(corners) - 1
    own = deepcopy(group)
    del group.MeasurementsSequence
    own.AnnotationPropertyTypeCodeSequence = [cell_type_code("eosinophil")]
    own.AnnotationGroupNumber = len(document.AnnotationGroupSequence) + 1
    own.AnnotationGroupUID = generate_uid()
    own.AnnotationGroupGenerationType = "MANUAL"
    own.PointCoordinatesData = moved.tobytes()
    own.NumberOfAnnotations = 1
    del own.MeasurementsSequence
    document.AnnotationGroupSequence.append(own)
    document.SeriesInstanceUID, document.SOPInstanceUID = generate_uid(), generate_uid()
    document.file_meta.MediaStorageSOPInstanceUID = document.SOPInstanceUID
    boxes = [np.concatenate((each[0].min(0), each[0].max(0))) for each in (corners[:1], moved)]
    return boxes[0], boxes[1]


def small_classes() -> tuple[str, ...]:
    """Types of the package that the cells were found with, but for what it does not name."""
    from tests.tiny_package import CLASSES

    return CLASSES[:-1]


def named_cells(smear: Smear, study: str, series: str) -> int:
    with open_pacs(smear.pacs_url, PacsSettings()) as pacs:
        found = read_annotations(pacs, study, series)
    return sum(each.classes[label] != "unclassified" for each in found for label in each.label)
