"""The probe's own test study: a slide of small tiles, annotations and a report on it.

Its names cannot be mistaken for a person's, and its UIDs are new each time.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_io.analysis import Analysis, ModelIdentity
from dicom_io.annotation import encode_annotation
from dicom_io.demonstration_header import demonstration_headers
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.pyramid_writer import write_pyramid
from dicom_io.report import encode_report
from dicom_io.slide import Slide, open_slide
from models.differential import count_differential
from models.manifest import DifferentialRules
from models.records import Cells, Regions

PATIENT_NAME = "MARROW-NODE^PROBE"
PATIENT_ID = "MARROW-NODE-PROBE"
SIDE_PX, TILE_PX = 1024, 16  # 4096 frames in 3 MB
CELLS = 40
CLASSES = ("myeloblast", "promyelocyte", "segmented_neutrophil", "basophilic_erythroblast")


def make_study(folder: Path) -> Mapping[str, Dataset]:
    """Write the slide into `folder`; returns ``SM``, ``ANN`` and ``SR``."""
    study_uid, series_uid = str(generate_uid(prefix=None)), str(generate_uid(prefix=None))
    size_px = (SIDE_PX, SIDE_PX)
    (header,) = demonstration_headers(study_uid, series_uid, [size_px], 0.25, TILE_PX)
    header.PatientName, header.PatientID = PATIENT_NAME, PATIENT_ID
    header.StudyDescription = "Test study of marrow-node probe, not of a patient"
    header.AccessionNumber = header.StudyID = ""
    rows = np.random.default_rng(1).integers(0, 255, (SIDE_PX, SIDE_PX, 3), np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "slide.dcm"
    write_pyramid([path], [header], [rows], quality=50, threads=1)
    with open_pacs(folder.as_uri(), PacsSettings()) as pacs:
        analysis = _analysis(open_slide(pacs, study_uid, series_uid))
    annotation = encode_annotation(analysis, "POLYGON")  # has both OF and OL
    report = encode_report(analysis, annotation, None)
    return {"SM": dcmread(path), "ANN": annotation, "SR": report}


def file_bytes(dataset: Dataset) -> bytes:
    """A DICOM file (PS3.10)."""
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def _analysis(slide: Slide) -> Analysis:
    rng = np.random.default_rng(2)
    corner = rng.uniform(0, SIDE_PX - 64, (CELLS, 2))
    box_px = np.concatenate((corner, corner + 32), axis=1).astype(np.float32).astype(float)
    label = np.arange(CELLS, dtype=np.int32) % len(CLASSES)
    cells = Cells(
        box_px=box_px,
        score=np.full(CELLS, 0.9, np.float32),
        probability=np.eye(len(CLASSES), dtype=np.float32)[label],
        label=label,
        tile=np.zeros(CELLS, np.int32),
        classes=CLASSES,
        package_digest="0" * 64,
    )
    rules = DifferentialRules(
        chi_square_threshold=1e-4,
        chi_square_tiles=5,
        minimum_cells=500,
        unclassified_share_max=0.1,
        stop_when_converged=False,
    )
    now = datetime.now(UTC)
    return Analysis(
        slide=slide,
        regions=Regions(
            np.array([[0.0, 0.0, SIDE_PX, SIDE_PX]]), np.ones(1, np.float32), "accepted frame"
        ),
        cells=cells,
        differential=count_differential(cells, 1, rules),
        model=ModelIdentity("probe", "1", "0" * 64, "A test, not for clinical use.", True),
        configuration_digest="0" * 64,
        revision=1,
        started=now,
        finished=now,
    )
