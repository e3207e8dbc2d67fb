"""Who the node is to the archive: tokens that end, certificates, and settings that contradict."""

from __future__ import annotations

import base64
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydicom import dcmread

from dicom_io.errors import (
    ConfigurationInvalid,
    EhrUnreachable,
    PacsAnswerInvalid,
    PacsBusy,
    PacsError,
    PacsTimeout,
    PacsUnauthorized,
    PacsUnreachable,
)
from dicom_io.pacs import Pacs, PacsSettings, open_pacs
from node.ehr_authentication import ehr_scheme
from node.ehr_records import EhrSettings
from tests.loopback_host import Answer, Host, running_host
from tests.served import served
from tests.servers import free_port
from tests.slides import write_slide
from tests.token_server import CLIENT_ID, CLIENT_SECRET, TokenServer, token_server

QUICK = PacsSettings(timeout_s=5, retries=1, retry_wait_s=0.01)


def search(pacs: Pacs) -> list[dict[str, Any]]:
    return pacs.search_instances("1.2", "1.3")


def with_tokens(tokens: TokenServer, **more: Any) -> PacsSettings:
    return replace(
        QUICK,
        token_url=tokens.url,
        client_id=CLIENT_ID,
        client_secret="env:MARROW_CLIENT_SECRET",  # noqa: S106
        **more,
    )


def guarded(host: Host, tokens: TokenServer) -> None:
    """Answer 401 unless the token is valid."""

    def answer(path: str) -> Answer:
        valid = tokens.valid(host.last.get("authorization"))
        return (200, {}, b"[]") if valid else (401, {}, b"")

    host.answer = answer


@pytest.fixture
def client_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARROW_CLIENT_SECRET", CLIENT_SECRET)


@pytest.mark.usefixtures("client_secret")
def test_one_token_serves_many_requests(host: Host) -> None:
    with token_server() as tokens:
        guarded(host, tokens)
        with open_pacs(host.url, with_tokens(tokens)) as pacs:
            for _ in range(3):
                search(pacs)
    assert len(tokens.issued) == 1


@pytest.mark.usefixtures("client_secret")
def test_token_is_renewed_before_it_ends(host: Host) -> None:
    with token_server(life_s=2) as tokens:
        guarded(host, tokens)
        with open_pacs(host.url, with_tokens(tokens)) as pacs:
            search(pacs)
            time.sleep(2.1)
            search(pacs)
            assert pacs.faults == {}
    assert len(tokens.issued) == 2


@pytest.mark.usefixtures("client_secret")
def test_token_that_ends_early_is_renewed_once_on_401(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with token_server() as tokens:
        guarded(host, tokens)
        with open_pacs(host.url, with_tokens(tokens)) as pacs:
            search(pacs)
            tokens.ends[tokens.issued[-1]] = 0.0
            search(pacs)
            assert pacs.faults == {"token refused": 1}
            tokens.ends[tokens.issued[-1]] = 0.0
            with pytest.raises(PacsAnswerInvalid):  # it is stored, and "[]" is no answer to that
                pacs.store([dcmread(write_slide(tmp_path, levels=1).paths[0])])
            assert [method for method, _, _ in host.requests[-2:]] == ["POST", "POST"]
    assert len(tokens.issued) == 3
    for token in (*tokens.issued, CLIENT_SECRET):
        assert token not in caplog.text


@pytest.mark.usefixtures("client_secret")
def test_archive_that_refuses_every_token_is_asked_twice(host: Host) -> None:
    host.answer = lambda path: (401, {}, b"")
    with token_server() as tokens:
        with open_pacs(host.url, with_tokens(tokens)) as pacs, pytest.raises(PacsUnauthorized):
            search(pacs)
        assert len(tokens.issued) == len(host.requests) == 2


def test_wrong_client_secret(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARROW_CLIENT_SECRET", "another word")
    with (
        token_server() as tokens,
        open_pacs(host.url, with_tokens(tokens)) as pacs,
        pytest.raises(PacsUnauthorized, match="invalid_client") as caught,
    ):
        search(pacs)
    assert "another word" not in str(caught.value)
    assert host.requests == []


@pytest.mark.usefixtures("client_secret")
def test_token_endpoint_that_is_down(host: Host) -> None:
    tokens = TokenServer(url=f"http://127.0.0.1:{free_port()}/token")
    with (
        open_pacs(host.url, with_tokens(tokens)) as pacs,
        pytest.raises(PacsUnreachable, match="token endpoint"),
    ):
        search(pacs)


@pytest.mark.usefixtures("client_secret")
@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b'{"access_token": ""}'])
def test_token_endpoint_that_is_none(host: Host, elsewhere: Host, body: bytes) -> None:
    elsewhere.answer = lambda path: (200, {"Content-Type": "application/json"}, body)
    with (
        open_pacs(host.url, with_tokens(TokenServer(url=elsewhere.url))) as pacs,
        pytest.raises(PacsError, match="token endpoint"),
    ):
        search(pacs)


@pytest.mark.usefixtures("client_secret")
@pytest.mark.parametrize("body", [b'{"error": "slow_down"}', b'{"message": "wait"}', b"wait"])
def test_token_endpoint_that_is_busy_is_asked_again(
    host: Host, elsewhere: Host, body: bytes
) -> None:
    elsewhere.answer = lambda path: (429, {"Retry-After": "0"}, body)
    settings = with_tokens(TokenServer(url=elsewhere.url))
    with open_pacs(host.url, settings) as pacs, pytest.raises(PacsBusy, match="token endpoint"):
        search(pacs)
    assert len(elsewhere.requests) == 1 + settings.retries


@contextmanager
def endless_answers(piece: bytes, pause_s: float) -> Iterator[str]:
    """A server whose every answer goes on for ever, `piece` after `piece`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            with suppress(OSError):
                while not ended.wait(pause_s):
                    self.wfile.write(piece)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    ended = threading.Event()
    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        try:
            yield url
        finally:
            ended.set()


@pytest.mark.usefixtures("client_secret")
@pytest.mark.parametrize(
    ("piece", "pause_s", "error"),
    [(b" ", 0.1, PacsTimeout), (bytes(2**16), 0.0, PacsAnswerInvalid)],
    ids=["slow", "large"],
)
def test_token_endpoint_that_never_ends(
    host: Host, piece: bytes, pause_s: float, error: type[PacsError]
) -> None:
    with endless_answers(piece, pause_s) as url:
        settings = replace(with_tokens(TokenServer(url=url)), timeout_s=1, retries=0)
        begin_s = time.monotonic()
        with open_pacs(host.url, settings) as pacs, pytest.raises(error, match="token endpoint"):
            search(pacs)
        assert time.monotonic() - begin_s < 4
        scheme = ehr_scheme(
            "http://ehr.example/fhir",
            EhrSettings(
                timeout_s=1,
                client_id=CLIENT_ID,
                client_secret="env:MARROW_CLIENT_SECRET",  # noqa: S106
                token_url=url,
            ),
        )
        with pytest.raises(EhrUnreachable, match="token endpoint"):
            scheme.value()
        assert time.monotonic() - begin_s < 8


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An authority, a server's and a node's certificate."""
    folder = tmp_path_factory.mktemp("pem")
    authority = trustme.CA()
    server, node = authority.issue_cert("127.0.0.1"), authority.issue_cert("node@hospital.example")
    paths = {name: folder / f"{name}.pem" for name in ("ca", "server", "node", "chain", "key")}
    authority.cert_pem.write_to_path(paths["ca"])
    server.private_key_and_cert_chain_pem.write_to_path(paths["server"])
    node.private_key_and_cert_chain_pem.write_to_path(paths["node"])
    node.cert_chain_pems[0].write_to_path(paths["chain"])
    node.private_key_pem.write_to_path(paths["key"])
    return paths


@pytest.fixture
def tls_host(pem: dict[str, Path]) -> Iterator[Host]:
    """A host that knows only those whom the authority knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem["server"])
    context.load_verify_locations(pem["ca"])
    context.verify_mode = ssl.CERT_REQUIRED
    with running_host(context) as running:
        yield running


def test_mutual_tls(tls_host: Host, pem: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem["node"]))  # the settings count
    known = replace(QUICK, ca_bundle=pem["ca"])
    one_file = replace(known, certificate=pem["node"])
    two_files = replace(known, certificate=pem["chain"], certificate_key=pem["key"])
    for settings in (one_file, two_files):
        with open_pacs(tls_host.url, settings) as pacs:
            assert search(pacs) == []
    with open_pacs(tls_host.url, known) as pacs, pytest.raises(PacsError):
        search(pacs)
    assert len(tls_host.requests) == 2


def test_certificate_is_not_shown_to_a_further_host(
    host: Host, tls_host: Host, pem: dict[str, Path]
) -> None:
    host.answer = lambda path: (302, {"Location": tls_host.url + path}, b"")
    settings = replace(
        QUICK, ca_bundle=pem["ca"], certificate=pem["node"], further_hosts=(tls_host.url,)
    )
    with open_pacs(host.url, settings) as pacs, pytest.raises(PacsError):
        search(pacs)
    assert tls_host.requests == []


def test_authority_that_is_not_known(tls_host: Host) -> None:
    with open_pacs(tls_host.url, QUICK) as pacs, pytest.raises(PacsError, match="ca_bundle"):
        search(pacs)


def test_a_password_in_any_letters(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARROW_PASSWORD", "zł€ü")
    settings = replace(QUICK, username="nœud", password="env:MARROW_PASSWORD")  # noqa: S106
    with open_pacs(host.url, settings) as pacs:
        pacs.search_instances("1.2", "1.3")
    shown = base64.b64decode(host.last["authorization"].removeprefix("Basic "))
    assert shown.decode("utf-8") == "nœud:zł€ü"


@pytest.mark.parametrize(
    "wrong",
    [
        {"username": "node"},
        {"password": "env:PATH"},
        {"username": "node", "password": "env:PATH", "bearer_token": "env:PATH"},
        {"token_url": "https://auth.example/token", "client_secret": "env:PATH"},
        {"token_url": "auth.example", "client_id": "node", "client_secret": "env:PATH"},
        {"token_url": "https://auth.example/token", "client_id": "n", "client_secret": "plain"},
        {"certificate": Path("/nowhere/node.pem")},
        {"ca_bundle": Path("/nowhere/ca.pem")},
        {"query_url": "https://user:secret@pacs.example/rs"},
        {"query_url": "https://[::1/rs"},
        {"further_hosts": ("cdn.example",)},
        {"store_url": "https://pacs.example:port/rs"},
    ],
)
def test_settings_that_contradict_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        open_pacs("https://pacs.example/rs", replace(QUICK, **wrong))
    assert "plain" not in str(caught.value)
    assert "secret@" not in str(caught.value)
