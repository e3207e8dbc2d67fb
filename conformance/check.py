"""The kit: every rule over everything that was given.

::

    set → each object: its values, the rules of all objects, the rules of its kind, viewers
        → all objects together: references, places, identity
        → each FHIR Bundle
        → ANN, SR and FHIR: do they agree?
        → validators by others, where they are installed
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydicom.dataset import Dataset

from conformance.agreement import check_agreement
from conformance.annotation_rules import ANNOTATION_RULES
from conformance.fhir_rules import FHIR_RULES, entries, resources
from conformance.finding import Finding, Rule
from conformance.general_rules import GENERAL_RULES
from conformance.given import Given
from conformance.identity import IDENTITY_RULES
from conformance.reading import readable, text
from conformance.report_rules import REPORT_RULES
from conformance.result_set import ResultSet, kind_of
from conformance.segmentation_rules import SEGMENTATION_RULES, SLIDE_RULES
from conformance.set_rules import SET_RULES, left_open, references_of
from conformance.standard_tables import modules_of
from conformance.validators import missing_validators, validate
from conformance.value_sets import KINDS
from conformance.viewer_rules import VIEWER_RULES, viewer_notes
from dicom_io.errors import InputError

Verdict = Literal["conformant", "warnings", "errors"]

RULES_BY_KIND: dict[str, tuple[Rule[Dataset], ...]] = {
    "ANN": (*ANNOTATION_RULES, *VIEWER_RULES),
    "SR": REPORT_RULES,
    "SEG": SEGMENTATION_RULES,
    "SM": SLIDE_RULES,
}


@dataclass(frozen=True, slots=True)
class Checked:
    """What the kit found.

    Attributes
    ----------
    objects
        (UID or full URL, kind) of what was looked at.
    findings
    notes
        What was not looked at and why, and what readers leave out.
    """

    objects: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        if any(each.severity == "error" for each in self.findings):
            return "errors"
        return "warnings" if self.findings else "conformant"


def rules_for(kind: str) -> tuple[str, ...]:
    """Identifiers of the rules that are applied to a kind of object, to FHIR, or to the set."""
    if kind == "FHIR":
        return tuple(rule.id for rule in FHIR_RULES)
    if kind == "set":
        return tuple(rule.id for rule in (*SET_RULES, *IDENTITY_RULES))
    return tuple(rule.id for rule in (*GENERAL_RULES, *RULES_BY_KIND.get(kind, ())))


def check_given(given: Given) -> Checked:
    """Apply the kit's rules to what was read, and the validators by others to its files."""
    checked = check(given.results)
    missing = [f"{name} is not installed and was not asked." for name in missing_validators()]
    return replace(
        checked,
        findings=(*given.findings, *checked.findings, *validate(given.files)),
        notes=(*given.notes, *checked.notes, *missing),
    )


def check(results: ResultSet) -> Checked:
    """Apply every rule of the kit.

    Parameters
    ----------
    results
        Given objects are not changed.
    """
    read = [readable(each) for each in results.objects]
    whole = replace(results, objects=tuple(document for document, _ in read))
    findings = [
        finding
        for document, unreadable in read
        for finding in _object_findings(document, unreadable)
    ]
    for rule in (*SET_RULES, *IDENTITY_RULES):
        findings.extend(rule.findings(whole, "set"))
    for bundle in whole.bundles:
        for fhir_rule in FHIR_RULES:
            findings.extend(fhir_rule.findings(bundle, bundle_name(bundle)))
    disagreements, not_compared = _agreement(whole)
    findings.extend(disagreements)
    objects = (
        *((text(each, "SOPInstanceUID"), kind_of(each)) for each in whole.objects),
        *((bundle_name(each), "FHIR") for each in whole.bundles),
    )
    unique = tuple(dict.fromkeys(findings))
    return Checked(objects, unique, tuple(dict.fromkeys((*_notes(whole), *not_compared))))


def _object_findings(document: Dataset, unreadable: tuple[str, ...]) -> Iterator[Finding]:
    uid = text(document, "SOPInstanceUID")
    for path in unreadable:
        yield Finding("dicom-value", "error", uid, "The value cannot be read.", path, "PS3.5 6.2")
    for rule in (*GENERAL_RULES, *RULES_BY_KIND.get(kind_of(document), ())):
        yield from rule.findings(document, uid)


def _agreement(results: ResultSet) -> tuple[list[Finding], list[str]]:
    """Findings about ANN, SR and FHIR of one analysis, and why they were not compared."""
    reports, bundles = list(results.of_kind("SR")), list(_report_bundles(results))
    annotations = list(results.of_kind("ANN"))
    if not reports or not bundles:
        return [], []
    if len(reports) > 1 or len(bundles) > 1 or len(annotations) > 1:
        return [], ["Counts were not compared: there is more than one ANN, SR or report in FHIR."]
    annotation = annotations[0] if annotations else None
    try:
        return check_agreement(annotation, reports[0], bundles[0]), []
    except (InputError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        return [], ["Counts were not compared: they are not coded, or not whole, as this node's."]


def _report_bundles(results: ResultSet) -> Iterator[Mapping[str, Any]]:
    for bundle in results.bundles:
        if any(True for _ in resources(bundle, "DiagnosticReport")):
            yield bundle


def bundle_name(bundle: Mapping[str, Any]) -> str:
    """Full URL of its DiagnosticReport, by which findings name a Bundle."""
    for _, entry, resource in entries(bundle):
        if resource.get("resourceType") == "DiagnosticReport":
            return str(entry.get("fullUrl", "Bundle"))
    return "Bundle"


def _notes(results: ResultSet) -> Iterator[str]:
    given = {text(each, "SOPInstanceUID") for each in results.objects}
    for document in results.objects:
        uid = text(document, "SOPInstanceUID")
        sop_class = text(document, "SOPClassUID")
        if not modules_of(sop_class):
            yield f"{uid}: the kit has no module tables for SOP class {sop_class}."
        if kind_of(document) == "ANN":
            yield from viewer_notes(document)
    for document in results.objects:
        for _, sop_class, uid in references_of(document):
            kind = KINDS.get(sop_class, "")
            if kind and left_open(results, sop_class) and uid not in given:
                yield _OPEN["SM" if kind == "SM" else "other"]


_OPEN = {
    "SM": "No slide was given: bounds, places and references to it were not looked at.",
    "other": "One object was given: its references to other results were not looked at.",
}
