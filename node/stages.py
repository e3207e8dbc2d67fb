"""The stages of the way: each takes and returns small JSON, arrays lie in work files."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.analysis import Analysis, ModelIdentity
from dicom_io.frames import bytes_of_slide, frame_boxes, read_tiles
from dicom_io.pacs import Pacs, open_pacs
from dicom_io.slide import Slide, open_slide
from models.detect import detect as detect_tiles
from models.detect import detection_grid
from models.differential import count_differential
from models.localise import localise as localise_tiles
from models.localise import localiser_grid
from models.package import ModelPackage, find_package, open_session, provider_for
from models.stitching import stitch
from node import __version__, delivery, fhir, pictures
from node.config import Settings
from node.ehr import open_ehr
from node.outputs import (
    DICOM_MEDIA_TYPE,
    Artifact,
    encode_documents,
    from_bytes,
    references,
    to_bytes,
)
from node.progress import Progress
from node.work_files import WorkFiles, write_atomically

Json = dict[str, Any]
REVISION = 1

# Share of the whole job, in percent, that each stage takes: what the progress bar shows.
_STAGE_PERCENT = {
    "open": (0, 2),
    "localise": (2, 10),
    "detect": (10, 85),
    "count": (85, 86),
    "write": (86, 92),
    "deliver to PACS": (92, 95),
    "deliver to EHR": (95, 98),
    "reconcile": (98, 100),
}


@dataclass(frozen=True, slots=True)
class Workplace:
    """All that the stages of one job work with. Made by :meth:`open`.

    Attributes
    ----------
    settings
    package
        The verified model package.
    configuration_digest
        SHA-256 (hex) of every setting and version that can change a result.
    work
    report
        Told of progress while stages run.
    """

    settings: Settings
    package: ModelPackage
    configuration_digest: str
    work: WorkFiles
    report: Callable[[Progress], None]

    @classmethod
    def open(cls, settings: Settings, report: Callable[[Progress], None]) -> Workplace:
        """Find and verify the model package, and fix the configuration.

        Raises
        ------
        ModelError
            When the package is missing or not usable.
        DiskFull
            When the work folder cannot be made.
        """
        package = find_package(settings.model.name, settings.model.folders)
        return cls(
            settings=settings,
            package=package,
            configuration_digest=_configuration_digest(settings),
            work=WorkFiles(settings.work_folder / "files"),
            report=report,
        )

    def progress(self, stage: str, fraction: float, cells: int = 0) -> None:
        low, high = _STAGE_PERCENT[stage]
        self.report(Progress(stage, low + (high - low) * fraction, cells))


def open_(place: Workplace, study_uid: str, series_uid: str) -> Json:
    """Check the slide and find out whether this very analysis was done before."""
    place.progress("open", 0.0)
    started = delivery.now_utc()
    with open_pacs(place.settings.pacs_url, place.settings.pacs) as pacs:
        slide = open_slide(pacs, study_uid, series_uid, place.settings.max_matrix_px)
        slide_bytes = bytes_of_slide(pacs, slide)
    identity = _digest_of(
        slide.study_uid,
        slide.series_uid,
        *sorted(slide.source_instances),
        place.package.digest,
        place.configuration_digest,
        str(REVISION),
    )
    return {
        "study_uid": study_uid,
        "series_uid": series_uid,
        "identity": identity,
        "started": started,
        "bytes_slide": slide_bytes,
        "written": _finished_before(place, identity),
    }


def localise(place: Workplace, opened: Json) -> Json:
    """Find where the cells lie, on the lowest useful level."""
    stage = place.package.manifest.localiser
    session = _session(place, "localiser")
    with _slide(place, opened) as (pacs, slide):
        boxes = localiser_grid(slide.base.size_px, slide.base.um_per_px, stage)
        tiles = read_tiles(pacs, slide, boxes, stage.um_per_px, None, place.settings.read)
        watched = _watched(place, "localise", tiles, len(boxes))
        regions = localise_tiles(
            watched, session, place.package, slide.base.size_px, slide.base.tile_size_px
        )
        return {"regions": place.work.put_record(regions), "bytes_read": pacs.bytes_read}
