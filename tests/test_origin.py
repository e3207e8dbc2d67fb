"""Credentials go to the addresses that the settings name, wherever others come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dicom_io.errors import EhrError
from dicom_io.origin import is_named
from node.config import Settings, load_settings
from node.ehr import open_ehr
from node.rules import settings_by
from tests.forked import marrow_node
from tests.loopback_host import Host
from tests.tiny_package import tiny_package

SECRETS = {"authorization", "x-api-key"}
SLIDE = ("1.2.3", "1.2.4")
Configured = Callable[..., Path]


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configured:
    """Writes settings with credentials for an archive and an EHR, and what is given."""
    monkeypatch.setenv("MARROW_SECRET", "top-secret")

    def write(first: str = "", last: str = "") -> Path:
        tiny_package(tmp_path / "packages" / "tiny")
        config = tmp_path / "node.toml"
        config.write_text(
            f'{first}\nwork_folder = "{tmp_path / "work"}"\n'
            '[pacs]\nbearer_token = "env:MARROW_SECRET"\nretries = 0\n'
            'headers = { X-Api-Key = "env:MARROW_SECRET" }\n'
            '[ehr]\nbearer_token = "env:MARROW_SECRET"\nretries = 0\n'
            f'[model]\nname = "tiny"\nfolders = ["{tmp_path / "packages"}"]\n{last}'
        )
        return config

    return write


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    "command",
    [
        ("analyse", "--pacs", "{url}", *SLIDE),
        ("compare", "--pacs", "{url}", "--model", "tiny", *SLIDE),
        ("train", "select", "--pacs", "{url}", "--slide", *SLIDE),
        ("probe", "{url}"),
        ("check", "{url}/studies/1.2.3"),
    ],
    ids=lambda command: command[0],
)
def test_an_archive_of_the_command_line(
    host: Host, configured: Configured, command: tuple[str, ...], named: bool
) -> None:
    own = f"{host.url}/other/path" if named else "https://pacs.example/dicom-web"
    words = [word.format(url=f"{host.url}/rs") for word in command]
    ended = marrow_node("--config", str(configured(f'pacs_url = "{own}"')), *words)
    assert host.requests, ended.stderr
    for _, _, headers in host.requests:
        assert SECRETS & set(headers) == (SECRETS if named else set())
    told = f"{host.url} is not an address of the settings" in ended.stderr
    assert told is not named
    assert ended.stderr.count("is not an address") <= 2  # by each process that asks


def test_without_credentials_there_is_nothing_to_tell(host: Host, tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('pacs_url = "https://pacs.example/dicom-web"\n')
    ended = marrow_node("--config", str(config), "check", f"{host.url}/rs/studies/1.2.3")
    assert host.requests
    assert "is not an address" not in ended.stderr


def read_from(url: str, settings: Settings) -> None:
    with pytest.raises(EhrError):
        open_ehr(url, settings.ehr).read_report("2.25.1")  # type: ignore[union-attr]


def test_an_ehr_of_the_command_line(
    host: Host, configured: Configured, caplog: pytest.LogCaptureFixture
) -> None:
    read_from(f"{host.url}/fhir", load_settings(configured('ehr_url = "https://ehr.example/r4"')))
    assert "authorization" not in host.last
    assert f"{host.url} is not an address of the settings" in caplog.text


def test_an_ehr_of_the_settings(
    host: Host, configured: Configured, caplog: pytest.LogCaptureFixture
) -> None:
    read_from(f"{host.url}/fhir", load_settings(configured(f'ehr_url = "{host.url}/fhir/r4"')))
    assert host.last["authorization"] == "Bearer top-secret"
    assert not caplog.records


def test_an_ehr_of_a_rule(host: Host, configured: Configured) -> None:
    rule = f'[[rules]]\nname = "r"\nehr_url = "{host.url}/fhir"\n'
    settings = load_settings(configured('ehr_url = "https://ehr.example/r4"', rule))
    settings = settings_by(settings, settings.rules[0])
    read_from(settings.ehr_url, settings)
    assert host.last["authorization"] == "Bearer top-secret"


@pytest.mark.parametrize(
    ("url", "named", "expected"),
    [
        ("https://pacs.example/a", "https://PACS.example:443/b", True),
        ("HTTPS://pacs.example/a", "https://pacs.example", True),
        ("https://pacs.example/a", "https://pacs.example:8443/a", False),
        ("https://pacs.example/a", "http://pacs.example/a", False),
        ("https://pacs.example.evil/a", "https://pacs.example/a", False),
        ("https://pacs.example@evil.example/a", "https://pacs.example/a", False),
        # Other readers of addresses take what is before the backslash for the host.
        ("https://evil.example\\@pacs.example/a", "https://pacs.example/a", False),
        ("https://[::1/a", "https://[::1/b", False),
        ("mllps://ehr.example:2575", "mllps://ehr.example:2575/", True),
        ("mllps://ehr.example:2576", "mllps://ehr.example:2575", False),
        ("file:///archive", "file:///other", False),
    ],
)
def test_which_addresses_are_the_same(url: str, named: str, expected: bool) -> None:
    assert is_named(url, (named,)) is expected


def test_settings_that_name_nothing_name_no_address() -> None:
    settings = load_settings(None, {})
    assert settings.pacs.credentials_for == settings.ehr.credentials_for == ()
