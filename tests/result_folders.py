"""Work folders with results in them, and the service over one, for real clients."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from flask import Flask
from pydicom.dataset import Dataset
from werkzeug.serving import WSGIRequestHandler, make_server

from node.config import Settings
from node.job_database import open_job_database
from node.outputs import DICOM_MEDIA_TYPE, Artifact, to_bytes
from node.result_store import ResultStore
from node.web.access import new_key
from node.web.app import create_app
from node.web.dicomweb import dicomweb_blueprint
from node.web.settings import KeySettings, ServeSettings
from node.work_files import WorkFiles, write_atomically
from tests.served import served
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
    app.register_blueprint(dicomweb_blueprint(ResultStore(work_folder), public_url, viewer_origins))
    return app


@contextmanager
def whole_service(
    work_folder: Path, public_url: str = "", viewer_origins: Sequence[str] = ()
) -> Iterator[tuple[Flask, Mapping[str, str]]]:
    """The node's whole service, and a key for each of the roles read and submit."""
    made = {role: new_key() for role in ("read", "submit")}
    serve = ServeSettings(
        public_url=public_url,
        viewer_origins=tuple(viewer_origins),
        keys={role: KeySettings(digest, (role,)) for role, (_, digest) in made.items()},
    )
    settings = Settings(work_folder=work_folder, serve=serve)
    with open_job_database(settings) as database:
        yield create_app(settings, database), {role: key for role, (key, _) in made.items()}


@contextmanager
def served_results(work_folder: Path) -> Iterator[str]:
    """Serve a work folder's results, without access control; the URL of DICOMweb."""
    port = free_port()
    # Named, because dicomweb-client leaves the port out of its Host header.
    with listening(results_app(work_folder, f"http://127.0.0.1:{port}"), port):
        yield f"http://127.0.0.1:{port}/dicom-web"


@contextmanager
def listening(app: Flask, port: int) -> Iterator[None]:
    """Let an application answer on a port of this machine, several requests at a time."""
    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=_Silent)
    with served(server):
        yield


class _Silent(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: object, **__: object) -> None:
        """Say nothing."""
