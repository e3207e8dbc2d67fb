"""Cells go into an ANN and come out again, for the node and for readers by others."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.ann import MicroscopyBulkSimpleAnnotations
from highdicom.spatial import ImageToReferenceTransformer
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from wsidicom.graphical_annotations import AnnotationInstance, Point, Polygon

from dicom_io.analysis import Analysis
from dicom_io.annotation import annotated_types, decode_annotation, encode_annotation
from dicom_io.annotation_settings import CoordinateType, GraphicType
from dicom_io.codes import cell_type_code
from dicom_io.derived_uid import derive_uid
from dicom_io.errors import InputError
from dicom_io.optical_path import OpticalPath
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import Slide, open_slide
from models.records import Cells
from node.outputs import to_bytes
from tests.analyses import small_slide, some_analysis
from tests.slides import write_slide
from tests.validators import dciodvfy, written


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return small_slide(tmp_path_factory.mktemp("slide"))


@pytest.fixture(scope="module")
def analysis(slide: Slide) -> Analysis:
    return some_analysis(slide)


def _read_back(document: Dataset, folder: Path) -> Dataset:
    return dcmread(written(document, folder / "read-back.dcm"))


def _keys(cells: Cells) -> list[str]:
    return [cells.classes[label] for label in cells.label]


def _sorted(cells: Cells) -> NDArray[np.intp]:
    """By place, as far as rounding leaves it alone."""
    box = cells.box_px.round(2)
    return np.lexsort((cells.label, box[:, 0], box[:, 1]))


@pytest.mark.parametrize("graphic_type", ["RECTANGLE", "POLYGON"])
def test_cells_come_back_as_they_went_in(
    analysis: Analysis, tmp_path: Path, graphic_type: GraphicType
) -> None:
    document = _read_back(encode_annotation(analysis, graphic_type), tmp_path)
    cells, order = decode_annotation(document), _sorted(analysis.cells)
    sent = analysis.cells
    assert np.array_equal(cells.box_px, sent.box_px[order])
    assert _keys(cells) == [sent.classes[label] for label in sent.label[order]]
    assert np.array_equal(
        cells.probability[np.arange(len(cells)), cells.label],
        sent.probability[order, sent.label[order]],
    )
    assert cells.package_digest == analysis.model.digest


def test_points_are_the_centres(analysis: Analysis, tmp_path: Path) -> None:
    cells = decode_annotation(_read_back(encode_annotation(analysis, "POINT"), tmp_path))
    box = analysis.cells.box_px
    centre = ((box[:, :2] + box[:, 2:]) / 2).astype(np.float32).astype(np.float64)
    assert np.array_equal(cells.box_px[:, :2], cells.box_px[:, 2:])
    assert sorted(map(tuple, cells.box_px[:, :2])) == sorted(map(tuple, centre))


def test_one_group_per_type_found_numbered_in_order(analysis: Analysis) -> None:
    groups = encode_annotation(analysis).AnnotationGroupSequence
    found = sorted(set(analysis.cells.label))
    assert [group.AnnotationGroupNumber for group in groups] == list(range(1, len(found) + 1))
    assert [group.AnnotationPropertyTypeCodeSequence[0].CodeValue for group in groups] == [
        cell_type_code(analysis.cells.classes[label]).value for label in found
    ]
    assert [group.NumberOfAnnotations for group in groups] == [
        int((analysis.cells.label == label).sum()) for label in found
    ]


def test_corners_run_clockwise_from_the_top_left(analysis: Analysis) -> None:
    """PS3.3 C.37.1.2: a rectangle's corners in order, here as seen on the slide's matrix."""
    group = encode_annotation(analysis).AnnotationGroupSequence[0]
    corners = np.frombuffer(group.PointCoordinatesData, np.float32).reshape(-1, 4, 2)
    x0, y0, x1, y1 = analysis.cells.box_px[analysis.cells.label == 0].T.astype(np.float32)
    expected = np.stack([x0, y0, x1, y0, x1, y1, x0, y1], axis=1).reshape(-1, 4, 2)
    assert np.array_equal(corners, expected)


@pytest.mark.parametrize("graphic_type", ["RECTANGLE", "POLYGON", "POINT"])
def test_highdicom_reads_what_plain_pydicom_reads(
    analysis: Analysis, tmp_path: Path, graphic_type: GraphicType
) -> None:
    document = _read_back(encode_annotation(analysis, graphic_type), tmp_path)
    groups = MicroscopyBulkSimpleAnnotations.from_dataset(document).get_annotation_groups()
    for group, stored in zip(groups, document.AnnotationGroupSequence, strict=True):
        plain = np.frombuffer(stored.PointCoordinatesData, "<f4").reshape(-1, 2)
        seen = group.get_graphic_data(coordinate_type="2D")
        assert np.array_equal(np.concatenate([np.atleast_2d(each) for each in seen]), plain)
        _, values, _ = group.get_measurements()
        stored_values = stored.MeasurementsSequence[0].MeasurementValuesSequence[0]
        assert np.array_equal(values[:, 0], np.frombuffer(stored_values.FloatingPointValues, "<f4"))


@pytest.mark.parametrize(("graphic_type", "geometry"), [("POLYGON", Polygon), ("POINT", Point)])
def test_wsidicom_reads_the_same_cells(
    analysis: Analysis, tmp_path: Path, graphic_type: GraphicType, geometry: type
) -> None:
    path = written(encode_annotation(analysis, graphic_type), tmp_path / "ann.dcm")
    (instance,) = AnnotationInstance.open([path])
    groups = list(instance.groups)
    assert instance.coordinate_type == "image"
    for group, stored in zip(groups, dcmread(path).AnnotationGroupSequence, strict=True):
        plain = np.frombuffer(stored.PointCoordinatesData, "<f4").reshape(-1, 2)
        geometries = [annotation.geometry for annotation in group.annotations]
        assert all(isinstance(each, geometry) for each in geometries)
        seen = [coordinate for each in geometries for coordinate in each.to_coords()]
        assert np.array_equal(np.array(seen, np.float32), plain)
        assert group.type_code.value == stored.AnnotationPropertyTypeCodeSequence[0].CodeValue


@pytest.mark.parametrize("graphic_type", ["RECTANGLE", "POLYGON", "POINT"])
def test_validator_finds_nothing(
    analysis: Analysis, tmp_path: Path, graphic_type: GraphicType
) -> None:
    assert dciodvfy(written(encode_annotation(analysis, graphic_type), tmp_path / "a.dcm")) == []


def test_slide_with_a_poor_header_makes_no_error(tmp_path: Path) -> None:
    """No origin, no patient's birth date, no container type: as real converters write them."""

    def poor(dataset: Dataset, level: int) -> None:
        for keyword in ("PatientBirthDate", "StudyID", "ContainerIdentifier"):
            delattr(dataset, keyword)

    made = write_slide(tmp_path / "slide", origin_mm=None, change=poor)
    with open_pacs((tmp_path / "slide").as_uri(), PacsSettings()) as pacs:
        slide = open_slide(pacs, made.study_uid, made.series_uid)
    document = encode_annotation(some_analysis(slide, 30))
    assert document.PatientBirthDate is None or document.PatientBirthDate == ""
    found = dciodvfy(written(document, tmp_path / "a.dcm"))
    assert [line for line in found if line.startswith("Error")] == []


def test_header_and_references_come_from_the_slide(analysis: Analysis) -> None:
    document, header = encode_annotation(analysis), analysis.slide.header
    for keyword in (
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyDate",
        "AccessionNumber",
        "ContainerIdentifier",
        "SpecimenDescriptionSequence",
    ):
        assert document[keyword].value == header[keyword].value, keyword
    base = analysis.slide.base.instance_uids[0]
    assert document.ReferencedImageSequence[0].ReferencedSOPInstanceUID == base
    series = document.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == analysis.slide.series_uid
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == base
    assert (document.AnnotationCoordinateType, document.PixelOriginInterpretation) == (
        "2D",
        "VOLUME",
    )


def test_model_is_identified_in_each_group(analysis: Analysis) -> None:
    for group in encode_annotation(analysis).AnnotationGroupSequence:
        (algorithm,) = group.AnnotationGroupAlgorithmIdentificationSequence
        assert algorithm.AlgorithmName == "demo-smear"
        assert algorithm.AlgorithmVersion == "1.0.0"
        assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
        assert f"package_sha256={analysis.model.digest}" in str(algorithm.AlgorithmParameters)


def test_same_analysis_gives_the_same_bytes_later(analysis: Analysis) -> None:
    first = to_bytes(encode_annotation(analysis))
    before = datetime.now().strftime("%H%M%S")
    while datetime.now().strftime("%H%M%S") == before:
        time.sleep(0.05)
    assert to_bytes(encode_annotation(analysis)) == first


def test_other_work_gets_other_uids(analysis: Analysis) -> None:
    digest = replace(analysis, configuration_digest="ef" * 32)
    model = replace(analysis, model=replace(analysis.model, digest="01" * 32))
    made = [encode_annotation(a) for a in (analysis, replace(analysis, revision=2), digest, model)]
    assert len({document.SOPInstanceUID for document in made}) == 4
    assert len({document.SeriesInstanceUID for document in made}) == 4
    groups = {g.AnnotationGroupUID for document in made for g in document.AnnotationGroupSequence}
    assert len(groups) == sum(len(document.AnnotationGroupSequence) for document in made)


def test_derived_uids_are_those_of_earlier_versions() -> None:
    """A changed derivation would make second copies of results that archives already hold."""
    assert derive_uid("a", "b") == derive_uid("a", "b")
    assert derive_uid("a", "b") == "2.25.172109917645872924813515778231502678030"


def test_no_cells_are_refused_with_the_remedy(slide: Slide) -> None:
    with pytest.raises(InputError, match=r"No cell was found on series .* write the SR alone"):
        encode_annotation(some_analysis(slide, cells=0))


def test_types_and_graphics_that_are_not_known_are_refused(analysis: Analysis) -> None:
    document = encode_annotation(analysis)
    document.AnnotationGroupSequence[2].GraphicType = "ELLIPSE"
    with pytest.raises(InputError, match="group 3: graphic type ELLIPSE"):
        decode_annotation(document)
    document.AnnotationGroupSequence[1].AnnotationPropertyTypeCodeSequence[0].CodeValue = "4421005"
    with pytest.raises(InputError, match="group 2: type"):
        decode_annotation(document)
    document.AnnotationCoordinateType = "3D"
    with pytest.raises(InputError, match="group 2: type"):
        annotated_types(document)


def test_3d_needs_the_slide(analysis: Analysis) -> None:
    document = encode_annotation(analysis, coordinate_type="3D")
    with pytest.raises(InputError, match="holds 3D coordinates: read it with the slide"):
        decode_annotation(document)


def _rotated(folder: Path) -> Slide:
    """At 30° to the slide's edges, away from its corner."""
    cosine, sine = float(np.cos(np.pi / 6)), float(np.sin(np.pi / 6))
    return _opened(
        folder, orientation=(-sine, -cosine, 0, -cosine, sine, 0), origin_mm=(18.4, 51.25)
    )


def _opened(folder: Path, **how: Any) -> Slide:
    made = write_slide(folder, **how)
    with open_pacs(folder.as_uri(), PacsSettings()) as pacs:
        return open_slide(pacs, made.study_uid, made.series_uid)


GRAPHIC_TYPES: tuple[GraphicType, ...] = ("RECTANGLE", "POLYGON", "POINT")


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("coordinate_type", ["2D", "3D"])
@pytest.mark.parametrize("graphic_type", GRAPHIC_TYPES)
def test_decoding_is_the_inverse_of_encoding(
    slide: Slide,
    tmp_path: Path,
    graphic_type: GraphicType,
    coordinate_type: CoordinateType,
    rotated: bool,
) -> None:
    """Of all forms, sizes of points included; a rotated slide's 3D boxes are its own again."""
    analysis = some_analysis(_rotated(tmp_path / "slide") if rotated else slide)
    document = encode_annotation(analysis, graphic_type, coordinate_type)
    path = written(document, tmp_path / "a.dcm")
    assert [line for line in dciodvfy(path) if line.startswith("Error")] == []
    cells, sent = decode_annotation(dcmread(path), analysis.slide), analysis.cells
    order, back = _sorted(sent), _sorted(cells)
    assert np.allclose(cells.box_px[back], sent.box_px[order], atol=1e-3)
    assert [_keys(cells)[row] for row in back] == [
        sent.classes[label] for label in sent.label[order]
    ]
    assert np.array_equal(cells.score[back], sent.score[order])
    assert np.array_equal(
        cells.probability[back, cells.label[back]], sent.probability[order, sent.label[order]]
    )
    assert annotated_types(document) == Counter(_keys(sent))


def test_3d_coordinates_are_millimetres_for_highdicom(tmp_path: Path) -> None:
    """Its own transformer, from the slide's metadata, finds the boxes' corners there."""
    slide = _rotated(tmp_path / "slide")
    analysis = some_analysis(slide, 50)
    document = encode_annotation(analysis, coordinate_type="3D")
    assert document.FrameOfReferenceUID == slide.frame_of_reference_uid
    read = MicroscopyBulkSimpleAnnotations.from_dataset(_read_back(document, tmp_path))
    transformer = ImageToReferenceTransformer.for_image(slide.header, for_total_pixel_matrix=True)
    for group in read.get_annotation_groups():
        label = [cell_type_code(key).value for key in analysis.cells.classes].index(
            group.annotated_property_type.CodeValue
        )
        box = analysis.cells.box_px[analysis.cells.label == label]
        corners = np.array([corner[0] for corner in group.get_graphic_data("3D")])
        assert np.allclose(corners, transformer(box[:, :2]), atol=1e-6)


@pytest.mark.parametrize("graphic_type", GRAPHIC_TYPES)
def test_connectathon_profile_finds_nothing(
    analysis: Analysis, tmp_path: Path, graphic_type: GraphicType
) -> None:
    """It asks for 2D coordinates."""
    path = written(encode_annotation(analysis, graphic_type), tmp_path / "a.dcm")
    assert dciodvfy(path, profile="WG26SP2025") == []


def test_size_is_measured_in_micrometres(analysis: Analysis) -> None:
    group = encode_annotation(analysis).AnnotationGroupSequence[0]
    measured = {
        item.ConceptNameCodeSequence[0].CodeMeaning: (
            item.MeasurementUnitsCodeSequence[0].CodeValue,
            np.frombuffer(item.MeasurementValuesSequence[0].FloatingPointValues, np.float32),
        )
        for item in group.MeasurementsSequence
    }
    box = analysis.cells.box_px[analysis.cells.label == 0]
    for name, side in (("Width", 0), ("Height", 1)):
        unit, values = measured[name]
        expected = (box[:, 2 + side] - box[:, side]) * analysis.slide.base.um_per_px
        assert unit == "um"
        assert np.allclose(values, expected)
    assert len(measured) == 4


@pytest.mark.parametrize("group_size", [1, 37, 600])
def test_many_cells_of_a_type_are_several_groups(
    analysis: Analysis, tmp_path: Path, group_size: int
) -> None:
    path = written(encode_annotation(analysis, group_size=group_size), tmp_path / "a.dcm")
    document = dcmread(path)
    groups = document.AnnotationGroupSequence
    assert [group.AnnotationGroupNumber for group in groups] == list(range(1, len(groups) + 1))
    assert max(group.NumberOfAnnotations for group in groups) <= group_size
    assert len({group.AnnotationGroupUID for group in groups}) == len(groups)
    assert dciodvfy(path) == []
    whole, split = (decode_annotation(each) for each in (encode_annotation(analysis), document))
    assert np.array_equal(whole.box_px, split.box_px)
    assert _keys(whole) == _keys(split)
    assert np.array_equal(whole.score, split.score)


def test_pieces_of_a_type_follow_each_other_down_the_slide(analysis: Analysis) -> None:
    pieces = [
        group
        for group in encode_annotation(analysis, group_size=37).AnnotationGroupSequence
        if group.AnnotationGroupLabel.startswith("Segmented neutrophil")
    ]
    assert pieces[0].AnnotationGroupLabel == f"Segmented neutrophil (1 of {len(pieces)})"
    tops = [np.frombuffer(g.PointCoordinatesData, np.float32).reshape(-1, 4, 2) for g in pieces]
    ends = [(top[:, 0, 1].min(), top[:, 0, 1].max()) for top in tops]
    assert all(first[1] <= second[0] for first, second in pairwise(ends))


def test_the_optical_path_is_named_where_there_are_several(
    analysis: Analysis, tmp_path: Path
) -> None:
    path = OpticalPath("brightfield 2", 3, "named in the settings")
    several = replace(analysis, slide=replace(analysis.slide, optical_path=path))
    document = encode_annotation(several)
    assert dciodvfy(written(document, tmp_path / "a.dcm")) == []
    for group in document.AnnotationGroupSequence:
        assert group.AnnotationAppliesToAllOpticalPaths == "NO"
        assert group.ReferencedOpticalPathIdentifier == "brightfield 2"
    for group in encode_annotation(analysis).AnnotationGroupSequence:
        assert group.AnnotationAppliesToAllOpticalPaths == "YES"
        assert "ReferencedOpticalPathIdentifier" not in group


def test_the_colour_profile_is_carried(analysis: Analysis, tmp_path: Path) -> None:
    profile = bytes(analysis.slide.header.OpticalPathSequence[0].ICCProfile)
    path = written(encode_annotation(replace(analysis, icc_profile=profile)), tmp_path / "a.dcm")
    assert dcmread(path).ICCProfile == profile
    assert dciodvfy(path) == []
    assert "ICCProfile" not in encode_annotation(analysis)


def test_a_base_level_in_parts_is_referred_to_as_the_whole(tmp_path: Path) -> None:
    """By SOP Instance UID of Concatenation Source, as viewers know a concatenation."""

    def named(dataset: Dataset, level: int) -> None:
        if level == 0:
            dataset.SOPInstanceUIDOfConcatenationSource = "2.25.4711"

    slide = _opened(tmp_path / "slide", parts=3, change=named)
    document = encode_annotation(some_analysis(slide, 30))
    assert document.ReferencedImageSequence[0].ReferencedSOPInstanceUID == "2.25.4711"
    (series,) = document.ReferencedSeriesSequence
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence] == [
        "2.25.4711",
        *slide.base.instance_uids,
    ]
    errors = dciodvfy(written(document, tmp_path / "a.dcm"))
    assert [line for line in errors if line.startswith("Error")] == []


def test_probability_of_some_cells_only_stays_with_those(analysis: Analysis) -> None:
    """Others may write values with an index list (PS3.3 C.37.1.2)."""
    document = encode_annotation(analysis)
    document.AnnotationGroupSequence = document.AnnotationGroupSequence[:1]
    values = (
        document.AnnotationGroupSequence[0].MeasurementsSequence[0].MeasurementValuesSequence[0]
    )
    values.AnnotationIndexList = np.array([2], np.int32).tobytes()
    values.FloatingPointValues = np.array([0.25], np.float32).tobytes()
    cells = decode_annotation(document)
    second = analysis.cells.box_px[analysis.cells.label == 0][1]
    row = int(np.flatnonzero((cells.box_px == second).all(axis=1))[0])
    assert cells.probability[row, 0] == 0.25
    assert (np.delete(cells.probability[:, 0], row) == 1).all()


def test_hundred_thousand_cells_take_seconds(slide: Slide) -> None:
    many = some_analysis(slide, cells=100_000)
    started = time.perf_counter()
    document = encode_annotation(many)
    cells = decode_annotation(document)
    assert time.perf_counter() - started < 5
    assert len(cells) == 100_000
