"""What fhir.resources knows of FHIR and does not hold resources to: codes and targets.

Its models carry, of each element, the codes that its definition lists and the types that a
reference may lead to. No server and no other validator of R5 was found on npm or PyPI that has
these without fetching packages from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fhir_core.fhirabstractmodel import FHIRAbstractModel


def outside_definitions(
    model: FHIRAbstractModel, types: Mapping[str, str], path: str = ""
) -> Iterator[str]:
    """Paths of codes that an element does not list, and of references to types it does not have.

    Parameters
    ----------
    model
        Of any version that fhir.resources has.
    types
        fullUrl → resource type, for references within a Bundle.
    """
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        said: Mapping[str, Any] = (
            field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        )
        codes, targets = said.get("enum_values"), said.get("enum_reference_types")
        for each in value if isinstance(value, list) else [value]:
            here = f"{path}{name}"
            if isinstance(each, str) and codes and "+" not in codes and each not in codes:
                yield f"{here}: {each}"
            if isinstance(each, FHIRAbstractModel):
                leads_to = _target(each, types)
                if targets and leads_to and not {leads_to, "Resource"} & set(targets):
                    yield f"{here}: {leads_to}"
                yield from outside_definitions(each, types, f"{here}.")


def _target(reference: FHIRAbstractModel, types: Mapping[str, str]) -> str:
    """Type of what a reference leads to; empty where it does not say."""
    said = getattr(reference, "type", None)
    where = getattr(reference, "reference", None)
    if where in types:
        return types[where]
    if isinstance(where, str) and "/" in where and not where.startswith("urn:"):
        return where.partition("/")[0]
    return said if isinstance(said, str) and hasattr(reference, "reference") else ""
