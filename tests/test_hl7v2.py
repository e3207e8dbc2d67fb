"""The report as HL7 v2: what it says, and how it is sent over MLLP."""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import hl7
import pytest
import trustme
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message

from dicom_io.analysis import Analysis
from dicom_io.errors import (
    ConfigurationInvalid,
    EhrAnswerInvalid,
    EhrError,
    EhrRefused,
    EhrUnreachable,
)
from dicom_io.slide import Slide
from models.cell_types import CELL_TYPES
from node.ehr import open_ehr
from node.ehr_mllp import MllpEhr
from node.ehr_records import EhrSettings
from node.fhir import build_bundle
from node.hl7v2 import encode_oru
from tests.analyses import signed, small_slide, some_analysis
from tests.mllp_server import MllpServer, mllp_server

QUICK = EhrSettings(timeout_s=2, retries=1, retry_wait_s=0.01)
PDF = b"%PDF-1.4 not empty"


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return small_slide(tmp_path_factory.mktemp("slide"))


@pytest.fixture(scope="module")
def analysis(slide: Slide) -> Analysis:
    return some_analysis(slide)


@pytest.fixture
def receiver() -> Iterator[MllpServer]:
    with mllp_server() as server:
        yield server


def message_of(analysis: Analysis, pdf: bytes = PDF, loinc: bool = False) -> str:
    return encode_oru(analysis, build_bundle(analysis, {}, {}, loinc), pdf)


def observed(message: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Code → its OBX, and the OBX below it by their codes."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    parent: dict[str, Any] = {}
    for segment in hl7.parse(message).segments("OBX"):
        code = str(segment[3][0][0])
        if "." in str(segment[4]):
            parent[code] = segment
        else:
            parent = {}
            found[code] = (segment, parent)
    return found


def patient(header: Any, **values: Any) -> Any:
    changed = deepcopy(header)
    for keyword, value in values.items():
        setattr(changed, keyword, value)
    return changed


def with_patient(analysis: Analysis, **values: Any) -> Analysis:
    header = patient(analysis.slide.header, **values)
    return replace(analysis, slide=replace(analysis.slide, header=header))


def test_it_says_what_was_counted(analysis: Analysis) -> None:
    found, counted = observed(message_of(analysis)), analysis.differential
    for row, key in enumerate(counted.classes):
        segment, parts = found[key]
        assert float(str(parts["count"][5])) == counted.count[row]
        if not counted.in_ndc[row]:
            assert str(segment[6][0][0]) == "{cells}"
            continue
        assert float(str(segment[5])) == pytest.approx(100 * counted.share[row], abs=1e-6)
        assert str(segment[6][0][0]) == "%"
        low, high = (float(str(parts[f"wilson-95-{end}"][5])) for end in ("low", "high"))
        assert (low, high) == pytest.approx(tuple(100 * counted.interval[row]), abs=1e-6)
        limits = CELL_TYPES[key].reference_percent
        if limits is not None:
            assert str(segment[7]) == f"{limits[0]:g}-{limits[1]:g}"
            percent = 100 * counted.share[row]
            flag = "L" if percent < limits[0] else "H" if percent > limits[1] else "N"
            assert str(segment[8]) == flag
    assert str(found["38257-2"][0][5]) == str(counted.total)
    assert float(str(found["11138-5"][0][5])) == pytest.approx(counted.me_ratio, abs=1e-6)


def test_it_is_preliminary_and_names_study_and_report(analysis: Analysis) -> None:
    message = hl7.parse(message_of(analysis))
    order = message.segment("OBR")
    assert str(order[25]) == "P"
    assert {str(segment[11]) for segment in message.segments("OBX")} == {"P"}
    assert str(order[4][0][0]) == "47286-0"
    assert str(order[18]) == "DEMO-ACC-1"
    study, _ = observed(message_of(analysis))["113014"]
    assert str(study[5]) == analysis.slide.study_uid
    assert "Unreviewed result of an algorithm." in str(message.segment("NTE")[3])


@pytest.mark.parametrize(
    ("decision", "standing", "of_report", "of_results"),
    [
        ("confirmed", "final", "F", {"F"}),
        ("corrected", "corrected", "C", {"C"}),
        ("withdrawn", "withdrawn", "C", {"D"}),
    ],
)
def test_a_review_is_the_result_status(
    slide: Slide, tmp_path: Path, decision: Any, standing: Any, of_report: str, of_results: set[str]
) -> None:
    text = message_of(signed(some_analysis(slide), decision, standing))
    message = hl7.parse(text)
    assert str(message.segment("OBR")[25]) == of_report
    assert {str(segment[11]) for segment in message.segments("OBX")} == of_results
    assert str(message.segment("OBR")[22]) == "20261121090200+0000"
    parsed = parse_message(text, validation_level=VALIDATION_LEVEL.STRICT)
    assert parsed.validate(report_file=str(tmp_path / "report"))


@pytest.mark.parametrize("cells", [600, 40, 0])
def test_a_validator_by_others_finds_no_error(slide: Slide, tmp_path: Path, cells: int) -> None:
    """hl7apy, strict: segments, groups, cardinalities and data types of ORU_R01, version 2.5.1."""
    message = parse_message(
        message_of(some_analysis(slide, cells)), validation_level=VALIDATION_LEVEL.STRICT
    )
    assert message.validate(report_file=str(tmp_path / "report"))
    said = (tmp_path / "report").read_text().splitlines()
    # Its table of coding systems is of 2010: no SCT, no UCUM, no local ones (99zzz).
    assert [line for line in said if line and "not in table HL70396" not in line] == []


def test_set_ids_count_from_one(analysis: Analysis) -> None:
    numbers = [str(segment[1]) for segment in hl7.parse(message_of(analysis)).segments("OBX")]
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]


def test_a_count_that_does_not_suffice_gives_no_percentages(slide: Slide) -> None:
    message = message_of(some_analysis(slide, 40))
    segment, parts = observed(message)["myelocyte"]
    assert (str(segment[5]), str(segment[11])) == ("", "X")
    assert parts.keys() == {"count"}
    assert "NTE|1|L|insufficient for a differential count" in message
    assert "%" not in message.replace("95 %", "").partition("PDF")[0]


def test_the_pdf_is_in_it(analysis: Analysis) -> None:
    segment, _ = observed(message_of(analysis))["48807-2"]
    data = segment[5][0]
    assert [str(data[part]) for part in (2, 3)] == ["PDF", "Base64"]
    assert base64.b64decode(str(data[4])) == PDF
    assert "48807-2" not in observed(message_of(analysis, b""))


def test_loinc_where_a_site_wants_it(analysis: Analysis) -> None:
    assert "11114-6" not in message_of(analysis)
    assert str(observed(message_of(analysis, loinc=True))["myelocyte"][0][3]).count("^") == 5


@pytest.mark.parametrize(
    ("name", "components"),
    [
        ("Adams^John^Quincy^Rev.^B.A.", ["Adams^John^Quincy^B.A.^Rev.^^L^A"]),
        (
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
            ["Yamada^Tarou^^^^^L^A", "山田^太郎^^^^^L^I", "やまだ^たろう^^^^^L^P"],
        ),
        ("قباني^لنزار", ["قباني^لنزار^^^^^L^A"]),
        ("Παπαδόπουλος^Άννα", ["Παπαδόπουλος^Άννα^^^^^L^A"]),
        ("=山田^太郎", ["山田^太郎^^^^^L^I"]),
        ("^^^^", [""]),
    ],
)
def test_names_in_every_script(analysis: Analysis, name: str, components: list[str]) -> None:
    message = message_of(with_patient(analysis, PatientName=name))
    told = str(hl7.parse(message).segment("PID")[5])
    assert told.split("~") == components
    assert "UNICODE UTF-8" in message


def test_delimiters_in_values_are_escaped(analysis: Analysis) -> None:
    told = with_patient(analysis, PatientID="A|B^C&D~E", AccessionNumber="1|2")
    bundle = build_bundle(told, {}, {})
    bundle["entry"][-2]["resource"]["conclusion"] = "First\\second\nthird"
    written = encode_oru(told, bundle, PDF)
    message = hl7.parse(written)
    assert len(message.segment("PID")) == len(hl7.parse(message_of(analysis)).segment("PID"))
    # HL7 v2.5.1, 2.7.1: \F\ field, \S\ component, \T\ subcomponent, \R\ repetition, \E\ escape.
    assert r"|A\F\B\S\C\T\D\R\E^^^" in written
    assert "NTE|1|L|First\\E\\second third\r" in written
    assert message.unescape(str(message.segment("OBR")[18])) == "1|2"


def test_a_patient_of_whom_nothing_is_known(analysis: Analysis) -> None:
    bare = dict.fromkeys(
        ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"), ""
    )
    assert "\rPID|1\r" in message_of(with_patient(analysis, **bare))


def test_same_report_same_message(analysis: Analysis) -> None:
    assert message_of(analysis) == message_of(analysis)
    ids = {
        str(hl7.parse(message_of(each)).segment("MSH")[10])
        for each in (analysis, replace(analysis, revision=2))
    }
    assert len(ids) == 2
    assert {len(each) for each in ids} == {20}


def test_a_message_arrives_whole_and_is_acknowledged(
    analysis: Analysis, receiver: MllpServer
) -> None:
    name = "Yamada^Tarou=山田^太郎"
    message = message_of(with_patient(analysis, PatientName=name), PDF * 100_000)
    (delivered,) = mllp(receiver).deliver(message)
    assert receiver.messages == [message]
    assert (delivered.resource_type, delivered.status) == ("ORU^R01", "acknowledged")
    assert delivered.identifier == str(hl7.parse(message).segment("MSH")[10])


def mllp(receiver: MllpServer, settings: EhrSettings = QUICK) -> MllpEhr:
    ehr = open_ehr(receiver.url(), settings)
    assert isinstance(ehr, MllpEhr)
    return ehr


@pytest.mark.parametrize("fault", ["", "hang up"])
def test_what_got_lost_is_sent_again_under_the_same_id(
    analysis: Analysis, receiver: MllpServer, fault: str
) -> None:
    receiver.codes = [fault]
    mllp(receiver).deliver(message_of(analysis))
    assert len(receiver.messages) == 2
    assert receiver.messages[0] == receiver.messages[1]


@pytest.mark.parametrize(("code", "how"), [("AE", "could not process"), ("AR", "rejected")])
def test_a_refusal_is_told_and_not_repeated(
    analysis: Analysis, receiver: MllpServer, code: str, how: str
) -> None:
    receiver.code = code
    secret = with_patient(analysis, PatientID="SECRET-9")
    with pytest.raises(EhrRefused, match=rf"{how} message \w+ \({code}\)") as caught:
        mllp(receiver).deliver(message_of(secret))
    assert len(receiver.messages) == 1
    assert "SECRET" not in str(caught.value)


def test_another_acknowledgement_is_none(analysis: Analysis, receiver: MllpServer) -> None:
    receiver.wrong_control_id = True
    with pytest.raises(EhrAnswerInvalid, match="does not acknowledge it"):
        mllp(receiver).deliver(message_of(analysis))


def test_silence_and_nobody_there(analysis: Analysis, receiver: MllpServer) -> None:
    receiver.code = ""
    with pytest.raises(EhrUnreachable, match=r"did not acknowledge within 0\.5 s"):
        mllp(receiver, replace(QUICK, timeout_s=0.5)).deliver(message_of(analysis))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EhrUnreachable, match="cannot be reached by MLLP"):
        MllpEhr(f"mllp://127.0.0.1:{port}", QUICK).deliver(message_of(analysis))


@pytest.mark.parametrize("url", ["mllp://host", "mllp://", "mllp://host:x", "mllps://:2575"])
def test_an_address_needs_host_and_port(url: str) -> None:
    with pytest.raises(ConfigurationInvalid, match="names no host or no port"):
        open_ehr(url, QUICK)


def test_tls_both_ways(analysis: Analysis, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("node.hospital").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "node.pem"
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    trusting = replace(QUICK, ca_bundle=tmp_path / "ca.pem", retries=0)
    with mllp_server(context) as receiver:
        mine = replace(trusting, certificate=tmp_path / "node.pem")
        MllpEhr(receiver.url("mllps"), mine).deliver(message_of(analysis))
        assert len(receiver.messages) == 1
        with pytest.raises(EhrError):
            MllpEhr(receiver.url("mllps"), trusting).deliver(message_of(analysis))
        with pytest.raises(EhrError, match="could not prove who it is"):
            MllpEhr(receiver.url("mllps"), QUICK).deliver(message_of(analysis))
        assert len(receiver.messages) == 1
