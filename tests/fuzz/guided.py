"""Coverage-guided search with atheris, where it can be installed: one target, one process."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["dicom_io", "dicomweb_client", "pydicom", "json"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    run = TARGETS[sys.argv.pop(1)].run
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()
