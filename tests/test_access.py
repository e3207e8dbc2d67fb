"""Tokens of an OpenID Connect provider, keys, roles and limits."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

from dicom_io.errors import ConfigurationInvalid, ProviderUnreachable
from node.web.access import ENDPOINTS, Access, check_table, digest_of, request_user
from node.web.settings import KeySettings, OidcSettings, ServeSettings
from node.web.tokens import LOOK_AGAIN_S, TokenReader
from tests.loopback_host import Host, running_host

AUDIENCE = "marrow-node"


class Provider:
    """A provider with keys that change: discovery and key set over real HTTP."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.keys = [RSAKey.generate_key(2048, {"kid": "first"})]
        host.answer = self._answer

    def _answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path.endswith("openid-configuration"):
            content: Any = {"issuer": self.host.url, "jwks_uri": f"{self.host.url}/keys"}
        else:
            content = KeySet(self.keys).as_dict(private=False)
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def token(self, key: Any = None, algorithm: str = "RS256", **claims: Any) -> str:
        key = key or self.keys[-1]
        now = int(time.time())
        content = {
            "iss": self.host.url,
            "aud": AUDIENCE,
            "sub": "anna",
            "exp": now + 60,
            "iat": now,
            "roles": ["read"],
            "name": "Anna Lee",
        } | claims
        wanted = {name: value for name, value in content.items() if value is not None}
        return jwt.encode({"alg": algorithm, "kid": key.kid}, wanted, key, algorithms=[algorithm])

    @property
    def settings(self) -> OidcSettings:
        return OidcSettings(issuer=self.host.url, audience=AUDIENCE)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with running_host() as host:
        yield Provider(host)


def test_a_token_says_who_and_what(provider: Provider) -> None:
    claims = TokenReader(provider.settings).read(provider.token())
    assert claims is not None
    assert (claims.subject, claims.roles, claims.person) == (
        "anna",
        frozenset({"read"}),
        "Anna Lee",
    )


def test_roles_are_found_and_mapped(provider: Provider) -> None:
    settings = replace(
        provider.settings,
        roles_claim="realm_access.roles",
        roles={"haematologist": "sign"},
    )
    token = provider.token(realm_access={"roles": ["haematologist", "janitor", "read"]})
    claims = TokenReader(settings).read(token)
    assert claims is not None
    assert claims.roles == {"sign"}


def test_what_is_not_to_be_trusted(provider: Provider) -> None:
    reader = TokenReader(provider.settings)
    other = RSAKey.generate_key(2048, {"kid": "first"})
    secret = OctKey.generate_key(256, {"kid": "first"})
    untrusted = [
        provider.token(iss="https://elsewhere.example"),
        provider.token(aud="another"),
        provider.token(aud=None),
        provider.token(exp=int(time.time()) - 120),
        provider.token(exp=None),
        provider.token(sub=None),
        provider.token(nbf=int(time.time()) + 120),
        provider.token(other),
        provider.token(secret, "HS256"),
        provider.token()[:-4] + "AAAA",
        "none.of.it",
        "x",
    ]
    assert [reader.read(token) for token in untrusted] == [None] * len(untrusted)


def test_keys_may_change(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = TokenReader(provider.settings)
    assert reader.read(provider.token()) is not None
    provider.keys = [ECKey.generate_key("P-256", {"kid": "second"})]
    token = provider.token(algorithm="ES256")
    asked = len(provider.host.requests)
    assert reader.read(token) is None  # looked for moments ago
    assert len(provider.host.requests) == asked
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + LOOK_AGAIN_S + 1)
    assert reader.read(token) is not None


def test_keys_elsewhere_are_not_fetched(provider: Provider) -> None:
    with running_host() as elsewhere:
        provider.host.answer = lambda path: (
            200,
            {},
            json.dumps({"jwks_uri": f"{elsewhere.url}/keys"}).encode(),
        )
        with pytest.raises(ProviderUnreachable, match="keys of"):
            TokenReader(provider.settings).read(provider.token())
        assert not elsewhere.requests


def test_an_issuer_needs_an_audience() -> None:
    with pytest.raises(ConfigurationInvalid, match="audience"):
        TokenReader(OidcSettings(issuer="https://login.example"))


def application(settings: ServeSettings) -> Flask:
    app = Flask(__name__)
    access = Access(settings, lambda address: None)
    app.before_request(access.check)
    app.add_url_rule("/jobs", "jobs.list_jobs", lambda: request_user().name)
    return app


def test_requests_are_limited_by_caller() -> None:
    keys = {
        name: KeySettings(sha256=digest_of(f"mnk_{name}"), roles=("read",)) for name in ("a", "b")
    }
    client = application(ServeSettings(keys=keys, requests_per_s=3)).test_client()

    def ask(name: str) -> Any:
        return client.get("/jobs", headers={"Authorization": f"Bearer mnk_{name}"})

    answers = [ask("a") for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert [a.headers["Retry-After"] for a in answers if a.status_code == 429]
    assert ask("b").status_code == 200


def test_a_key_is_a_browsers_password_under_its_own_name() -> None:
    keys = {"anna": KeySettings(sha256=digest_of("mnk_anna"), roles=("read",))}
    client = application(ServeSettings(keys=keys)).test_client()
    assert client.get("/jobs", auth=("anna", "mnk_anna")).status_code == 200
    assert client.get("/jobs", auth=("otto", "mnk_anna")).status_code == 401
    assert client.get("/jobs", auth=("anna", "mnk_otto")).status_code == 401


def test_a_route_without_a_role_is_not_served() -> None:
    app = Flask(__name__, static_folder=None)
    app.add_url_rule("/new", "pages.new", lambda: "")
    with pytest.raises(RuntimeError, match=r"pages\.new"):
        check_table(app)
    assert {name for name, role in ENDPOINTS.items() if role is None} == {
        "health.alive",
        "health.ready",
        "login.begin",
        "login.end",
        "static",
    }
