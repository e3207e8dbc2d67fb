"""The node's own results over DICOMweb, to read (PS3.18 section 10: search and retrieve).

Archives refuse annotations, or give the first of a million coordinates in their metadata; a viewer
finds them here as they were written. The slide itself comes from the archive: a viewer has two
DICOMweb clients, one for each. Nothing can be stored, changed or deleted: every other method is
answered 405.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from flask import Blueprint, Response, request, send_file, url_for
from werkzeug.exceptions import BadRequest, NotAcceptable, NotFound, ServiceUnavailable

from dicom_io.instance_content import BulkValue, with_addresses
from dicom_io.search import Level, Search, SearchInvalid, answer, read_search
from node.result_store import ResultStore, StoredObject
from node.web.representation import MULTIPART, accepted_types, representation

DICOM = "application/dicom"
OCTETS = "application/octet-stream"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
CHUNK_BYTES = 2**18
# What a viewer of another origin may send and see besides what every browser allows.
ALLOWED_HEADERS = "Accept, Authorization, Range, If-None-Match"
EXPOSED_HEADERS = "Content-Range, Content-Length, ETag, Warning"
LITERAL_ONLY = (
    '299 marrow-node "The {} parameter is not supported. Only literal matching has been performed."'
)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A media type that the client takes: ``multipart/related`` of `kind`, or `kind` alone."""

    kind: str
    multipart: bool


def dicomweb_blueprint(
    store: ResultStore, public_url: str, viewer_origins: Collection[str]
) -> Blueprint:
    """The read-only DICOMweb service of a work folder.

    Parameters
    ----------
    store
    public_url
        Where clients find the server, ``https://node.example``; empty: as each request names it.
    viewer_origins
        Origins whose pages may read in a browser: ``https://viewer.example``.
    """
    service = _Service(store, public_url.rstrip("/"))
    blueprint = Blueprint("dicomweb", __name__, url_prefix="/dicom-web")
    study, series = "/studies/<study>", "/studies/<study>/series/<series>"
    instance = f"{series}/instances/<instance>"
    for path, level in (
        ("/studies", "studies"),
        ("/series", "series"),
        ("/instances", "instances"),
        (f"{study}/series", "series"),
        (f"{study}/instances", "instances"),
        (f"{series}/instances", "instances"),
    ):
        blueprint.add_url_rule(path, "search", service.search, defaults={"level": level})
    for path in (study, series, instance):
        blueprint.add_url_rule(path, "retrieve", service.retrieve)
        blueprint.add_url_rule(f"{path}/metadata", "metadata", service.metadata)
        blueprint.add_url_rule(f"{path}/bulkdata", "bulk_data", service.bulk_data)
    blueprint.add_url_rule(f"{instance}/bulkdata/<path:where>", "bulk_value", service.bulk_value)

    @blueprint.after_request
    def allow_viewers(response: Response) -> Response:
        """Cross-origin reading, for pages of the configured origins only (Fetch standard, CORS)."""
        response.vary.add("Origin")
        if request.headers.get("Origin") in viewer_origins:
            response.access_control_allow_origin = request.headers["Origin"]
            response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
            if request.method == "OPTIONS":
                response.headers["Access-Control-Allow-Methods"] = "GET, HEAD"
                response.headers["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
                response.headers["Access-Control-Max-Age"] = "600"
        return response

    return blueprint


@contextmanager
def _unless_purged() -> Iterator[None]:
    """Retention may take a result away between its finding and its reading."""
    try:
        yield
    except FileNotFoundError as error:
        raise ServiceUnavailable(
            "A result was purged while it was read: ask again.", retry_after=1
        ) from error


class _Service:
    """The views: what is asked for, found, and given in the media type that the client takes."""

    def __init__(self, store: ResultStore, public_url: str) -> None:
        self._store = store
        self._public_url = public_url

    @_unless_purged()
    def search(self, level: Level, study: str = "", series: str = "") -> Response:
        """QIDO-RS (PS3.18 section 10.6)."""
        taken = representation()
        target = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        asked = [(name, given) for name, given in request.args.items(multi=True)]
        path = [(name, given) for name, given in target.items() if given]
        try:
            found = read_search(level, [*path, *(each for each in asked if each[0] != "accept")])
        except SearchInvalid as error:
            raise BadRequest(str(error)) from error
        objects = self._store.objects(_studies(found))
        headers = [self._store.header(each) for each in objects]
        response = taken.answer(answer(found, headers, self._url))
        for name in found.ignored:
            response.headers.add("Warning", LITERAL_ONLY.format(name))
        return response

    @_unless_purged()
    def retrieve(self, study: str, series: str = "", instance: str = "") -> Response:
        """WADO-RS: whole instances (PS3.18 section 10.4, Table 10.4.1-1)."""
        chosen = _accepted(DICOM)
        objects = self._found(study, series, instance)
        if not chosen.multipart:
            if not instance:
                _not_acceptable(f'{MULTIPART}; type="{DICOM}"')
            (only,) = objects
            response = send_file(only.path, DICOM, conditional=True, etag=only.sha256)
            return response
        return _multipart(
            DICOM,
            [
                _Part(
                    each.path,
                    0,
                    each.size,
                    f"{DICOM}; transfer-syntax={EXPLICIT_LITTLE_ENDIAN}",
                    self._url(each.study_uid, each.series_uid, each.uid),
                )
                for each in objects
            ],
        )

    @_unless_purged()
    def metadata(self, study: str, series: str = "", instance: str = "") -> Response:
        """WADO-RS: metadata (PS3.18 section 10.4, Table 10.4.1-2)."""
        taken = representation()
        return taken.answer(
            [
                with_addresses(self._store.content(each).attributes, self._bulk_url(each))
                for each in self._found(study, series, instance)
            ]
        )

    @_unless_purged()
    def bulk_data(self, study: str, series: str = "", instance: str = "") -> Response:
        """WADO-RS: all bulk data of a resource (PS3.18 sections 10.4.1.1.5, 10.4.3.3.5)."""
        if not _accepted(OCTETS).multipart:
            _not_acceptable(f'{MULTIPART}; type="{OCTETS}"')
        return _multipart(
            OCTETS,
            [
                self._bulk_part(each, where, value)
                for each in self._found(study, series, instance)
                for where, value in self._store.content(each).bulk.items()
            ],
        )

    @_unless_purged()
    def bulk_value(self, study: str, series: str, instance: str, where: str) -> Response:
        """One value, as a BulkDataURI of the metadata names it; ranges in a single part."""
        chosen = _accepted(OCTETS)
        (stored,) = self._found(study, series, instance)
        value = self._store.content(stored).bulk.get(where)
        if value is None:
            raise NotFound("The instance has no such bulk data.")
        if chosen.multipart:
            return _multipart(OCTETS, [self._bulk_part(stored, where, value)])
        response = Response(_bytes_of(stored.path, value), content_type=OCTETS)
        response.set_etag(f"{stored.sha256}-{value.offset}")
        response.make_conditional(request.environ, True, value.length)
        return response

    def _found(self, study: str, series: str, instance: str) -> list[StoredObject]:
        objects = self._store.objects({study}, series or None, instance or None)
        if not objects:
            raise NotFound("There is no such study, series or instance among the results here.")
        return objects

    def _bulk_part(self, stored: StoredObject, where: str, value: BulkValue) -> _Part:
        address = f"{self._bulk_url(stored)}/{where}"
        return _Part(stored.path, value.offset, value.length, OCTETS, address)

    def _bulk_url(self, stored: StoredObject) -> str:
        return f"{self._url(stored.study_uid, stored.series_uid, stored.uid)}/bulkdata"

    def _url(self, study: str, series: str, instance: str) -> str:
        """Absolute address of a study, series or instance."""
        uids = {"study": study, "series": series, "instance": instance}
        path: dict[str, Any] = {name: uid for name, uid in uids.items() if uid}
        if not self._public_url:
            return url_for("dicomweb.retrieve", **path, _external=True)
        return self._public_url + url_for("dicomweb.retrieve", **path)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a multipart answer: bytes of a file, their Content-Type and their address."""

    path: Path
    offset: int
    length: int
    kind: str
    address: str


def _studies(search: Search) -> list[str] | None:
    """The studies that a search names, so that no other is looked at; None for all."""
    named = search.matches.get("StudyInstanceUID", "")
    return named.replace("\\", ",").split(",") if named not in ("", "*") else None


def _accepted(kind: str) -> _Chosen:
    """Multipart or single part of `kind`; where the client takes anything, multipart (8.7.4)."""
    for taken, parameters in accepted_types():
        if parameters.get("transfer-syntax", "*") not in ("*", EXPLICIT_LITTLE_ENDIAN):
            continue
        if taken in ("*/*", "multipart/*") or (
            taken == MULTIPART and parameters.get("type", kind) in (kind, "*/*", "application/*")
        ):
            return _Chosen(kind, multipart=True)
        if taken == kind:
            return _Chosen(kind, multipart=False)
    _not_acceptable(f'{MULTIPART}; type="{kind}" or {kind}')


def _not_acceptable(given: str) -> NoReturn:
    raise NotAcceptable(
        f"This resource is given as {given}, in Explicit VR Little Endian where that applies."
    )


def _multipart(kind: str, parts: list[_Part]) -> Response:
    """A multipart/related answer that is read from the disk while it is sent (8.6.1.2.1)."""
    boundary = uuid4().hex
    heads = [
        f"--{boundary}\r\nContent-Type: {part.kind}\r\nContent-Length: {part.length}\r\n"
        f"Content-Location: {part.address}\r\n\r\n".encode()
        for part in parts
    ]
    end = f"--{boundary}--\r\n".encode()
    length = sum(len(head) + part.length + 2 for head, part in zip(heads, parts, strict=True))

    def body() -> Iterator[bytes]:
        for head, part in zip(heads, parts, strict=True):
            yield head
            yield from _pieces(part)
            yield b"\r\n"
        yield end

    response = Response(body(), content_type=f'{MULTIPART}; type="{kind}"; boundary={boundary}')
    response.content_length = length + len(end)
    return response


def _pieces(part: _Part) -> Iterable[bytes]:
    with part.path.open("rb") as stream:
        stream.seek(part.offset)
        left = part.length
        while left and (piece := stream.read(min(left, CHUNK_BYTES))):
            left -= len(piece)
            yield piece


def _bytes_of(path: Path, value: BulkValue) -> bytes:
    with path.open("rb") as stream:
        stream.seek(value.offset)
        return stream.read(value.length)
