"""Tell whoever asked for it that a job has ended."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import requests

from dicom_io.errors import CallbackFailed, ConfigurationInvalid
from node.web.settings import ServeSettings

TIMEOUT_S = 30.0


def check_callback(url: str, settings: ServeSettings) -> None:
    """Let only configured origins be told.

    Raises
    ------
    ConfigurationInvalid
        The address leads elsewhere.
    """
    parts = urlsplit(url)
    if f"{parts.scheme}://{parts.netloc}" not in settings.callbacks:
        raise ConfigurationInvalid(
            "The callback's origin is not configured: add it to serve.callbacks, or leave "
            "callback out and ask GET /jobs/{job}."
        )


def call_back(url: str, told: Mapping[str, Any], settings: ServeSettings) -> None:
    """POST a job's end as JSON; redirects are not followed.

    Raises
    ------
    ConfigurationInvalid
        See :func:`check_callback`.
    CallbackFailed
        No answer, or another than 2xx.
    """
    check_callback(url, settings)
    host = urlsplit(url).netloc
    try:
        with requests.post(
            url, json=dict(told), timeout=TIMEOUT_S, allow_redirects=False, stream=True
        ) as answer:
            status = answer.status_code  # nothing else is read of what it says
    except requests.RequestException as error:
        raise CallbackFailed(
            f"The callback to {host} got no answer ({type(error).__name__}): check that it runs."
        ) from error
    if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        raise CallbackFailed(f"The callback to {host} was answered {status}.")
