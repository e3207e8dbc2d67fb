"""The kept table of all runs, and its summary by kind of fault."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.run import Outcome
from tests.faults.schedule import VERSION

FOLDER = Path(__file__).parent
TABLE = FOLDER / "table.jsonl"
SUMMARY = FOLDER / "table.md"


def read_table() -> dict[int, dict[str, Any]]:
    """Rows by seed, of what seeds mean now."""
    if not TABLE.exists():
        return {}
    rows = map(json.loads, TABLE.read_text(encoding="utf-8").splitlines())
    return {row["seed"]: row for row in rows if row.get("version") == VERSION}


def keep(outcome: Outcome) -> None:
    """Add a run to the table; it takes the place of an earlier run of the same seed."""
    row = asdict(outcome)
    del row["said"]
    rows = read_table() | {outcome.seed: row}
    TABLE.write_text(
        "".join(json.dumps(rows[seed]) + "\n" for seed in sorted(rows)), encoding="utf-8"
    )


def write_summary() -> None:
    """Write ``table.md`` from the table."""
    rows = read_table().values()
    by_kind: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        came = [
            kind for kind, came in zip(row["faults"], row["happened"], strict=True) if came
        ] or ["none came about before the end"]
        for kind in set(came):
            by_kind[kind].append(row)
    lines = [
        "# Fault schedules",
        "",
        f"{len(rows)} seeded schedules, version {VERSION} of what seeds mean; written by",
        "`make faults`. Each has one to three faults, and some an archive with habits, or jobs on",
        "PostgreSQL. A schedule counts in the row of each of these that came about before the job",
        "had ended. A failed job said why, and completed when it was tried again once the fault",
        "was over; what an earlier version had not yet written was submitted again. Violations are",
        "those of: exactly one set of ANN, SEG and SR and one DiagnosticReport with equal counts,",
        "or a visible failed job.",
        "",
        f"Seconds of a schedule: median {_seconds(rows, 50):g}, 90th percentile"
        f" {_seconds(rows, 90):g}; the machine was shared.",
        "",
        "| fault | schedules | completed | failed, then completed | violations |",
        "|---|---:|---:|---:|---:|",
        *(_line(kind, by_kind[kind]) for kind in sorted(by_kind)),
        _line("all", rows),
        "",
    ]
    SUMMARY.write_text("\n".join(lines), encoding="utf-8")


def _seconds(rows: Collection[Mapping[str, Any]], percentile: float) -> float:
    return round(float(np.percentile([row["seconds"] for row in rows], percentile)), 1)


def _line(kind: str, rows: Collection[Mapping[str, Any]]) -> str:
    wrong = sum(bool(row["violations"]) for row in rows)
    counts = [
        sum(row["status"] == status and not row["violations"] for row in rows)
        for status in ("completed", "failed")
    ]
    return f"| {kind} | {len(rows)} | {counts[0]} | {counts[1]} | {wrong} |"
