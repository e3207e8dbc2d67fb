"""The stages of the way: each takes and returns small JSON, arrays lie in work files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.analysis import FIRST_REVISION, Analysis, ModelIdentity
from dicom_io.colour import carried_profile
from dicom_io.errors import SeriesNotFound
from dicom_io.focus import in_focus
from dicom_io.frame_sample import sampled
from dicom_io.frames import bytes_of_regions, bytes_slide, read_tiles
from dicom_io.overview import read_overview
from dicom_io.pacs import Pacs, open_pacs
from dicom_io.report import report_place
from dicom_io.slide import Slide, open_slide
from dicom_io.slide_images import WHOLE_SLIDE_IMAGE
from models.ahead import mapped_ahead
from models.classify import detect_and_classify
from models.detect import detection_grid, reading_order
from models.differential import count_differential
from models.localise import localise as localise_tiles
from models.localise import localiser_grid
from models.package import Stage
from models.records import Detections, Float64, Regions, Tiles
from models.session import Session
from models.stitchers import STITCHERS
from models.stitching import TileGeometry
from node import delivery
from node.config import Settings
from node.documents import write_documents
from node.ehr import open_ehr
from node.ehr_mllp import MllpEhr
from node.ehr_records import report_in, would_undo_review
from node.fhir import report_identifier
from node.first_run import is_what_the_archive_has, with_first_times
from node.networks import batch_tiles, open_sessions
from node.outputs import DICOM_MEDIA_TYPE, Artifact, encode_documents, from_bytes
from node.pictures import OVERVIEW_PX, Field, drawn_in_turn
from node.revisions import keep_first, newest_revision, revisions
from node.summary import summary_of
from node.views import Appearance, busiest_field_px, read_field
from node.work_files import open_work_files, write_atomically
from node.workplace import Desk, Workplace

log = logging.getLogger(__name__)

Json = dict[str, Any]

LOCALISER_BATCH_TILES = 4
FILE_NAMES = {
    "ANN": "annotations.dcm",
    "SEG": "regions.dcm",
    "SR": "report.dcm",
    "PDF": "report-pdf.dcm",
    "SC overview": "overview.dcm",
    "SC differential": "differential.dcm",
    "PM": "region-probability.dcm",
    "FHIR": "report.fhir.json",
    "overview": "overview.png",
    "differential": "differential.png",
    "report": "report.pdf",
    "HL7": "report.hl7",
}


def open_(place: Workplace, study_uid: str, series_uid: str) -> Json:
    """Check the slide, and find out whether this very analysis was done before."""
    place.progress("open", 0.0)
    started = delivery.now_utc()
    with opened_slide(place, {"study_uid": study_uid, "series_uid": series_uid}) as (_, slide):
        identity = hashlib.sha256(
            json.dumps(
                [
                    study_uid,
                    series_uid,
                    sorted(slide.source_instances),
                    place.package.digest,
                    place.configuration_digest,
                    FIRST_REVISION,
                ]
            ).encode()
        ).hexdigest()
    return {
        "study_uid": study_uid,
        "series_uid": series_uid,
        "instances": sorted(slide.source_instances),
        "identity": identity,
        "started": started,
        "package_digest": place.package.digest,
        "configuration_digest": place.configuration_digest,
        "written": written_before(place, identity),
    }


def localise(place: Workplace, opened: Json) -> Json:
    """Find where the cells lie, on the lowest useful level."""
    stage = place.package.manifest.localiser
    session = open_sessions(place.settings, place.package, localiser=True)["localiser"]
    with opened_slide(place, opened) as (pacs, slide):
        boxes, sample = sampled(
            slide,
            localiser_grid(slide.base.size_px, slide.base.spacing_um, stage),
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
    with (
        opened_slide(place, opened) as (pacs, unfocused),
        ThreadPoolExecutor(1) as aside,
    ):
        # Documents and pictures would wait for it; the network leaves the archive time.
        appearance = aside.submit(_appearance, place, opened)
        sessions = open_sessions(place.settings, place.package)
        slide = in_focus(pacs, unfocused, regions, place.settings.slide, place.settings.read)
        box_px, core_px = detection_grid(
            regions,
            slide.base.size_px,
            slide.base.spacing_um,
            manifest.detector,
            place.settings.model.tile_seed,
        )
        # A count that may stop early needs its tiles in their random order.
        order = (
            np.arange(len(core_px))
            if manifest.differential.stop_when_converged
            else reading_order(core_px)
        )
        tiles = read_tiles(
            pacs,
            slide,
            box_px[order],
            manifest.detector.um_per_px,
            within=regions,
            batch_size=batch_tiles(place.settings.model, sessions["detector"]),
            settings=place.settings.read,
        )
        pixels = hashlib.sha256()
        found: list[tuple[Detections, TileGeometry]] = []
        done = cells = 0
        with closing(_answers(place, sessions, tiles)) as answers:
            for batch, digest, detections in answers:
                pixels.update(digest)
                numbers = order[done : done + len(batch.rgb)]
                found.append((detections, TileGeometry.of(batch, numbers)))
                done += len(batch.rgb)
                cells += len(detections.tile)
                place.progress("detect", done / len(box_px), cells)
                if _is_enough(place, found, core_px[:done], regions, cells):
                    break
        stitch = STITCHERS[manifest.detector.stitching]
        stitched = stitch(found, core_px[:done], regions, manifest.classes, place.package.digest)
        appearance.result()
        return {
            "cells": place.work.put_record(stitched),
            "counted": place.work.put_record(_as_regions(core_px[:done])),
            "tiles": done,
            "tiles_in_regions": len(core_px),
            "bytes_read": pacs.bytes_read,
            "bytes_regions": bytes_of_regions(pacs, slide, regions, manifest.detector.um_per_px),
            "bytes_slide": bytes_slide(pacs, slide),
            "provider": sessions["detector"].provider,
            "precision": sessions["detector"].precision,
            "focal_plane": slide.focal_plane,
            "pixels_sha256": pixels.hexdigest(),
        }


def _answers(
    place: Workplace, sessions: Mapping[Stage, Session], tiles: Generator[Tiles, None, None]
) -> Generator[tuple[Tiles, bytes, Detections], None, None]:
    """Each batch, the digest of its pixels, and what was found in it; closes `tiles`."""

    def answer(batch: Tiles) -> tuple[Tiles, bytes, Detections]:
        digest = hashlib.sha256(batch.rgb.data).digest()
        return batch, digest, detect_and_classify(batch, sessions, place.package)

    # One more than the devices: it digests pixels and thins out cells while they compute.
    at_work = sessions["detector"].parallel + 1
    with closing(tiles), ThreadPoolExecutor(at_work) as workers:
        yield from mapped_ahead(workers, answer, tiles, at_work + 1)


def _as_regions(core_px: Float64) -> Regions:
    return Regions(core_px, np.ones(len(core_px), np.float32), "core of a counted tile")


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
    stitch = STITCHERS[manifest.detector.stitching]
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
    """Write every document and picture once; later runs of the same analysis reuse them.

    Where those files are gone they are made again, as they were: see :mod:`node.first_run`.
    """
    place.progress("write", 0.0)
    appearance = _appearance(place, opened)
    with opened_slide(place, opened) as (pacs, slide), ThreadPoolExecutor(1) as pool:
        found = replace(
            _analysis(place, slide, opened, localised, detected, counted),
            icc_profile=appearance.icc_profile,
        )
        field = None
        if (field_px := busiest_field_px(found)) is not None:
            # What needs no pixels is made, and drawn, while they come.
            pixels = pool.submit(read_field, pacs, slide, field_px, place.settings.read)
            field = Field(pixels.result, field_px)
        analysis = with_first_times(place.settings, found)
        made = encode_documents(analysis, place.settings.output)
        place.progress("write", 0.4)
        drawn = drawn_in_turn(analysis, appearance.rgb, field)
        artifacts = write_documents(place.work, analysis, place.settings.output, drawn, made=made)
        read_for_pictures = appearance.bytes_read + pacs.bytes_read
    written: Json = {
        "artifacts": artifacts,
        "report": report_identifier(analysis),
        "identity": opened["identity"],
        "revision": analysis.revision,
        "next_report": report_place(replace(analysis, revision=analysis.revision + 1)),
        "standing": analysis.standing,
        "issued": analysis.issued.isoformat(),
        "analysis": _kept_for_review(place, analysis, opened, localised, detected, counted),
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
    keep_first(place.settings, opened["identity"], written)
    return written


def _appearance(place: Workplace, opened: Json) -> Appearance:
    """Read once in a job, and again only after a restart."""
    uids = (opened["study_uid"], opened["series_uid"])
    if uids not in place.appearances:
        with opened_slide(place, opened) as (pacs, slide):
            settings = place.settings
            most_frames = settings.slide.localise_frames
            rgb = read_overview(pacs, slide, OVERVIEW_PX, most_frames, settings.read)
            profile = carried_profile(slide, pacs.bulk_data)
            place.appearances[uids] = Appearance(rgb, profile, pacs.bytes_read)
    return place.appearances[uids]


def _kept_for_review(
    place: Workplace,
    analysis: Analysis,
    opened: Json,
    localised: Json,
    detected: Json,
    counted: Json,
) -> Json:
    """All that a later revision is made from: neither the model nor today's settings have a say."""
    return {
        "study_uid": opened["study_uid"],
        "series_uid": opened["series_uid"],
        "instances": sorted(analysis.slide.source_instances),
        "started": analysis.started.isoformat(),
        "finished": analysis.finished.isoformat(),
        "regions": localised["regions"],
        "cells": detected["cells"],
        "differential": counted["differential"],
        "counted": detected["counted"],
        "tiles": detected["tiles"],
        "rules": asdict(place.package.manifest.differential),
        "configuration_digest": place.configuration_digest,
        "icc": place.settings.read.icc,
        "pixels_sha256": detected["pixels_sha256"],
        "output": asdict(place.settings.output),
    }


def deliver_to_pacs(place: Desk, written: Json) -> Json:
    """Store every DICOM document unless it is there, and compare what the archive then gives."""
    place.progress("deliver to PACS", 0.0)
    receipts = []
    sent, artifacts = _sent(place, written)
    with delivery.open_destination(place.settings) as pacs:
        for number, (kind, artifact) in enumerate(artifacts.items()):
            # Told before each one: who has lost the job meanwhile sends nothing further.
            place.progress("deliver to PACS", number / len(written["artifacts"]))
            receipts.append(asdict(delivery.deliver_to_pacs(pacs, artifact, sent[kind])))
        within_s = place.settings.pacs.shown_within_s
        delivery.check_unchanged(sent, delivery.read_back(pacs, artifacts, sent, within_s))
    return {"receipts": receipts}


def deliver_to_ehr(place: Desk, written: Json) -> Json:
    """Send the report's resources unless they are there.

    A receiver of HL7 v2 cannot be asked whether it has a later revision: it is not sent this one
    where there is one.
    """
    place.progress("deliver to EHR", 0.0)
    ehr = open_ehr(place.settings.ehr_url, place.settings.ehr)
    artifacts, at = written["artifacts"], delivery.now_utc()
    newest = newest_revision(place.settings, written["identity"])
    if isinstance(ehr, MllpEhr):
        newest = max(newest, _newest_in_archive(place, written))
        if newest > written["revision"]:
            status = f"not sent: revision {newest} has replaced it"
            return {"receipts": [asdict(delivery.Receipt("EHR", "ORU^R01", "", status, at))]}
        delivered = ehr.deliver(place.work.get(artifacts["HL7"]["sha256"]).decode())
        note = delivery.CONTENT_NOT_READABLE
    else:
        # Asking takes a while: who has lost the job meanwhile sends nothing.
        delivered = ehr.deliver(
            place.work.get_json(artifacts["FHIR"]["sha256"]),
            lambda: place.progress("deliver to EHR", 0.5),
        )
        note = ""
    return {
        "receipts": [
            asdict(
                delivery.Receipt("EHR", each.resource_type, each.identifier, each.status, at, note)
            )
            for each in delivered
        ]
    }


def _newest_in_archive(place: Desk, written: Json) -> int:
    """The next revision's number where only the archive knows of it; else the revision's own.

    As after an older backup was restored, or where hosts share no storage.
    """
    following = written.get("next_report")  # nothing that an older version wrote
    if following is None:
        return int(written["revision"])
    with delivery.open_destination(place.settings) as archive:
        return int(written["revision"]) + archive.has_instance(*following)


def reconcile(place: Desk, opened: Json, written: Json, stored: Json, reported: Json) -> Json:
    """Read everything back, compare, and sum the job up.

    Returns
    -------
    dict
        What ``analyse --json`` prints of a completed job.
    """
    place.progress("reconcile", 0.0)
    compare(place, written, place.settings.pacs.shown_within_s)
    artifacts = {artifact.kind: artifact for artifact, _ in _documents(place, written)}
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
        "identity": written["identity"],
        "revision": written["revision"],
        "standing": written["standing"],
        **written["summary"],
        "bytes_read": written["bytes_read"],
        "bytes_needed": written["bytes_needed"],
        "bytes_slide": written["bytes_slide"],
        # By the clock, because processes may change meanwhile; and clocks are set back.
        "seconds": round(max(0.0, seconds.total_seconds()), 3),
        "peak_rss_mb": place.apart.peak_rss_mb(),
        "receipts": [*stored["receipts"], *reported["receipts"]],
        "files": {
            kind: str(place.work.path(artifact["sha256"]).absolute())
            for kind, artifact in written["artifacts"].items()
        },
    }


def compare(place: Desk, written: Json, within_s: float = 0.0) -> None:
    """Read a revision's documents and report back from where they went, and compare.

    Parameters
    ----------
    place
    written
    within_s
        Seconds to wait for what the archive does not give at once.

    Raises
    ------
    MarrowNodeError
        Where one cannot be read, or they do not say what was written.
    """
    sent, artifacts = _sent(place, written)
    with delivery.open_destination(place.settings) as pacs:
        returned = delivery.read_back(pacs, artifacts, sent, within_s)
    delivery.reconcile(sent, returned, _reported(place, written))


def _reported(place: Desk, written: Json) -> list[Json]:
    """The report's resources as the EHR has them.

    Those made here where it cannot be asked, or holds what a person decided later.
    """
    ehr = open_ehr(place.settings.ehr_url, place.settings.ehr)
    bundle = place.work.get_json(written["artifacts"]["FHIR"]["sha256"])
    made = [entry["resource"] for entry in bundle["entry"]]
    if isinstance(ehr, MllpEhr):
        return made
    there = ehr.read_report(written["report"])
    return made if would_undo_review(report_in(bundle)["resource"], there[0]) else there


def write_results_to(
    settings: Settings, result: Mapping[str, Any], folder: Path
) -> dict[str, Path]:
    """Copy every document and picture of a finished job into a folder, under plain names."""
    work = open_work_files(settings)
    paths = {kind: folder / FILE_NAMES[kind] for kind in result["files"]}
    for kind, path in paths.items():
        write_atomically(path, work.get(Path(result["files"][kind]).name))
    return paths


@contextmanager
def opened_slide(
    place: Desk, opened: Mapping[str, Any], *, to_be_read: bool = True
) -> Iterator[tuple[Pacs, Slide]]:
    """The archive and the slide, whose metadata is asked for once in a job.

    A job that has opened it, and a review of what came of that, have it as it was then. Where
    nothing is `to_be_read` of it, what is left of it will do: a result can be withdrawn when the
    archive has not all of its slide any more.
    """
    settings, uids = place.settings, (opened["study_uid"], opened["series_uid"])
    with open_pacs(settings.pacs_url, settings.pacs, place.budget) as pacs:
        if uids not in place.slides:
            asked = (pacs, *uids, settings.max_matrix_px, settings.slide)
            then = opened.get("instances")  # an older version kept none
            try:
                slide = open_slide(*asked, then)
            except SeriesNotFound:
                if to_be_read or not then:
                    raise
                log.warning("Series %s has lost instances since it was analysed.", uids[1])
                # What it is known by stays: results are named after it.
                known = dict.fromkeys(then, WHOLE_SLIDE_IMAGE)
                slide = replace(open_slide(*asked), source_instances=known)
            place.slides[uids] = slide
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
        revision=FIRST_REVISION,
        started=datetime.fromisoformat(opened["started"]),
        finished=datetime.fromisoformat(counted["finished"]),
        icc=place.settings.read.icc,
        pixels_sha256=detected["pixels_sha256"],
    )


def _sent(place: Desk, written: Json) -> tuple[dict[str, Any], dict[str, Artifact]]:
    """The DICOM documents of a revision, and what names them, by kind."""
    pairs = list(_documents(place, written))
    return (
        {artifact.kind: document for artifact, document in pairs},
        {artifact.kind: artifact for artifact, _ in pairs},
    )


def _documents(place: Desk, written: Json) -> Iterator[tuple[Artifact, Any]]:
    for values in written["artifacts"].values():
        artifact = Artifact(**values)
        if artifact.media_type == DICOM_MEDIA_TYPE:
            yield artifact, from_bytes(place.work.get(artifact.sha256))


def written_before(place: Workplace, identity: str) -> Json | None:
    """The newest revision of this very result, if all its artifacts are still in the work files.

    An analysis that is asked for again delivers what a person has made of it since, and never what
    that person replaced; nor what another node was quicker to deliver.
    """
    known = revisions(place.settings, identity)
    if not known or "identity" not in known[-1]:  # the latter of a version that knew no reviews
        return None
    if not all(place.work.has(each["sha256"]) for each in known[-1]["artifacts"].values()):
        return None
    if len(known) > 1 or is_what_the_archive_has(place.settings, known[0]):
        return known[-1]
    return None
