"""Settings of rules: which slides are analysed, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Priority = Literal["urgent", "routine", "batch"]


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """One rule; a slide goes by the first one that it fits. What a rule leaves out fits any slide.

    Attributes
    ----------
    name
        As decisions call it.
    modality
    codes
        The slide has one of these: of specimen type, anatomic structure or region, each
        VALUE^SCHEME.
    body_parts
        Body Part Examined is one of these.
    stations, accession_numbers, descriptions
        Station Name (or the scanner's model), Accession Number, Series Description fit one of
        these; * stands for any characters, ? for one, and letters may be small or large.
    youngest_years, oldest_years
        Bounds of the patient's age at the time of the study.
    analyse
        False for slides that are not to be analysed.
    model
        Package to use; empty for the node's own choice.
    priority
    site
        Whose slides these are. Sites take turns, so that one that sends many does not keep the
        others waiting; empty for the archive, or for whoever asks over HTTP.
    results_url, ehr_url
        Where results and report go instead; empty as without a rule.
    """

    name: str
    modality: str = "SM"
    codes: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    stations: tuple[str, ...] = ()
    accession_numbers: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    youngest_years: Annotated[float, Field(ge=0)] | None = None
    oldest_years: Annotated[float, Field(ge=0)] | None = None
    analyse: bool = True
    model: str = ""
    priority: Priority = "routine"
    site: str = ""
    results_url: str = ""
    ehr_url: str = ""
