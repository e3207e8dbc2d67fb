"""What the kit found, as JSON and as JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import asdict
from typing import Any

from conformance.check import Checked, rules_for
from conformance.finding import Finding


def as_json(checked: Checked) -> dict[str, Any]:
    """Verdict, objects, findings and notes."""
    return {
        "verdict": checked.verdict,
        "objects": [{"uid": uid, "kind": kind} for uid, kind in checked.objects],
        "findings": [asdict(each) for each in checked.findings],
        "notes": list(checked.notes),
    }


def as_junit(checked: Checked) -> str:
    """A suite for each object, and a case for each rule that was applied to it.

    Findings about no single object are cases of a suite "set".
    """
    by_object: dict[str, list[Finding]] = defaultdict(list)
    known = {uid for uid, _ in checked.objects}
    for finding in checked.findings:
        by_object[finding.object if finding.object in known else "set"].append(finding)
    root = ET.Element("testsuites", name="marrow-node check")
    for uid, kind in (*dict.fromkeys(checked.objects), ("set", "set")):
        root.append(_suite(f"{kind} {uid}" if uid != "set" else uid, kind, by_object[uid]))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(name: str, kind: str, findings: list[Finding]) -> ET.Element:
    rules = dict.fromkeys((*rules_for(kind), *(each.rule for each in findings)))
    failed = {each.rule for each in findings}
    suite = ET.Element("testsuite", name=name, tests=str(len(rules)), failures=str(len(failed)))
    for rule in rules:
        case = ET.SubElement(suite, "testcase", classname=kind, name=rule)
        told = [each for each in findings if each.rule == rule]
        if told:
            failure = ET.SubElement(
                case, "failure", type=told[0].severity, message=told[0].sentence
            )
            failure.text = "\n".join(
                f"{each.severity} {each.path}: {each.sentence} [{each.source}]" for each in told
            )
    return suite
