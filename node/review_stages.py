"""The stages of a review: from the revision that a person saw to the next one's documents.

As those of :mod:`node.stages` each takes and returns small JSON. Nothing of the model package and
nothing of today's output settings is used: a revision is written as the first one was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from dicom_io.analysis import Analysis, ModelIdentity, Signature
from dicom_io.colour import carried_profile
from dicom_io.edited_annotation import read_edited_annotation
from dicom_io.overview import read_overview
from dicom_io.pacs import Pacs
from dicom_io.report import report_place
from dicom_io.slide import Slide
from models.correction import Correction, corrected, difference
from models.differential import count_differential
from models.errors import ReviewRefused
from models.manifest import DifferentialRules
from models.records import Cells, UInt8
from node import delivery
from node.config import OutputSettings
from node.documents import Before, write_documents
from node.first_run import archive_has_another, with_first_times
from node.outputs import KEPT, Artifact, from_bytes
from node.pictures import OVERVIEW_PX, Field, drawn_in_turn, pixels
from node.review import Review, resolve
from node.revisions import find_seen, keep_next, newest_revision, revisions
from node.stages import opened_slide
from node.summary import summary_of
from node.views import busiest_field_px, read_field
from node.workplace import ReviewPlace

Json = dict[str, Any]

PICTURES = ("overview", "differential")


def open_review(place: ReviewPlace, identity: str, review: Review) -> Json:
    """Check that the revision may be reviewed, and whether this very review was done before.

    Raises
    ------
    ReviewRefused
        Also when the archive does not have the report that was seen: the next one names it.
    WorkFileMissing
        When hosts share the jobs, and another one has the result.
    """
    place.progress("open review", 0.0)
    started = delivery.now_utc()
    if place.settings.database_url:
        newest_revision(place.settings, identity)
    seen, written = find_seen(place.settings, identity, review)
    report = Artifact(**seen["artifacts"]["SR"])
    with delivery.open_destination(place.settings) as pacs:
        if not pacs.has_instance(report.study_uid, report.series_uid, report.uid):
            raise ReviewRefused(
                f"The archive does not have the report of revision {review.revision}, which the "
                "next one replaces: deliver it first, by its own job."
            )
    return {"identity": identity, "started": started, "written": written}


def correct(place: ReviewPlace, opened: Json, review: Review) -> Json:
    """Find out what the person changed, apply it, and count anew by the rules of the analysis.

    Raises
    ------
    ReviewRefused
        When nothing was changed.
    ReviewInvalid
        When a correction does not fit the cells, or the edited ANN cannot serve.
    """
    place.progress("correct", 0.0)
    basis = _seen(place, opened, review)["analysis"]
    cells: Cells = place.work.get_record(basis["cells"])
    change = _correction(place, basis, cells, review)
    if not len(change):
        raise ReviewRefused(
            f"The correction changes nothing of revision {review.revision}: confirm it instead."
        )
    counted = place.work.get_record(basis["counted"])
    regions = place.work.get_record(basis["regions"])
    edited = corrected(cells, change, counted.box_px, regions)
    differential = count_differential(edited, basis["tiles"], DifferentialRules(**basis["rules"]))
    return {
        "cells": place.work.put_record(edited),
        "differential": place.work.put_record(differential),
        "changes": {
            "retyped": len(change.retyped),
            "deleted": len(change.deleted),
            "added": len(change.added_px),
        },
    }


def _correction(place: ReviewPlace, basis: Json, cells: Cells, review: Review) -> Correction:
    if review.corrections is not None:
        return resolve(review.corrections, cells, basis["output"]["cells_per_group"])
    with opened_slide(place, basis) as (pacs, slide):
        return difference(cells, read_edited_annotation(pacs, slide, review.annotation_uid))


def write(place: ReviewPlace, opened: Json, review: Review, corrections: Json | None) -> Json:
    """Write the documents of the next revision once; of two at the same time one is kept.

    Parameters
    ----------
    place, opened, review
    corrections
        What :func:`correct` found; None where the cells stay as they were.

    Raises
    ------
    ReviewRefused
        When another review came first, also where only the archive knows of it.
    PacsError
        When the archive cannot be asked.
    """
    place.progress("write review", 0.0)
    seen = _seen(place, opened, review)
    signature = review.signature(seen["standing"])
    basis = seen["analysis"] | {
        name: value for name, value in (corrections or {}).items() if name != "changes"
    }
    if corrections is not None:
        basis["finished"] = signature.at.isoformat()
    with opened_slide(place, basis, to_be_read=review.decision != "withdrawn") as (pacs, slide):
        analysis = _analysis(place, slide, seen, basis, signature)
        analysis = with_first_times(place.settings, analysis)
        basis["finished"] = analysis.finished.isoformat()
        if corrections is not None:
            analysis = replace(analysis, icc_profile=carried_profile(slide, pacs.bulk_data))
        drawn = _pictures(place, pacs, analysis, seen)
    place.progress("write review", 0.5)
    artifacts = write_documents(
        place.work,
        analysis,
        OutputSettings(**basis["output"]),
        drawn,
        _before(place, seen, review),
    )
    if archive_has_another(place.settings, from_bytes(place.work.get(artifacts["SR"]["sha256"]))):
        # Says which revision came first, where that is known here.
        find_seen(place.settings, opened["identity"], review)
        raise ReviewRefused(
            f"The archive has another revision {analysis.revision} of this result, which is not in "
            f"{place.settings.work_folder}: decide on the host that made it, or restore the newest "
            "backup first."
        )
    written = {
        **seen,
        "artifacts": artifacts,
        "next_report": report_place(replace(analysis, revision=analysis.revision + 1)),
        "revision": analysis.revision,
        "standing": analysis.standing,
        "issued": analysis.issued.isoformat(),
        "analysis": basis,
        "summary": _summary(seen, analysis),
        "review": review.as_json()
        | {"at": analysis.issued.isoformat()}
        | {"digest": review.digest, "changes": (corrections or {}).get("changes", {})},
    }
    kept = keep_next(place.settings, opened["identity"], written)
    if kept["review"]["digest"] != review.digest:
        # Says which revision came first.
        find_seen(place.settings, opened["identity"], review)
    return kept


def _seen(place: ReviewPlace, opened: Json, review: Review) -> Json:
    return revisions(place.settings, opened["identity"])[review.revision - 1]


def _analysis(
    place: ReviewPlace, slide: Slide, seen: Json, basis: Json, signature: Signature
) -> Analysis:
    return Analysis(
        slide=slide,
        regions=place.work.get_record(basis["regions"]),
        cells=place.work.get_record(basis["cells"]),
        differential=place.work.get_record(basis["differential"]),
        model=ModelIdentity(**seen["summary"]["model"]),
        configuration_digest=basis["configuration_digest"],
        revision=seen["revision"] + 1,
        started=datetime.fromisoformat(basis["started"]),
        finished=datetime.fromisoformat(basis["finished"]),
        icc=basis["icc"],
        pixels_sha256=basis["pixels_sha256"],
        signature=signature,
    )


def _pictures(
    place: ReviewPlace, pacs: Pacs, analysis: Analysis, seen: Json
) -> Iterable[tuple[str, UInt8]]:
    """Drawn anew where cells changed; those of the revision before where they did not."""
    if analysis.standing == "withdrawn":
        return ()
    if analysis.by_hand:
        slide, read = analysis.slide, place.settings.read
        most_frames = place.settings.slide.localise_frames
        whole = read_overview(pacs, slide, OVERVIEW_PX, most_frames, read)
        field = None
        if (field_px := busiest_field_px(analysis)) is not None:
            rgb = read_field(pacs, slide, field_px, read)
            field = Field(lambda: rgb, field_px)
        return drawn_in_turn(analysis, whole, field)
    files = (seen["artifacts"][name]["sha256"] for name in PICTURES)
    return zip(PICTURES, map(pixels, map(place.work.get, files)), strict=True)


def _before(place: ReviewPlace, seen: Json, review: Review) -> Before:
    artifacts = seen["artifacts"]
    report = Artifact(**artifacts["SR"])
    sources = {report.uid: "report that was reviewed"}
    if review.annotation_uid:
        sources[review.annotation_uid] = "annotations edited by the reviewer"
    return Before(
        {kind: Artifact(**artifacts[kind]) for kind in KEPT[review.decision] if kind in artifacts},
        [from_bytes(place.work.get(report.sha256))],
        sources,
    )


def _summary(seen: Json, analysis: Analysis) -> Json:
    """As of an analysis; of a withdrawn result without its numbers."""
    before: Json = seen["summary"]
    if analysis.standing != "withdrawn":
        return before | summary_of(analysis)
    return before | {
        "cells": 0,
        "differential": {},
        "me_ratio": None,
        "ndc_total": 0,
        "adequate": False,
        "sufficiency": "withdrawn",
    }
