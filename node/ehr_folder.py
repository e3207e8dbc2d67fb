"""A folder as EHR: resources as JSON files, each named by the digest of its type and identifier."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dicom_io.errors import EhrAnswerInvalid, EhrUnreachable
from node.ehr_records import (
    UID_SYSTEM,
    Delivered,
    Resource,
    device_references,
    identity_key,
    is_local,
    key_of,
    receipt,
    report_in,
    result_references,
    rewritten,
    would_undo_review,
)
from node.work_files import write_atomically


class FolderEhr:
    """Resources in ``<folder>/<type>/<digest>.json``; one file for one identifier."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def deliver(
        self, bundle: Mapping[str, Any], sending: Callable[[], object] = lambda: None
    ) -> list[Delivered]:
        sending()
        report = report_in(bundle)
        path = self._path(_reference(key_of(report)))
        if self._exists(path) and would_undo_review(report["resource"], self._read(path)):
            return [receipt(entry["resource"], "already there") for entry in bundle["entry"]]
        addresses = {entry["fullUrl"]: _reference(key_of(entry)) for entry in bundle["entry"]}
        return [self._deliver(entry, addresses) for entry in bundle["entry"]]

    def read_report(self, identifier: str) -> list[Resource]:
        path = self._path(_reference(identity_key("DiagnosticReport", UID_SYSTEM, identifier)))
        if not self._exists(path):
            raise EhrAnswerInvalid(
                f"The EHR folder {self._folder} has no DiagnosticReport {identifier}: "
                "deliver again."
            )
        report = self._read(path)
        results = [self._at(reference) for reference in result_references(report)]
        devices = [self._at(reference) for reference in device_references(results)]
        return [report, *results, *devices]

    def _deliver(self, entry: Mapping[str, Any], addresses: Mapping[str, str]) -> Delivered:
        reference = addresses[entry["fullUrl"]]
        resource = rewritten(entry["resource"], addresses) | {"id": reference.partition("/")[2]}
        content = json.dumps(resource, indent=1, sort_keys=True).encode()
        path = self._path(reference)
        with self._file_errors():
            there = path.read_bytes() if path.exists() else None
            if there != content:
                write_atomically(path, content)
        status = "already there" if there == content else "updated" if there else "created"
        return receipt(resource, status)

    def _at(self, reference: str) -> Resource:
        if not is_local(reference):
            raise EhrAnswerInvalid(
                f"A report in the EHR folder {self._folder} refers to a resource outside it: "
                "deliver again."
            )
        return self._read(self._path(reference))

    def _read(self, path: Path) -> Resource:
        try:
            resource: Resource = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise EhrAnswerInvalid(
                f"The file {path.parent.name}/{path.name} in the EHR folder {self._folder} cannot "
                "be read: remove it and deliver again."
            ) from error
        return resource

    def _exists(self, path: Path) -> bool:
        with self._file_errors():
            return path.exists()

    def _path(self, reference: str) -> Path:
        kind, _, resource_id = reference.partition("/")
        return self._folder / kind / f"{resource_id}.json"

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EhrUnreachable(
                f"The EHR folder {self._folder} cannot be used ({error.strerror}): "
                "free space there or correct its permissions."
            ) from error


def _reference(key: str) -> str:
    """``Type/id`` of what a key tells apart; the id is the key's digest, 40 of its 64 signs."""
    return f"{key.partition('|')[0]}/{hashlib.sha256(key.encode()).hexdigest()[:40]}"
