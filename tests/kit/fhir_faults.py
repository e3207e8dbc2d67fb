"""Faults of FHIR Bundles."""

from __future__ import annotations

from tests.kit.bases import Case
from tests.kit.set_faults import observation, resource


def fhir_status_missing(case: Case) -> None:
    del resource(case, "DiagnosticReport")["status"]


def fhir_status_unknown(case: Case) -> None:
    observation(case, "myelocyte")["status"] = "done"


def fhir_value_and_absence(case: Case) -> None:
    observation(case, "myelocyte")["dataAbsentReason"] = {"text": "not known"}


def fhir_component_repeats(case: Case) -> None:
    found = observation(case, "myelocyte")
    found["component"][0]["code"] = found["code"]


def fhir_unit_without_system(case: Case) -> None:
    del observation(case, "myelocyte")["valueQuantity"]["system"]


def fhir_empty_array(case: Case) -> None:
    resource(case, "DiagnosticReport")["specimen"] = []


def fhir_entry_without_request(case: Case) -> None:
    del case.fhir["entry"][1]["request"]


def fhir_reference_dangling(case: Case) -> None:
    result = resource(case, "DiagnosticReport")["result"][0]
    result["reference"] = "urn:uuid:00000000-0000-4000-8000-000000000000"


def fhir_full_url_twice(case: Case) -> None:
    """Of two that nothing refers to: the provenance comes twice."""
    case.fhir["entry"].append(dict(case.fhir["entry"][-1]))


def fhir_period_backwards(case: Case) -> None:
    period = resource(case, "Provenance")["occurredPeriod"]
    period["start"], period["end"] = period["end"], period["start"]


def fhir_narrative_script(case: Case) -> None:
    narrative = resource(case, "DiagnosticReport")["text"]
    narrative["div"] = narrative["div"].replace("</div>", "<script>alert(1)</script></div>")


def fhir_unit_misspelt(case: Case) -> None:
    component = observation(case, "myelocyte")["component"][0]
    component["valueQuantity"]["code"] = "cells"


def fhir_loinc_check_digit(case: Case) -> None:
    resource(case, "DiagnosticReport")["code"]["coding"][0]["code"] = "47286-1"
