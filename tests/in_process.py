"""A server in this process: what requests asks reaches a function instead of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import requests
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse

Answer = tuple[int, str, bytes]
"""Status, Content-Type, body."""


@dataclass
class InProcess(BaseAdapter):
    """Mounted in a session for an address; `answer` is given the path of each request."""

    answer: Callable[[str], Answer]

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:
        status, kind, body = self.answer(request.path_url)
        response = requests.Response()
        response.status_code, response.request, response.url = status, request, str(request.url)
        response.headers["Content-Type"] = kind
        response.raw = HTTPResponse(BytesIO(body), preload_content=False)
        return response

    def close(self) -> None:
        """Nothing is open."""
