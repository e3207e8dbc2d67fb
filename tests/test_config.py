"""Settings: defaults, file, environment, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_io.errors import ConfigurationInvalid
from node.config import Settings, load_settings, settings_rows


def write(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text)
    return path


def test_without_a_file_all_is_default() -> None:
    assert load_settings(None, {}) == Settings()


def test_the_file_and_then_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, 'pacs_url = "file:///a"\n[model]\nname = "one"\nthreads = 2\n')
    settings = load_settings(path, {"MARROW_NODE__MODEL__NAME": "two", "HOME": "/root"})
    assert settings.pacs_url == "file:///a"
    assert (settings.model.name, settings.model.threads) == ("two", 2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('pacs_uri = "x"', "pacs_uri"),
        ("[model]\nnmae = 'x'", "model.nmae"),
        ("[model]\nthreads = 'many'", "model.threads"),
        ("[output]\ngraphic_type = 'CIRCLE'", "output.graphic_type"),
        ("pacs_url = ", "not TOML"),
        ("[pacs]\nconnections = 0", "pacs.connections"),
        ("[pacs]\ntimeout_s = 0", "pacs.timeout_s"),
        ("[pacs]\nretries = -1", "pacs.retries"),
        ("[pacs]\nframes_per_request = 0", "pacs.frames_per_request"),
        ("[pacs]\nservices_of = 'x'", "pacs.services_of"),
        ("[read]\nwindow_bytes = 0", "read.window_bytes"),
        ("[read]\nthreads = -1", "read.threads"),
        ("[dimse]\ntimeout_s = 0", "dimse.timeout_s"),
        ("[receive]\nport = 70000", "receive.port"),
        ("[receive]\nassociations = 0", "receive.associations"),
        ("[ehr]\ntimeout_s = 0", "ehr.timeout_s"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=named):
        load_settings(write(tmp_path, text), {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationInvalid, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml", {})


def test_every_setting_says_what_it_is_for() -> None:
    rows = list(settings_rows(Settings()))
    assert len(rows) > 20
    assert [name for name, _, reason in rows if not reason] == []
