"""dicom-microscopy-viewer draws slide and annotations: looked at, and measured in its picture.

The slide comes from a real Orthanc, the annotations from the node's whole service, across origins
and with a key. On the slides every cell is a grey box, so that the picture without annotations
tells where the cells are, and the picture with them where the outlines are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor
from scipy.ndimage import find_objects, label

from dicom_io.annotation import encode_annotation
from dicom_io.annotation_settings import CoordinateType, GraphicType
from models.cell_types import CELL_TYPES
from tests.known_slides import GREY, WHITE, KnownSlide, known_slide
from tests.result_folders import listening, put_result, whole_service
from tests.servers import Orthanc, cannot_run, free_port

if TYPE_CHECKING:
    from tests.viewer.browser import Viewer

WINDOW_PX = (1200, 900)
TOLERANCE_PX = 2.0
UPSIDE_DOWN = (0, 1, 0, 1, 0, 0)
Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Window:
    """The viewer, and how to give the node results to serve to it."""

    viewer: Viewer
    serve: Callable[[Path], Any]

    def open(self, known: KnownSlide) -> None:
        self.viewer.open_slide(known.slide.study_uid, known.slide.series_uid)


@pytest.fixture(scope="module")
def window(orthanc_server: Orthanc) -> Iterator[Window]:
    """One browser for this file, its page on the archive's origin."""
    if find_spec("playwright") is None:
        cannot_run("playwright is not installed: make test installs it")
    from tests.viewer.browser import missing, open_viewer, page_server

    reason = missing()
    if reason:
        cannot_run(reason)
    with page_server(orthanc_server.dicomweb_url) as origin, open_viewer(origin, WINDOW_PX) as it:

        @contextmanager
        def serve(work_folder: Path) -> Iterator[tuple[str, str]]:
            """Address of the results, and a key that reads them."""
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            with whole_service(work_folder, url, (origin,)) as (app, keys), listening(app, port):
                yield f"{url}/dicom-web", keys["read"]

        yield Window(it, serve)


@contextmanager
def shown(
    window: Window, known: KnownSlide, folder: Path, **how: Any
) -> Iterator[Callable[[], float]]:
    """Serve annotations of the slide and add them; what is given shows them, in seconds."""
    put_result(folder, {"ANN": encode_annotation(known.analysis, **how)}, "result")
    with ExitStack() as stack:
        url, key = stack.enter_context(window.serve(folder))
        labels = window.viewer.add_annotations(url, key, known.slide.study_uid)
        assert labels
        yield window.viewer.show
    assert window.viewer.failures() == []


@pytest.mark.parametrize(
    ("graphic_type", "coordinate_type", "orientation"),
    [
        ("RECTANGLE", "2D", None),
        ("POLYGON", "2D", None),
        ("RECTANGLE", "2D", UPSIDE_DOWN),
        ("POLYGON", "3D", UPSIDE_DOWN),
    ],
)
def test_outlines_lie_on_the_cells(
    window: Window,
    orthanc: Orthanc,
    tmp_path: Path,
    graphic_type: GraphicType,
    coordinate_type: CoordinateType,
    orientation: tuple[int, ...] | None,
) -> None:
    known = known_slide(tmp_path / "slide", (1000, 760), (10, 8), orientation)
    orthanc.add(*known.paths)
    window.open(known)
    before = window.viewer.picture()
    how = {"graphic_type": graphic_type, "coordinate_type": coordinate_type}
    with shown(window, known, tmp_path / "work", **how) as show:
        show()
        after = window.viewer.picture()
    save(tmp_path, after, f"{graphic_type} {coordinate_type}")
    cells, outlines = cells_in(before), outlines_in(before, after)
    assert len(cells) == len(outlines) == len(known.box_px)
    error = np.abs(cells - outlines)
    print(
        f"{graphic_type} {coordinate_type}, {len(cells)} outlines: largest error "
        f"{error.max():.2f} px of the screen, mean {error.mean():.2f}"
    )
    assert error.max() <= TOLERANCE_PX
    assert colours_of(known) >= drawn_colours(before, after)
    assert len(drawn_colours(before, after)) >= 5


@pytest.mark.parametrize(
    ("size_px", "cells"),
    [
        ((2400, 1800), (40, 25)),
        pytest.param((3600, 2700), (125, 80), marks=pytest.mark.slow),
        pytest.param((12_000, 9000), (400, 250), marks=pytest.mark.slow),
    ],
    ids=["1 000", "10 000", "100 000"],
)
def test_many_cells(
    window: Window,
    orthanc: Orthanc,
    tmp_path: Path,
    size_px: tuple[int, int],
    cells: tuple[int, int],
) -> None:
    """As the node writes them; every side of every box in sight is drawn, and it is told how fast.

    Far away the viewer draws a group of more than a thousand as clusters, near by it draws the
    boxes that are in sight.
    """
    known = known_slide(tmp_path / "slide", size_px, cells)
    orthanc.add(*known.paths)
    window.open(known)
    place = (size_px[0] / 2, size_px[1] / 2, 1.0)
    seconds = {"slide alone": window.viewer.look_at(*place)}
    before = window.viewer.picture()
    window.viewer.look_at(*place[:2], size_px[0] / WINDOW_PX[0])
    with shown(window, known, tmp_path / "work") as show:
        seconds["show all"] = show()
        save(tmp_path, window.viewer.picture(), "all")
        seconds["go near"] = window.viewer.look_at(*place)
        after = window.viewer.picture()
        save(tmp_path, after, "near")
        seconds["move"] = window.viewer.look_at(place[0] + 300, place[1], 1.0)
        seconds["go far"] = window.viewer.look_at(*place[:2], size_px[0] / WINDOW_PX[0])
        save(tmp_path, window.viewer.picture(), "far")
    told = ", ".join(f"{name} {each:.1f} s" for name, each in seconds.items())
    print(f"{len(known.box_px)} rectangles: {told}")
    near = cells_in(before)
    assert len(near) >= 200
    assert share_of_sides_drawn(near, changed(before, after)) == 1.0


def save(folder: Path, picture: Picture, name: str) -> None:
    """Keep a picture to be looked at; -s tells where."""
    path = folder / f"{name}.png"
    Image.fromarray(picture).save(path)
    print(path)


def cells_in(picture: Picture) -> NDArray[np.float64]:
    """Grey boxes (N, 4) wholly in a picture, in its pixels, by row and column."""
    grey = np.abs(picture.astype(int) - GREY).max(axis=2) < (WHITE - GREY) // 2
    parts, _ = label(grey)
    found = [
        (x.start, y.start, x.stop, y.stop)
        for y, x in find_objects(parts)
        if (y.stop - y.start) > 8
        and (x.stop - x.start) > 8
        and min(x.start, y.start) > TOLERANCE_PX  # wholly in sight
        and x.stop < picture.shape[1] - TOLERANCE_PX
        and y.stop < picture.shape[0] - TOLERANCE_PX
    ]
    return in_order(np.array(found, np.float64))


def changed(before: Picture, after: Picture) -> Mask:
    return np.abs(before.astype(int) - after).max(axis=2) > 30


def outlines_in(before: Picture, after: Picture) -> NDArray[np.float64]:
    """Middle lines (N, 4) of the outlines that were drawn, by row and column."""
    mask = changed(before, after)
    parts, _ = label(mask, np.ones((3, 3)))
    found = []
    for y, x in find_objects(parts):
        middle = mask[(y.start + y.stop) // 2, x], mask[y, (x.start + x.stop) // 2]
        (x0, x1), (y0, y1) = (_ends(line) for line in middle)
        found.append((x.start + x0, y.start + y0, x.start + x1, y.start + y1))
    return in_order(np.array(found, np.float64))


def _ends(line: Mask) -> tuple[float, float]:
    """Middles of the strokes at both ends of a line across an outline."""
    first = int(np.argmin(line))
    last = int(np.argmin(line[::-1]))
    return first / 2, len(line) - last / 2


def in_order(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """By fields of the grid, of which no two boxes share one."""
    middle = (box[:, :2] + box[:, 2:]) / 2
    return box[np.lexsort((middle[:, 0], _bands(middle[:, 1])))]


def _bands(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Number of the row of the grid that each value belongs to."""
    order = np.argsort(values)
    gaps = np.diff(values[order], prepend=values[order[0]])
    bands = np.empty(len(values), np.intp)
    bands[order] = np.cumsum(gaps > 30)
    return bands


def colours_of(known: KnownSlide) -> set[str]:
    cells = known.analysis.cells
    return {CELL_TYPES[cells.classes[each]].colour.lower() for each in set(cells.label.tolist())}


def drawn_colours(before: Picture, after: Picture) -> set[str]:
    """Colours of the palette nearest to what was drawn, one for each outline."""
    palette = {
        each.colour.lower(): ImageColor.getrgb(each.colour)[:3] for each in CELL_TYPES.values()
    }
    names, values = list(palette), np.array(list(palette.values()), float)
    mask = changed(before, after)
    parts, _ = label(mask, np.ones((3, 3)))
    nearest = set()
    for number, where in enumerate(find_objects(parts), start=1):
        pixels = after[where][parts[where] == number].astype(float)
        distance = np.linalg.norm(pixels[:, None] - values, axis=2)
        assert distance.min() < 12, "an outline has no colour of the palette"
        nearest.add(names[int(distance.min(axis=0).argmin())])
    return nearest


def share_of_sides_drawn(box: NDArray[np.float64], drawn: Mask) -> float:
    """How many of all sides have something drawn in their middle, within the tolerance."""
    x0, y0, x1, y1 = box.T
    middles = [((x0 + x1) / 2, y0), ((x0 + x1) / 2, y1), (x0, (y0 + y1) / 2), (x1, (y0 + y1) / 2)]
    reach = range(-int(TOLERANCE_PX), int(TOLERANCE_PX) + 1)
    found = [
        np.any(
            [drawn[(y.astype(int) + dy), (x.astype(int) + dx)] for dx in reach for dy in reach],
            axis=0,
        )
        for x, y in middles
    ]
    return float(np.mean(found))
