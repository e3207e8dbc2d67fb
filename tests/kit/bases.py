"""What the broken objects are made of: results of this node, and objects that others wrote."""

from __future__ import annotations

import io
import os
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from highdicom.ann import (
    AnnotationGroup,
    AnnotationGroupGenerationTypeValues,
    Measurements,
    MicroscopyBulkSimpleAnnotations,
)
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian
from wsidicom import WsiDicom

from conformance.result_set import ResultSet, is_slide, kind_of
from dicom_io.analysis import Analysis
from dicom_io.slide import Slide
from node.config import OutputSettings
from node.fhir import build_bundle
from node.outputs import encode_documents, to_bytes
from tests.analyses import small_slide, some_analysis

DATA = Path(__file__).parents[1] / "data"
PYDICOM = Path(os.path.dirname(pydicom.__file__)) / "data" / "test_files"
UNIT = codes.UCUM.NoUnits
ALGORITHM = codes.DCM.ArtificialIntelligence


@dataclass
class Case:
    """Objects that a fault is put into.

    Attributes
    ----------
    objects
        Whole DICOM objects, and headers of slides.
    bundle
        FHIR, of the node's own results.
    """

    objects: list[Dataset]
    bundle: dict[str, Any] | None = None

    def one(self, kind: str) -> Dataset:
        """The only object of a kind, the base level of slides."""
        found = [each for each in self.objects if kind_of(each) == kind]
        if kind == "SM":
            return max(found, key=lambda level: int(level.TotalPixelMatrixColumns))
        (only,) = found
        return only

    @property
    def ann(self) -> Dataset:
        return self.one("ANN")

    @property
    def sr(self) -> Dataset:
        return self.one("SR")

    @property
    def seg(self) -> Dataset:
        return self.one("SEG")

    @property
    def slide(self) -> Dataset:
        return self.one("SM")

    @property
    def fhir(self) -> dict[str, Any]:
        assert self.bundle is not None
        return self.bundle

    def results(self) -> ResultSet:
        return ResultSet(tuple(self.objects), () if self.bundle is None else (self.bundle,))


def file_bytes(document: Dataset) -> bytes:
    """A file with the meta information that the object has, right or wrong."""
    document.preamble = getattr(document, "preamble", None) or bytes(128)
    stream = io.BytesIO()
    dcmwrite(stream, document, enforce_file_format=False)
    return stream.getvalue()


def as_file(document: Dataset) -> Dataset:
    """An object as a reader gets it: written, and read again."""
    return dcmread(io.BytesIO(file_bytes(document)))


def base(name: str) -> Case:
    """A copy of a base, which may be broken."""
    return deepcopy(BASES[name]())


@cache
def _folder() -> Path:
    return Path(mkdtemp(prefix="marrow-node-kit-"))


@cache
def demonstration_folder() -> Path:
    return _folder() / "slide"


@cache
def demonstration_slide() -> Slide:
    return small_slide(demonstration_folder())


def slide_headers(folder: Path) -> list[Dataset]:
    """Of the base level and the one below: a fault needs no more of them."""
    read = [dcmread(path, stop_before_pixels=True) for path in sorted(folder.rglob("*.dcm"))]
    slides = [each for each in read if is_slide(each)]
    return sorted(slides, key=lambda level: -int(level.TotalPixelMatrixColumns))[:2]


def results_of(analysis: Analysis, graphic_type: str = "RECTANGLE") -> Case:
    """Everything that the node writes of an analysis, as read from files."""
    documents = encode_documents(analysis, OutputSettings(graphic_type=graphic_type))
    uids = {
        kind: (each.StudyInstanceUID, each.SeriesInstanceUID, each.SOPInstanceUID)
        for kind, each in documents.items()
    }
    objects = [dcmread(io.BytesIO(to_bytes(each))) for each in documents.values()]
    return Case(objects, build_bundle(analysis, uids, {}))


def _results(graphic_type: str) -> Case:
    case = results_of(some_analysis(demonstration_slide()), graphic_type)
    return Case([*case.objects, *slide_headers(demonstration_folder())], case.bundle)


@cache
def node() -> Case:
    return _results("RECTANGLE")


@cache
def node_polygons() -> Case:
    return _results("POLYGON")


@cache
def wsidicom_sm() -> Case:
    demonstration_slide()
    folder = _folder() / "wsidicom"
    folder.mkdir()
    with WsiDicom.open(demonstration_folder()) as original:
        original.save(folder)
    return Case(slide_headers(folder))


@cache
def converter_sm() -> Case:
    return Case([dcmread(DATA / "real_slide_jpeg.dcm", stop_before_pixels=True)])


def _equipment() -> dict[str, Any]:
    return {
        "manufacturer": "highdicom",
        "manufacturer_model_name": "highdicom",
        "software_versions": hd.__version__,
        "device_serial_number": "1",
        "series_instance_uid": hd.UID(),
        "sop_instance_uid": hd.UID(),
        "series_number": 7,
        "instance_number": 1,
    }


def _algorithm() -> hd.AlgorithmIdentificationSequence:
    return hd.AlgorithmIdentificationSequence("test", ALGORITHM, "1.0")


@cache
def highdicom_ann() -> Case:
    """Two groups of polygons, as highdicom writes them, about the slide by wsidicom."""
    levels = wsidicom_sm().objects
    slide = Case(levels).slide
    rng = np.random.default_rng(2)
    groups = []
    for number, kind in enumerate((codes.SCT.Cell, codes.SCT.Nucleus), start=1):
        centres = rng.uniform(100, 1400, (20, 1, 2))
        angles = np.linspace(0, 2 * np.pi, 7)[:-1]
        ring = 20 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        groups.append(
            AnnotationGroup(
                number=number,
                uid=hd.UID(),
                label=f"group {number}",
                annotated_property_category=codes.SCT.AnatomicalStructure,
                annotated_property_type=kind,
                graphic_type="POLYGON",
                graphic_data=list((centres + ring).astype(np.float32)),
                algorithm_type=AnnotationGroupGenerationTypeValues.AUTOMATIC,
                algorithm_identification=_algorithm(),
                measurements=[
                    Measurements(codes.SCT.Area, rng.uniform(1, 2, 20).astype(np.float32), UNIT)
                ],
            )
        )
    document = MicroscopyBulkSimpleAnnotations(
        source_images=[slide],
        annotation_coordinate_type="2D",
        annotation_groups=groups,
        **_equipment(),
    )
    return Case([dcmread(io.BytesIO(to_bytes(document))), *deepcopy(levels)])


@cache
def highdicom_sr() -> Case:
    levels = wsidicom_sm().objects
    slide = Case(levels).slide
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(hd.UID(), "tissue"),
        measurements=[hd.sr.Measurement(codes.SCT.Area, 12.5, codes.UCUM.SquareMillimeter)],
    )
    device = hd.sr.ObserverContext(
        codes.DCM.Device, hd.sr.DeviceObserverIdentifyingAttributes(uid=hd.UID())
    )
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=hd.sr.CodedConcept("104157003", "SCT", "Light microscopy"),
        imaging_measurements=[group],
        referenced_images=[slide],
    )
    document = hd.sr.Comprehensive3DSR(
        evidence=[slide],
        content=report[0],
        is_complete=True,
        is_verified=False,
        **_equipment(),
    )
    return Case([dcmread(io.BytesIO(to_bytes(document))), *deepcopy(levels)])


def _segmentation(organization: str) -> Case:
    levels = wsidicom_sm().objects
    # The coarsest level, so that the mask is small.
    slide = min(levels, key=lambda level: int(level.TotalPixelMatrixColumns))
    size = (int(slide.TotalPixelMatrixRows), int(slide.TotalPixelMatrixColumns))
    mask = np.zeros((1, *size, 1), np.uint8)
    mask[0, : size[0] // 2] = 1
    document = hd.seg.Segmentation(
        source_images=[slide],
        pixel_array=mask,
        segmentation_type="BINARY",
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=1,
                segment_label="tissue",
                segmented_property_category=codes.SCT.Tissue,
                segmented_property_type=codes.SCT.Tissue,
                algorithm_type="AUTOMATIC",
                algorithm_identification=_algorithm(),
            )
        ],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        dimension_organization_type=organization,
        tile_pixel_array=True,
        tile_size=(16, 16),
        omit_empty_frames=False,
        **_equipment(),
    )
    return Case([dcmread(io.BytesIO(to_bytes(document))), *deepcopy(levels)])


@cache
def highdicom_seg() -> Case:
    return _segmentation("TILED_FULL")


@cache
def highdicom_seg_sparse() -> Case:
    return _segmentation("TILED_SPARSE")


@cache
def pydicom_sr() -> Case:
    """A demonstration of OFFIS, Comprehensive SR."""
    return Case([dcmread(PYDICOM / "test-SR.dcm")])


@cache
def pydicom_basic_sr() -> Case:
    """A report of OFFIS, Basic Text SR."""
    return Case([dcmread(PYDICOM / "reportsi.dcm")])


@cache
def pydicom_seg() -> Case:
    """A liver by dcmqi."""
    return Case([dcmread(PYDICOM / "liver_1frame.dcm")])


BASES = {
    "node": node,
    "node-polygons": node_polygons,
    "wsidicom-sm": wsidicom_sm,
    "converter-sm": converter_sm,
    "highdicom-ann": highdicom_ann,
    "highdicom-sr": highdicom_sr,
    "highdicom-seg": highdicom_seg,
    "highdicom-seg-sparse": highdicom_seg_sparse,
    "pydicom-sr": pydicom_sr,
    "pydicom-basic-sr": pydicom_basic_sr,
    "pydicom-seg": pydicom_seg,
}
