"""Rules for FHIR R4 Bundles: structure, required value sets, invariants, references, codes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fhir.resources.R4B import get_fhir_model_class as r4_model_class
from pydantic import BaseModel, ValidationError

from conformance.finding import Fault, Rule
from conformance.known_codes import is_loinc, is_snomed, is_ucum

Json = Mapping[str, Any]
LOINC, SNOMED, UCUM = "http://loinc.org", "http://snomed.info/sct", "http://unitsofmeasure.org"
XHTML = "{http://www.w3.org/1999/xhtml}"

# Required value sets that fhir.resources gives in part: its lists end in "+" there.
STATUSES = {
    "DiagnosticReport": frozenset(
        [
            "registered",
            "partial",
            "preliminary",
            "final",
            "amended",
            "corrected",
            "appended",
            "cancelled",
            "entered-in-error",
            "unknown",
        ]
    ),
    "Observation": frozenset(
        [
            "registered",
            "preliminary",
            "final",
            "amended",
            "corrected",
            "cancelled",
            "entered-in-error",
            "unknown",
        ]
    ),
}
# Elements that a narrative may hold (FHIR R4 2.4.0.1, narrative content).
_NARRATIVE = frozenset(
    [
        "div",
        "p",
        "br",
        "hr",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "ul",
        "ol",
        "li",
        "dl",
        "dt",
        "dd",
        "table",
        "caption",
        "thead",
        "tbody",
        "tfoot",
        "tr",
        "th",
        "td",
        "colgroup",
        "col",
        "a",
        "b",
        "i",
        "em",
        "strong",
        "small",
        "big",
        "tt",
        "code",
        "pre",
        "samp",
        "var",
        "cite",
        "abbr",
        "acronym",
        "span",
        "img",
        "q",
        "blockquote",
        "sub",
        "sup",
        "dfn",
    ]
)


def objects(node: Any, path: str = "") -> Iterator[tuple[str, Json]]:
    """(path ending in a dot, object) of every JSON object."""
    if isinstance(node, Mapping):
        yield path, node
        for key, value in node.items():
            yield from objects(value, f"{path}{key}.")
    elif isinstance(node, list):
        for number, each in enumerate(node):
            yield from objects(each, f"{path.rstrip('.')}[{number}].")


def part(node: Json, key: str) -> Json:
    """A JSON object in another; empty where there is none."""
    found = node.get(key)
    return found if isinstance(found, Mapping) else {}


def parts(node: Json, key: str) -> list[Json]:
    """The JSON objects of an array; whatever else is in it is named by fhir-structure."""
    found = node.get(key)
    listed = found if isinstance(found, list) else []
    return [each if isinstance(each, Mapping) else {} for each in listed]


def entries(bundle: Json) -> Iterator[tuple[str, Json, Json]]:
    """(path ending in a dot, entry, its resource)."""
    for number, entry in enumerate(parts(bundle, "entry")):
        yield f"entry[{number}].", entry, part(entry, "resource")


def resources(bundle: Json, kind: str) -> Iterator[tuple[str, Json]]:
    """(path ending in a dot, resource) of one type."""
    for path, _, resource in entries(bundle):
        if resource.get("resourceType") == kind:
            yield f"{path}resource.", resource


def _structure(bundle: Json) -> Iterator[Fault]:
    """R4's definitions, or R5's where they are the ones that fit."""
    faults = list(_against(bundle, r4_model_class))
    if faults:
        from fhir.resources import get_fhir_model_class  # noqa: PLC0415  few write release 5

        if any(True for _ in _against(bundle, get_fhir_model_class)):
            yield from faults
    yield from _empty(bundle, "")


def _against(bundle: Json, class_of: Callable[[str], type[BaseModel]]) -> Iterator[Fault]:
    """What is wrong with the Bundle alone, and with each resource by its own type."""
    yield from _invalid(class_of("Bundle"), _without_resources(bundle), "")
    for path, _, resource in entries(bundle):
        kind = str(resource.get("resourceType", ""))
        try:
            known = class_of(kind)
        except (KeyError, ValueError):
            yield Fault(f"{path}resource", f"{kind or 'The resource'} is no type of FHIR.")
            continue
        yield from _invalid(known, resource, f"{path}resource.")


def _without_resources(bundle: Json) -> Json:
    listed = bundle.get("entry")
    if not isinstance(listed, list):
        return bundle
    bare = [
        {key: value for key, value in each.items() if key != "resource"}
        if isinstance(each, Mapping)
        else each
        for each in listed
    ]
    return {**bundle, "entry": bare}


def _invalid(model: type[BaseModel], content: Json, path: str) -> Iterator[Fault]:
    try:
        model.model_validate(dict(content))
    except ValidationError as error:
        # The error's own words quote values; its place and kind do not.
        for each in error.errors(include_input=False, include_url=False):
            where = ".".join(map(str, each["loc"]))
            yield Fault(f"{path}{where}", f"The element is not as defined ({each['type']}).")


def _empty(node: Any, path: str) -> Iterator[Fault]:
    if node in ({}, [], ""):
        yield Fault(path.rstrip("."), "FHIR knows no empty arrays, objects or strings.")
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _empty(value, f"{path}{key}.")
    elif isinstance(node, list):
        for number, each in enumerate(node):
            yield from _empty(each, f"{path.rstrip('.')}[{number}].")


def _bindings(bundle: Json) -> Iterator[Fault]:
    for kind, allowed in STATUSES.items():
        for path, resource in resources(bundle, kind):
            if "status" in resource and str(resource["status"]) not in allowed:
                yield Fault(f"{path}status", f"The status is none of {', '.join(sorted(allowed))}.")
    places = [("", "Bundle", _without_resources(bundle))]
    for path, _, resource in entries(bundle):
        places.append((f"{path}resource.", str(resource.get("resourceType", "")), resource))
    for path, kind, content in places:
        try:
            model = r4_model_class(kind).model_validate(dict(content))
        except (ValidationError, KeyError, ValueError):
            continue  # named by fhir-structure
        yield from _outside(model, path)


def _outside(model: BaseModel, path: str) -> Iterator[Fault]:
    """Codes outside the value lists that fhir.resources carries whole."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name, None)
        listed = _value_set(field.json_schema_extra)
        if listed and isinstance(value, str) and value not in listed:
            yield Fault(f"{path}{name}", f"The code is none of {', '.join(listed)}.")
        for here, each in _inside(value, f"{path}{name}"):
            yield from _outside(each, f"{here}.")


def _value_set(extra: object) -> list[str]:
    """What the library lists for an element; empty where it lists nothing, or a part."""
    listed = extra.get("enum_values") if isinstance(extra, dict) else None
    return listed if isinstance(listed, list) and "+" not in listed else []


def _inside(value: Any, path: str) -> Iterator[tuple[str, BaseModel]]:
    if isinstance(value, BaseModel):
        yield path, value
    elif isinstance(value, list):
        for number, each in enumerate(value):
            if isinstance(each, BaseModel):
                yield f"{path}[{number}]", each


def _invariants(bundle: Json) -> Iterator[Fault]:
    yield from _bundle_invariants(bundle)
    for path, resource in resources(bundle, "Observation"):
        yield from _observation_invariants(path, resource)
    for path, each in objects(bundle):
        if "code" in each and "value" in each and "system" not in each and "unit" in each:
            yield Fault(f"{path}code", "qty-3: a unit's code comes with its system.")
        if "end" in each and str(each.get("start", "")) > str(each["end"]):
            yield Fault(f"{path}end", "per-1: the period ends before it starts.")


def _bundle_invariants(bundle: Json) -> Iterator[Fault]:
    transaction = str(bundle.get("type")) in {"batch", "transaction", "history"}
    for path, entry, _ in entries(bundle):
        if transaction and "request" not in entry:
            yield Fault(f"{path}request", "bdl-3: an entry of a transaction has a request.")
        if not transaction and "request" in entry:
            yield Fault(f"{path}request", "bdl-3: only transactions have requests.")
    urls = Counter(str(entry["fullUrl"]) for _, entry, _ in entries(bundle) if "fullUrl" in entry)
    for url, times in urls.items():
        if times > 1 and bundle.get("type") != "history":
            yield Fault("entry", f"bdl-7: {times} entries have the full URL {url}.")


def _observation_invariants(path: str, resource: Json) -> Iterator[Fault]:
    value = [key for key in resource if key.startswith("value")]
    if value and "dataAbsentReason" in resource:
        yield Fault(f"{path}dataAbsentReason", "obs-6: there is a value.")
    own = _codings(part(resource, "code"))
    for number, component in enumerate(parts(resource, "component")):
        if value and own & _codings(part(component, "code")):
            yield Fault(
                f"{path}component[{number}].code",
                "obs-7: a component has the code of its Observation, which has a value.",
            )
    for number, limits in enumerate(parts(resource, "referenceRange")):
        if not {"low", "high", "text"} & limits.keys():
            yield Fault(f"{path}referenceRange[{number}]", "obs-3: it has no low, high or text.")


def _codings(concept: Json) -> set[tuple[str, str]]:
    return {
        (str(coding.get("system", "")), str(coding.get("code", "")))
        for coding in parts(concept, "coding")
    }


def _references(bundle: Json) -> Iterator[Fault]:
    urls = {str(entry.get("fullUrl")) for _, entry, _ in entries(bundle)}
    for path, each in objects(bundle):
        target = str(each.get("reference", ""))
        if target.startswith(("urn:uuid:", "urn:oid:")) and target not in urls:
            yield Fault(f"{path}reference", f"No entry of the Bundle has the full URL {target}.")


def _narratives(bundle: Json) -> Iterator[Fault]:
    for path, each in objects(bundle):
        if "div" not in each or "status" not in each:
            continue
        written = str(each["div"])
        if "<!" in written:  # neither entities nor declarations are parsed
            yield Fault(f"{path}div", "txt-1: a narrative holds no declarations.")
            continue
        try:
            root = ET.fromstring(written)  # noqa: S314  it declares nothing, as was looked
        except ET.ParseError:
            yield Fault(f"{path}div", "txt-1: the narrative is not XHTML.")
            continue
        if root.tag != f"{XHTML}div":
            yield Fault(f"{path}div", "txt-1: the narrative's root is not an XHTML div.")
        for element in root.iter():
            name = element.tag.removeprefix(XHTML)
            if name not in _NARRATIVE or any(key.startswith("on") for key in element.attrib):
                yield Fault(f"{path}div", f"txt-1: a narrative holds no {name} of this kind.")
        if not "".join(root.itertext()).strip() and root.find(f".//{XHTML}img") is None:
            yield Fault(f"{path}div", "txt-2: the narrative says nothing.")


def _codes(bundle: Json) -> Iterator[Fault]:
    for path, each in objects(bundle):
        system, value = each.get("system"), str(each.get("code", ""))
        if not value:
            continue
        if system == LOINC and not is_loinc(value):
            yield Fault(f"{path}code", f"{value} is not a LOINC code: its check digit is wrong.")
        if system == SNOMED and not is_snomed(value):
            yield Fault(f"{path}code", f"{value} is not a SNOMED CT code: check digit wrong.")
        if system == UCUM and not is_ucum(value):
            yield Fault(f"{path}code", f"{value!r} is not a unit of UCUM.")


FHIR_RULES: tuple[Rule[Json], ...] = (
    Rule("fhir-structure", "error", "FHIR R4 definitions", "Elements as defined.", _structure),
    Rule("fhir-binding", "error", "FHIR R4 required bindings", "Codes as bound.", _bindings),
    Rule("fhir-invariant", "error", "FHIR R4 invariants", "Invariants hold.", _invariants),
    Rule("fhir-reference", "error", "FHIR R4 2.36.4", "References can be resolved.", _references),
    Rule("fhir-narrative", "error", "FHIR R4 2.4", "Narratives are plain XHTML.", _narratives),
    Rule("fhir-code", "error", "FHIR R4 4.3", "Codes can be of their system.", _codes),
)
