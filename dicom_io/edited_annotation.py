"""An ANN that a person edited in a viewer and stored in the archive, found by its UID and read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, MicroscopyBulkSimpleAnnotationsStorage

from dicom_io.annotation import decode_annotation
from dicom_io.errors import InputError
from dicom_io.pacs import Pacs
from dicom_io.slide import Slide
from models.errors import ReviewInvalid
from models.records import Cells

# Coordinates are single floats: on the edge of 300 000 px they are this exact.
EDGE_PX = 0.05


def read_edited_annotation(pacs: Pacs, slide: Slide, sop_uid: str) -> Cells:
    """Find an ANN in the slide's study and read its cells.

    Parameters
    ----------
    pacs
        Where viewers store.
    slide
        The one that it has to be about.
    sop_uid
        SOP Instance UID.

    Raises
    ------
    ReviewInvalid
        When the study has no such ANN, or it is about another image than the slide's base level.
    PacsError
        When the archive cannot be asked.
    """
    if UID(sop_uid).is_valid:
        for series_uid in _annotation_series(pacs, slide.study_uid):
            if pacs.has_instance(slide.study_uid, series_uid, sop_uid):
                document = pacs.retrieve_instance(slide.study_uid, series_uid, sop_uid)
                return _cells(document, slide)
    raise ReviewInvalid(
        f"{pacs.name} has no annotations {sop_uid} in study {slide.study_uid}: store the edited "
        "annotations in the study of the slide, and name their SOP Instance UID."
    )


def _annotation_series(pacs: Pacs, study_uid: str) -> Iterator[str]:
    for series in pacs.search_series(study_uid):
        if "ANN" in series.get("00080060", {}).get("Value", []):
            yield series["0020000E"]["Value"][0]


def _cells(document: Dataset, slide: Slide) -> Cells:
    _refuse_another_image(document, slide)
    try:
        cells = decode_annotation(document, slide)
    except (InputError, AttributeError, IndexError, KeyError, ValueError) as error:
        told = str(error) if isinstance(error, InputError) else "they cannot be read."
        raise ReviewInvalid(
            f"Annotations {document.get('SOPInstanceUID', '')} do not serve as a correction: {told}"
        ) from error
    width, height = slide.base.size_px
    low, high = cells.box_px[:, :2] + EDGE_PX, cells.box_px[:, 2:] - EDGE_PX
    outside = int(((low < 0) | (high > np.array([width, height]))).any(axis=1).sum())
    if outside:
        raise ReviewInvalid(
            f"Annotations {document.SOPInstanceUID} hold {outside} cells outside of the slide's "
            f"{width} × {height} px: take them out."
        )
    return cells


def _refuse_another_image(document: Dataset, slide: Slide) -> None:
    """2D coordinates count on the one image referred to, 3D ones in the frame of reference."""
    uid = document.get("SOPInstanceUID", "")
    if document.get("SOPClassUID") != MicroscopyBulkSimpleAnnotationsStorage:
        raise ReviewInvalid(f"Instance {uid} is no Microscopy Bulk Simple Annotations.")
    if document.get("AnnotationCoordinateType") == "3D":
        about = document.get("FrameOfReferenceUID") == slide.frame_of_reference_uid
    else:
        named = {
            str(image.get("ReferencedSOPInstanceUID", ""))
            for image in document.get("ReferencedImageSequence") or []
        }
        whole = slide.header.get("SOPInstanceUIDOfConcatenationSource", "")
        about = bool(named & {*slide.base.instance_uids, str(whole)} - {""})
    if not about:
        raise ReviewInvalid(
            f"Annotations {uid} are not about the base level of the slide: their coordinates "
            "would be those of another image."
        )
