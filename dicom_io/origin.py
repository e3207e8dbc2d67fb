"""Which addresses the settings name: those alone are shown the credentials that stand there."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

DEFAULT_PORTS = {"http": 80, "https": 443}


def is_named(url: str, named: Iterable[str] | None) -> bool:
    """Whether a URL leads to the scheme, host and port of one of `named`; None names all."""
    if named is None:
        return True
    own = _origin(url)
    return any(url == each or (own is not None and own == _origin(each)) for each in named)


@functools.cache
def tell_unnamed(url: str, setting: str) -> None:
    """Say once in the log that an address is shown no credentials, and which setting names it."""
    log.warning(
        "%s is not an address of the settings, so it is shown none of their credentials: set %s to"
        " it if it should be.",
        f"{urlsplit(url).scheme}://{urlsplit(url).netloc.rpartition('@')[2]}",
        setting,
    )


def _origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None where there is no host, or a user name that may hide another."""
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:  # as where a bracket is missing
        return None
    if not parts.hostname or parts.username is not None or port is None:
        return None
    return parts.scheme, parts.hostname, port
