"""People sign in with the hospital's OpenID Connect provider (authorization code with PKCE).

What the ID token says of them is kept in a signed cookie for some hours; no token is.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode, urlsplit

from authlib.common.errors import AuthlibBaseError
from authlib.integrations.flask_client import OAuth
from flask import Blueprint, Flask, redirect, render_template, request, session, url_for
from requests import RequestException
from werkzeug.exceptions import Unauthorized
from werkzeug.wrappers import Response

from dicom_io.errors import ConfigurationInvalid, ProviderUnreachable
from dicom_io.pacs_settings import hidden
from node.web.settings import ServeSettings
from node.web.tokens import Claims, claims_in

PROVIDER = "provider"
SIGNED_IN, WANTED = "signed_in", "wanted"


def login_blueprint(app: Flask, settings: ServeSettings) -> Blueprint:
    """Routes ``/login``, ``/login/callback`` and ``/logout``.

    Raises
    ------
    ConfigurationInvalid
        [serve.oidc] has a client_id and no issuer or secret.
    """
    login = Blueprint("login", __name__)
    provider = _provider(app, settings)

    @login.get("/login")
    def begin() -> Response:
        if provider is None:
            raise Unauthorized("No provider for signing in is configured: use a key.")
        address = url_for("login.end", _external=True)
        if settings.public_url:
            address = settings.public_url.rstrip("/") + url_for("login.end")
        try:
            answer: Response = provider.authorize_redirect(address)
        except (AuthlibBaseError, RequestException, ValueError) as error:
            raise _unreachable(error) from error
        return answer

    @login.get("/login/callback")
    def end() -> Response:
        if provider is None:
            raise Unauthorized("No provider for signing in is configured: use a key.")
        try:
            told = provider.authorize_access_token()
        except AuthlibBaseError as error:
            raise Unauthorized(f"Signing in failed ({error.error}): try again.") from error
        except (RequestException, ValueError) as error:
            raise _unreachable(error) from error
        wanted = session.get(WANTED)
        session.clear()
        session.permanent = True
        claims = asdict(claims_in(told["userinfo"], settings.oidc))
        session[SIGNED_IN] = claims | {"roles": sorted(claims["roles"])}
        return redirect(wanted or url_for("pages.worklist"))

    @login.post("/logout")
    def leave() -> str:
        session.clear()
        # No redirect to the provider: pages' forms may lead nowhere else (form-action 'self').
        return render_template("signed_out.html", provider_logout=_provider_logout(provider))

    return login


def signed_in() -> Claims | None:
    """Whoever has signed in with the browser that asks."""
    kept = session.get(SIGNED_IN)
    return None if kept is None else Claims(**kept | {"roles": frozenset(kept["roles"])})


def to_login() -> Response:
    """Send a browser to sign in, and afterwards back to the page that it wanted."""
    session[WANTED] = request.full_path  # a path of this service, never another's
    return redirect(url_for("login.begin"))


def _provider(app: Flask, settings: ServeSettings) -> Any:
    oidc = settings.oidc
    if not oidc.client_id:
        return None
    if not oidc.issuer or not oidc.client_secret:
        raise ConfigurationInvalid(
            "[serve.oidc] has a client_id; signing in needs issuer and client_secret too."
        )
    return OAuth(app).register(
        PROVIDER,
        client_id=oidc.client_id,
        client_secret=hidden(oidc.client_secret),
        server_metadata_url=f"{oidc.issuer.rstrip('/')}/.well-known/openid-configuration",
        client_kwargs={
            "scope": oidc.scope,
            "code_challenge_method": "S256",
            "verify": str(oidc.ca_bundle) if oidc.ca_bundle else True,
        },
    )


def _provider_logout(provider: Any) -> str:
    """Where a person signs out of the provider too (RP-Initiated Logout 1.0); empty: nowhere."""
    if provider is None:
        return ""
    try:
        end = str(provider.load_server_metadata().get("end_session_endpoint", ""))
    except (AuthlibBaseError, RequestException, ValueError):
        return ""  # whoever wanted to leave the node has left it
    if urlsplit(end).scheme not in ("https", "http"):
        return ""
    return f"{end}?{urlencode({'client_id': provider.client_id})}"


def _unreachable(error: Exception) -> ProviderUnreachable:
    return ProviderUnreachable(
        f"The provider for signing in gave no answer that can be used ({type(error).__name__}): "
        "check [serve.oidc] and that it runs."
    )
