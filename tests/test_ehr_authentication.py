"""Who the node is to the EHR: against a SMART authorization server by others, and mutual TLS."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc.jwk import ECKey, RSAKey

from dicom_io.errors import ConfigurationInvalid, EhrError, EhrUnauthorized, EhrUnreachable
from dicom_io.slide import Slide
from node.ehr import open_ehr
from node.ehr_authentication import ehr_scheme
from node.ehr_records import EhrSettings
from node.fhir import build_bundle, report_identifier
from tests.analyses import small_slide, some_analysis
from tests.fhir_fixture import INSTALLED, NODE, FhirServer
from tests.served import served
from tests.token_server import CLIENT_ID, CLIENT_SECRET, token_server

QUICK = EhrSettings(timeout_s=10, retries=1, retry_wait_s=0.01)
PEM = (
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)


@dataclass(frozen=True)
class SmartServer:
    """An authorization server and the FHIR server that it protects."""

    url: str

    @property
    def fhir(self) -> str:
        return f"{self.url}/fhir"

    @property
    def issued(self) -> int:
        return int(requests.get(f"{self.url}/issued", timeout=10).json())

    def revoke(self) -> None:
        """End every token before its time."""
        requests.post(f"{self.url}/revoke", timeout=10).raise_for_status()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Private keys as PEM files; the first two are registered."""
    folder = tmp_path_factory.mktemp("keys")
    made = {
        "RS384": rsa.generate_private_key(65537, 2048),
        "ES384": ec.generate_private_key(ec.SECP384R1()),
        "unknown": ec.generate_private_key(ec.SECP384R1()),
        "P-256": ec.generate_private_key(ec.SECP256R1()),
    }
    paths = {name: folder / f"{name}.pem" for name in made}
    for name, key in made.items():
        paths[name].write_bytes(key.private_bytes(*PEM))
    return paths


@pytest.fixture(scope="module")
def smart(fhir_server_process: FhirServer, keys: dict[str, Path]) -> Iterator[SmartServer]:
    registered = []
    for name, kind in (("RS384", RSAKey), ("ES384", ECKey)):
        key = kind.import_key(keys[name].read_text())
        registered.append({**key.as_dict(private=False), "kid": key.thumbprint(), "alg": name})
    process = subprocess.Popen(
        [str(NODE), "smart.mjs", fhir_server_process.url, json.dumps({"keys": registered})],
        cwd=INSTALLED,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:"), url
    yield SmartServer(url)
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return small_slide(tmp_path_factory.mktemp("slide") / "pacs")


def with_key(path: Path) -> EhrSettings:
    return replace(QUICK, client_id="marrow-node", client_key=f"file:{path}")


@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_a_signed_assertion_opens_the_ehr(
    smart: SmartServer, keys: dict[str, Path], slide: Slide, algorithm: str
) -> None:
    """SMART Backend Services end to end; the token endpoint is the one that the EHR names."""
    number = 700 + ["RS384", "ES384"].index(algorithm)
    analysis = replace(some_analysis(slide), configuration_digest=f"{number:064x}")
    before = smart.issued
    ehr = open_ehr(smart.fhir, with_key(keys[algorithm]))
    statuses = {each.status for each in ehr.deliver(build_bundle(analysis, {}, {}))}
    assert "created" in statuses
    assert ehr.read_report(report_identifier(analysis))[0]["status"] == "partial"
    assert smart.issued == before + 1  # one token for all requests


def test_a_token_that_ended_is_renewed_with_an_assertion_of_its_own(
    smart: SmartServer, keys: dict[str, Path]
) -> None:
    """The server refuses an assertion that it has seen before."""
    ehr = open_ehr(smart.fhir, with_key(keys["ES384"]))
    before = smart.issued
    for _ in range(3):
        smart.revoke()
        with pytest.raises(EhrError, match="0 DiagnosticReports"):
            ehr.read_report("urn:oid:1.2.3")
    assert smart.issued == before + 3


def test_a_key_that_is_not_registered_is_refused(smart: SmartServer, keys: dict[str, Path]) -> None:
    ehr = open_ehr(smart.fhir, with_key(keys["unknown"]))
    with pytest.raises(EhrUnauthorized, match=r"gave no token \(invalid_client\)"):
        ehr.read_report("urn:oid:1.2.3")


def test_a_scope_that_does_not_suffice_is_named(smart: SmartServer, keys: dict[str, Path]) -> None:
    settings = replace(with_key(keys["ES384"]), scope="system/Patient.rs")
    with pytest.raises(EhrUnauthorized, match="answered 403 to a DiagnosticReport"):
        open_ehr(smart.fhir, settings).read_report("urn:oid:1.2.3")


def test_without_a_token_the_door_is_shut(smart: SmartServer) -> None:
    with pytest.raises(EhrUnauthorized, match="answered 401"):
        open_ehr(smart.fhir, QUICK).read_report("urn:oid:1.2.3")


def test_a_server_that_names_no_token_endpoint(
    fhir_server: FhirServer, keys: dict[str, Path]
) -> None:
    with pytest.raises((EhrUnauthorized, EhrUnreachable), match=r"set ehr\.token_url"):
        open_ehr(fhir_server.url, with_key(keys["ES384"])).read_report("urn:oid:1.2.3")


def test_a_client_secret_works_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """OAuth 2 without SMART, against Authlib's server."""
    monkeypatch.setenv("EHR_SECRET", CLIENT_SECRET)
    with token_server() as server:
        key = "env:EHR_SECRET"
        settings = replace(
            QUICK, client_id=CLIENT_ID, client_secret=key, token_url=server.url, scope=""
        )
        scheme = ehr_scheme("http://ehr/fhir", settings)
        assert scheme.value() == f"Bearer {server.issued[-1]}"
        assert scheme.value() == f"Bearer {server.issued[0]}"
        assert scheme.renewed(scheme.value())
        assert scheme.value() == f"Bearer {server.issued[1]}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"client_id": "a", "bearer_token": "env:B"}, "at a time"),
        ({"client_id": "a"}, "needs client_key"),
        ({"client_id": "a", "client_key": "env:A", "client_secret": "env:B"}, "needs client_key"),
        ({"username": "a"}, "needs username and password"),
        ({"username": "a", "password": "plain"}, "stands in the EHR settings"),
        ({"bearer_token": "plain"}, "stands in the EHR settings"),
        ({"client_id": "a", "client_key": "-----BEGIN"}, "stands in the EHR settings"),
    ],
)
def test_settings_that_contradict_themselves(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=said) as caught:
        ehr_scheme("http://ehr/fhir", replace(QUICK, **given))
    assert "plain" not in str(caught.value)


def test_a_key_of_another_kind_is_named(keys: dict[str, Path], tmp_path: Path) -> None:
    public = tmp_path / "public.pem"
    public.write_bytes(
        serialization.load_pem_private_key(keys["ES384"].read_bytes(), None)
        .public_key()
        .public_bytes(PEM[0], serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    for path in (keys["P-256"], public):
        with pytest.raises(ConfigurationInvalid, match="RS384 or ES384"):
            ehr_scheme("http://ehr/fhir", with_key(path))


class _Empty(BaseHTTPRequestHandler):
    """A FHIR server that has nothing."""

    def do_GET(self) -> None:
        body = json.dumps({"resourceType": "Bundle", "type": "searchset"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/fhir+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_mutual_tls(tmp_path: Path) -> None:
    """A server that asks for a certificate lets the node in with one, and not without."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    mine = authority.issue_cert("marrow-node.hospital")
    mine.private_key_and_cert_chain_pem.write_to_path(tmp_path / "node.pem")
    mine.private_key_pem.write_to_path(tmp_path / "node.key")
    mine.cert_chain_pems[0].write_to_path(tmp_path / "node.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Empty)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    trusting = replace(QUICK, ca_bundle=tmp_path / "ca.pem", retries=0)
    with served(server) as origin:
        url = f"{origin}/fhir"
        for settings in (
            replace(trusting, certificate=tmp_path / "node.pem"),
            replace(
                trusting,
                certificate=tmp_path / "node.crt",
                certificate_key=tmp_path / "node.key",
            ),
        ):
            with pytest.raises(EhrError, match="0 DiagnosticReports"):
                open_ehr(url, settings).read_report("urn:oid:1.2.3")
        with pytest.raises(EhrError, match=r"could not prove|cannot be reached"):
            open_ehr(url, trusting).read_report("urn:oid:1.2.3")
        with pytest.raises(ConfigurationInvalid, match="is not there"):
            open_ehr(url, replace(trusting, certificate=tmp_path / "no.pem"))
