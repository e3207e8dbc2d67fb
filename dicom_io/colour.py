"""Colours of the scanner → sRGB, by the ICC profile that the slide carries. Off by default.

Models are trained on the RGB that scanners store, so an analysis takes pixels as they are; a site
whose model was trained on sRGB turns the transform on, and its results say so.
"""

from __future__ import annotations

import base64
import binascii
import io
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from dicom_io.dicom_json import key, nested, value, values
from dicom_io.errors import (
    PacsAnswerInvalid,
    PacsNotFound,
    PacsRefused,
    PacsUnauthorized,
    PixelsUnsupported,
)
from dicom_io.slide import Slide

UInt8 = NDArray[np.uint8]

log = logging.getLogger(__name__)

MAX_PROFILE_BYTES = 16 * 2**20
PROFILE_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)


def icc_profile(base: Mapping[str, Any], fetch: Callable[[str], bytes]) -> bytes:
    """ICC profile of the first optical path, or else of the image (PS3.3 C.8.12.5, C.11.15).

    Parameters
    ----------
    base
        DICOM JSON of an instance of the base level.
    fetch
        Gives what lies behind a BulkDataURI.

    Raises
    ------
    PixelsUnsupported
        There is none.
    """
    for holder in (nested(dict(base), "OpticalPathSequence"), base):
        element = holder.get(key("ICCProfile"), {})
        if "InlineBinary" in element:
            try:
                return base64.b64decode(element["InlineBinary"], validate=True)
            except (binascii.Error, TypeError, ValueError) as error:
                raise _unusable("is damaged") from error
        if "BulkDataURI" in element:
            return fetch(str(element["BulkDataURI"]))
    raise _unusable("is missing")


def profile_read(slide: Slide, fetch: Callable[[str], bytes]) -> bytes:
    """ICC profile of the optical path that is read.

    Raises
    ------
    PixelsUnsupported
        There is none.
    """
    return icc_profile(_of_path(slide), fetch)


def carried_profile(slide: Slide, fetch: Callable[[str], bytes]) -> bytes:
    """The same for documents to carry; empty without one, or where the archive will not give it."""
    try:
        return profile_read(slide, fetch)
    except (PixelsUnsupported, PacsNotFound):
        return b""
    except (PacsRefused, PacsAnswerInvalid, PacsUnauthorized) as error:
        log.warning("Results carry no ICC profile: %s", error)
        return b""


def _of_path(slide: Slide) -> Mapping[str, Any]:
    """Colour metadata with the path that is read alone; names need not agree where it is one."""
    if slide.optical_path.paths == 1:
        return slide.colour_metadata
    paths = values(dict(slide.colour_metadata), "OpticalPathSequence")
    wanted = slide.optical_path.identifier
    read = [p for p in paths if str(value(p or {}, "OpticalPathIdentifier") or "") == wanted]
    return {**slide.colour_metadata, key("OpticalPathSequence"): {"vr": "SQ", "Value": read}}


@lru_cache(maxsize=1)
def to_srgb(profile: bytes) -> Callable[[UInt8], UInt8]:
    """Transform of (H, W, 3) pixels, by a table of all 2²⁴ colours: 64 MiB, exact, made once.

    Relative colorimetric: colours inside sRGB stay what they are, and white stays white.

    Raises
    ------
    PixelsUnsupported
        The profile is damaged, or not one of an RGB device.
    """
    if len(profile) > MAX_PROFILE_BYTES:
        raise _unusable(f"has {len(profile)} bytes")
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            "RGB",
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
    except PROFILE_ERRORS as error:
        raise _unusable("is damaged, or not one of an RGB device") from error
    table = _table(transform)

    def transformed(rgb: UInt8) -> UInt8:
        colour = rgb.astype(np.uint32)
        index = colour[..., 0] << 16 | colour[..., 1] << 8 | colour[..., 2]
        found: UInt8 = table.take(index).view(np.uint8).reshape(*rgb.shape[:2], 4)[..., :3]
        return found

    return transformed


def _table(transform: ImageCms.ImageCmsTransform) -> NDArray[np.uint32]:
    """(2²⁴,) uint32: bytes R, G, B, 0 of each colour, red slowest."""
    table = np.zeros((256, 256, 256, 4), np.uint8)
    plane = np.empty((256, 256, 3), np.uint8)
    plane[..., 1], plane[..., 2] = np.arange(256)[:, None], np.arange(256)
    for red in range(256):
        plane[..., 0] = red
        table[red, ..., :3] = np.asarray(transform.apply(Image.fromarray(plane)))
    return table.view(np.uint32).reshape(-1)


def _unusable(what: str) -> PixelsUnsupported:
    return PixelsUnsupported(
        f"The ICC profile of the slide {what}: set read.icc to none, or store the slide again"
        " with its profile in OpticalPathSequence."
    )
