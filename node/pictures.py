"""The two pictures of a result: where the cells lie, and the differential against its reference.

They hold no patient data. Figures are made without pyplot, so that threads do not share a state.
They are transparent: what a figure shows of the slide is put below it, brought to size by Pillow in
a third of the time and without holding other threads up.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import imagecodecs
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from dicom_io.analysis import Analysis
from models.cell_types import CELL_TYPES, ME_REFERENCE, REFERENCE_SOURCE
from models.records import Bool, Float64, Int64, UInt8

_DPI: Final = 100
_LEGEND_PX: Final = 410
_WARNING: Final = "Demonstration model, not for clinical use"
_WARNING_COLOUR: Final = "#b3261e"
_BAND_COLOUR: Final = "#d5dbe1"
_INK: Final = "#22272e"

OVERVIEW_PX = 1600
EHR_BYTES = 700_000
_SIDES_PX = (1600, 1200, 900, 600, 300)


@dataclass(frozen=True, slots=True)
class Field:
    """A piece of the slide at high magnification.

    Attributes
    ----------
    rgb
        Gives (H, W, 3) uint8; asked when all else is drawn, so that they may still be on their way.
    box_px : (4,) float64
        What it shows: x0, y0, x1, y1 in base-level pixels.
    """

    rgb: Callable[[], UInt8]
    box_px: Float64


def load_plotting() -> None:
    """Load fonts and formats, which the first picture would wait for."""
    figure = Figure(figsize=(1, 1), dpi=_DPI)
    figure.add_axes((0.2, 0.2, 0.6, 0.6)).legend(handles=[Patch(label="1")])
    smaller(_on_white(_drawn(figure)), [EHR_BYTES])


def drawn_in_turn(
    analysis: Analysis, rgb: UInt8, field: Field | None
) -> Iterator[tuple[str, UInt8]]:
    """Name and (H, W, 3) of each picture: the first can be encoded while the next is drawn."""
    yield "overview", draw_overview(rgb, analysis, field)
    yield "differential", draw_differential(analysis)


def draw_overview(rgb: UInt8, analysis: Analysis, field: Field | None = None) -> UInt8:
    """Draw the slide with its regions of interest and its cells.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
        The whole base matrix at low resolution.
    analysis
    field
        Drawn below the slide with a box and a name for each cell.

    Returns
    -------
    (H, W, 3) uint8
    """
    slide_size = analysis.slide.base.size_px
    slide_px = round(OVERVIEW_PX * slide_size[1] / slide_size[0])
    field_px = 0
    if field is not None:
        field_width, field_height = field.box_px[2:] - field.box_px[:2]
        field_px = round(OVERVIEW_PX * field_height / field_width)
    head, gap = 64, 56 if field is not None else 0
    width, height = OVERVIEW_PX + _LEGEND_PX, head + slide_px + gap + field_px + 16
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="none")
    place = _Placement(width, height)
    slide_box = (16, head, OVERVIEW_PX - 32, slide_px)
    _draw_slide(figure.add_axes(place.box(*slide_box), facecolor="none"), analysis, field)
    figure.text(16 / width, 1 - 34 / height, _overview_title(analysis), fontsize=19, color=_INK)
    _add_legend(figure, analysis, ((OVERVIEW_PX + 4) / width, 1 - head / height))
    if field is not None:
        field_box = (16, head + slide_px + gap, OVERVIEW_PX - 32, field_px)
        _draw_field(figure.add_axes(place.box(*field_box), facecolor="none"), field, analysis)
        figure.text(
            16 / width,
            1 - (head + slide_px + gap - 14) / height,
            "The framed field, at high magnification",
            fontsize=16,
            color=_INK,
        )
    ink = _drawn(figure)
    below = [(rgb, slide_box)]
    if field is not None:
        below.append((field.rgb(), field_box))
    return _on_white(ink, below)


def draw_differential(analysis: Analysis) -> UInt8:
    """Draw percent of the NDC per type with 95 % intervals against the reference range.

    Returns
    -------
    (H, W, 3) uint8
    """
    differential = analysis.differential
    rows = np.flatnonzero(differential.in_ndc)
    figure = Figure(figsize=(12, 2.6 + 0.52 * len(rows)), dpi=_DPI, facecolor="none")
    height = figure.get_figheight()
    axes = figure.add_axes((0.235, 0.95 / height, 0.64, 1 - 2.45 / height), facecolor="none")
    _draw_types(axes, analysis, rows)
    highest = [differential.interval[rows, 1].max(initial=0.0) * 100]
    highest += [(CELL_TYPES[differential.classes[r]].reference_percent or (0, 0))[1] for r in rows]
    axes.set_xlim(0, max(5.0, 1.06 * max(highest)))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    names = [CELL_TYPES[differential.classes[row]].name for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=13, color=_INK)
    axes.set_xlabel("Percent of the nucleated differential count", fontsize=12, color=_INK)
    axes.tick_params(axis="x", labelsize=12)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e8e8e8", zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    _head_differential(figure, analysis)
    handles = [
        Patch(facecolor=_BAND_COLOUR, label=f"Reference range ({REFERENCE_SOURCE})"),
        Line2D([], [], color=_INK, lw=1.6, marker="|", ms=9, label="95 % interval (Wilson)"),
    ]
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.02, 0.0), ncols=2, frameon=False,
        fontsize=11,
    )  # fmt: skip
    return _on_white(_drawn(figure))


@dataclass(frozen=True, slots=True)
class _Placement:
    """Pixels from the top left → the figure's fractions from the bottom left."""

    width: int
    height: int

    def box(
        self, left: int, top: int, width: int, height: int
    ) -> tuple[float, float, float, float]:
        return (
            left / self.width,
            1 - (top + height) / self.height,
            width / self.width,
            height / self.height,
        )


def _overview_title(analysis: Analysis) -> str:
    return f"{len(analysis.cells):,} nucleated cells in {len(analysis.regions.box_px):,} frames"


def _draw_slide(axes: Axes, analysis: Analysis, field: Field | None) -> None:
    """Regions outlined, one dot per cell, in base-level pixel coordinates."""
    width, height = analysis.slide.base.size_px
    axes.add_collection(LineCollection(_outline(analysis), colors="#111111", linewidths=1.1))
    cells = analysis.cells
    centres = (cells.box_px[:, :2] + cells.box_px[:, 2:]) / 2
    colours = [CELL_TYPES[cells.classes[label]].colour for label in cells.label]
    axes.scatter(centres[:, 0], centres[:, 1], s=11, c=colours, edgecolors="white", linewidths=0.25)
    if field is not None:
        x0, y0, x1, y1 = field.box_px
        frame = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=_WARNING_COLOUR, lw=2.5)
        axes.add_patch(frame)
    _bare(axes, np.array((0.0, 0.0, width, height)))


def _outline(analysis: Analysis) -> list[list[tuple[float, float]]]:
    """The sides of the regions' boxes that no other box shares: the border of their union."""
    count: dict[tuple[tuple[float, float], tuple[float, float]], int] = {}
    for x0, y0, x1, y1 in analysis.regions.box_px.tolist():
        for side in (
            ((x0, y0), (x1, y0)),
            ((x0, y1), (x1, y1)),
            ((x0, y0), (x0, y1)),
            ((x1, y0), (x1, y1)),
        ):
            count[side] = count.get(side, 0) + 1
    return [list(side) for side, shared in count.items() if shared == 1]


def _draw_field(axes: Axes, field: Field, analysis: Analysis) -> None:
    """The box and the name of each cell in the field."""
    x0, y0, x1, y1 = field.box_px
    cells = analysis.cells
    inside = _inside(analysis, field)
    boxes, colours = [], []
    for (left, top, right, bottom), label in zip(
        cells.box_px[inside], cells.label[inside], strict=True
    ):
        kind = CELL_TYPES[cells.classes[label]]
        boxes.append(Rectangle((left, top), right - left, bottom - top))
        colours.append(kind.colour)
        # A name stays inside the field, also where its cell touches the edge.
        start, base = min(left, x1 - 0.11 * (x1 - x0)), max(top - 3, y0 + 0.035 * (y1 - y0))
        axes.text(
            start, base, kind.name, fontsize=9.5, color="white", va="bottom", clip_on=True,
            bbox={"facecolor": kind.colour, "edgecolor": "none", "pad": 1.2, "alpha": 0.9},
        )  # fmt: skip
    axes.add_collection(PatchCollection(boxes, facecolor="none", edgecolor=colours, linewidths=2.0))
    _bare(axes, field.box_px)


def _inside(analysis: Analysis, field: Field) -> Bool:
    centre = (analysis.cells.box_px[:, :2] + analysis.cells.box_px[:, 2:]) / 2
    x0, y0, x1, y1 = field.box_px
    return np.asarray(((centre > (x0, y0)) & (centre < (x1, y1))).all(axis=1), np.bool_)


def _bare(axes: Axes, box_px: Float64) -> None:
    """No ticks; y downwards."""
    axes.set_xlim(box_px[0], box_px[2])
    axes.set_ylim(box_px[3], box_px[1])
    axes.set_aspect("auto")
    axes.xaxis.set_visible(False)
    axes.yaxis.set_visible(False)


def _add_legend(figure: Figure, analysis: Analysis, corner: tuple[float, float]) -> None:
    """Types with their counts, what an outline is, and the warning."""
    cells = analysis.cells
    counts = np.bincount(cells.label, minlength=len(cells.classes))
    handles: list[Line2D] = []
    for key, count in zip(cells.classes, counts, strict=True):
        kind = CELL_TYPES[key]
        label = f"{kind.name}  {count:,}"
        handles.append(Line2D([], [], marker="o", ls="", ms=11, color=kind.colour, label=label))
    handles.append(Line2D([], [], color="#111111", lw=1.1, label="Region that was read"))
    legend = figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=corner, frameon=False, fontsize=13,
        borderaxespad=0, labelspacing=0.75,
    )  # fmt: skip
    if analysis.model.demonstration:
        legend.set_title("\n".join(_WARNING.split(", ")) + "\n", prop=FontProperties(size=14))
        legend.get_title().set_color(_WARNING_COLOUR)


def _draw_types(axes: Axes, analysis: Analysis, rows: Int64) -> None:
    """A bar each with its interval, reference range behind it and numbers at the right.

    All bars in one call, and so on: Matplotlib looks at everything anew for each call.
    """
    differential = analysis.differential
    kinds = [CELL_TYPES[differential.classes[row]] for row in rows]
    percent, low, high = 100 * np.column_stack((differential.share, differential.interval))[rows].T
    known = [at for at, kind in enumerate(kinds) if kind.reference_percent is not None]
    start, end = np.array([kinds[at].reference_percent for at in known]).reshape(-1, 2).T
    axes.barh(known, end - start, left=start, height=0.86, color=_BAND_COLOUR, zorder=1)
    at = np.arange(len(rows))
    axes.barh(at, percent, height=0.46, color=[kind.colour for kind in kinds], zorder=2)
    # White below ink, so that it shows on dark bars too.
    for colour, width, depth in (("white", 4.0, 3), (_INK, 1.6, 4)):
        axes.errorbar(
            percent, at, xerr=(percent - low, high - percent), color=colour, ls="",
            elinewidth=width, capsize=4, capthick=width, zorder=depth,
        )  # fmt: skip
    for position, row in enumerate(rows):
        text = f"{percent[position]:.1f} %  ({int(differential.count[row]):,})"
        axes.text(
            1.015, position, text, transform=axes.get_yaxis_transform(), va="center", fontsize=12,
            color=_INK,
        )  # fmt: skip


def _head_differential(figure: Figure, analysis: Analysis) -> None:
    """Title, totals and warnings above the bars."""
    differential = analysis.differential
    height = figure.get_figheight()
    ratio = "not defined" if differential.me_ratio is None else f"{differential.me_ratio:.2f}"
    outside = differential.nucleated - differential.total
    facts = (
        f"{differential.total:,} cells counted   ·   {outside:,} unclassified   ·   "
        f"M:E {ratio} (reference {ME_REFERENCE[0]:g}–{ME_REFERENCE[1]:g})"
    )
    verdict = "; ".join(differential.reasons) if not differential.adequate else "Count sufficient"
    lines = [
        ("Bone marrow, nucleated differential count", 19, _INK, 0.45),
        (facts, 13, _INK, 0.80),
        (verdict, 13, _INK if differential.adequate else _WARNING_COLOUR, 1.08),
    ]
    if analysis.model.demonstration:
        lines.append((f"{_WARNING} ({analysis.model.name})", 13, _WARNING_COLOUR, 1.36))
    for text, size, colour, down in lines:
        figure.text(0.025, 1 - down / height, text, fontsize=size, color=colour)


def _drawn(figure: Figure) -> Image.Image:
    """RGBA of a figure."""
    canvas = FigureCanvasAgg(figure)
    with rc_context({"text.hinting": "none"}):  # half the time, and at these sizes as legible
        canvas.draw()  # type: ignore[no-untyped-call]
    return Image.fromarray(np.asarray(canvas.buffer_rgba()))  # type: ignore[no-untyped-call]


def _on_white(
    ink: Image.Image, below: Sequence[tuple[UInt8, tuple[int, int, int, int]]] = ()
) -> UInt8:
    """RGB of a drawing; `below` it images, each in its (left, top, width, height) box."""
    page = Image.new("RGB", ink.size, "white")
    for rgb, (left, top, width, height) in below:
        fitted = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC)
        page.paste(fitted, (left, top))
    page.paste(ink, mask=ink)
    return np.asarray(page, np.uint8)


def as_png(rgb: UInt8) -> bytes:
    """Encode; so filtered and packed it takes a fifth of the usual time for as many bytes."""
    png = imagecodecs.png_encode(
        rgb, level=1, strategy=imagecodecs.PNG.STRATEGY.RLE, filter=imagecodecs.PNG.FILTER.PAETH
    )
    return bytes(png)


def pixels(png: bytes) -> UInt8:
    """RGB (H, W, 3) of a picture."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.uint8)


def smaller(rgb: UInt8, most_bytes: Sequence[int]) -> Mapping[int, bytes]:
    """A picture as JPEG: for each number of bytes the largest side at which it stays below it.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
    most_bytes
        Limits. FHIR servers take a megabyte of base64 at most: `EHR_BYTES` is less.

    Returns
    -------
    Mapping
        Limit → JPEG; where even the shortest side takes more bytes, that one.
    """
    fitted = Image.fromarray(rgb)
    made: list[bytes] = []
    for longest_px in _SIDES_PX:
        fitted.thumbnail((longest_px, longest_px), Image.Resampling.HAMMING)
        stream = io.BytesIO()
        fitted.save(stream, "JPEG", quality=85)
        made.append(stream.getvalue())
        if len(made[-1]) <= min(most_bytes):
            break
    return {
        limit: next((jpeg for jpeg in made if len(jpeg) <= limit), made[-1]) for limit in most_bytes
    }
