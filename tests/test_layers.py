"""The house stands as drawn: who imports whom, and what the running node never loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "dicom_io", "node", "conformance")
MAY_IMPORT = {
    "models": {"models"},
    "dicom_io": {"dicom_io", "models"},
    "node": {"node", "dicom_io", "models", "conformance"},
    "conformance": {"conformance", "dicom_io", "models"},
}
TRAINING = ROOT / "models" / "training"


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the full names of all modules that a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    assert sources(room)
    for path in sources(room):
        assert tops(path) & set(ROOMS) <= MAY_IMPORT[room], path


def test_torch_lives_in_training_only() -> None:
    users = {path for room in ROOMS for path in sources(room) if "torch" in tops(path)}
    assert all(path.is_relative_to(TRAINING) for path in users), users


def test_only_the_train_commands_import_training() -> None:
    """They do it inside a function: test_the_running_node_loads_no_torch holds the rest."""
    users = {
        path
        for room in ROOMS
        for path in sources(room)
        if not path.is_relative_to(TRAINING)
        and any(n.startswith("models.training") for n in imported(path))
    }
    assert users == {ROOT / "node" / "model_commands.py"}


def test_onnxruntime_is_imported_where_networks_run_only() -> None:
    users = {path for room in ROOMS for path in sources(room) if "onnxruntime" in tops(path)}
    assert {path for path in users if not path.is_relative_to(TRAINING)} == {
        ROOT / "models" / "session.py"
    }


def test_models_know_neither_dicom_nor_http() -> None:
    for path in sources("models"):
        assert not tops(path) & {"pydicom", "highdicom", "dicomweb_client", "requests"}, path


def test_the_running_node_loads_no_torch() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in ROOMS
        for path in sources(room)
        if not path.is_relative_to(TRAINING) and path.name != "__main__.py"
    ]
    assert "models.package" in modules
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "sys.exit('torch is loaded' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
