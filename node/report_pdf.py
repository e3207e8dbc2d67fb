"""The report as a PDF: what a clinician reads, on paper or in any viewer.

Text is text, so that it can be searched and copied. The same analysis gives the same bytes: no
date of making and no random identifier is in the file.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image as PillowImage
from pydicom.dataset import Dataset
from reportlab import rl_config
from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import Flowable, Image, Paragraph, SimpleDocTemplate, Spacer, Table

from dicom_io.analysis import Analysis, Standing
from dicom_io.provenance import MODEL_NAME, SOFTWARE_VERSION
from dicom_io.segmentation import region_area_mm2
from dicom_io.source_header import source_header, text_of
from models.cell_types import CELL_TYPES, ME_REFERENCE, REFERENCE_SOURCE, reading_order

# Reference fonts that come with matplotlib: Latin, Greek and Cyrillic letters.
_REGULAR, _BOLD = "DejaVuSans", "DejaVuSans-Bold"
_UNPRINTABLE = "in a script that this page cannot show: see the patient ID"
_UNPRINTABLE_SIGNER = "a person whose name this page cannot show: see the structured report"
_INK, _FAINT, _WARNING = HexColor("#22272e"), HexColor("#d5dbe1"), HexColor("#b3261e")
_MARGIN = 16 * mm
_WIDTH = A4[0] - 2 * _MARGIN
_FOOT: Mapping[Standing, str] = {
    "unreviewed": "Not signed by a person",
    "final": "Signed by a person",
    "corrected": "Signed by a person, corrected",
    "withdrawn": "WITHDRAWN",
}
_TITLE = "Bone marrow smear: nucleated differential count"
# Streams as bytes, not as letters (ISO 32000-1 7.4.3): a fifth smaller, and half the time to write.
rl_config.useA85 = 0

Rows = list[tuple[str, ...]]


def draw_report(analysis: Analysis, conclusion: str, pictures: Mapping[str, bytes]) -> bytes:
    """Set the report as a PDF of A4 pages.

    Parameters
    ----------
    analysis
    conclusion
        What the report says in words.
    pictures
        Title → JPEG or PNG bytes, at the end.

    Raises
    ------
    InputError
        When the slide's header lacks an identifier.
    """
    header = source_header(analysis)
    stream = io.BytesIO()
    page = SimpleDocTemplate(
        stream, pagesize=A4, leftMargin=_MARGIN, rightMargin=_MARGIN, topMargin=_MARGIN,
        bottomMargin=_MARGIN, title=_TITLE, author=f"{MODEL_NAME} {SOFTWARE_VERSION}",
        creator=MODEL_NAME, producer=MODEL_NAME, lang="en", invariant=1,
    )  # fmt: skip

    def foot(canvas: Any, _: object) -> None:
        _draw_foot(canvas, analysis, header)

    page.build(
        [
            _paragraph(_TITLE, 15, _BOLD),
            Spacer(0, 3 * mm),
            _paragraph(conclusion, 10, _BOLD, _WARNING if _warns(analysis) else _INK),
            Spacer(0, 3 * mm),
            _pairs(_identification(header, analysis)),
            Spacer(0, 4 * mm),
            *_body(analysis, pictures),
        ],
        onFirstPage=foot,
        onLaterPages=foot,
    )
    return stream.getvalue()


def _body(analysis: Analysis, pictures: Mapping[str, bytes]) -> list[Flowable]:
    """The numbers and pictures; a withdrawn result has none."""
    if analysis.standing == "withdrawn":
        return []
    return [
        _differential(analysis),
        Spacer(0, 4 * mm),
        _pairs(_method(analysis)),
        *_pictures(pictures),
    ]


def _warns(analysis: Analysis) -> bool:
    return (
        analysis.model.demonstration
        or not analysis.differential.adequate
        or analysis.standing == "withdrawn"
    )


def printable_name(name: str) -> str:
    """A person name (PS3.5 6.2.1) as people write it, in a group of letters that the font has.

    Letters written from right to left, and those that join, would come out wrong: such a name is
    not printed at all.
    """
    for group in name.split("="):
        family, _, others = group.partition("^")
        given = " ".join(part for part in others.split("^") if part.strip())
        said = ", ".join(part.strip() for part in (family, given) if part.strip())
        if said and all(map(_has_glyph, said)):
            return said
    return _UNPRINTABLE if name.strip("^= ") else ""


def _has_glyph(letter: str) -> bool:
    register_fonts()
    left_to_right = unicodedata.bidirectional(letter) not in ("R", "AL", "AN")
    return left_to_right and ord(letter) in pdfmetrics.getFont(_REGULAR).face.charToGlyph


@lru_cache(maxsize=1)
def register_fonts() -> None:
    """Make the fonts known to reportlab, which keeps them for the process."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in (_REGULAR, _BOLD):
        pdfmetrics.registerFont(TTFont(name, folder / f"{name}.ttf"))


def _identification(header: Dataset, analysis: Analysis) -> Rows:
    specimens = header.get("SpecimenDescriptionSequence") or [Dataset()]
    born = (_day(header, "PatientBirthDate"), text_of(header, "PatientSex"))
    return [
        ("Patient", printable_name(text_of(header, "PatientName"))),
        ("Patient ID", text_of(header, "PatientID")),
        ("Born, sex", ", ".join(filter(None, born))),
        ("Accession number", text_of(header, "AccessionNumber")),
        ("Specimen", text_of(specimens[0], "SpecimenIdentifier")),
        ("Study of", _day(header, "StudyDate")),
        ("Study UID", analysis.slide.study_uid),
        ("Slide (series UID)", analysis.slide.series_uid),
        ("Analysed", f"{analysis.finished:%Y-%m-%d %H:%M} UTC"),
        ("Revision", f"{analysis.revision}, {_signed_by(analysis)}"),
    ]


def _signed_by(analysis: Analysis) -> str:
    signature = analysis.signature
    if signature is None:
        return "not signed by a person"
    name = printable_name(signature.name).replace(_UNPRINTABLE, _UNPRINTABLE_SIGNER)
    return f"{signature.decision} by {name}, {signature.at:%Y-%m-%d %H:%M} UTC"


def _differential(analysis: Analysis) -> Flowable:
    """One row per type, in the order of a marrow report, then the totals.

    A count that does not suffice gets no percentages and no ratio, as in FHIR.
    """
    differential = analysis.differential
    rows: Rows = [("Cell", "Cells", "Percent", "95 % interval", "Reference", "")]
    for row in reading_order(differential.classes):
        cell = CELL_TYPES[differential.classes[row]]
        count = str(int(differential.count[row]))
        if not differential.in_ndc[row] or not differential.adequate:
            rows.append((cell.name, count, "", "", "", ""))
            continue
        percent = 100 * float(differential.share[row])
        low, high = (100 * float(bound) for bound in differential.interval[row])
        limits = cell.reference_percent
        rows.append(
            (
                cell.name,
                count,
                f"{percent:.1f}",
                f"{low:.1f} to {high:.1f}",
                f"{limits[0]:g} to {limits[1]:g}" if limits else "",
                _flag(percent, limits),
            )
        )
    totals = _totals(analysis)
    return _table([*rows, *totals], (60, 18, 20, 30, 26, 14), head=True, totals=len(totals))


def _totals(analysis: Analysis) -> Rows:
    differential = analysis.differential
    ratio = differential.me_ratio if differential.adequate else None
    whole = "100.0" if differential.adequate else ""
    rows: Rows = [
        ("Cells in the count", str(differential.total), whole, "", "", ""),
        ("Nucleated cells found", str(differential.nucleated), "", "", "", ""),
    ]
    if ratio is not None:
        limits = f"{ME_REFERENCE[0]:g} to {ME_REFERENCE[1]:g}"
        rows.append(("M:E ratio", f"{ratio:.2f}", "", "", limits, _flag(ratio, ME_REFERENCE)))
    return rows


def _flag(value: float, limits: tuple[float, float] | None) -> str:
    if limits is None:
        return ""
    return "low" if value < limits[0] else "high" if value > limits[1] else ""


def _method(analysis: Analysis) -> Rows:
    differential, model = analysis.differential, analysis.model
    converged = differential.converged_after
    return [
        ("Method", f"{model.name} {model.version}, run by {MODEL_NAME} {SOFTWARE_VERSION}"),
        ("Intended use", model.intended_use),
        ("Model package SHA-256", model.digest),
        ("Configuration SHA-256", analysis.configuration_digest),
        ("Area read", f"{region_area_mm2(analysis):.2f} mm² in {differential.tiles} tiles"),
        ("Converged", f"after {converged} tiles" if converged is not None else "no"),
        ("Reference ranges", REFERENCE_SOURCE),
        ("Intervals", "Wilson, of the share of the counted cells"),
    ]


def _pictures(pictures: Mapping[str, bytes]) -> list[Flowable]:
    drawn: list[Flowable] = []
    for title, content in pictures.items():
        with PillowImage.open(io.BytesIO(content)) as picture:
            width, height = picture.size
        scale = min(_WIDTH / width, 230 * mm / height)
        drawn += [
            Spacer(0, 5 * mm),
            Image(io.BytesIO(content), width * scale, height * scale),
            _paragraph(title.capitalize(), 8, _REGULAR),
        ]
    return drawn


def _draw_foot(canvas: Any, analysis: Analysis, header: Dataset) -> None:
    register_fonts()
    canvas.setFont(_REGULAR, 7.5)
    canvas.setFillColor(_INK)
    who = f"Patient ID {text_of(header, 'PatientID')}" if text_of(header, "PatientID") else ""
    status = _FOOT[analysis.standing] + (
        ", demonstration model, not for clinical use" if analysis.model.demonstration else ""
    )
    canvas.drawString(_MARGIN, 9 * mm, " · ".join(filter(None, (who, status))))
    canvas.drawRightString(A4[0] - _MARGIN, 9 * mm, f"Page {canvas.getPageNumber()}")


def _pairs(rows: Rows) -> Flowable:
    return _table([row for row in rows if row[1]], (44, 134), head=False, totals=0)


def _table(rows: Rows, widths_mm: tuple[int, ...], head: bool, totals: int) -> Flowable:
    last = len(rows) - totals
    cells = [
        [
            _paragraph(
                text,
                8.5,
                _BOLD if (head and number == 0) or (not head and column == 0) else _REGULAR,
                right=head and 0 < column < 5,
            )
            for column, text in enumerate(row)
        ]
        for number, row in enumerate(rows)
    ]
    style: list[tuple[Any, ...]] = [
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("TOPPADDING", (0, 0), (-1, -1), 1.2),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 1.8),
        ("LINEBELOW", (0, 0), (-1, -1), 0.3, _FAINT),
    ]
    if head:
        style.append(("LINEBELOW", (0, 0), (-1, 0), 0.8, _INK))
    if totals:
        style.append(("LINEABOVE", (0, last), (-1, last), 0.8, _INK))
    table = Table(cells, [width * mm for width in widths_mm], repeatRows=1 if head else 0)
    table.setStyle(style)
    table.hAlign = "LEFT"
    return table


def _paragraph(
    text: str, size: float, font: str, colour: Any = _INK, right: bool = False
) -> Flowable:
    register_fonts()
    style = ParagraphStyle(
        "text", fontName=font, fontSize=size, leading=1.25 * size, textColor=colour,
        **({"alignment": TA_RIGHT} if right else {}),
    )  # fmt: skip
    return Paragraph(escape("".join(letter if _shows(letter) else "?" for letter in text)), style)


def _shows(letter: str) -> bool:
    return letter.isspace() or _has_glyph(letter)


def _day(header: Dataset, keyword: str) -> str:
    digits = text_of(header, keyword)
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}" if len(digits) == 8 else digits
