"""Rules for structured reports (PS3.3 A.35, C.17, C.18) and TID 1500 (PS3.16)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
)

from conformance.finding import Fault, Rule
from conformance.reading import (
    Code,
    code,
    content_items,
    first,
    items,
    paths,
    sequence,
    text,
)
from dicom_io.errors import InputError
from dicom_io.report_content import decode_report

# PS3.3 A.35.1.3.1, A.35.2.3.1, A.35.3.3.1 and A.35.13.3.1.
_TEXTUAL = frozenset(
    [
        "TEXT",
        "CODE",
        "DATETIME",
        "DATE",
        "TIME",
        "UIDREF",
        "PNAME",
        "COMPOSITE",
        "IMAGE",
        "WAVEFORM",
        "CONTAINER",
    ]
)
_NUMERIC = _TEXTUAL | {"NUM", "SCOORD", "TCOORD"}
VALUE_TYPES: dict[str, frozenset[str]] = {
    BasicTextSRStorage: _TEXTUAL,
    EnhancedSRStorage: _NUMERIC,
    ComprehensiveSRStorage: _NUMERIC,
    Comprehensive3DSRStorage: _NUMERIC | {"SCOORD3D", "TABLE"},
}
# What a content item of a type holds (PS3.3 C.17.3, C.18.1 to C.18.9).
HOLDS: dict[str, tuple[str, ...]] = {
    "TEXT": ("TextValue",),
    "CODE": ("ConceptCodeSequence",),
    "DATETIME": ("DateTime",),
    "DATE": ("Date",),
    "TIME": ("Time",),
    "UIDREF": ("UID",),
    "PNAME": ("PersonName",),
    "COMPOSITE": ("ReferencedSOPSequence",),
    "IMAGE": ("ReferencedSOPSequence",),
    "WAVEFORM": ("ReferencedSOPSequence",),
    "SCOORD": ("GraphicType", "GraphicData"),
    "SCOORD3D": ("GraphicType", "GraphicData", "ReferencedFrameOfReferenceUID"),
    "TCOORD": ("TemporalRangeType",),
    "CONTAINER": ("ContinuityOfContent",),
}
_NAMED = frozenset(["TEXT", "NUM", "CODE", "DATETIME", "DATE", "TIME", "UIDREF", "PNAME"])
# Relationship → (types it may start from, types it may lead to), as in every SR IOD (A.35).
_ANY = frozenset(HOLDS) | {"NUM", "TABLE"}
_SAID = frozenset({"TEXT", "CODE", "NUM"})
RELATIONSHIPS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "CONTAINS": (frozenset({"CONTAINER"}), _ANY),
    "HAS CONCEPT MOD": (_ANY, frozenset({"TEXT", "CODE"})),
    "HAS PROPERTIES": (_SAID, _ANY),
    "INFERRED FROM": (_SAID, _ANY),
}

LANGUAGE, PROCEDURE = ("121049", "DCM"), ("121058", "DCM")
PERSON_NAME, DEVICE_UID = ("121008", "DCM"), ("121012", "DCM")
OBSERVER_TYPE, DEVICE = ("121005", "DCM"), ("121007", "DCM")
MEASUREMENT_GROUP = ("125007", "DCM")
TRACKING_IDENTIFIER, TRACKING_UID = ("112039", "DCM"), ("112040", "DCM")
# Imaging Measurements, Derived Imaging Measurements, Qualitative Evaluations: one must be there.
BODIES = frozenset({("126010", "DCM"), ("126011", "DCM"), ("C0034375", "UMLS")})
# Concept → (relationship to its parent, value type) in TID 1500 and the templates it includes.
ROWS: dict[Code, tuple[str, str]] = {
    LANGUAGE: ("HAS CONCEPT MOD", "CODE"),
    PROCEDURE: ("HAS CONCEPT MOD", "CODE"),
    OBSERVER_TYPE: ("HAS OBS CONTEXT", "CODE"),
    PERSON_NAME: ("HAS OBS CONTEXT", "PNAME"),
    DEVICE_UID: ("HAS OBS CONTEXT", "UIDREF"),
    TRACKING_IDENTIFIER: ("HAS OBS CONTEXT", "TEXT"),
    TRACKING_UID: ("HAS OBS CONTEXT", "UIDREF"),
    MEASUREMENT_GROUP: ("CONTAINS", "CONTAINER"),
    ("121401", "DCM"): ("HAS CONCEPT MOD", "CODE"),  # Derivation, TID 300
    ("111001", "DCM"): ("HAS CONCEPT MOD", "TEXT"),  # Algorithm Name, TID 4019
    ("111003", "DCM"): ("HAS CONCEPT MOD", "TEXT"),  # Algorithm Version, TID 4019
    **dict.fromkeys(BODIES, ("CONTAINS", "CONTAINER")),
}
EVIDENCE = ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
PERCENT_TOLERANCE = 1e-4


def name_code(item: Dataset) -> Code:
    """(value, scheme) of an item's concept name."""
    return code(item, "ConceptNameCodeSequence")


@cache
def _titles() -> frozenset[Code]:
    """Titles of measurement reports, CID 7021, as pydicom carries them."""
    return frozenset(
        (code.value, code.scheme_designator) for code in codes.cid7021.concepts.values()
    )


def _template(document: Dataset) -> str:
    return text(first(document, "ContentTemplateSequence"), "TemplateIdentifier")


def is_measurement_report(document: Dataset) -> bool:
    """Whether a report says that it follows TID 1500, or has the title of one that does."""
    return _template(document) == "1500" or name_code(document) in _titles()


def _title(document: Dataset) -> Iterator[Fault]:
    if _template(document) == "1500" and name_code(document) not in _titles():
        yield Fault(
            "ConceptNameCodeSequence[1]",
            "The title is not one of measurement reports (CID 7021, which may be extended).",
        )


def _template_named(document: Dataset) -> Iterator[Fault]:
    found = first(document, "ContentTemplateSequence")
    if name_code(document) in _titles() and not text(found, "TemplateIdentifier"):
        yield Fault("ContentTemplateSequence", "The root container names no template.")
    if found and text(found, "TemplateIdentifier") and text(found, "MappingResource") == "":
        yield Fault("ContentTemplateSequence[1]/MappingResource", "Whose template is not said.")


def _below_root(document: Dataset, wanted: Code) -> list[Dataset]:
    return [item for item in sequence(document, "ContentSequence") if name_code(item) == wanted]


def _language(document: Dataset) -> Iterator[Fault]:
    if is_measurement_report(document) and not _below_root(document, LANGUAGE):
        yield Fault("ContentSequence", "The report does not say its language (121049, DCM).")


def _procedure(document: Dataset) -> Iterator[Fault]:
    if is_measurement_report(document) and not _below_root(document, PROCEDURE):
        yield Fault("ContentSequence", "The report names no procedure (121058, DCM).")


def _observer(document: Dataset) -> Iterator[Fault]:
    if not is_measurement_report(document):
        return
    kinds = [code(item, "ConceptCodeSequence") for item in _below_root(document, OBSERVER_TYPE)]
    devices = _below_root(document, DEVICE_UID)
    if DEVICE in kinds and not devices:
        yield Fault("ContentSequence", "The observing device has no UID (121012, DCM).")
    elif not devices and not _below_root(document, PERSON_NAME):
        yield Fault("ContentSequence", "The report names no observer, neither person nor device.")


def _measurements(document: Dataset) -> Iterator[Fault]:
    named = {name_code(item) for item in sequence(document, "ContentSequence")}
    if is_measurement_report(document) and not named & BODIES:
        yield Fault("ContentSequence", "The report has neither measurements nor evaluations.")


def _tracking(document: Dataset) -> Iterator[Fault]:
    if not is_measurement_report(document):
        return
    for path, item, _ in content_items(document):
        if name_code(item) != MEASUREMENT_GROUP:
            continue
        named = {name_code(child) for child in sequence(item, "ContentSequence")}
        for wanted, what in (
            (TRACKING_IDENTIFIER, "tracking identifier (112039, DCM)"),
            (TRACKING_UID, "tracking unique identifier (112040, DCM)"),
        ):
            if wanted not in named:
                yield Fault(f"{path}ContentSequence", f"The measurement group has no {what}.")


def _relationships(document: Dataset) -> Iterator[Fault]:
    templated = is_measurement_report(document)
    for path, item, parent in content_items(document):
        relationship, kind = text(item, "RelationshipType"), text(item, "ValueType")
        if not relationship:
            yield Fault(f"{path}RelationshipType", "The item has no relationship to its parent.")
        if kind:  # what is given by reference has no type of its own
            yield from _allowed(path, relationship, text(parent, "ValueType"), kind)
        row = ROWS.get(name_code(item)) if templated else None
        if row is not None and row != (relationship, kind):
            yield Fault(
                f"{path}RelationshipType",
                f"{name_code(item)[0]} is {relationship} {kind}: its template has {' '.join(row)}.",
            )


def _allowed(path: str, relationship: str, source: str, target: str) -> Iterator[Fault]:
    starts, ends = RELATIONSHIPS.get(relationship, (_ANY, _ANY))
    if source not in starts or target not in ends:
        yield Fault(f"{path}RelationshipType", f"{source} does not stand {relationship} {target}.")


def _item_values(document: Dataset) -> Iterator[Fault]:
    for path, item in (("", document), *((p, i) for p, i, _ in content_items(document))):
        kind = text(item, "ValueType")
        if not kind and "ReferencedContentItemIdentifier" not in item:
            yield Fault(f"{path}ValueType", "The content item has no value type.")
        for keyword in HOLDS.get(kind, ()):
            if not item.get(keyword):
                yield Fault(f"{path}{keyword}", f"A {kind} item has no {keyword}.")
        if kind == "NUM" and not _is_number(item):
            yield Fault(
                f"{path}MeasuredValueSequence", "A NUM item has neither a value nor why not."
            )
        if kind in _NAMED and not sequence(item, "ConceptNameCodeSequence"):
            yield Fault(f"{path}ConceptNameCodeSequence", f"A {kind} item has no concept name.")


def _is_number(item: Dataset) -> bool:
    measured = first(item, "MeasuredValueSequence")
    return bool(
        text(measured, "NumericValue") or sequence(item, "NumericValueQualifierCodeSequence")
    )


def _value_types(document: Dataset) -> Iterator[Fault]:
    allowed = VALUE_TYPES.get(text(document, "SOPClassUID"), _ANY)
    for path, item, _ in content_items(document):
        kind = text(item, "ValueType")
        if kind and kind not in allowed:
            yield Fault(f"{path}ValueType", f"The SOP class holds no items of type {kind}.")


def _evidence(document: Dataset) -> Iterator[Fault]:
    named = {
        text(item, "ReferencedSOPInstanceUID")
        for keyword in EVIDENCE
        for _, study in paths(document, keyword)
        for _, item in items(study)
    }
    for path, item, _ in content_items(document):
        for here, reference in paths(item, "ReferencedSOPSequence", path):
            uid = text(reference, "ReferencedSOPInstanceUID")
            if uid not in named:
                yield Fault(here.rstrip("/"), f"Instance {uid} is not among the evidence.")


def _verification(document: Dataset) -> Iterator[Fault]:
    flag, observers = text(document, "VerificationFlag"), "VerifyingObserverSequence"
    if flag == "VERIFIED" and not sequence(document, observers):
        yield Fault(observers, "A verified report names nobody who verified it.")
    if flag == "UNVERIFIED" and observers in document:
        yield Fault(observers, "An unverified report names somebody who verified it.")


def _percentages(document: Dataset) -> Iterator[Fault]:
    """Of differential counts of this node's coding; other reports say nothing of the kind."""
    try:
        said = decode_report(document)
    except (InputError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        return
    for key, (percent, low, high) in said.percentages.items():
        counted = said.counts.get(key)
        if counted is None or not said.total:
            continue
        if abs(percent - 100 * counted / said.total) > PERCENT_TOLERANCE:
            yield Fault("", f"The percentage of {key} is not that of {counted} of {said.total}.")
        if not low <= percent <= high:
            yield Fault("", f"The percentage of {key} lies outside its interval.")


# Which rows have to be there was compared with DCMTK's TID1500_MeasurementReport::isValid.
_TID = "PS3.16 TID 1500"
REPORT_RULES: tuple[Rule[Dataset], ...] = (
    Rule("sr-title", "warning", f"{_TID} row 1", "The title is of CID 7021.", _title),
    Rule("sr-template", "error", "PS3.3 C.18.8", "The template is named.", _template_named),
    Rule("sr-language", "error", f"{_TID} row 2", "The language is said.", _language),
    Rule("sr-observer", "error", f"{_TID} row 3", "Somebody observed.", _observer),
    Rule("sr-procedure", "error", f"{_TID} row 4", "The procedure is named.", _procedure),
    Rule("sr-measurements", "error", f"{_TID} rows 6 to 12", "There is content.", _measurements),
    Rule("sr-tracking", "error", "PS3.16 TID 1501 rows 2, 3", "Groups are tracked.", _tracking),
    Rule("sr-relationship", "error", "PS3.3 A.35", "Relationships are allowed.", _relationships),
    Rule("sr-value", "error", "PS3.3 C.17.3", "Items have values.", _item_values),
    Rule("sr-value-type", "error", "PS3.3 A.35", "Value types are allowed.", _value_types),
    Rule("sr-evidence", "error", "PS3.3 C.17.2.3", "What is referred to is named.", _evidence),
    Rule("sr-verification", "error", "PS3.3 C.17.2", "Verified means by whom.", _verification),
    Rule("agree-percent-count", "error", "this kit", "Percentages fit counts.", _percentages),
)
