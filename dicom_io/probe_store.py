"""What an archive does with annotations and reports: taken, and given back unchanged?"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from io import BytesIO
from uuid import uuid4

from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_io.dicom_json import Json, key, nested, value, values
from dicom_io.pacs import InstanceReference
from dicom_io.pacs_errors import FOREIGN_ERRORS
from dicom_io.probe_frames import instance_path
from dicom_io.probe_http import Answer, Archive, Finding, Http, SeriesFound, Verdict
from dicom_io.probe_study import file_bytes

# Bulk attributes of an annotation group and their VR (PS3.3 C.37.1.2).
BULK = {"PointCoordinatesData": "OF", "LongPrimitivePointIndexList": "OL"}
CONFLICT = 409


def probe_annotation(http: Http, series: SeriesFound) -> Iterator[Finding]:
    """Look at an annotation that is there already: how its metadata give OF and OL."""
    found = http.ask(f"studies/{series.study_uid}/series/{series.series_uid}/metadata").datasets()
    for each in found[:1]:
        yield from _bulk_findings(http, each, None)


def probe_store(archive: Archive, study: Mapping[str, Dataset]) -> Iterator[Finding]:
    """Store the test study, read it back, store its report again, and delete it if that works."""
    for kind, dataset in study.items():
        answer = _stow(archive.store, [dataset])
        taken = answer.ok and _taken(answer, dataset)
        sentence = f"STOW of {kind}: {answer.said}"
        yield Finding(f"stow.{kind}", "yes" if taken else "no", sentence)
        if taken and kind != "SM":
            yield _unchanged(archive.retrieve, kind, dataset)
        if taken and kind == "ANN":
            yield from _returned_bulk(archive.retrieve, dataset)
        if taken and kind == "SR":
            yield from _duplicate(archive, dataset)


def probe_delete(archive: Archive, study_uid: str) -> Finding:
    """Try to delete the test study: not in DICOMweb, but some archives have it."""
    answer = archive.store.ask(f"studies/{study_uid}", method="DELETE")
    # What cannot be found any more is what counts.
    left = archive.query.ask(f"studies?StudyInstanceUID={study_uid}")
    gone = answer.ok and not left.datasets()
    if gone:
        return Finding("delete", "yes", "the test study was deleted again", study_uid)
    sentence = (
        f"DELETE of a study: {answer.said}; the test study {study_uid} is still there: delete it"
        " by the archive's own means"
    )
    return Finding("delete", "no", sentence, study_uid)


def _stow(http: Http, datasets: list[Dataset]) -> Answer:
    boundary = uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + file_bytes(each) + b"\r\n" for each in datasets)
    media = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return http.ask(
        "studies",
        method="POST",
        headers={"Content-Type": media},
        body=body + f"--{boundary}--\r\n".encode(),
    )


def _taken(answer: Answer, dataset: Dataset) -> bool:
    """Whether the answer's dataset says so (PS3.18 §10.5.3): a status alone does not."""
    said = answer.json()
    item: Json = said[0] if isinstance(said, list) and said else said or {}
    taken = values(item, "ReferencedSOPSequence")
    uids = [value(each, "ReferencedSOPInstanceUID") for each in taken]
    return str(dataset.SOPInstanceUID) in uids


def _reference(dataset: Dataset) -> InstanceReference:
    return InstanceReference(
        str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)
    )


def _unchanged(http: Http, kind: str, dataset: Dataset) -> Finding:
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    answer = http.ask(instance_path(_reference(dataset)), accept)
    sent = dcmread(BytesIO(file_bytes(dataset)))
    name = f"returned.{kind}"
    try:
        (part,) = answer.parts()
        returned = dcmread(BytesIO(part))
        changed = [each.keyword or str(each.tag) for each in sent if returned.get(each.tag) != each]
    except FOREIGN_ERRORS:
        return Finding(name, "no", f"{kind} as an instance: {answer.said}")
    if changed:
        return Finding(name, "defect", f"{kind} came back with other {', '.join(changed)}", changed)
    return Finding(name, "yes", f"{kind} came back unchanged")


def _returned_bulk(http: Http, annotation: Dataset) -> Iterator[Finding]:
    path = instance_path(_reference(annotation))
    answer = http.ask(f"{path}/metadata")
    found = answer.datasets()
    if not found:
        yield Finding("bulk.metadata", "no", f"metadata of ANN: {answer.said}")
        return
    yield from _bulk_findings(http, found[0], annotation)


def _bulk_findings(http: Http, metadata: Json, stored: Dataset | None) -> Iterator[Finding]:
    """How OF and OL of the first annotation group are given (PS3.18 §F.2.2 and F.2.7)."""
    group = nested(metadata, "AnnotationGroupSequence")
    for keyword, vr in BULK.items():
        found = group.get(key(keyword))
        element: Json = found if isinstance(found, dict) else {}
        wanted = bytes(stored.AnnotationGroupSequence[0].get(keyword, b"")) if stored else None
        if not element and not wanted:
            continue
        verdict, sentence = _bulk_verdict(http, element, wanted)
        yield Finding(f"bulk.{vr}", verdict, f"{vr} ({keyword}): {sentence}")


def _bulk_verdict(http: Http, element: Json, wanted: bytes | None) -> tuple[Verdict, str]:
    if "InlineBinary" in element:
        try:
            inline = base64.b64decode(element["InlineBinary"])
        except (ValueError, TypeError):  # no base64, or no text
            return "defect", "given inline, but as something that is not base64 (PS3.18 §F.2.7)"
        return _compared(inline, wanted, "given inline")
    uri = element.get("BulkDataURI")
    if uri is None:
        found = element.get("Value")
        shown = len(found) if isinstance(found, list) else 0
        whole = f" of {len(wanted) // 4}" if wanted else ""
        return "defect", (
            f"metadata give {shown} number{whole}, without a BulkDataURI: a viewer that reads"
            " annotations from this archive cannot draw them"
        )
    answer = http.ask_uri(str(uri), "application/octet-stream")
    if answer is None:
        return "defect", "the BulkDataURI leads to another host, to which nothing was sent"
    if not answer.ok:
        return "defect", f"the BulkDataURI answers with {answer.said}"
    content = answer.parts()[0] if answer.parts() else answer.body
    return _compared(content, wanted, "its BulkDataURI works")


def _compared(content: bytes, wanted: bytes | None, how: str) -> tuple[Verdict, str]:
    if wanted is None:
        return "yes", f"{how}, {len(content)} bytes"
    if content == wanted:
        return "yes", f"{how}, bytes as they were stored"
    return "defect", f"{how}, but gives {len(content)} other bytes than the {len(wanted)} stored"


def _duplicate(archive: Archive, dataset: Dataset) -> Iterator[Finding]:
    again = _stow(archive.store, [dataset])
    study_uid, series_uid, sop_uid = _reference(dataset)
    instances = f"studies/{study_uid}/series/{series_uid}/instances"
    listed = archive.query.ask(instances).datasets()
    copies = [value(each, "SOPInstanceUID") for each in listed].count(sop_uid)
    verdict: Verdict = "yes" if copies == 1 else "defect"
    if again.ok and _taken(again, dataset):
        told = "is taken again"
    elif again.ok or again.status == CONFLICT:
        told = f"is refused ({again.said})"
    else:
        told = f"fails ({again.said})"
    sentence = f"a second STOW of the same object {told}; {copies} is listed afterwards"
    yield Finding("stow.duplicate", verdict, sentence, copies)
