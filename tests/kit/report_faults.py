"""Faults of structured reports."""

from __future__ import annotations

from copy import deepcopy

from pydicom.dataset import Dataset

from tests.kit.bases import Case
from tests.kit.general_faults import all_items


def _named(case: Case, value: str) -> Dataset:
    return next(
        item
        for _, item in all_items(case.sr)
        if "ConceptNameCodeSequence" in item and item.ConceptNameCodeSequence[0].CodeValue == value
    )


def _without(case: Case, *values: str) -> None:
    """Take away the items of these names, wherever they are."""

    def kept(container: Dataset) -> None:
        if "ContentSequence" not in container:
            return
        for item in list(container.ContentSequence):
            name = item.get("ConceptNameCodeSequence")
            if name and name[0].CodeValue in values:
                container.ContentSequence.remove(item)
            else:
                kept(item)

    kept(case.sr)


def _of_type(case: Case, kind: str) -> Dataset:
    return next(item for _, item in all_items(case.sr) if item.ValueType == kind)


def title_of_another(case: Case) -> None:
    name = case.sr.ConceptNameCodeSequence[0]
    name.CodeValue, name.CodeMeaning = "113701", "X-Ray Radiation Dose Report"


def template_not_named(case: Case) -> None:
    del case.sr.ContentTemplateSequence


def language_missing(case: Case) -> None:
    _without(case, "121049")


def observer_missing(case: Case) -> None:
    _without(case, "121005", "121012", "121013", "121014", "121015", "121016")


def device_uid_missing(case: Case) -> None:
    _without(case, "121012")


def procedure_missing(case: Case) -> None:
    _without(case, "121058")


def measurements_missing(case: Case) -> None:
    _without(case, "126010")


def tracking_uid_missing(case: Case) -> None:
    _without(case, "112040")


def relationship_of_another(case: Case) -> None:
    _named(case, "112039").RelationshipType = "CONTAINS"


def relationship_not_allowed(case: Case) -> None:
    tracking = _named(case, "112039")
    number = deepcopy(_of_type(case, "NUM"))
    number.RelationshipType = "CONTAINS"
    tracking.ContentSequence = [number]


def number_without_value(case: Case) -> None:
    _of_type(case, "NUM").MeasuredValueSequence = []


def text_empty(case: Case) -> None:
    _named(case, "112039").TextValue = ""


def code_value_missing(case: Case) -> None:
    del _of_type(case, "CODE").ConceptCodeSequence


def continuity_missing(case: Case) -> None:
    del _of_type(case, "CONTAINER").ContinuityOfContent


def number_in_basic_text(case: Case) -> None:
    item, unit, value = _code("IHE.99", "Number of findings"), _code("1", "no units"), Dataset()
    item_set = Dataset()
    item_set.RelationshipType, item_set.ValueType = "CONTAINS", "NUM"
    item_set.ConceptNameCodeSequence = [item]
    unit.CodingSchemeDesignator = "UCUM"
    value.MeasurementUnitsCodeSequence, value.NumericValue = [unit], "2"
    item_set.MeasuredValueSequence = [value]
    case.sr.ContentSequence.append(item_set)


def region_3d_in_comprehensive(case: Case) -> None:
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "SCOORD3D"
    item.ConceptNameCodeSequence = [_code("1", "Region")]
    item.GraphicType, item.GraphicData = "POINT", [1.0, 2.0, 3.0]
    item.ReferencedFrameOfReferenceUID = "1.2.3"
    case.sr.ContentSequence.append(item)


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "99TEST", meaning
    return code


def evidence_missing(case: Case) -> None:
    """The SEG's study stands in the evidence no more."""
    uid = case.seg.SOPInstanceUID
    for keyword in (
        "CurrentRequestedProcedureEvidenceSequence",
        "PertinentOtherEvidenceSequence",
    ):
        for study in case.sr.get(keyword, []):
            study.ReferencedSeriesSequence = [
                series
                for series in study.ReferencedSeriesSequence
                if series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID != uid
            ]


def verified_by_nobody(case: Case) -> None:
    case.sr.VerificationFlag = "VERIFIED"


def unverified_by_somebody(case: Case) -> None:
    observer = Dataset()
    observer.VerifyingObserverName = "Somebody^Else"
    observer.VerifyingOrganization = "Elsewhere"
    observer.VerificationDateTime = "20260101120000"
    observer.VerifyingObserverIdentificationCodeSequence = []
    case.sr.VerifyingObserverSequence = [observer]


def percentage_of_another_count(case: Case) -> None:
    for _, item in all_items(case.sr):
        if item.ValueType != "NUM":
            continue
        value = item.MeasuredValueSequence[0]
        said = [
            child.ConceptCodeSequence[0].CodeValue
            for child in item.get("ContentSequence", [])
            if child.ValueType == "CODE"
        ]
        if "ndc-percentage" in said and float(value.NumericValue) > 1:
            value.NumericValue = str(float(value.NumericValue) - 1)
            return
