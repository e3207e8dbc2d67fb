"""A slide that was analysed, and what a person may decide about its result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom import UID
from highdicom.ann import (
    AnnotationGroup,
    AnnotationGroupGenerationTypeValues,
    MicroscopyBulkSimpleAnnotations,
)
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_io.annotation import decode_annotation
from dicom_io.codes import cell_category_code, cell_type_code
from dicom_io.pacs import open_pacs
from node.config import Settings
from node.delivery import now_utc
from node.outputs import DICOM_MEDIA_TYPE
from node.pipeline import SlideReference, analyse
from node.review import review_from
from node.review_way import review_result
from node.revisions import revisions
from node.workplace import ReviewPlace, Workplace
from tests.smears import Smear

Result = Mapping[str, Any]
RETYPE_ONE = {"retyped": [{"group": 1, "index": 1, "type": "plasma_cell"}]}
DELETE_ONE = {"deleted": [{"group": 1, "index": 1}]}


@dataclass(frozen=True)
class Node:
    """A slide that was analysed, and what may be done with its result."""

    smear: Smear
    settings: Settings

    def analyse(self) -> Result:
        slide = SlideReference(self.smear.slide.study_uid, self.smear.slide.series_uid, "test")
        return analyse(Workplace.open(self.settings, lambda _: None), slide, at_once)

    def review(
        self, result: Result, revision: int, decision: str, step: Any = None, **more: Any
    ) -> Result:
        asked = {
            "revision": revision,
            "decision": decision,
            "name": "Lee^Anna^^Dr.",
            "organization": "Haematology",
            "at": now_utc(),
        }
        return review_result(
            ReviewPlace.open(self.settings, lambda _: None),
            result["identity"],
            review_from(asked | more),
            step or at_once,
        )

    def revisions(self, result: Result) -> list[dict[str, Any]]:
        return revisions(self.settings, result["identity"])

    def fetched(self, written: Mapping[str, Any]) -> dict[str, Dataset]:
        """Every DICOM object of a revision, as the archive has it."""
        with open_pacs(self.settings.pacs_url, self.settings.pacs) as pacs:
            return {
                kind: pacs.retrieve_instance(each["study_uid"], each["series_uid"], each["uid"])
                for kind, each in written["artifacts"].items()
                if each["media_type"] == DICOM_MEDIA_TYPE
            }


def at_once(name: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """As a job does it: results go through JSON."""
    answer: dict[str, Any] = json.loads(json.dumps(stage()))
    return answer


def edited_annotation(node: Node, document: Dataset) -> Dataset:
    """As a viewer stores it: polygons; one cell of another type, one taken out, one put in."""
    with open_pacs(node.settings.pacs_url, node.settings.pacs) as pacs:
        header = dcmread(max(node.smear.slide.paths, key=lambda path: path.stat().st_size))
        cells = decode_annotation(document)
        keys = [cells.classes[label] for label in cells.label]
        keys[0] = "plasma_cell"
        boxes = [*cells.box_px[:-1], cells.box_px[2] + 3.0]  # beside the third
        types = [*keys[:-1], "eosinophil"]
        groups = [
            AnnotationGroup(
                number=number,
                uid=UID(),
                label=key,
                annotated_property_category=cell_category_code(key),
                annotated_property_type=cell_type_code(key),
                graphic_type="POLYGON",
                graphic_data=[
                    np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32)
                    for (x0, y0, x1, y1), type_ in zip(boxes, types, strict=True)
                    if type_ == key
                ],
                algorithm_type=AnnotationGroupGenerationTypeValues.MANUAL,
            )
            for number, key in enumerate(dict.fromkeys(types), start=1)
        ]
        edited = MicroscopyBulkSimpleAnnotations(
            source_images=[header],
            annotation_coordinate_type="2D",
            pixel_origin_interpretation="VOLUME",
            annotation_groups=groups,
            series_instance_uid=UID(),
            series_number=77,
            sop_instance_uid=UID(),
            instance_number=1,
            manufacturer="a viewer",
            manufacturer_model_name="a viewer",
            software_versions="1",
            device_serial_number="1",
        )
        pacs.store([edited])
    return edited
