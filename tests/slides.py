"""Small whole slide images for tests, written with pydicom and read back with Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

UInt8 = NDArray[np.uint8]


def _run_lengths(rgb: UInt8) -> bytes:
    height, width = rgb.shape[:2]
    return RLELosslessEncoder.encode(
        rgb,
        rows=height,
        columns=width,
        samples_per_pixel=3,
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
        number_of_frames=1,
        photometric_interpretation="RGB",
        planar_configuration=0,
    )


ENCODERS: dict[str, tuple[str, str, Callable[[UInt8], bytes]]] = {
    "jpeg": (
        JPEGBaseline8Bit,
        "YBR_FULL_422",
        lambda rgb: simplejpeg.encode_jpeg(rgb, quality=90, colorsubsampling="422"),
    ),
    "jpeg2000": (
        JPEG2000Lossless,
        "YBR_RCT",
        lambda rgb: imagecodecs.jpeg2k_encode(
            rgb, level=0, reversible=True, mct=True, codecformat="j2k"
        ),
    ),
    "jpegls": (JPEGLSLossless, "RGB", imagecodecs.jpegls_encode),
    "rle": (RLELossless, "RGB", _run_lengths),
    "raw": (ExplicitVRLittleEndian, "RGB", lambda rgb: rgb.tobytes()),
}

Change = Callable[[Dataset, int], None]


@dataclass(frozen=True)
class WrittenSlide:
    """A slide in a folder; `paths` base level first."""

    study_uid: str
    series_uid: str
    paths: tuple[Path, ...]


def picture(width: int, height: int) -> UInt8:
    """Smooth colours with discs on them, different everywhere."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack(
        [200 + 40 * np.sin(x / 37), 160 + 60 * np.cos(y / 29), 190 + 50 * np.sin((x + y) / 53)], 2
    )
    centres = np.random.default_rng(7).integers(0, (width, height), (width * height // 4000, 2))
    for cx, cy in centres:
        near = np.s_[max(cy - 9, 0) : cy + 10, max(cx - 9, 0) : cx + 10]
        rgb[near][np.hypot(x[near] - cx, y[near] - cy) < 9] = (110, 60, 140)
    return rgb.clip(0, 255).astype(np.uint8)


def write_slide(
    folder: Path,
    *,
    size_px: tuple[int, int] = (500, 380),
    rgb: UInt8 | None = None,
    tile_px: tuple[int, int] = (64, 64),
    levels: int = 3,
    scales: Sequence[float] | None = None,
    um_per_px: float = 0.25,
    organization: str = "TILED_FULL",
    encoding: str = "jpeg",
    origin_mm: Sequence[float] | None = (20.0, 40.0),
    orientation: Sequence[float] = (0, -1, 0, -1, 0, 0),
    leave_out: Callable[[int, int], bool] = lambda column, row: False,
    parts: int = 1,
    change: Change | None = None,
) -> WrittenSlide:
    """Write a pyramid, each level half the one before.

    Parameters
    ----------
    rgb
        The base level, instead of a picture of `size_px`.
    scales
        How many times coarser than the base level each level is, instead of 1, 2, 4, ….
    leave_out
        For TILED_SPARSE: (column, row) of base-level tiles that are not stored.
    parts
        Instances into which the base level's frames are split (a concatenation if TILED_FULL).
    change
        Called with each dataset and its level before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame_of_reference, concatenation = (generate_uid() for _ in range(4))
    base = picture(*size_px) if rgb is None else rgb
    paths: list[Path] = []
    for level, scale in enumerate(scales or [2**level for level in range(levels)]):
        pixels = coarser(base, scale)
        frames, places = cut_tiles(pixels, tile_px)
        if organization == "TILED_SPARSE" and level == 0:
            keep = [i for i, place in enumerate(places) if not leave_out(*place)]
            frames, places = [frames[i] for i in keep], [places[i] for i in keep]
        pieces = parts if level == 0 else 1
        bounds = np.linspace(0, len(frames), pieces + 1).astype(int)
        for piece in range(pieces):
            part = slice(bounds[piece], bounds[piece + 1])
            dataset = image_dataset(frames[part], encoding, tile_px, pixels.shape[1::-1])
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
            dataset.FrameOfReferenceUID = frame_of_reference
            dataset.InstanceNumber = len(paths) + 1
            dataset.ImageOrientationSlide = list(orientation)
            place_frames(dataset, organization, places[part], um_per_px * scale, origin_mm)
            if pieces > 1 and organization == "TILED_FULL":
                dataset.ConcatenationUID = concatenation
                dataset.InConcatenationNumber = piece + 1
                dataset.ConcatenationFrameOffsetNumber = int(bounds[piece])
            if change is not None:
                change(dataset, level)
            paths.append(folder / f"level-{level}-{piece}.dcm")
            dataset.save_as(paths[-1], enforce_file_format=True)
    return WrittenSlide(study, series, tuple(paths))


def coarser(rgb: UInt8, scale: float) -> UInt8:
    """The level that is so many times coarser."""
    height, width = (int(side // scale) for side in rgb.shape[:2])
    return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BOX))


def cut_tiles(rgb: UInt8, tile_px: tuple[int, int]) -> tuple[list[UInt8], list[tuple[int, int]]]:
    width, height = tile_px
    rows, columns = -(-rgb.shape[0] // height), -(-rgb.shape[1] // width)
    padded = np.full((rows * height, columns * width, 3), 255, np.uint8)
    padded[: rgb.shape[0], : rgb.shape[1]] = rgb
    places = [(column, row) for row in range(rows) for column in range(columns)]
    tiles = [
        np.ascontiguousarray(padded[r * height : (r + 1) * height, c * width : (c + 1) * width])
        for c, r in places
    ]
    return tiles, places


def image_dataset(
    frames: Sequence[UInt8], encoding: str, tile_px: tuple[int, int], size_px: tuple[int, ...]
) -> Dataset:
    syntax, photometric, encode = ENCODERS[encoding]
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.PatientID, ds.PatientName = "TEST-1", "Test^Slide"
    ds.PatientBirthDate = ds.PatientSex = ds.StudyID = ds.AccessionNumber = ""
    ds.ReferringPhysicianName = ""
    ds.StudyDate, ds.StudyTime = "20260101", "120000"
    ds.ContainerIdentifier = "CONTAINER-1"
    ds.Modality = "SM"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.Columns, ds.Rows = tile_px
    ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows = size_px
    ds.TotalPixelMatrixFocalPlanes = 1
    ds.NumberOfOpticalPaths = 1
    ds.NumberOfFrames = len(frames)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, photometric, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    encoded = [encode(frame) for frame in frames]
    ds.PixelData = b"".join(encoded) if encoding == "raw" else encapsulate(encoded)
    ds["PixelData"].VR = "OB"
    return ds


def place_frames(
    ds: Dataset,
    organization: str,
    places: Sequence[tuple[int, int]],
    um_per_px: float,
    origin_mm: Sequence[float] | None,
) -> None:
    ds.DimensionOrganizationType = organization
    measures = Dataset()
    measures.PixelSpacing = [um_per_px / 1000, um_per_px / 1000]
    measures.SliceThickness = 0.001
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    if origin_mm is not None:
        origin = Dataset()
        origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = origin_mm
        ds.TotalPixelMatrixOriginSequence = [origin]
    if organization == "TILED_SPARSE":
        items = []
        for column, row in places:
            position = Dataset()
            position.ColumnPositionInTotalImagePixelMatrix = column * ds.Columns + 1
            position.RowPositionInTotalImagePixelMatrix = row * ds.Rows + 1
            position.XOffsetInSlideCoordinateSystem = 0
            position.YOffsetInSlideCoordinateSystem = 0
            position.ZOffsetInSlideCoordinateSystem = 0
            item = Dataset()
            item.PlanePositionSlideSequence = [position]
            items.append(item)
        ds.PerFrameFunctionalGroupsSequence = items


def stored_pixels(*paths: Path) -> tuple[UInt8, NDArray[np.bool_]]:
    """Whole level as an independent reader sees it: pydicom's frames, Pillow's pixels.

    Returns
    -------
    rgb : (H, W, 3) uint8
        White where nothing is stored.
    stored : (H, W) bool
    """
    first = dcmread(paths[0])
    width, height = first.TotalPixelMatrixColumns, first.TotalPixelMatrixRows
    columns = -(-width // first.Columns)
    rows = -(-height // first.Rows)
    rgb = np.full((rows * first.Rows, columns * first.Columns, 3), 255, np.uint8)
    stored = np.zeros(rgb.shape[:2], np.bool_)
    for path in paths:
        ds = dcmread(path)
        for number, pixels in enumerate(frames_of(ds)):
            y, x = _corner(ds, number, columns)
            target = np.s_[y : y + ds.Rows, x : x + ds.Columns]
            rgb[target], stored[target] = pixels, True
    return rgb[:height, :width], stored[:height, :width]


def frames_of(ds: Dataset) -> list[UInt8]:
    """Decoded frames, by pydicom and Pillow."""
    if ds.file_meta.TransferSyntaxUID == JPEGBaseline8Bit:
        encoded = generate_frames(ds.PixelData, number_of_frames=int(ds.NumberOfFrames))
        return [np.array(Image.open(io.BytesIO(frame)).convert("RGB")) for frame in encoded]
    return list(ds.pixel_array.reshape(-1, ds.Rows, ds.Columns, 3))


def _corner(ds: Dataset, number: int, columns: int) -> tuple[int, int]:
    if "PerFrameFunctionalGroupsSequence" in ds:
        position = ds.PerFrameFunctionalGroupsSequence[number].PlanePositionSlideSequence[0]
        return (
            position.RowPositionInTotalImagePixelMatrix - 1,
            position.ColumnPositionInTotalImagePixelMatrix - 1,
        )
    row, column = divmod(number + ds.get("ConcatenationFrameOffsetNumber", 0), columns)
    return row * ds.Rows, column * ds.Columns
