"""Bulk data: attributes that metadata name by a BulkDataURI instead of giving their value."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import closing
from urllib.parse import urlsplit, urlunsplit

from dicom_io.errors import PacsAnswerInvalid, PacsRefused
from dicom_io.multipart import Multipart, MultipartInvalid, chunks_of, is_framed, media_type
from dicom_io.pacs_http import Service

MOST_BYTES = 512 * 2**20
"""Enough for the coordinates of ten million annotations; more would not fit beside a model."""

# One attribute without multipart is what some archives know alone.
ACCEPTS = ('multipart/related; type="application/octet-stream"', "application/octet-stream")
INSTANCE = re.compile(r"/instances/([0-9.]{1,64})(?:/|$)")


def read_bulk_data(service: Service, uri: str) -> bytes:
    """Fetch `uri` from where the session of `service` may go."""
    found = INSTANCE.search(uri)
    # Nothing else of the address is told: it may hold keys, or whatever the archive wrote there.
    what = f"bulk data of instance {found[1]}" if found else "bulk data"
    return service.ask(what, lambda: _read(service, uri, what))


def _read(service: Service, uri: str, what: str) -> bytes:
    with closing(service.get_any(_address(service, uri), ACCEPTS)) as response:
        kind, parameters = media_type(response.headers.get("Content-Type", ""))
        chunks = chunks_of(lambda size: response.raw.read1(size, decode_content=True))
        if not kind.startswith("multipart/"):
            if kind.startswith("text/"):
                raise MultipartInvalid(f"the answer is {kind}")
            return _joined(service, chunks, what)
        body = Multipart(chunks, parameters.get("boundary", ""), is_framed(response))
        contents = [_joined(service, pieces, what) for _, pieces in body.streams()]
    if len(contents) != 1:
        raise MultipartInvalid(f"the answer has {len(contents)} parts")
    return contents[0]


def _address(service: Service, uri: str) -> str:
    """The URI, or its path at the archive where it names a host that may not be asked.

    Archives behind a proxy write hosts that cannot be reached, and Orthanc leaves out its port.
    """
    own, named = urlsplit(service.url), urlsplit(uri)
    below = bool(own.path) and named.path.startswith(f"{own.path}/")
    known = named.scheme in {"", "http", "https"} and named.username is None
    if not (known and named.path) or ".." in named.path or not (below or service.reaches(uri)):
        raise PacsRefused(
            f"{service.name} gives bulk data at another address than its own: correct the"
            " BulkDataURI that the archive writes, or name its host in further_hosts."
        )
    if service.reaches(uri):
        return uri
    return urlunsplit((own.scheme, own.netloc, named.path, named.query, ""))


def _joined(service: Service, pieces: Iterable[bytes | memoryview], what: str) -> bytes:
    joined = bytearray()
    for piece in pieces:
        joined += piece
        if len(joined) > MOST_BYTES:
            raise PacsAnswerInvalid(
                f"{service.name} sent more than {MOST_BYTES >> 20} MiB as {what}:"
                " check the object; nothing that a slide needs is that large."
            )
    return bytes(joined)
