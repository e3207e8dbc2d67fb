"""What lies in docker/, for the tests of it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from node.web.settings import ServeSettings

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PORT = ServeSettings().port
VERSION_TAG = re.compile(r"^[\w./-]+:v?\d+\.\d+(\.\d+)?(-[\w.-]+)?$")


def read(name: str) -> str:
    """Return a file of docker/."""
    return (DOCKER / name).read_text(encoding="utf-8")
