"""Loaded by the process that workers are forked from: what a first result would load is there.

Tables of the standard, FHIR's classes, fonts: three seconds of each run, and the same in all.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from node.config import OutputSettings
from node.documents import write_documents
from node.pictures import draw_differential
from node.work_files import WorkFiles
from tests.analyses import small_slide, some_analysis

with TemporaryDirectory() as _folder:
    _analysis = some_analysis(small_slide(Path(_folder)))
    _picture = draw_differential(_analysis)
    write_documents(
        WorkFiles(Path(_folder) / "files"),
        _analysis,
        OutputSettings(),
        [("overview", _picture), ("differential", _picture)],
    )
