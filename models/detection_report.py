"""What was measured → files that people read: JSON, Markdown and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from models.average_precision import curve
from models.detection_table import Findings

_DPI = 110


def write_report(
    folder: Path,
    title: str,
    table: Mapping[str, Any],
    types: Sequence[str],
    findings: Findings | None,
) -> list[Path]:
    """Write ``report.json``, ``report.md``, ``confusion.png`` and, of detectors, the curves.

    Parameters
    ----------
    folder
        Made where it is missing.
    title
    table
        Of :func:`models.detection_table.detection_table` or alike: ``types`` and ``confusion``.
    types
        Names of rows and columns.
    findings
        Of a detector; None for classifiers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.json", folder / "report.md", folder / "confusion.png"]
    written[0].write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    written[1].write_text(as_markdown(title, table), encoding="utf-8")
    draw_confusion(np.array(table["confusion"]), types, title, written[2])
    if findings is not None:
        written.append(folder / "precision_recall.png")
        draw_curves(findings, types, title, written[-1])
    return written


def as_markdown(title: str, table: Mapping[str, Any]) -> str:
    """The table as Markdown: what holds for all, then a line for each type."""
    lines = [f"# {title}", ""]
    for name, value in table.items():
        if name not in ("types", "confusion"):
            lines.append(f"- {name.replace('_', ' ')}: {_shown(value)}")
    rows = table["types"]
    if rows:
        columns = list(next(iter(rows.values())))
        lines += ["", "| type | " + " | ".join(c.replace("_", " ") for c in columns) + " |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        for name, row in rows.items():
            cells = " | ".join(_shown(row[column]) for column in columns)
            lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def draw_confusion(
    confusion: np.ndarray[Any, np.dtype[np.int64]], types: Sequence[str], title: str, path: Path
) -> None:
    """Rows are true types, in percent of the row."""
    percent = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 3.2 + 0.55 * len(types)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    names = [name.replace("_", " ") for name in types]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("reported")
    axes.set_ylabel("true")
    axes.set_title(f"{title}, percent of true (n = {confusion.sum()})", fontsize="medium")
    for row, column in np.argwhere(confusion > 0):
        value = percent[row, column]
        colour = "white" if value > 55 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def draw_curves(findings: Findings, types: Sequence[str], title: str, path: Path) -> None:
    """Precision over recall at IoU 0.5, a line for each type that occurs."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for kind, name in enumerate(types):
        truth = findings.truth.of(kind)
        if len(truth.score):
            points = curve(findings.found.of(kind), truth, 0.5)
            axes.plot(points.recall, points.precision, label=f"{name} (n = {len(truth.score)})")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list | tuple):
        return " to ".join(_shown(each) for each in value)
    return "–" if value is None else str(value)
