"""A real OAuth 2 token endpoint: Authlib's server on Flask, whose tokens end."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from flask import Flask, Response
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.served import served

CLIENT_ID, CLIENT_SECRET = "marrow-node", "word of the client"


class _Client(ClientMixin):  # type: ignore[misc]
    """The one client there is; it may ask for DICOMweb."""

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == CLIENT_SECRET

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "client_secret_basic"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "client_credentials"

    def get_allowed_scope(self, scope: str) -> str:
        return scope or "dicomweb"


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:
        """Say nothing."""


@dataclass
class TokenServer:
    """The endpoint as a test sees it.

    Attributes
    ----------
    url
        Of the token endpoint.
    life_s
        What tokens say of themselves (``expires_in``).
    issued
        Every token so far.
    ends
        Token → when it ends.
    uses
        Token → requests that showed it.
    """

    url: str = ""
    life_s: int = 3600
    issued: list[str] = field(default_factory=list)
    ends: dict[str, float] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)

    def valid(self, authorization: str | None) -> bool:
        """Whether a request with this header may pass."""
        token = (authorization or "").removeprefix("Bearer ")
        self.uses[token] += 1
        return self.ends.get(token, 0.0) > time.monotonic()

    def expire_all(self) -> None:
        """End every token before its time."""
        for token in self.ends:
            self.ends[token] = 0.0

    def expire(self, authorization: str | None) -> bool:
        """End a token before its time, unless it is quite new; whether that was done."""
        token = (authorization or "").removeprefix("Bearer ")
        if self.uses[token] < 6 or self.ends.get(token, 0.0) == 0.0:
            return False
        self.ends[token] = 0.0
        return True


@contextmanager
def token_server(life_s: int = 3600) -> Iterator[TokenServer]:
    """Run a token endpoint."""
    server = TokenServer(life_s=life_s)
    app = Flask(__name__)

    def save(token: dict[str, str], request: object) -> None:
        server.issued.append(token["access_token"])
        server.ends[token["access_token"]] = time.monotonic() + server.life_s

    app.config["OAUTH2_TOKEN_EXPIRES_IN"] = {"client_credentials": life_s}
    endpoint = AuthorizationServer(
        app, query_client=lambda name: _Client() if name == CLIENT_ID else None, save_token=save
    )
    endpoint.register_grant(ClientCredentialsGrant)

    @app.post("/token")
    def token() -> Response:
        answer: Response = endpoint.create_token_response()
        return answer

    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # on loopback
    http = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    with served(http) as origin:
        server.url = f"{origin}/token"
        yield server
