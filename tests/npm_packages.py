"""Packages from npm that tests run, installed once into ``.cache`` below the root."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".cache"


def install(source: Path, what: str) -> str:
    """Install what ``package.json`` in `source` names; why that cannot be had, or nothing.

    Scripts beside it are copied too. Test processes share the folder: the first one installs, the
    others wait for it.

    Parameters
    ----------
    source
        Folder with a ``package.json``; packages go to a folder of its name in ``.cache``.
    what
        Named in the reason: ``the FHIR server``.
    """
    installed = CACHE / source.name
    installed.mkdir(parents=True, exist_ok=True)
    with (installed / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for script in source.glob("*.mjs"):
            here = installed / script.name
            if not here.exists() or here.read_bytes() != script.read_bytes():
                shutil.copy(script, here)
        return _install(source, installed, what)


def _install(source: Path, installed: Path, what: str) -> str:
    wanted = (source / "package.json").read_bytes()
    marker = installed / "installed.json"
    if marker.exists() and marker.read_bytes() == wanted:
        return ""
    if shutil.which("npm") is None:
        return f"npm is not installed, so {what} cannot be had: apt-get install npm"
    (installed / "package.json").write_bytes(wanted)
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=installed,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        return f"npm could not install {what}: {done.stderr.strip()[-300:]}"
    marker.write_bytes(wanted)
    return ""
