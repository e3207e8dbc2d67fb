"""The web process: gunicorn with threads, which also speaks TLS."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from dicom_io.errors import ConfigurationInvalid
from node.web.settings import ServeSettings

LOOPBACK = ("127.0.0.1", "::1", "localhost")
# A request that a thread has begun is finished before the process ends.
GRACE_S = 20
# Of a connection on which nothing is asked; clients that ask every few seconds keep theirs.
KEPT_S = 75
# Longer than any answer takes; server-sent events do not count, their thread is not the worker's.
SILENCE_S = 120
_TLS = ("certificate", "certificate_key", "ca_bundle")


def run_web(serve: ServeSettings, make_app: Callable[[], Flask]) -> None:
    """Serve until SIGTERM.

    Parameters
    ----------
    serve
    make_app
        Called in the process that answers.

    Raises
    ------
    ConfigurationInvalid
        TLS is asked for by halves, or a file is not there.
    """
    check_tls(serve)
    _Server(_options(serve), make_app).run()


def check_tls(serve: ServeSettings) -> None:
    """Tell early what would not work.

    Raises
    ------
    ConfigurationInvalid
        See :func:`run_web`.
    """
    for name in _TLS:
        path = getattr(serve, name)
        if path is not None and not path.is_file():
            raise ConfigurationInvalid(
                f"serve.{name} names {path}, which is not there: correct it."
            )
    if serve.certificate is None and (serve.certificate_key or serve.ca_bundle):
        raise ConfigurationInvalid(
            "[serve] has a key or a ca_bundle and no certificate: TLS needs the certificate too."
        )


def _options(serve: ServeSettings) -> dict[str, Any]:
    host = f"[{serve.host}]" if ":" in serve.host else serve.host
    options: dict[str, Any] = {
        "bind": f"{host}:{serve.port}",
        "workers": 1,
        "threads": serve.threads,
        "worker_class": "gthread",
        "worker_tmp_dir": "/dev/shm",  # noqa: S108 - its heartbeat must not wait for a disk
        "keepalive": KEPT_S,
        "graceful_timeout": GRACE_S,
        "timeout": SILENCE_S,
        "control_socket_disable": True,
        "loglevel": "warning",
        "proc_name": "marrow-node",
        "worker_exit": _end_at_once,
    }
    if serve.certificate is not None:
        options |= {
            "certfile": str(serve.certificate),
            "keyfile": str(serve.certificate_key or serve.certificate),
            "ssl_context": _modern_tls,
        }
    if serve.ca_bundle is not None:
        options |= {"ca_certs": str(serve.ca_bundle), "cert_reqs": ssl.CERT_REQUIRED}
    return options


def _end_at_once(_: Any, __: Any) -> None:
    """End a process that has answered all it had to.

    Libraries in C++ that were loaded before the fork wait at a usual exit for threads that only the
    parent has, and abort.
    """
    logging.shutdown()
    os._exit(0)


def _modern_tls(_: Any, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """TLS 1.2 or later (PS3.15 B.9, BCP 195)."""
    context = default()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class _Server(BaseApplication):  # type: ignore[misc]
    """Gunicorn without its command line, as its documentation has it ("Custom Application")."""

    def __init__(self, options: dict[str, Any], make_app: Callable[[], Flask]) -> None:
        self._options, self._make_app = options, make_app
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Flask:
        return self._make_app()
