"""Datasets as clients send and take them: DICOM JSON, or XML (PS3.18 §8.7.3, annex F; PS3.19)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.request import parse_http_list
from uuid import uuid4

from flask import Response, request
from werkzeug.exceptions import NotAcceptable, UnsupportedMediaType

from dicom_io.dicom_json import Json
from dicom_io.multipart import Multipart, MultipartInvalid, media_type
from dicom_io.native_model import NativeModelInvalid, from_xml, to_xml

DICOM_JSON = "application/dicom+json"
DICOM_XML = "application/dicom+xml"
MULTIPART = "multipart/related"
_JSON = (DICOM_JSON, "application/json")
_ANY = ("application/*", "*/*", "")
_SENT = f"{DICOM_JSON}, {DICOM_XML}, or one part of the latter"


class BodyInvalid(ValueError):
    """The body of a request is not what its Content-Type says."""


@dataclass(frozen=True, slots=True)
class Representation:
    """How a client takes datasets: as JSON, as XML in parts, or as one document of XML."""

    xml: bool
    multipart: bool = False

    def answer(self, datasets: Sequence[Json], status: int = HTTPStatus.OK) -> Response:
        """Answer with datasets.

        Raises
        ------
        NotAcceptable
            The client takes a single document, and there is not just one dataset.
        """
        if not self.xml:
            text = json.dumps(datasets, ensure_ascii=False, separators=(",", ":"))
            return Response(text, status, content_type=DICOM_JSON)
        if self.multipart:
            return _in_parts([to_xml(each) for each in datasets], status)
        if len(datasets) != 1:
            raise NotAcceptable(f'Several datasets are given as {MULTIPART}; type="{DICOM_XML}".')
        return Response(to_xml(datasets[0]), status, content_type=DICOM_XML)


def representation() -> Representation:
    """What the client that asks takes best.

    Raises
    ------
    NotAcceptable
        It takes neither.
    """
    for kind, parameters in accepted_types():
        if kind in (*_JSON, *_ANY):
            return Representation(xml=False)
        if kind == DICOM_XML:
            return Representation(xml=True)
        if kind == MULTIPART and parameters.get("type") == DICOM_XML:
            return Representation(xml=True, multipart=True)
    raise NotAcceptable(f'This is given as {DICOM_JSON} or {MULTIPART}; type="{DICOM_XML}".')


def accepted_types() -> list[tuple[str, Mapping[str, str]]]:
    """Media types that the client takes, best first; the parameter counts (section 8.3.3.1)."""
    given = request.args.getlist("accept") or request.headers.getlist("Accept")
    # Not werkzeug's parser: it drops type=application/dicom without quotes, which clients send.
    taken = [media_type(each) for each in parse_http_list(",".join(given) or "*/*")]
    weighed = [(_quality(parameters), kind, parameters) for kind, parameters in taken]
    weighed.sort(key=lambda each: each[0], reverse=True)
    return [(kind, parameters) for quality, kind, parameters in weighed if quality > 0]


def sent_datasets() -> list[Any]:
    """The datasets of the request's body; of JSON what it holds, dataset or not.

    Raises
    ------
    BodyInvalid
        The body is not what its Content-Type says.
    UnsupportedMediaType
    """
    kind, parameters = media_type(request.headers.get("Content-Type", ""))
    body = request.get_data()
    try:
        if kind in _JSON:
            held = json.loads(body)
            return held if isinstance(held, list) else [held]
        if kind == DICOM_XML:
            return [from_xml(body)]
        if kind == MULTIPART and parameters.get("type") == DICOM_XML:
            parts = Multipart(iter([body]), parameters.get("boundary", ""), framed=True)
            return [from_xml(part.content) for part in parts]
    except (MultipartInvalid, NativeModelInvalid) as error:
        raise BodyInvalid(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise BodyInvalid("The body is not JSON.") from error
    raise UnsupportedMediaType(f"The body has to be {_SENT}.")


def _in_parts(documents: Sequence[bytes], status: int) -> Response:
    boundary = uuid4().hex
    head = f"--{boundary}\r\nContent-Type: {DICOM_XML}\r\n\r\n".encode()
    body = b"".join(head + document + b"\r\n" for document in documents)
    kind = f'{MULTIPART}; type="{DICOM_XML}"; boundary={boundary}'
    return Response(body + f"--{boundary}--\r\n".encode(), status, content_type=kind)


def _quality(parameters: Mapping[str, str]) -> float:
    try:
        return float(parameters.get("q", "1"))
    except ValueError:
        return 0.0
