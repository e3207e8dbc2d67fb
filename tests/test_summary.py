"""The numbers of a result."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from node.summary import peak_rss_mb


def test_peak_memory_is_this_processs_own() -> None:
    own = np.ones(400_000_000, np.uint8)
    assert peak_rss_mb() > 400
    said = subprocess.run(
        [sys.executable, "-c", "from node.summary import peak_rss_mb; print(peak_rss_mb())"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert 10 < float(said.stdout) < 300 < own.nbytes / 1e6
