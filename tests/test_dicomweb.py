"""The node's results over DICOMweb: read by other clients, byte for byte, and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from dicomweb_client import DICOMwebClient
from flask.testing import FlaskClient
from pydicom.dataset import Dataset

from dicom_io.analysis import Analysis
from dicom_io.annotation import encode_annotation
from dicom_io.native_model import from_xml
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.search import ATTRIBUTES, LEVELS, Level
from models.records import Cells
from node.config import OutputSettings
from node.outputs import Documents, Renditions, encode_documents, from_bytes, to_bytes
from node.pictures import draw_differential
from node.result_store import ResultStore
from node.web.dicomweb import EXPLICIT_LITTLE_ENDIAN
from tests.analyses import small_slide, some_analysis
from tests.result_folders import put_result, results_app, served_results, whole_service

ALL = OutputSettings(pdf=True, captures=True, parametric_map=True)
NAME = "Yamada^Tarou=山田^太郎=やまだ^たろう"
STUDY, SERIES = "2.25.1111", "2.25.2222"
PDF = b"%PDF-1.7\n" + bytes(range(256)) * 20
JSON, XML = "application/dicom+json", "application/dicom+xml"
MULTIPART = 'multipart/related; type="application/octet-stream"'


@dataclass(frozen=True)
class Folder:
    """A work folder with two results: of a slide, and of another patient's."""

    path: Path
    first: Documents
    second: Documents

    @property
    def documents(self) -> list[Dataset]:
        return [*self.first.values(), *self.second.values()]


def of_another_patient(analysis: Analysis) -> Analysis:
    header = deepcopy(analysis.slide.header)
    header.SpecificCharacterSet = "ISO_IR 192"
    header.StudyInstanceUID, header.SeriesInstanceUID = STUDY, SERIES
    header.PatientName, header.PatientID, header.AccessionNumber = NAME, "P-2", "A-2"
    header.StudyDate, header.StudyTime = "20250131", "081500.5"
    slide = replace(analysis.slide, header=header, study_uid=STUDY, series_uid=SERIES)
    return replace(analysis, slide=slide)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return some_analysis(small_slide(tmp_path_factory.mktemp("slide")))


@pytest.fixture(scope="module")
def folder(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    path = tmp_path_factory.mktemp("work")
    renditions = Renditions(PDF, {"differential": draw_differential(analysis)})
    first = encode_documents(analysis, ALL, renditions)
    how = OutputSettings(graphic_type="POLYGON", coordinates="3D")
    second = encode_documents(of_another_patient(analysis), how)
    put_result(path, first, "first")
    put_result(path, second, "second")
    return Folder(path, first, second)


@pytest.fixture(scope="module")
def client(folder: Folder) -> FlaskClient:
    return results_app(folder.path).test_client()


@pytest.fixture(scope="module")
def url(folder: Folder) -> Iterator[str]:
    with served_results(folder.path) as url:
        yield url


def path_of(document: Dataset) -> str:
    return (
        f"/dicom-web/studies/{document.StudyInstanceUID}/series/{document.SeriesInstanceUID}"
        f"/instances/{document.SOPInstanceUID}"
    )


def found(client: FlaskClient, path: str, **query: str) -> list[Dataset]:
    answer = client.get(f"/dicom-web{path}", query_string=query)
    assert answer.status_code == 200, answer.text
    assert answer.content_type == JSON
    for item in answer.json:
        assert list(item) == sorted(item)
    return [Dataset.from_json(item) for item in answer.json]


# Search


def test_levels(client: FlaskClient, folder: Folder) -> None:
    studies = found(client, "/studies")
    assert {study.StudyInstanceUID for study in studies} == {
        document.StudyInstanceUID for document in folder.documents
    }
    (second,) = found(client, "/studies", StudyInstanceUID=STUDY)
    assert second.PatientName == NAME
    assert second.ModalitiesInStudy == ["ANN", "SEG", "SR"]
    assert (second.NumberOfStudyRelatedSeries, second.NumberOfStudyRelatedInstances) == (3, 3)
    assert second.RetrieveURL == f"http://localhost/dicom-web/studies/{STUDY}"
    assert second.InstanceAvailability == "ONLINE"
    series = found(client, f"/studies/{STUDY}/series")
    assert sorted(each.Modality for each in series) == ["ANN", "SEG", "SR"]
    assert {each.NumberOfSeriesRelatedInstances for each in series} == {1}
    instances = found(client, f"/studies/{STUDY}/instances")
    assert {each.SOPInstanceUID for each in instances} == {
        document.SOPInstanceUID for document in folder.second.values()
    }
    assert len(found(client, "/instances")) == len(folder.documents)
    annotations = folder.second["ANN"]
    (one,) = found(client, f"/studies/{STUDY}/series/{annotations.SeriesInstanceUID}/instances")
    assert one.SOPInstanceUID == annotations.SOPInstanceUID
    assert urlsplit(one.RetrieveURL).path == path_of(annotations)
    # Counts are those of the whole study and series, whatever was searched for.
    assert one.NumberOfStudyRelatedInstances == 3


@pytest.mark.parametrize(
    ("level", "query", "count"),
    [
        ("studies", {"PatientID": "P-2"}, 1),
        ("studies", {"00100020": "P-2"}, 1),
        ("studies", {"PatientID": "p-2"}, 0),
        ("studies", {"PatientID": "P-?"}, 1),
        ("studies", {"PatientID": "[P]-2"}, 0),
        ("studies", {"PatientID": ""}, 2),
        ("studies", {"PatientID": "*"}, 2),
        ("studies", {"PatientName": "yamada^tarou"}, 1),
        ("studies", {"PatientName": "YAMADA*"}, 1),
        ("studies", {"PatientName": "山田*"}, 1),
        ("studies", {"PatientName": "*たろう"}, 1),
        ("studies", {"PatientName": NAME}, 1),
        ("studies", {"PatientName": "Yamada"}, 0),
        ("studies", {"AccessionNumber": "A-2"}, 1),
        ("studies", {"StudyDate": "20250131"}, 1),
        ("studies", {"StudyDate": "20250101-20250131"}, 1),
        ("studies", {"StudyDate": "20250131-20250201"}, 1),
        ("studies", {"StudyDate": "20250201-20250228"}, 0),
        ("studies", {"StudyDate": "-20250131"}, 1),
        ("studies", {"StudyDate": "20250201-"}, 1),
        ("studies", {"StudyTime": "0815"}, 1),
        ("studies", {"StudyTime": "080000-0815", "PatientID": "P-2"}, 1),
        ("studies", {"StudyTime": "0816-", "PatientID": "P-2"}, 0),
        ("studies", {"ModalitiesInStudy": "DOC"}, 1),
        ("studies", {"ModalitiesInStudy": "ANN"}, 2),
        ("studies", {"ModalitiesInStudy": "SM"}, 0),
        ("studies", {"StudyInstanceUID": f"1.2.3,{STUDY}"}, 1),
        ("studies", {"StudyInstanceUID": f"1.2.3\\{STUDY}"}, 1),
        ("studies", {"StudyInstanceUID": f"{STUDY[:-1]}?"}, 0),
        ("series", {"Modality": "ANN"}, 2),
        ("series", {"Modality": "ANN", "PatientID": "P-2"}, 1),
        ("series", {"SeriesNumber": "9001"}, 2),
        ("instances", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.91.1"}, 2),
        ("instances", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, 0),
        ("instances", {"ContentDate": "20261120", "Modality": "ANN"}, 2),
        ("instances", {"ContentDate": "-20261119"}, 0),
        ("instances", {"VerificationFlag": "UNVERIFIED", "Modality": "SR"}, 2),
        ("instances", {"includefield": "all", "Modality": "SR"}, 2),
        ("instances", {"includefield": "ContentDate,00080018", "Modality": "SR"}, 2),
        ("studies", {"accept": "application/json"}, 2),
        ("instances", {"InstanceNumber": "1", "fuzzymatching": "false", "Modality": "SR"}, 2),
    ],
)
def test_matching(client: FlaskClient, level: str, query: dict[str, str], count: int) -> None:
    assert len(found(client, f"/{level}", **query)) == count


@pytest.mark.parametrize("level", LEVELS)
def test_every_stated_attribute_can_be_asked_for(client: FlaskClient, level: Level) -> None:
    """As the conformance statement lists them; each value that is returned is found again."""
    (*_, one) = found(client, f"/{level}")
    for above in LEVELS[: LEVELS.index(level) + 1]:
        for keyword in ATTRIBUTES[above]:
            value = one.get(keyword)
            again = found(client, f"/{level}", **{keyword: "" if value is None else str(value)})
            assert one in again, keyword


def test_pages(client: FlaskClient, folder: Folder) -> None:
    whole = [each.SOPInstanceUID for each in found(client, "/instances")]
    assert len(set(whole)) == len(folder.documents)
    pages = [
        [e.SOPInstanceUID for e in found(client, "/instances", limit="4", offset=str(at))]
        for at in range(0, len(whole) + 4, 4)
    ]
    assert [uid for page in pages for uid in page] == whole
    assert pages[-1] == []
    assert found(client, "/instances", limit="0") == []


@pytest.mark.parametrize(
    "query",
    [
        {"PatientsName": "x"},
        {"Private": "1"},
        {"00091001": "1"},
        {"PatientAge": "050Y"},
        {"AnnotationGroupSequence.AnnotationGroupUID": "1.2"},
        {"Modality": "ANN"},
        {"SOPInstanceUID": "1.2"},
        {"StudyDate": "2025"},
        {"StudyDate": "20250101-20250102-20250103"},
        {"StudyTime": "8 h"},
        {"limit": "-1"},
        {"limit": "many"},
        {"offset": "1.5"},
        {"includefield": "NoSuchKeyword"},
        {"fuzzymatching": "perhaps"},
    ],
)
def test_what_cannot_be_searched_is_refused(client: FlaskClient, query: dict[str, str]) -> None:
    assert client.get("/dicom-web/studies", query_string=query).status_code == 400


def test_twice_the_same_key_is_refused(client: FlaskClient) -> None:
    assert client.get("/dicom-web/studies?PatientID=1&00100020=2").status_code == 400
    assert client.get(f"/dicom-web/studies/{STUDY}/series?StudyInstanceUID=1.2").status_code == 400


def test_fuzzy_matching_is_told_to_be_ignored(client: FlaskClient) -> None:
    answer = client.get("/dicom-web/studies?PatientName=yamada*&fuzzymatching=true")
    assert len(answer.json) == 1
    assert answer.headers["Warning"].startswith("299 ")
    assert "fuzzymatching" in answer.headers["Warning"]


# Retrieve


def read(text: str, get: Any) -> Dataset:
    """A dataset of its metadata, bulk data fetched by their addresses."""
    return Dataset.from_json(
        text, lambda tag, vr, uri: get(uri, headers={"Accept": "application/octet-stream"}).data
    )


def test_metadata_and_bulk_data_are_the_object(client: FlaskClient, folder: Folder) -> None:
    """Every document, value by value; nothing is missing and nothing is changed."""
    addresses = 0
    for document in folder.documents:
        stored = from_bytes(to_bytes(document))
        stored.pop(0x00080005, None)  # DICOM JSON is UTF-8, whatever the file is
        answer = client.get(f"{path_of(document)}/metadata")
        assert answer.content_type == JSON
        (told,) = answer.json
        assert told.pop("00080005", {"Value": ["ISO_IR 192"]})["Value"] == ["ISO_IR 192"]
        addresses += json.dumps(told).count("BulkDataURI")
        assert read(json.dumps(told), client.get) == stored
        as_xml = client.get(f"{path_of(document)}/metadata", headers={"Accept": XML})
        assert as_xml.content_type == XML
        told_in_xml = from_xml(as_xml.data)
        told_in_xml.pop("00080005", None)
        assert read(json.dumps(told_in_xml), client.get) == stored
    assert addresses > 100


def test_coordinates_are_always_addresses(client: FlaskClient, folder: Folder) -> None:
    """However few: viewers do not look for them in the metadata."""
    for documents, names in (
        (folder.first, {"00660016": "OF"}),
        (folder.second, {"00660022": "OD", "00660040": "OL"}),
    ):
        (told,) = client.get(f"{path_of(documents['ANN'])}/metadata").json
        for group in told["006A0002"]["Value"]:
            for tag, vr in names.items():
                assert group[tag]["vr"] == vr
                assert group[tag]["BulkDataURI"].startswith("http://localhost/dicom-web/studies/")


def test_addresses_are_those_of_the_configured_server(folder: Folder) -> None:
    public = "https://node.example/marrow/"
    client = results_app(folder.path, public).test_client()
    text = client.get(f"/dicom-web/studies/{STUDY}/metadata").text
    told = text.count("BulkDataURI")
    assert told > 10
    base = f'"BulkDataURI":"https://node.example/marrow/dicom-web/studies/{STUDY}/series/'
    assert text.count(base) == told


def test_another_client_gets_every_object(url: str, folder: Folder) -> None:
    """dicomweb-client over a socket: search, metadata, bulk data, instances at three levels."""
    client = DICOMwebClient(url)
    assert len(client.search_for_studies()) == 2
    assert len(client.search_for_series(STUDY, search_filters={"Modality": "ANN"})) == 1
    whole = {d.SOPInstanceUID: d for d in client.retrieve_study(STUDY)}
    assert whole.keys() == {d.SOPInstanceUID for d in folder.second.values()}
    for document in folder.second.values():
        uids = document.StudyInstanceUID, document.SeriesInstanceUID, document.SOPInstanceUID
        stored = from_bytes(to_bytes(document))
        assert whole[uids[2]] == client.retrieve_instance(*uids) == stored
        assert client.retrieve_series(*uids[:2]) == [stored]
    annotations = folder.second["ANN"]
    (told,) = client.retrieve_series_metadata(STUDY, annotations.SeriesInstanceUID)
    for group, item in zip(
        annotations.AnnotationGroupSequence, told["006A0002"]["Value"], strict=True
    ):
        (coordinates,) = client.retrieve_bulkdata(item["00660022"]["BulkDataURI"])
        assert coordinates == group.DoublePointCoordinatesData


def test_the_node_itself_reads_them(url: str, folder: Folder) -> None:
    with open_pacs(url, PacsSettings()) as pacs:
        for document in folder.documents:
            uids = document.StudyInstanceUID, document.SeriesInstanceUID, document.SOPInstanceUID
            assert pacs.retrieve_instance(*uids) == from_bytes(to_bytes(document))


def test_all_bulk_data_of_a_series(url: str, folder: Folder) -> None:
    annotations = folder.second["ANN"]
    series = f"{url}/studies/{STUDY}/series/{annotations.SeriesInstanceUID}"
    answer = requests.get(f"{series}/bulkdata", headers={"Accept": MULTIPART}, timeout=10)
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    boundary = answer.headers["Content-Type"].split("boundary=")[1]
    told = requests.get(f"{series}/metadata", timeout=10).text
    parts = answer.content.split(f"--{boundary}".encode())[1:-1]
    assert len(parts) == told.count("BulkDataURI")
    for part in parts:
        head, _, body = part.partition(b"\r\n\r\n")
        location = head.decode().split("Content-Location: ")[1].split("\r\n")[0]
        assert f'"{location}"' in told
        one = requests.get(location, headers={"Accept": "application/octet-stream"}, timeout=10)
        assert one.content == body.removesuffix(b"\r\n")


def test_single_instance_is_the_file(client: FlaskClient, folder: Folder) -> None:
    document = folder.first["ANN"]
    answer = client.get(path_of(document), headers={"Accept": "application/dicom"})
    assert answer.content_type == "application/dicom"
    assert answer.data == to_bytes(document)
    again = client.get(
        path_of(document),
        headers={"Accept": "application/dicom", "If-None-Match": answer.headers["ETag"]},
    )
    assert again.status_code == 304


def test_ranges(client: FlaskClient, folder: Folder) -> None:
    document = folder.first["ANN"]
    (told,) = client.get(f"{path_of(document)}/metadata").json
    uri = told["006A0002"]["Value"][0]["00660016"]["BulkDataURI"]
    octets = {"Accept": "application/octet-stream"}
    whole = client.get(uri, headers=octets)
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert whole.data == document.AnnotationGroupSequence[0].PointCoordinatesData
    part = client.get(uri, headers={**octets, "Range": "bytes=32-63"})
    assert (part.status_code, part.data) == (206, whole.data[32:64])
    assert part.headers["Content-Range"] == f"bytes 32-63/{len(whole.data)}"
    last = client.get(uri, headers={**octets, "Range": "bytes=-8"})
    assert (last.status_code, last.data) == (206, whole.data[-8:])
    beyond = client.get(uri, headers={**octets, "Range": f"bytes={len(whole.data)}-"})
    assert beyond.status_code == 416
    # Of a multipart answer no range is given: a server may leave it out (RFC 9110 section 14.2).
    multipart = client.get(uri, headers={"Accept": MULTIPART, "Range": "bytes=32-63"})
    assert multipart.status_code == 200
    assert whole.data in multipart.data
    same = client.get(uri, headers={**octets, "If-None-Match": whole.headers["ETag"]})
    assert same.status_code == 304


@pytest.mark.parametrize(
    ("what", "accept", "status"),
    [
        ("", "*/*", 200),
        ("", 'multipart/related; type="application/dicom"', 200),
        ("", "multipart/related; type=application/dicom; transfer-syntax=*", 200),
        ("", f"application/dicom; transfer-syntax={EXPLICIT_LITTLE_ENDIAN}", 200),
        ("", "image/png;q=1, application/dicom;q=0.5", 200),
        ("", "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.50", 406),
        ("", "application/dicom;q=0", 406),
        ("", "image/jpeg", 406),
        ("", 'multipart/related; type="image/jpeg"', 406),
        ("/metadata", "application/dicom+json", 200),
        ("/metadata", "application/json", 200),
        ("/metadata", 'multipart/related; type="application/dicom+xml"', 200),
        ("/metadata", "application/dicom+xml", 200),
        ("/metadata", "application/xml", 406),
        ("/bulkdata", MULTIPART, 200),
        ("/bulkdata", "multipart/related", 200),
        ("/bulkdata", "application/octet-stream", 406),
        ("/bulkdata", "image/jpeg", 406),
    ],
)
def test_what_the_client_takes(
    client: FlaskClient, folder: Folder, what: str, accept: str, status: int
) -> None:
    path = f"{path_of(folder.first['ANN'])}{what}"
    assert client.get(path, headers={"Accept": accept}).status_code == status
    # The parameter stands for the header, for people with a browser (PS3.18 section 8.3.3.1).
    assert client.get(path, query_string={"accept": accept}).status_code == status


def test_a_study_is_not_one_file(client: FlaskClient) -> None:
    answer = client.get(f"/dicom-web/studies/{STUDY}", headers={"Accept": "application/dicom"})
    assert answer.status_code == 406
    assert client.get("/dicom-web/studies", headers={"Accept": "text/html"}).status_code == 406


def test_what_is_not_there(client: FlaskClient, folder: Folder) -> None:
    here = folder.first["ANN"]
    for path in (
        "/dicom-web/studies/1.2.3",
        "/dicom-web/studies/1.2.3/metadata",
        f"/dicom-web/studies/{STUDY}/series/{here.SeriesInstanceUID}",
        path_of(here)[:-1],
        f"{path_of(here)}/bulkdata/006A0002/99/00660016",
        f"{path_of(here)}/bulkdata/00100010",
        f"{path_of(here)}/frames/1",
        "/dicom-web/../files",
    ):
        assert client.get(path).status_code == 404, path


def test_nothing_can_be_changed(client: FlaskClient, folder: Folder) -> None:
    for path in (
        "/dicom-web/studies",
        f"/dicom-web/studies/{STUDY}",
        path_of(folder.first["ANN"]),
        f"{path_of(folder.first['ANN'])}/metadata",
    ):
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            answer = client.open(path, method=method)
            assert answer.status_code == 405, (method, path)
            assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


# Browsers


def test_only_configured_origins_may_read(folder: Folder) -> None:
    viewer = "https://viewer.example"
    client = results_app(folder.path, viewer_origins=(viewer,)).test_client()
    allowed = client.get("/dicom-web/studies", headers={"Origin": viewer})
    assert allowed.headers["Access-Control-Allow-Origin"] == viewer
    assert "Origin" in allowed.headers["Vary"]
    preflight = client.options(
        "/dicom-web/studies",
        headers={"Origin": viewer, "Access-Control-Request-Headers": "authorization"},
    )
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
    assert preflight.headers["Access-Control-Allow-Methods"] == "GET, HEAD"
    missing = client.get("/dicom-web/studies/1.2", headers={"Origin": viewer})
    assert missing.headers["Access-Control-Allow-Origin"] == viewer  # or the page sees no status
    for origin in ("https://other.example", "null", f"{viewer}.other.example"):
        for method in ("GET", "OPTIONS"):
            answer = client.open("/dicom-web/studies", method=method, headers={"Origin": origin})
            assert "Access-Control-Allow-Origin" not in answer.headers


# The folder


def test_results_come_and_go(analysis: Analysis, tmp_path: Path) -> None:
    client = results_app(tmp_path).test_client()
    documents = {"ANN": encode_annotation(analysis)}
    put_result(tmp_path, documents, "one")
    (instance,) = found(client, "/instances")
    stored = ResultStore(tmp_path).objects(uid=instance.SOPInstanceUID)[0]
    stored.path.unlink()
    assert found(client, "/instances") == []
    assert client.get(path_of(documents["ANN"])).status_code == 404
    put_result(tmp_path, documents, "one")
    assert len(found(client, "/instances")) == 1
    # The same object written anew: the later one counts.
    documents["ANN"].ContentDescription = "Nucleated cells, again"
    put_result(tmp_path, documents, "two")
    (instance,) = found(client, "/instances")
    assert instance.ContentDescription == "Nucleated cells, again"
    (tmp_path / "results" / "one.json").unlink()
    (tmp_path / "results" / "two.json").unlink()
    assert found(client, "/instances") == []


def test_purged_while_it_is_read(
    analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = encode_annotation(analysis)
    put_result(tmp_path, {"ANN": document}, "one")
    (stored,) = ResultStore(tmp_path).objects()
    monkeypatch.setattr(ResultStore, "objects", lambda *_: [stored])
    stored.path.unlink()
    client = results_app(tmp_path).test_client()
    for path in ("/dicom-web/studies", f"{path_of(document)}/metadata"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1"), path


def many(cells: Cells, times: int) -> Cells:
    """The same cells over and over."""
    repeated = ("box_px", "score", "probability", "label", "tile")
    return replace(
        cells, **{name: np.concatenate([getattr(cells, name)] * times) for name in repeated}
    )


def test_a_million_cells_are_parsed_once(analysis: Analysis, tmp_path: Path) -> None:
    cells = many(some_analysis(analysis.slide, 10_000).cells, 100)
    document = encode_annotation(replace(analysis, cells=cells))
    put_result(tmp_path, {"ANN": document}, "one")
    store = ResultStore(tmp_path)
    (stored,) = store.objects()
    started = time.perf_counter()
    content = store.content(stored)
    first = time.perf_counter() - started
    with served_results(tmp_path) as url:
        address = url.removesuffix("/dicom-web") + path_of(document)
        seconds, drawn = [], []
        for _ in range(3):
            started = time.perf_counter()
            (told,) = requests.get(f"{address}/metadata", timeout=60).json()
            groups = told["006A0002"]["Value"]
            for group in groups:
                answer = requests.get(
                    group["00660016"]["BulkDataURI"],
                    headers={"Accept": "application/octet-stream"},
                    timeout=60,
                )
                drawn.append(answer.content)
            seconds.append(time.perf_counter() - started)
    assert store.content(stored) is content
    assert sum(len(each) for each in drawn) == 3 * 1_000_000 * 32
    assert drawn[0] == document.AnnotationGroupSequence[0].PointCoordinatesData
    print(
        f"1 000 000 cells, {len(groups)} groups, {stored.size / 1e6:.0f} MB: parsed in {first:.2f}"
        f" s; metadata and all coordinates in {', '.join(f'{each:.2f}' for each in seconds)} s"
    )


def test_the_whole_service_asks_for_the_role_read(folder: Folder) -> None:
    viewer = "https://viewer.example"
    with whole_service(folder.path, "https://node.example", (viewer,)) as (app, keys):
        client = app.test_client()
        (path, *_) = [path_of(document) for document in folder.documents]
        for address in ("/dicom-web/studies", path, f"{path}/metadata", f"{path}/bulkdata"):
            refused = client.get(address, headers={"Origin": viewer})
            assert refused.status_code == 401
            assert refused.headers["Access-Control-Allow-Origin"] == viewer
            for role, status in (("submit", 403), ("read", 200)):
                headers = {"Authorization": f"Bearer {keys[role]}"}
                assert client.get(address, headers=headers).status_code == status
        # A browser asks first, without credentials, whether it may send them.
        asks = {"Origin": viewer, "Access-Control-Request-Method": "GET"}
        allowed = client.options(path, headers=asks)
        assert allowed.status_code == 200
        assert "Authorization" in allowed.headers["Access-Control-Allow-Headers"]
        assert client.options("/jobs", headers=asks).status_code == 401
        assert client.options(path, headers={"Origin": viewer}).status_code == 401
        # What is wrong is told as everywhere in the service.
        headers = {"Authorization": f"Bearer {keys['read']}"}
        for query in ("PatientAge=1", "limit=x"):
            wrong = client.get(f"/dicom-web/studies?{query}", headers=headers)
            assert (wrong.status_code, wrong.content_type) == (400, "application/problem+json")


def test_every_reading_is_in_the_audit_trail(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole or in part, by whom it was; a refusal, a preflight or an unchanged copy is none."""
    trail: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "node.web.app.result_read", lambda _, user, *rest: trail.append((user, rest[1]))
    )
    document = folder.first["ANN"]
    path, record = path_of(document), ("read", str(document.StudyInstanceUID))
    with whole_service(folder.path) as (app, keys):
        client = app.test_client()
        known = {"Authorization": f"Bearer {keys['read']}", "Accept": "application/dicom"}
        whole = client.get(path, headers=known)
        assert trail == [record]
        assert client.get(path, headers={**known, "Range": "bytes=0-"}).status_code == 206
        assert client.get(f"{path}/metadata", headers={**known, "Accept": JSON}).status_code == 200
        assert trail == [record] * 3
        again = client.get(path, headers={**known, "If-None-Match": whole.headers["ETag"]})
        assert again.status_code == 304
        assert client.get(path).status_code == 401
        assert client.get(f"{path}0", headers=known).status_code == 404
        client.options(path, headers={"Access-Control-Request-Method": "GET"})
        assert trail == [record] * 3
