"""Whether the models' device works, found out before anything is begun that would need it.

By a process of its own, ``python -m node.device cuda``: what is forked from a process that has used
CUDA cannot use it any more, and processes of slides are forked.
"""

from __future__ import annotations

import subprocess
import sys
from typing import cast

from models.errors import InferenceFailed, MarrowNodeError
from node.config import ModelSettings


def check_device(settings: ModelSettings) -> None:
    """Refuse a GPU that is asked for and does not work; ``auto`` and ``cpu`` need no look.

    Raises
    ------
    InferenceFailed
    """
    if settings.device in ("auto", "cpu"):
        return
    tried = subprocess.run(  # noqa: S603 - this module, with a word of the settings' own
        [sys.executable, "-m", "node.device", settings.device],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if tried.returncode == InferenceFailed.exit_code:
        raise InferenceFailed(tried.stdout.strip())
    if tried.returncode:
        raise InferenceFailed(
            f"Model device '{settings.device}' is not usable here, its trial ended with status"
            f" {tried.returncode}; check its driver or set the device to 'cpu' or 'auto'."
        )


def _tried(device: str) -> int:
    """Exit status; what is wrong is printed."""
    # ONNX Runtime takes a second to load, and is not needed by who asks.
    from models.session import Device, provider_for  # noqa: PLC0415

    try:
        provider_for(cast(Device, device))
    except MarrowNodeError as error:
        sys.stdout.write(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_tried(sys.argv[1]))
