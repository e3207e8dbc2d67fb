"""The conformance statement says what the code does: it is generated, and generated anew here."""

from __future__ import annotations

import json
from pathlib import Path

import hl7
import pytest
from fhir.resources.R4B.capabilitystatement import CapabilityStatement

import dicom_io
from conformance import capabilities
from conformance.statement import (
    CAPABILITY_STATEMENT,
    STATEMENT,
    capability_statement,
    statement,
)
from conformance.statuses import exit_codes
from dicom_io import dimse_errors
from dicom_io.commitment import Commitments
from dicom_io.dimse_settings import ReceiveSettings
from dicom_io.receiver import Receiver
from node import delivery
from node.config import OutputSettings
from node.exit_codes import exit_code_table
from node.fhir import STATUSES, build_bundle, conclusion_text
from node.hl7v2 import encode_oru
from node.outputs import KEPT, Renditions, encode_documents
from node.pictures import draw_differential
from node.report_pdf import draw_report
from tests.analyses import signed, some_analysis
from tests.kit.bases import base, demonstration_slide


def test_statement_is_current() -> None:
    assert STATEMENT.read_text(encoding="utf-8") == statement(), "run python -m conformance"


def test_fhir_statement_is_current_and_valid() -> None:
    written = CAPABILITY_STATEMENT.read_text(encoding="utf-8")
    assert written == capability_statement(), "run python -m conformance"
    CapabilityStatement.model_validate(json.loads(written))


def test_a_status_that_changes_changes_the_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimse_errors, "OUT_OF_RESOURCES", 0xA8)
    assert STATEMENT.read_text(encoding="utf-8") != statement()


def test_patient_attributes_that_are_compared_are_stated() -> None:
    told = " ".join(change for change, _ in capabilities.CHANGES)
    compared = (*delivery.IDENTIFIERS, *delivery.DEMOGRAPHICS)
    assert [name for name in compared if name not in told] == []


def test_receiver_accepts_what_is_stated(tmp_path: Path) -> None:
    receiver = Receiver(
        ReceiveSettings(folder=tmp_path), Commitments(tmp_path), lambda *_: None, lambda _: None
    )
    accepted = {
        (str(context.abstract_syntax), str(syntax))
        for context in receiver._application_entity().supported_contexts
        for syntax in context.transfer_syntax
    }
    stated = {
        (str(each.uid), str(syntax))
        for each in capabilities.sop_classes()
        if each.role == "SCP" or "association of its own" in each.what_for
        for syntax in each.transfer_syntaxes
    }
    assert stated == accepted


def test_results_are_of_the_stated_classes() -> None:
    analysis = some_analysis(demonstration_slide())
    everything = OutputSettings(pdf=True, captures=True, parametric_map=True)
    rgb = draw_differential(analysis)
    pdf = draw_report(analysis, conclusion_text(analysis), {})
    made = encode_documents(
        analysis, everything, Renditions(pdf, {"overview": rgb, "differential": rgb})
    )
    written = {str(each.SOPClassUID) for each in made.values()}
    assert written == {str(uid) for uid, _ in capabilities.WRITTEN}


def test_results_go_by_the_stated_transfer_syntaxes() -> None:
    for each in base("node").objects:
        stated = {
            syntax
            for row in capabilities.sop_classes()
            if row.uid == each.SOPClassUID and row.role == "SCU"
            for syntax in row.transfer_syntaxes
        }
        assert each.Modality == "SM" or str(each.file_meta.TransferSyntaxUID) in stated


def test_report_is_of_the_stated_resources() -> None:
    sent = {entry["resource"]["resourceType"] for entry in base("node").fhir["entry"]}
    assert sent <= {kind for kind, *_ in capabilities.FHIR_RESOURCES}


def test_standings_and_decisions_are_those_of_the_code() -> None:
    analysis = some_analysis(demonstration_slide())
    for standing, flag, report, observation, of_order, of_result in capabilities.STANDINGS:
        reviewed = analysis
        if standing != "unreviewed":
            decision = "withdrawn" if standing == "withdrawn" else "confirmed"
            reviewed = signed(analysis, decision, standing)
        assert encode_documents(reviewed)["SR"].VerificationFlag == flag
        assert STATUSES[standing] == (report, observation)
        message = hl7.parse(encode_oru(reviewed, build_bundle(reviewed, {}, {}), b""))
        assert str(message.segment("OBR")[25]) == of_order
        assert {str(each[11]) for each in message.segments("OBX")} == {of_result}
    assert {standing for standing, *_ in capabilities.STANDINGS} == STATUSES.keys()
    assert {decision for decision, *_ in capabilities.DECISIONS} == KEPT.keys()


def test_exit_codes_are_those_of_the_commands() -> None:
    usage = [row for row in exit_code_table() if row[0] != 2]  # the command line's own
    assert exit_codes() == usage


def test_attributes_that_are_stated_are_read() -> None:
    source = "".join(
        path.read_text(encoding="utf-8") for path in Path(dicom_io.__file__).parent.glob("*.py")
    )
    for keyword, *_ in capabilities.READ_ATTRIBUTES:
        assert f'"{keyword}"' in source, keyword


def test_ihe_states_are_met_or_partly() -> None:
    states = {each.state for demands in capabilities.IHE.values() for each in demands}
    assert states == {"met", "partly"}
