"""The stages of the way: each takes and returns small JSON, arrays lie in work files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from dicom_io.analysis import Analysis, ModelIdentity
from dicom_io.focus import in_focus
from dicom_io.frame_sample import sampled
from dicom_io.frames import ReadSettings, bytes_of_regions, bytes_slide, read_tiles
from dicom_io.pacs import Pacs, open_pacs
from dicom_io.slide import Slide, open_slide
from models.ahead import mapped_ahead
from models.classify import detect_and_classify
from models.detect import detection_grid
from models.differential import count_differential
from models.localise import localise as localise_tiles
from models.localise import localiser_grid
from models.records import Detections, Float64, Regions, Tiles
from models.stitching import TileGeometry, stitch
from node import delivery
from node.config import Settings
from node.ehr import open_ehr
from node.fhir import build_bundle, report_identifier
from node.networks import open_sessions
from node.outputs import DICOM_MEDIA_TYPE, Artifact, encode_documents, from_bytes, to_bytes
from node.pictures import draw_differential, draw_overview, for_ehr
from node.summary import peak_rss_mb, summary_of
from node.views import read_views
from node.work_files import WorkFiles, write_atomically
from node.workplace import Workplace

Json = dict[str, Any]

REVISION = 1
LOCALISER_BATCH_TILES = 4
PNG = "image/png"
FHIR_JSON = "application/fhir+json"
FILE_NAMES = {
    "ANN": "annotations.dcm",
    "SEG": "regions.dcm",
    "SR": "report.dcm",
    "FHIR": "report.fhir.json",
    "overview": "overview.png",
    "differential": "differential.png",
}


def open_(place: Workplace, study_uid: str, series_uid: str) -> Json:
    """Check the slide, and find out whether this very analysis was done before."""
    place.progress("open", 0.0)
    started = delivery.now_utc()
    with _slide(place, {"study_uid": study_uid, "series_uid": series_uid}) as (_, slide):
        identity = hashlib.sha256(
            json.dumps(
                [
                    study_uid,
                    series_uid,
                    sorted(slide.source_instances),
                    place.package.digest,
                    place.configuration_digest,
                    REVISION,
                ]
            ).encode()
        ).hexdigest()
    return {
        "study_uid": study_uid,
        "series_uid": series_uid,
        "identity": identity,
        "started": started,
        "written": _written_before(place, identity),
    }


def localise(place: Workplace, opened: Json) -> Json:
    """Find where the cells lie, on the lowest useful level."""
    stage = place.package.manifest.localiser
    session = open_sessions(place.settings, place.package, localiser=True)["localiser"]
    with _slide(place, opened) as (pacs, slide):
        boxes, sample = sampled(
            slide,
            localiser_grid(slide.base.size_px, slide.base.um_per_px, stage),
            stage.um_per_px,
            place.settings.slide.localise_frames,
        )
        tiles = read_tiles(
            pacs,
            slide,
            boxes,
            stage.um_per_px,
            within=sample,
            batch_size=LOCALISER_BATCH_TILES,
            settings=place.settings.read,
        )
        regions = localise_tiles(
            _watched(place, "localise", tiles, len(boxes)),
            session,
            place.package,
            slide.base.size_px,
            slide.base.tile_size_px,
        )
        return {
            "regions": place.work.put_record(regions),
            "bytes_read": pacs.bytes_read,
            "localised_on": "the whole slide" if sample is None else "a grid of frames",
        }


def detect(place: Workplace, opened: Json, localised: Json) -> Json:
    """Read the regions' frames, find and classify cells tile by tile, and stitch them."""
    regions: Regions = place.work.get_record(localised["regions"])
    manifest = place.package.manifest
    sessions = open_sessions(place.settings, place.package)
    found: list[tuple[Detections, TileGeometry]] = []
    with _slide(place, opened) as (pacs, unfocused):
        slide = in_focus(pacs, unfocused, regions, place.settings.slide, place.settings.read)
        box_px, core_px = detection_grid(
            regions,
            slide.base.size_px,
            slide.base.um_per_px,
            manifest.detector,
            place.settings.model.tile_seed,
        )
        tiles = read_tiles(
            pacs,
            slide,
            box_px,
            manifest.detector.um_per_px,
            within=regions,
            batch_size=place.settings.model.batch_tiles,
            settings=place.settings.read,
        )
        done = cells = 0
        with (
            closing(tiles),
            ThreadPoolExecutor(sessions["detector"].parallel) as workers,
            closing(
                mapped_ahead(
                    workers,
                    lambda batch: (batch, detect_and_classify(batch, sessions, place.package)),
                    tiles if len(box_px) else (),
                    sessions["detector"].parallel + 1,
                )
            ) as answers,
        ):
            for batch, detections in answers:
                found.append((detections, TileGeometry.of(batch, done)))
                done += len(batch.rgb)
                cells += len(detections.tile)
                place.progress("detect", done / len(box_px), cells)
                if _is_enough(place, found, core_px[:done], regions, cells):
                    break
        stitched = stitch(found, core_px[:done], regions, manifest.classes, place.package.digest)
        return {
            "cells": place.work.put_record(stitched),
            "tiles": done,
            "tiles_in_regions": len(core_px),
            "bytes_read": pacs.bytes_read,
            "bytes_regions": bytes_of_regions(pacs, slide, regions, manifest.detector.um_per_px),
            "bytes_slide": bytes_slide(pacs, slide),
            "provider": sessions["detector"].provider,
            "focal_plane": slide.focal_plane,
        }


def _is_enough(
    place: Workplace,
    found: list[tuple[Detections, TileGeometry]],
    core_px: Float64,
    regions: Regions,
    cells: int,
) -> bool:
    """Tell whether the count of the tiles read so far has converged and suffices."""
    manifest = place.package.manifest
    rules = manifest.differential
    if not rules.stop_when_converged or cells < rules.minimum_cells:
        return False
    so_far = stitch(found, core_px, regions, manifest.classes, place.package.digest)
    differential = count_differential(so_far, len(core_px), rules)
    return differential.converged_after is not None and differential.total >= rules.minimum_cells


def count(place: Workplace, opened: Json, detected: Json) -> Json:
    """Count the differential."""
    place.progress("count", 0.0)
    differential = count_differential(
        place.work.get_record(detected["cells"]),
        detected["tiles"],
        place.package.manifest.differential,
    )
    return {
        "differential": place.work.put_record(differential),
        "finished": delivery.now_utc(),
    }


def write(place: Workplace, opened: Json, localised: Json, detected: Json, counted: Json) -> Json:
    """Write every document and picture once; later runs of the same analysis reuse them."""
    place.progress("write", 0.0)
    with _slide(place, opened) as (pacs, slide), ThreadPoolExecutor(1) as beside:
        analysis = _analysis(place, slide, opened, localised, detected, counted)
        drawing = beside.submit(_drawn, pacs, analysis, place.settings.read)
        documents = encode_documents(analysis, place.settings.output.graphic_type)
        place.progress("write", 0.4)
        drawn = drawing.result()
        read_for_pictures = pacs.bytes_read
    artifacts = {
        kind: Artifact(
            kind,
            DICOM_MEDIA_TYPE,
            place.work.put(to_bytes(document)),
            document.StudyInstanceUID,
            document.SeriesInstanceUID,
            document.SOPInstanceUID,
        )
        for kind, document in documents.items()
    }
    references = {
        kind: (each.study_uid, each.series_uid, each.uid) for kind, each in artifacts.items()
    }
    bundle = build_bundle(
        analysis,
        references,
        {title: for_ehr(png) for title, png in drawn.items()},
        place.settings.output.loinc,
    )
    artifacts["FHIR"] = Artifact("FHIR", FHIR_JSON, place.work.put_json(bundle))
    for kind, picture in drawn.items():
        artifacts[kind] = Artifact(kind, PNG, place.work.put(picture))
    written: Json = {
        "artifacts": {kind: asdict(artifact) for kind, artifact in artifacts.items()},
        "report": report_identifier(analysis),
        "summary": {
            **summary_of(analysis),
            "optical_path": asdict(analysis.slide.optical_path),
            "focal_plane": detected["focal_plane"],
            "localised_on": localised["localised_on"],
        },
        "bytes_read": localised["bytes_read"] + detected["bytes_read"] + read_for_pictures,
        # What cannot be done without: the level that the localiser sees, and the regions' frames.
        "bytes_needed": localised["bytes_read"] + detected["bytes_regions"],
        "bytes_slide": detected["bytes_slide"],
    }
    write_atomically(
        _results_file(place, opened["identity"]), json.dumps(written, sort_keys=True).encode()
    )
    return written


def _drawn(pacs: Pacs, analysis: Analysis, settings: ReadSettings) -> dict[str, bytes]:
    """Both pictures, as PNG."""
    overview, field = read_views(pacs, analysis, settings)
    return {
        "overview": draw_overview(overview, analysis, field),
        "differential": draw_differential(analysis),
    }


def deliver_to_pacs(place: Workplace, written: Json) -> Json:
    """Store ANN, SEG and SR unless they are there."""
    place.progress("deliver to PACS", 0.0)
    with delivery.open_destination(place.settings) as pacs:
        return {
            "receipts": [
                asdict(delivery.deliver_to_pacs(pacs, artifact, document))
                for artifact, document in _documents(place, written)
            ]
        }


def deliver_to_ehr(place: Workplace, written: Json) -> Json:
    """Send the report's resources unless they are there."""
    place.progress("deliver to EHR", 0.0)
    ehr = open_ehr(place.settings.ehr_url, place.settings.ehr)
    bundle = place.work.get_json(written["artifacts"]["FHIR"]["sha256"])
    at = delivery.now_utc()
    return {
        "receipts": [
            asdict(delivery.Receipt("EHR", each.resource_type, each.identifier, each.status, at))
            for each in ehr.deliver(bundle)
        ]
    }


def reconcile(place: Workplace, opened: Json, written: Json, stored: Json, reported: Json) -> Json:
    """Read everything back, compare, and sum the job up.

    Returns
    -------
    dict
        What ``analyse --json`` prints of a completed job.
    """
    place.progress("reconcile", 0.0)
    sent = {artifact.kind: document for artifact, document in _documents(place, written)}
    artifacts = {artifact.kind: artifact for artifact, _ in _documents(place, written)}
    with delivery.open_destination(place.settings) as pacs:
        returned = delivery.read_back(pacs, artifacts, sent)
    ehr = open_ehr(place.settings.ehr_url, place.settings.ehr)
    delivery.reconcile(sent, returned, ehr.read_report(written["report"]))
    place.progress("reconcile", 1.0, written["summary"]["cells"])
    seconds = datetime.fromisoformat(delivery.now_utc()) - datetime.fromisoformat(opened["started"])
    return {
        **{
            kind.lower(): [
                [artifacts[kind].study_uid, artifacts[kind].series_uid, artifacts[kind].uid]
            ]
            if kind in artifacts
            else []
            for kind in ("ANN", "SEG", "SR")
        },
        "report": written["report"],
        **written["summary"],
        "bytes_read": written["bytes_read"],
        "bytes_needed": written["bytes_needed"],
        "bytes_slide": written["bytes_slide"],
        "seconds": round(seconds.total_seconds(), 3),
        "peak_rss_mb": peak_rss_mb(),
        "receipts": [*stored["receipts"], *reported["receipts"]],
        "files": {
            kind: str(place.work.path(artifact["sha256"]).absolute())
            for kind, artifact in written["artifacts"].items()
        },
    }


def write_results_to(
    settings: Settings, result: Mapping[str, Any], folder: Path
) -> dict[str, Path]:
    """Copy every document and picture of a finished job into a folder, under plain names."""
    work = WorkFiles(settings.work_folder / "files")
    paths = {kind: folder / FILE_NAMES[kind] for kind in result["files"]}
    for kind, path in paths.items():
        write_atomically(path, work.get(Path(result["files"][kind]).name))
    return paths


@contextmanager
def _slide(place: Workplace, opened: Mapping[str, Any]) -> Iterator[tuple[Pacs, Slide]]:
    settings, uids = place.settings, (opened["study_uid"], opened["series_uid"])
    with open_pacs(settings.pacs_url, settings.pacs) as pacs:
        if uids not in place.slides:
            place.slides[uids] = open_slide(pacs, *uids, settings.max_matrix_px, settings.slide)
        yield pacs, place.slides[uids]


def _watched(place: Workplace, stage: str, tiles: Iterable[Tiles], total: int) -> Iterator[Tiles]:
    done = 0
    for batch in tiles:
        yield batch
        done += len(batch.rgb)
        place.progress(stage, done / total)


def _analysis(
    place: Workplace, slide: Slide, opened: Json, localised: Json, detected: Json, counted: Json
) -> Analysis:
    manifest = place.package.manifest
    return Analysis(
        slide=slide,
        regions=place.work.get_record(localised["regions"]),
        cells=place.work.get_record(detected["cells"]),
        differential=place.work.get_record(counted["differential"]),
        model=ModelIdentity(
            name=manifest.name,
            version=manifest.version,
            digest=place.package.digest,
            intended_use=manifest.intended_use,
            demonstration=manifest.demonstration,
        ),
        configuration_digest=place.configuration_digest,
        revision=REVISION,
        started=datetime.fromisoformat(opened["started"]),
        finished=datetime.fromisoformat(counted["finished"]),
        icc=place.settings.read.icc,
    )


def _documents(place: Workplace, written: Json) -> Iterator[tuple[Artifact, Any]]:
    for values in written["artifacts"].values():
        artifact = Artifact(**values)
        if artifact.media_type == DICOM_MEDIA_TYPE:
            yield artifact, from_bytes(place.work.get(artifact.sha256))


def _results_file(place: Workplace, identity: str) -> Path:
    return place.settings.work_folder / "results" / f"{identity}.json"


def _written_before(place: Workplace, identity: str) -> Json | None:
    """The artifacts of this very analysis, if all of them are still in the work files."""
    path = _results_file(place, identity)
    if not path.exists():
        return None
    written: Json = json.loads(path.read_bytes())
    stored = (place.work.path(each["sha256"]) for each in written["artifacts"].values())
    return written if all(each.exists() for each in stored) else None
