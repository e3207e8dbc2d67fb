"""What TensorRT builds from a network in minutes, kept so that later sessions begin at once.

The runtime names an engine's file by the structure of the network, not by its weights, and writes
it in place. So each network has a folder of its own, named by the digest of its file, with one for
each GPU in it; and processes that live at the same time have to bring folders of their own.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from models.errors import InferenceFailed

T = TypeVar("T")

# Cut off while it was written, or built for another GPU.
_UNREADABLE = re.compile("could not (deserialize engine|create timing cache)")

_log = logging.getLogger(__name__)


def engine_folder(engines: Path | None, network_sha256: str, gpu: int) -> Path | None:
    """Where the engines of one network for one GPU lie; None where none are kept."""
    return None if engines is None else engines / network_sha256 / f"gpu-{gpu}"


def tensorrt_options(gpu: int, folder: Path | None) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider.

    Parameters
    ----------
    gpu
    folder
        Where it keeps engines, and how fast their parts were, which helps to build further ones.
    """
    options = {"device_id": str(gpu)}
    if folder is not None:
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
        }
    return options


def with_engines(folder: Path | None, what: Callable[[], T]) -> T:
    """Do what reads and writes engines in a folder; those that cannot be read are built anew.

    Raises
    ------
    InferenceFailed
        The folder cannot be made.
    """
    if folder is None:
        return what()
    _make(folder)
    try:
        return what()
    except Exception as error:
        if not _UNREADABLE.search(str(error)):
            raise
    _log.warning("TensorRT cannot read the engines in %s: they are built anew.", folder)
    shutil.rmtree(folder, ignore_errors=True)
    _make(folder)
    return what()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InferenceFailed(
            f"TensorRT's engines cannot be kept in {folder} ({error.strerror}): free space there."
        ) from error
