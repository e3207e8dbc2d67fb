"""Layouts × encodings × quirks: pixels are those of an independent reader, wherever they meet.

Slides written by pydicom: every layout in every encoding, each cell of that table through a folder
and through archives with quirks. These are dealt to the cells so that every habit of an archive
and every way to tell metadata meets every layout and every encoding, and every kind of offset
table does; :func:`test_every_pair_is_met` proves it. Three of them at once meet by chance only, and
so do a habit and a way to tell metadata. What must be seen was decoded tile by tile by the other
decoder of :mod:`tests.encodings`.

Slides written by wsidicom: its layouts in all encodings that it writes, each cell through one of
the quirks; what must be seen is what wsidicom reads from the files. Slides written by Orthanc's
converter: each of its encodings through every habit, beside pydicom and Pillow. Orthanc itself
serves every encoding that it keeps, in one layout each.

A box that is drawn at the known cell of each layout lies on it in pixels and in millimetres.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from highdicom.ann import MicroscopyBulkSimpleAnnotations
from highdicom.spatial import ImageToReferenceTransformer, ReferenceToImageTransformer
from pydicom import dcmread
from wsidicom import WsiDicom

from dicom_io.annotation import encode_annotation
from dicom_io.annotation_settings import CoordinateType
from dicom_io.coordinates import mm_to_px
from dicom_io.frames import read_tiles
from dicom_io.pacs import Pacs, PacsSettings, open_pacs
from dicom_io.slide import Slide, open_slide
from dicom_io.slide_settings import SlideSettings
from tests.analyses import some_analysis
from tests.encodings import STORED, TABLES, written_in
from tests.filed_archive import TOLD, Filed, answers, filed
from tests.in_process import InProcess
from tests.layouts import CELL_PX, CELL_RGB, LAYOUTS
from tests.quirky_proxy import HABITS, QuirkyProxy, quirky_proxy
from tests.servers import Orthanc
from tests.slides import UInt8, WrittenSlide, stored_pixels, write_slide
from tests.test_encodings import WSIDICOM, furthest, with_volume
from tests.test_layouts import WSIDICOM_LAYOUTS, dicomized, needs_orthanc_wsi, whole
from tests.validators import written

UPSTREAM = "http://files.invalid/dicom-web"
SETTINGS = PacsSettings(timeout_s=10, retries=2, retry_wait_s=0.01, frames_per_request=20)
NAMES = {"layout": list(LAYOUTS), "encoding": list(STORED)}
QUIRKS = {"habit": list(HABITS), "told": list(TOLD), "table": list(TABLES)}
# Through so many archives each cell is read: the layouts of an encoding meet all quirks so.
READS = -(-max(map(len, QUIRKS.values())) // len(LAYOUTS))
SERVED = [name for name, how in STORED.items() if how.served]


def dealt(number: int) -> tuple[str, str]:
    """A habit and a way to tell metadata, in turn."""
    habits, told = QUIRKS["habit"], QUIRKS["told"]
    return habits[number % len(habits)], told[number % len(told)]


def first_of(layout: str, encoding: str) -> int:
    """Number of the first quirks of a cell: layouts lie READS apart, encodings one."""
    return READS * NAMES["layout"].index(layout) + NAMES["encoding"].index(encoding)


def quirks_of(layout: str, encoding: str) -> list[tuple[str, str]]:
    first = first_of(layout, encoding)
    return [dealt(number) for number in range(first, first + READS)]


def table_of(layout: str, encoding: str) -> str:
    number = NAMES["layout"].index(layout) + NAMES["encoding"].index(encoding)
    return QUIRKS["table"][number % len(TABLES)]


def test_every_pair_is_met() -> None:
    met = [
        {"layout": layout, "encoding": encoding, "habit": habit, "told": told, "table": table}
        for layout, encoding in product(LAYOUTS, STORED)
        for table in [table_of(layout, encoding)]
        for habit, told in quirks_of(layout, encoding)
    ]
    for (one, ones), (other, others) in [
        *product(NAMES.items(), QUIRKS.items()),
        tuple(NAMES.items()),
    ]:
        assert {(cell[one], cell[other]) for cell in met} == set(product(ones, others))


@pytest.fixture(scope="module")
def quirky() -> Iterator[QuirkyProxy]:
    """A proxy whose habits, and what lies behind it, each test sets."""
    with quirky_proxy(UPSTREAM) as proxy:
        yield proxy


@contextmanager
def archive_of(
    quirky: QuirkyProxy, files: Sequence[Filed], habit: str, told: str
) -> Iterator[Pacs]:
    """An archive with a habit that holds these files, and tells of them in its way."""
    quirky.habits = HABITS[habit]
    quirky.session.mount(UPSTREAM, InProcess(answers(files, TOLD[told])))
    with open_pacs(quirky.url, SETTINGS) as pacs:
        yield pacs


def seen(
    pacs: Pacs, slide: WrittenSlide, settings: SlideSettings | None = None
) -> tuple[Slide, list[UInt8]]:
    """The slide as it is opened, and all of its levels."""
    opened = open_slide(pacs, slide.study_uid, slide.series_uid, settings=settings)
    return opened, [whole(pacs, opened, level) for level in opened.levels]


def off(levels: Sequence[UInt8], expected: Sequence[UInt8]) -> int:
    """Grey levels by which the furthest pixel is off."""
    return max(furthest(*both) for both in zip(levels, expected, strict=True))


def box_mm(path: Path) -> np.ndarray:
    """Top left and bottom right corner of the known cell, by highdicom: (2, 3)."""
    to_mm = ImageToReferenceTransformer(*geometry(path))
    return to_mm(np.array(CELL_PX, np.float64).reshape(2, 2))


def geometry(path: Path) -> tuple[list[float], list[float], list[float]]:
    """Position of the first pixel, orientation, spacing, as the file says them."""
    ds = dcmread(path, stop_before_pixels=True)
    (origin,) = ds.TotalPixelMatrixOriginSequence
    position = [float(origin[f"{axis}OffsetInSlideCoordinateSystem"].value) for axis in "XY"]
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    spacing = [float(number) for number in measures.PixelSpacing]
    return [*position, 0.0], [float(c) for c in ds.ImageOrientationSlide], spacing


@pytest.mark.parametrize("encoding", NAMES["encoding"])
@pytest.mark.parametrize("layout", NAMES["layout"])
def test_written_by_hand(quirky: QuirkyProxy, tmp_path: Path, layout: str, encoding: str) -> None:
    how = LAYOUTS[layout]
    slide = written_in(encoding, partial(how.write, tmp_path), table_of(layout, encoding))
    expected = how.seen(encoding)
    with open_pacs(f"file://{tmp_path}", SETTINGS) as pacs:
        opened, levels = seen(pacs, slide, how.settings)
        assert off(levels, expected) <= STORED[encoding].off
        box_px = mm_to_px(opened, box_mm(slide.paths[0])).reshape(1, 4)
        (tiles,) = read_tiles(pacs, opened, box_px, opened.base.um_per_px)
    x0, y0, x1, y1 = CELL_PX
    assert off([tiles.rgb[0]], [expected[0][y0:y1, x0:x1]]) <= STORED[encoding].off
    files = [filed(path) for path in slide.paths]
    for habit, told in quirks_of(layout, encoding):
        with archive_of(quirky, files, habit, told) as pacs:
            _, levels = seen(pacs, slide, how.settings)
        assert off(levels, expected) <= STORED[encoding].off, f"{habit}, {told}"


@pytest.mark.parametrize("encoding", SERVED)
def test_served_by_orthanc(orthanc: Orthanc, tmp_path: Path, encoding: str) -> None:
    how = LAYOUTS[NAMES["layout"][SERVED.index(encoding) % len(LAYOUTS)]]
    slide = written_in(encoding, partial(how.write, tmp_path))
    orthanc.add(*slide.paths)
    with open_pacs(orthanc.dicomweb_url, SETTINGS) as pacs:
        _, levels = seen(pacs, slide, how.settings)
    assert off(levels, how.seen(encoding)) <= STORED[encoding].off


# Where its decoder is another one, and the streams do not say every bit.
OFF_WSIDICOM = {"JPEG 2000": 2, "HTJ2K": 2}


@pytest.fixture(scope="module")
def uncompressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What wsidicom stores anew."""
    folder = tmp_path_factory.mktemp("uncompressed")
    write_slide(folder, size_px=(200, 150), levels=3, encoding="raw", change=with_volume)
    return folder


@pytest.mark.parametrize("encoding", WSIDICOM)
@pytest.mark.parametrize("layout", WSIDICOM_LAYOUTS)
def test_written_by_wsidicom(
    quirky: QuirkyProxy, uncompressed: Path, tmp_path: Path, layout: str, encoding: str
) -> None:
    stored = {"transcoding": WSIDICOM[encoding], "force_transcoding": True}
    with WsiDicom.open(uncompressed) as original:
        original.save(tmp_path, **WSIDICOM_LAYOUTS[layout], **stored)
    paths = tuple(sorted(tmp_path.glob("*.dcm")))
    first = dcmread(paths[0], stop_before_pixels=True)
    slide = WrittenSlide(first.StudyInstanceUID, first.SeriesInstanceUID, paths)
    with WsiDicom.open(tmp_path) as reader:
        expected = [
            np.array(reader.read_region((0, 0), level.level, level.size.to_tuple()).convert("RGB"))
            for level in reader.levels
        ]
    number = list(WSIDICOM_LAYOUTS).index(layout) * len(WSIDICOM) + list(WSIDICOM).index(encoding)
    with archive_of(quirky, [filed(path) for path in paths], *dealt(number)) as pacs:
        _, levels = seen(pacs, slide)
    assert off(levels, expected) <= OFF_WSIDICOM.get(encoding, 0), dealt(number)


@needs_orthanc_wsi
@pytest.mark.parametrize("compression", ["none", "jpeg", "jpeg2000"])
def test_written_by_orthanc(quirky: QuirkyProxy, tmp_path: Path, compression: str) -> None:
    slide = dicomized(tmp_path, compression, (1000, 720))
    files = [filed(path) for path in slide.paths]
    expected: list[UInt8] = []
    for number in range(len(HABITS)):
        with archive_of(quirky, files, *dealt(number)) as pacs:
            opened = open_slide(pacs, slide.study_uid, slide.series_uid)
            low = opened.levels[2:]
            expected = expected or [of_instances(slide.paths, level.instance_uids) for level in low]
            assert off([whole(pacs, opened, level) for level in low], expected) <= 2, dealt(number)


def of_instances(paths: Sequence[Path], uids: Sequence[str]) -> UInt8:
    """A level by pydicom and Pillow."""
    parts = [
        path for path in paths if dcmread(path, stop_before_pixels=True).SOPInstanceUID in uids
    ]
    return stored_pixels(*parts)[0]


@pytest.mark.parametrize("coordinate_type", ["2D", "3D"])
@pytest.mark.parametrize("layout", NAMES["layout"])
def test_box_drawn_at_the_known_cell_lands_on_it(
    tmp_path: Path, layout: str, coordinate_type: CoordinateType
) -> None:
    """highdicom reads the box, and from the slide's file alone where its millimetres lie."""
    how = LAYOUTS[layout]
    slide = how.write(tmp_path / "slide", None)
    with open_pacs((tmp_path / "slide").as_uri(), SETTINGS) as pacs:
        opened = open_slide(pacs, slide.study_uid, slide.series_uid, settings=how.settings)
    analysis = some_analysis(opened, cells=1)
    cells = replace(analysis.cells, box_px=np.array([CELL_PX], np.float64))
    document = encode_annotation(replace(analysis, cells=cells), "RECTANGLE", coordinate_type)
    read = dcmread(written(document, tmp_path / "ann.dcm"))
    (group,) = MicroscopyBulkSimpleAnnotations.from_dataset(read).get_annotation_groups()
    (corners,) = group.get_graphic_data(coordinate_type)
    if coordinate_type == "3D":
        corners = ReferenceToImageTransformer(*geometry(slide.paths[0]))(corners)
    box = np.concatenate([corners[:, :2].min(axis=0), corners[:, :2].max(axis=0)])
    assert np.allclose(box, CELL_PX, atol=1e-3)
    x0, y0, x1, y1 = np.rint(box).astype(int)
    of_cell = (how.levels[0] == CELL_RGB).all(axis=2)
    assert of_cell[y0:y1, x0:x1].all()
    assert of_cell.sum() == (y1 - y0) * (x1 - x0)
