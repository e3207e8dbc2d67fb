"""Rules: which slides are analysed, with which model, and where their results go.

Slides that come by themselves, by polling, routing without a model, workitem or C-STORE, go by the
first rule that they fit; one that fits none is not analysed. Each decision tells of every rule why
it fits or not, in words that hold nothing of a patient.
"""

from __future__ import annotations

import fnmatch
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import click

from dicom_io.errors import PacsNotFound, SeriesNotFound
from dicom_io.pacs import open_pacs
from dicom_io.slide_facts import SlideFacts, slide_facts
from node.config import Settings
from node.intake import find_slides
from node.job import Job
from node.job_queue import JobQueue
from node.pipeline import SlideReference
from node.rule_settings import Priority, RuleSettings
from node.workplace import Workplace

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tried:
    """One rule, and whether a slide fits it.

    Attributes
    ----------
    rule
        Its name.
    fits
    because
        What speaks against it, or that everything fits.
    """

    rule: str
    fits: bool
    because: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a slide.

    Attributes
    ----------
    rule
        That it goes by; None where it fits none, or where there are no rules.
    tried
        Every rule up to that one.
    analyse
    """

    rule: RuleSettings | None
    tried: tuple[Tried, ...]
    analyse: bool

    @property
    def why(self) -> str:
        """The decision as one sentence."""
        if not self.tried:
            return "there are no rules: every slide is analysed"
        if self.rule is None:
            told = "; ".join(f"{each.rule}: {each.because}" for each in self.tried)
            return f"it fits no rule ({told})"
        what = "" if self.analyse else ", which says that it is not analysed"
        return f"it fits the rule {self.rule.name}{what}"


def decide(rules: Sequence[RuleSettings], facts: SlideFacts) -> Decision:
    """Go through the rules until one fits."""
    tried: list[Tried] = []
    for rule in rules:
        against = _against(rule, facts)
        tried.append(Tried(rule.name, not against, "; ".join(against) or "everything fits"))
        if not against:
            return Decision(rule, tuple(tried), rule.analyse)
    return Decision(None, tuple(tried), analyse=not rules)


def decision_for(settings: Settings, study_uid: str, series_uid: str) -> Decision:
    """Ask the archive about a series, and decide.

    Raises
    ------
    SeriesNotFound
        The archive has none of it.
    PacsError
    """
    if not settings.rules:
        return decide((), SlideFacts())
    missing = SeriesNotFound(
        f"Series {series_uid} of study {study_uid} is not in the PACS: check the identifiers."
    )
    with open_pacs(settings.pacs_url, settings.pacs) as pacs:
        try:
            headers = pacs.series_headers(study_uid, series_uid)
        except PacsNotFound as error:
            raise missing from error
    if not headers:
        raise missing
    return decide(settings.rules, slide_facts(headers))


def settings_by(settings: Settings, rule: RuleSettings | None) -> Settings:
    """The settings for slides that go by a rule."""
    if rule is None:
        return settings
    return replace(
        settings,
        model=replace(settings.model, name=rule.model or settings.model.name),
        results_url=rule.results_url or settings.results_url,
        ehr_url=rule.ehr_url or settings.ehr_url,
    )


def submit_by_rules(
    settings: Settings,
    queue: JobQueue,
    slide: SlideReference,
    priority: Priority | None = None,
    callback: str = "",
    *,
    again: bool = False,
    site: str = "",
) -> tuple[Job | None, Decision]:
    """Queue a slide if the rules say so.

    Parameters
    ----------
    settings
    queue
    slide
    priority
        Of a slide that goes by no rule.
    callback
        Address that is told when the job has ended.
    again
        Whether a completed job runs anew.
    site
        Of a slide whose rule names none.

    Returns
    -------
    tuple
        The job, None where the slide is not analysed; and the decision.

    Raises
    ------
    MarrowNodeError
        The archive cannot be asked, or the model package is not usable.
    """
    decision = decision_for(settings, slide.study_uid, slide.series_uid)
    if not decision.analyse:
        log.info("Series %s is not analysed: %s.", slide.series_uid, decision.why)
        return None, decision
    by_rule = decision.rule
    reason = f"{slide.reason}, rule {by_rule.name}" if by_rule else slide.reason
    place = Workplace.open(settings_by(settings, by_rule), lambda progress: None)
    job = queue.submit(
        replace(slide, reason=reason[:64]),
        place,
        by_rule.priority if by_rule else priority,
        callback,
        again=again,
        await_arrival=True,
        site=(by_rule.site if by_rule else "") or site,
    )
    log.info("Series %s is analysed: %s; job %s.", slide.series_uid, decision.why, job.job)
    return job, decision


@click.group()
def rules() -> None:
    """Look at the rules in the settings file ([[rules]])."""


@rules.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.argument("study_uid")
@click.argument("series_uid", required=False)
@click.pass_obj
def test(settings: Settings, as_json: bool, study_uid: str, series_uid: str | None) -> None:
    """Tell what the rules would make of a slide, or of all slides of a study; nothing is queued."""
    slides = (
        [SlideReference(study_uid, series_uid, "")]
        if series_uid
        else find_slides(settings, {"study_uid": study_uid, "reason": ""})
    )
    decided = [
        (slide.series_uid, decision_for(settings, study_uid, slide.series_uid)) for slide in slides
    ]
    if as_json:
        click.echo(json.dumps([_as_json(*each) for each in decided], indent=2))
        return
    for series, decision in decided:
        click.echo(f"series {series}")
        for each in decision.tried:
            click.echo(f"  {'fits' if each.fits else 'no  '}  {each.rule}: {each.because}")
        what = "analysed" if decision.analyse else "not analysed"
        click.echo(f"  {what}: {decision.why}")


def _as_json(series_uid: str, decision: Decision) -> dict[str, object]:
    return {
        "series_uid": series_uid,
        "analyse": decision.analyse,
        "why": decision.why,
        "rule": asdict(decision.rule) if decision.rule else None,
        "tried": [asdict(each) for each in decision.tried],
    }


def _against(rule: RuleSettings, facts: SlideFacts) -> list[str]:
    """What speaks against a rule. The slide's own values are not told: some are a patient's."""
    against = []
    if facts.modality != rule.modality:
        against.append(f"the modality is not {rule.modality}")
    if rule.codes and not facts.codes & set(rule.codes):
        against.append(f"it has none of the codes {', '.join(rule.codes)}")
    if rule.body_parts and facts.body_part not in rule.body_parts:
        against.append(f"its body part is none of {', '.join(rule.body_parts)}")
    for what, patterns, found in (
        ("its station", rule.stations, facts.station),
        ("its accession number", rule.accession_numbers, facts.accession),
        ("its series description", rule.descriptions, facts.description),
    ):
        if patterns and not _fits_one(patterns, found):
            against.append(f"{what} fits none of {', '.join(patterns)}")
    return against + _against_age(rule, facts.age_years)


def _against_age(rule: RuleSettings, age_years: float | None) -> list[str]:
    if rule.youngest_years is None and rule.oldest_years is None:
        return []
    if age_years is None:
        return ["the patient's age is not known"]
    too_young = rule.youngest_years is not None and age_years < rule.youngest_years
    too_old = rule.oldest_years is not None and age_years > rule.oldest_years
    return ["the patient's age is out of its bounds"] if too_young or too_old else []


def _fits_one(patterns: Iterable[str], found: str) -> bool:
    plain = (pattern.replace("[", "[[]").casefold() for pattern in patterns)
    return any(fnmatch.fnmatchcase(found.casefold(), pattern) for pattern in plain)
