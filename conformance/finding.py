"""What the kit says: rules that look at a document, and findings that name what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Severity = Literal["error", "warning"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault.

    Attributes
    ----------
    rule
        Stable identifier.
    severity
    object
        SOP Instance UID of a DICOM object, `fullUrl` of a FHIR resource, or the kinds of the
        documents that do not agree.
    sentence
        What is wrong, for people; never a value of a patient's data.
    path
        Keywords from the root, items counted from 1: ``AnnotationGroupSequence[2]/GraphicType``.
        Empty where the fault is that of the whole object.
    source
        Where the rule stands: part and section of the standard, or viewer and version.
    """

    rule: str
    severity: Severity
    object: str
    sentence: str
    path: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """What a rule yields: a place and a sentence.

    Attributes
    ----------
    path, sentence
        As in :class:`Finding`.
    object
        Which object of a set; empty where the rule looks at one object only.
    """

    path: str
    sentence: str
    object: str = ""


@dataclass(frozen=True, slots=True)
class Rule(Generic[T]):
    """One rule of the kit.

    Attributes
    ----------
    id
    severity
    source
        Part and section of the standard, or viewer and version.
    demand
        What it asks for, for people.
    check
        Yields a fault for each place that breaks it.
    """

    id: str
    severity: Severity
    source: str
    demand: str
    check: Callable[[T], Iterator[Fault]]

    def findings(self, document: T, object: str) -> Iterator[Finding]:
        """Faults of a document, or of a set, as findings about `object`."""
        for fault in self.check(document):
            yield Finding(
                rule=self.id,
                severity=self.severity,
                object=fault.object or object,
                sentence=fault.sentence,
                path=fault.path,
                source=self.source,
            )
