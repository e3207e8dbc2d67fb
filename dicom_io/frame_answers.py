"""Frames as an archive writes them: media types, transfer syntaxes and multipart answers.

PS3.18 §8.7.3 (media types), §10.4 (retrieve).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import requests

from dicom_io.multipart import (
    Multipart,
    MultipartInvalid,
    Part,
    chunks_of,
    is_framed,
    joined,
    media_type,
)

# Media type in which a server gives the stored bytes of a transfer syntax (PS3.18 table 8.7.3-5).
# Asked for by name, because a media type without transfer syntax makes some archives re-encode.
# Only those that the stream itself tells for sure: a lossless JPEG 2000 stream may be stored under
# .90 or .91 (JPEG-LS: .80 or .81; HTJ2K and JPEG XL: three), and an archive that is asked for the
# other one transcodes or fails. Those are asked for as they are stored.
MEDIA_TYPES = {
    "1.2.840.10008.1.2.1": "application/octet-stream",
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
RAW = "application/octet-stream"
# Transfer syntaxes whose frames may be the same bytes: the stream alone does not tell them apart.
SAME_STREAMS = (
    {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"},
    {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"},
    {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"},
    {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"},
    {"1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112"},
    {"1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"},
)

FRAME_IN_LOCATION = re.compile(r"/frames/(\d{1,9})/?$")


def accept_headers(transfer_syntax_uid: str | None) -> list[str]:
    """Accept headers that ask for the stored bytes, the most exact first."""
    exact = MEDIA_TYPES.get(transfer_syntax_uid or "")
    types = [(exact, transfer_syntax_uid)] if exact else []
    types.append((RAW, "*"))
    if transfer_syntax_uid is not None:
        types.append((RAW, transfer_syntax_uid))
    return [f'multipart/related; type="{kind}"; transfer-syntax={uid}' for kind, uid in types]


def frame_number(part: Part) -> int | None:
    """Frame that a part says it is, counted from 1 (PS3.18 §8.6.1.2.1, Content-Location)."""
    found = FRAME_IN_LOCATION.search(part.headers.get("content-location", ""))
    return int(found[1]) if found else None


def frame_parts(response: requests.Response, asked: int, most_bytes: int) -> Iterator[Part]:
    """Parts of an answer, none longer than `most_bytes`; one frame may come without multipart."""
    kind, parameters = media_type(response.headers.get("Content-Type", ""))
    encoded = "Content-Encoding" in response.headers  # not asked for; else a copy is saved
    chunks = chunks_of(lambda size: response.raw.read1(size, decode_content=encoded))
    framed = is_framed(response)
    if kind.startswith("multipart/"):
        for part in Multipart(chunks, parameters.get("boundary", ""), framed, most_bytes):
            yield _pixels(part, parameters.get("transfer-syntax"))
    elif asked == 1 and framed and (kind == RAW or kind.startswith("image/")):
        headers = {"content-type": response.headers["Content-Type"]}
        yield Part(headers, joined(chunks, most_bytes))
    else:
        raise MultipartInvalid(f"the answer is {kind}")


def _pixels(part: Part, of_all: str | None) -> Part:
    """The part, if it can be a frame: some archives put their error message there.

    Where it does not say its transfer syntax, the head of the answer may (`of_all`).
    """
    said = part.headers.get("content-type", RAW)
    kind, parameters = media_type(said)
    if kind.startswith("text/") or kind.endswith(("json", "xml", "html")):
        raise MultipartInvalid(f"a part is {kind}")
    if of_all is None or "transfer-syntax" in parameters:
        return part
    return Part({**part.headers, "content-type": f"{said}; transfer-syntax={of_all}"}, part.content)


def transfer_syntax_given(part: Part) -> str | None:
    """Transfer syntax that a part says its bytes are in, if it does."""
    return media_type(part.headers.get("content-type", RAW))[1].get("transfer-syntax")


def same_bytes(given: str | None, wanted: str | None) -> bool:
    """Whether frames in two transfer syntaxes are the same bytes, as far as is told."""
    if given in {None, "", "*"} or wanted is None or given == wanted:
        return True
    return any({given, wanted} <= streams for streams in SAME_STREAMS)
