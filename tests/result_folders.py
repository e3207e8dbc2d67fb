"""Work folders with results in them, and the DICOMweb service over one, for real clients."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask
from pydicom.dataset import Dataset
from waitress.server import create_server
from waitress.wasyncore import close_all

from node.outputs import DICOM_MEDIA_TYPE, Artifact, to_bytes
from node.result_store import ResultStore
from node.web.dicomweb import dicomweb
from node.work_files import WorkFiles, write_atomically
from tests.servers import free_port


def put_result(work_folder: Path, documents: Mapping[str, Dataset], name: str) -> None:
    """Write documents as :func:`node.stages.write` does; test_the_way reads what that writes."""
    files = WorkFiles(work_folder / "files")
    artifacts = {
        kind: Artifact(
            kind,
            DICOM_MEDIA_TYPE,
            files.put(to_bytes(document)),
            document.StudyInstanceUID,
            document.SeriesInstanceUID,
            document.SOPInstanceUID,
        )
        for kind, document in documents.items()
    }
    written = {"artifacts": {kind: asdict(each) for kind, each in artifacts.items()}}
    write_atomically(work_folder / "results" / f"{name}.json", json.dumps(written).encode())


def results_app(
    work_folder: Path, public_url: str = "", viewer_origins: Collection[str] = ()
) -> Flask:
    app = Flask("results")
    app.register_blueprint(dicomweb(ResultStore(work_folder), public_url, viewer_origins))
    return app


@contextmanager
def served_results(work_folder: Path, viewer_origins: Collection[str] = ()) -> Iterator[str]:
    """Serve a work folder's results with waitress; the URL of the DICOMweb service."""
    port = free_port()
    # Named, because dicomweb-client leaves the port out of its Host header.
    app = results_app(work_folder, f"http://127.0.0.1:{port}", viewer_origins)
    sockets: dict[int, Any] = {}
    server = create_server(app, map=sockets, host="127.0.0.1", port=port, threads=4)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        server.trigger.pull_trigger(partial(close_all, sockets))
        thread.join(10)
        server.task_dispatcher.shutdown()
