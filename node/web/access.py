"""Who may do what: keys of machines, tokens of an OpenID Connect provider, and roles.

Every endpoint stands in :data:`ENDPOINTS` with the role that it needs; only the health checks, the
sign-in and the style sheet need none. A key comes as ``Authorization: Bearer KEY``, or, from a
browser, as the password of HTTP Basic whose user is the key's name. Keys are 256 random bits, so
that a plain SHA-256 keeps them.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from flask import Flask, g, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, TooManyRequests, Unauthorized
from werkzeug.wrappers import Response

from node.web.login import signed_in, to_login
from node.web.settings import Role, ServeSettings
from node.web.tokens import Claims, TokenReader

KEY_PREFIX = "mnk_"
REALM = "marrow-node"

# Endpoint → role; None is open: health checks, signing in, and the pages' style.
ENDPOINTS: dict[str, Role | None] = {
    "health.alive": None,
    "health.ready": None,
    "health.metrics": "read",
    "openapi.document": "read",
    "dicomweb.search": "read",
    "dicomweb.retrieve": "read",
    "dicomweb.metadata": "read",
    "dicomweb.bulk_data": "read",
    "dicomweb.bulk_value": "read",
    "jobs.submit": "submit",
    "jobs.list_jobs": "read",
    "jobs.show": "read",
    "jobs.events": "read",
    "jobs.file": "read",
    "jobs.retry": "operate",
    "jobs.cancel": "operate",
    "jobs.rerun": "operate",
    "jobs.search": "read",
    "jobs.failed_searches": "read",
    "jobs.models": "read",
    "review.submit": "sign",
    "review.decide": "sign",
    "review.list_revisions": "read",
    "pages.worklist": "read",
    "pages.slide": "read",
    "pages.act": "operate",
    "ups.create": "submit",
    "ups.search": "read",
    "ups.retrieve": "read",
    "ups.update": "operate",
    "ups.change_state": "operate",
    "ups.request_cancel": "operate",
    "ups.subscribe": "read",
    "ups.unsubscribe": "read",
    "ups.suspend": "read",
    "ups.upgrade": "read",
    "ups.listen": "read",
    "ups.listen_as_before": "read",
    "login.begin": None,
    "login.end": None,
    "login.leave": "read",
    "static": None,
}


@dataclass(frozen=True, slots=True)
class User:
    """Who asks.

    Attributes
    ----------
    name
        Of the key, or subject of the token.
    roles
    person, organization
        Who signs, as DICOM writes names; empty for machines.
    ambient
        Whether a browser sends the credentials by itself, so that forms need a token of their own.
    """

    name: str
    roles: frozenset[str]
    person: str = ""
    organization: str = ""
    ambient: bool = False

    def may(self, role: Role) -> bool:
        return role in self.roles or "admin" in self.roles


def new_key() -> tuple[str, str]:
    """A key, and the digest that the settings hold of it."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, digest_of(key)


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def request_user() -> User:
    """Who makes the request at hand."""
    user: User = g.user
    return user


class Access:
    """Lets requests in, or not. Call :meth:`check` before each.

    Parameters
    ----------
    settings
    refused
        Told the address from which credentials came that are not known.
    """

    def __init__(self, settings: ServeSettings, refused: Callable[[str], None]) -> None:
        self._names = {key.sha256: name for name, key in settings.keys.items()}
        self._settings, self._refused = settings, refused
        self._tokens = TokenReader(settings.oidc)
        # One counter for each caller in each second: libraries for this start a thread a request.
        self._asked: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()

    def check(self) -> Response | None:
        """Find out who asks, and whether they may; browsers are sent to sign in.

        Raises
        ------
        Unauthorized
            No credentials, or none that are known.
        Forbidden
            The role is missing.
        TooManyRequests
        """
        if request.endpoint in ENDPOINTS and ENDPOINTS[request.endpoint] is None:
            return None
        if _is_preflight():
            return None
        user = self._user()
        if user is None:
            if self._settings.oidc.client_id and _is_page():
                return to_login()
            if request.authorization is not None:
                self._refused(request.remote_addr or "")
            raise Unauthorized(
                "Credentials are missing or not known: send a key or a token "
                "(Authorization: Bearer …).",
                www_authenticate=WWWAuthenticate("basic", {"realm": REALM}),
            )
        if self._asks_too_often(user):
            raise TooManyRequests(
                f"More than {self._settings.requests_per_s} requests in a second: ask less often.",
                retry_after=1,
            )
        g.user = user
        if request.endpoint is None:
            return None  # no such route, which is told to those who are known only
        role = ENDPOINTS[request.endpoint]
        if role is not None and not user.may(role):
            raise Forbidden(f"{user.name} lacks the role {role}: ask the node's administrator.")
        return None

    def _asks_too_often(self, user: User) -> bool:
        second = int(time.monotonic())
        with self._lock:
            if all(asked_in != second for _, asked_in in self._asked):
                self._asked.clear()
            self._asked[user.name, second] += 1
            return self._asked[user.name, second] > self._settings.requests_per_s

    def _user(self) -> User | None:
        sent = request.authorization
        if sent is None:
            claims = signed_in()
            return None if claims is None else _user_of(claims, ambient=True)
        if sent.type == "basic":
            found = self._key_user(sent.password or "", ambient=True)
            return found if found is not None and found.name == sent.username else None
        if sent.type != "bearer" or not sent.token:
            return None
        if sent.token.startswith(KEY_PREFIX):
            return self._key_user(sent.token)
        claims = self._tokens.read(sent.token)
        return None if claims is None else _user_of(claims, ambient=False)

    def _key_user(self, key: str, ambient: bool = False) -> User | None:
        name = self._names.get(digest_of(key))
        if name is None:
            return None
        known = self._settings.keys[name]
        return User(name, frozenset(known.roles), known.person, known.organization, ambient)


def _is_preflight() -> bool:
    """A browser's question whether a viewer of another origin may read results.

    It never carries credentials (Fetch standard, section 3.2.2), and its answer holds no data.
    """
    return (
        request.method == "OPTIONS"
        and request.blueprint == "dicomweb"
        and "Access-Control-Request-Method" in request.headers
    )


def _user_of(claims: Claims, ambient: bool) -> User:
    return User(claims.subject, claims.roles, claims.person, claims.organization, ambient)


def _is_page() -> bool:
    return request.method == "GET" and request.blueprint == "pages"


def check_table(app: Flask) -> None:
    """Refuse to serve a route whose access nobody has decided on."""
    undecided = {rule.endpoint for rule in app.url_map.iter_rules()} - ENDPOINTS.keys()
    if undecided:
        raise RuntimeError(f"No role is set for {', '.join(sorted(undecided))}: see ENDPOINTS.")
