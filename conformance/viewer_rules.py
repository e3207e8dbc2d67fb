"""What viewers ask for beyond the standard: one list, each with its viewer and version.

Seen with the viewers themselves, not read in their papers. Their own defects are here too: an
object that a viewer cannot draw is of no use to the person in front of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset

from conformance.annotation_rules import groups
from conformance.finding import Fault, Rule
from conformance.reading import sequence, text, whole

MICROSCOPY_VIEWER = "dicom-microscopy-viewer 0.48.24"
# Far away a group of more than a thousand is drawn as clusters, near by the outlines in sight are.
# With software rendering 100 000 rectangles in one group held the page for 7 to 11 seconds, with
# all of them in sight for 50.
OUTLINES = 100_000
_OUTLINED = frozenset({"RECTANGLE", "POLYGON", "ELLIPSE", "POLYLINE"})


def _references(document: Dataset) -> Iterator[Fault]:
    for keyword in ("ReferencedImageSequence", "ReferencedSeriesSequence"):
        if text(document, "AnnotationCoordinateType") == "2D" and not sequence(document, keyword):
            yield Fault(keyword, f"{MICROSCOPY_VIEWER} reads the first item and fails without it.")


def _origin(document: Dataset) -> Iterator[Fault]:
    if text(document, "PixelOriginInterpretation") == "FRAME":
        yield Fault(
            "PixelOriginInterpretation",
            f"{MICROSCOPY_VIEWER} takes all coordinates for those of the total pixel matrix: "
            "write VOLUME.",
        )


def _outlines(document: Dataset) -> Iterator[Fault]:
    """Groups are drawn one by one, when a person asks for them."""
    for path, group in groups(document):
        drawn = whole(group, "NumberOfAnnotations") or 0
        if text(group, "GraphicType") in _OUTLINED and drawn >= OUTLINES:
            yield Fault(
                f"{path}NumberOfAnnotations",
                f"{drawn} outlines in one group: {MICROSCOPY_VIEWER} does not answer for many "
                f"seconds with {OUTLINES}; write several groups, which can be shown one by one.",
            )


VIEWER_RULES: tuple[Rule[Dataset], ...] = (
    Rule("view-references", "warning", MICROSCOPY_VIEWER, "Both references.", _references),
    Rule("view-origin", "warning", MICROSCOPY_VIEWER, "Origin VOLUME.", _origin),
    Rule("view-count", "warning", MICROSCOPY_VIEWER, "Not too many outlines.", _outlines),
)


def viewer_notes(document: Dataset) -> Iterator[str]:
    """What a reader or an archive leaves out although the object is as it should be."""
    graphics = {text(group, "GraphicType") for _, group in groups(document)}
    unread = sorted(graphics & {"RECTANGLE", "ELLIPSE"})
    if unread:
        yield (
            f"ANN {text(document, 'SOPInstanceUID')}: wsidicom 0.36 does not read groups of type "
            f"{' and '.join(unread)}."
        )
