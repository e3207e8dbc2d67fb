"""A single camera field from a file: PNG, JPEG, TIFF, or DICOM VL Microscopic Image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels.utils import pixel_array

from dicom_io.errors import InputError, PixelsUnsupported
from models.records import UInt8

_PREAMBLE = slice(128, 132)
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


@dataclass(frozen=True, slots=True, eq=False)
class FieldImage:
    """A camera field.

    Attributes
    ----------
    rgb : (H, W, 3) uint8
    um_per_px
        As the file states it; None where it states none, or different ones along x and y.
    """

    rgb: UInt8
    um_per_px: float | None


def read_field_image(path: Path) -> FieldImage:
    """Read one field.

    Raises
    ------
    InputError
        The file cannot be read or is no image.
    PixelsUnsupported
        More than 8 bits; or a DICOM image that is not colour, or has many frames.
    """
    try:
        start = path.open("rb").read(132)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name another file.") from error
    if start[_PREAMBLE] == b"DICM":
        return _dicom(path)
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):  # would be cut off at 255
                raise PixelsUnsupported(f"{path} has more than 8 bits: save it as 8-bit RGB.")
            return FieldImage(np.asarray(picture.convert("RGB")), None)
    # All of these come out of broken files.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is no image that can be read: save it as PNG.") from error


def _dicom(path: Path) -> FieldImage:
    try:
        document = dcmread(path)
    except (InvalidDicomError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable DICOM file: export it again.") from error
    if (
        document.get("SamplesPerPixel") != 3
        or document.get("BitsAllocated") != 8
        or int(document.get("NumberOfFrames", 1)) != 1
    ):
        raise PixelsUnsupported(
            f"{path} is not one colour image of 8 bits: export a VL Microscopic Image."
        )
    try:
        rgb = np.asarray(pixel_array(document), dtype=np.uint8)  # YBR is made RGB
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise PixelsUnsupported(
            f"{path}: its pixels in {document.file_meta.TransferSyntaxUID} cannot be decoded;"
            " export it uncompressed."
        ) from error
    return FieldImage(rgb, _um_per_px(document))


def _um_per_px(document: Dataset) -> float | None:
    """PS3.3 C.8.12.2: spacing is (row, column) in mm; of equal sides only."""
    for keyword in _SPACINGS:
        spacing = document.get(keyword)
        if not isinstance(spacing, MultiValue) or len(spacing) != 2:
            continue
        rows_mm, columns_mm = map(float, spacing)
        if min(rows_mm, columns_mm) > 0 and abs(rows_mm / columns_mm - 1) < 0.01:
            return rows_mm * 1000
    return None
