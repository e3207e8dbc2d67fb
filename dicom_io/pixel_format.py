"""How an instance's frames are stored, as far as it can be read here."""

from __future__ import annotations

import logging

from pydicom.uid import UID

from dicom_io.decoding import (
    ENCODINGS,
    JPEG_BASELINE,
    PixelFormat,
    colour_contradiction,
    transfer_syntax_of,
)
from dicom_io.dicom_json import value
from dicom_io.errors import PixelsUnsupported
from dicom_io.level_image import LevelImage
from dicom_io.pacs import InstanceReference, Pacs
from dicom_io.read_budget import most_frame_bytes

log = logging.getLogger(__name__)

# Names that the dictionary at hand is too old for.
NAMES = {
    "1.2.840.10008.1.2.1.98": "Encapsulated Uncompressed Explicit VR Little Endian",
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}


def transfer_syntax(pacs: Pacs, instance: InstanceReference, image: LevelImage) -> str:
    """Transfer syntax of the stored frames, from the metadata or else from the first frame.

    Raises
    ------
    PixelsUnsupported
        It, or the colours in it, cannot be decoded here.
    """
    uid, first = image.available_transfer_syntax, b""
    if uid is None:
        most_bytes = most_frame_bytes(image.tile_size_px)
        first = next(pacs.frames(instance, [0], _named(image), most_bytes=most_bytes))
        uid = transfer_syntax_of(first, image.tile_size_px)
    photometric = image.photometric_interpretation
    if uid not in ENCODINGS:
        name = "of an unknown kind" if uid is None else f"in transfer syntax {_name(uid)}"
        raise PixelsUnsupported(
            f"Frames of instance {image.sop_uid} are {name}: transcode the slide to JPEG baseline"
            " or JPEG 2000."
        )
    if photometric not in ENCODINGS[uid].colours:
        raise PixelsUnsupported(
            f"Instance {image.sop_uid} stores {photometric} colours in transfer syntax"
            f" {_name(uid)}, which cannot be read: convert the slide to RGB or JPEG baseline."
        )
    if first:
        _log_contradiction(
            first, PixelFormat(uid, photometric, image.tile_size_px, image.planar), image.sop_uid
        )
    return uid


def _named(image: LevelImage) -> str | None:
    """Transfer syntax to ask for by name, where the header leaves no other.

    An archive may refuse to give "whatever is stored", and give a JPEG by its name. Only where
    the header says that it is one: asked for what is not stored, an archive encodes it anew.
    """
    lossy = value(image.metadata, "LossyImageCompression") == "01"
    return JPEG_BASELINE if lossy and image.photometric_interpretation == "YBR_FULL_422" else None


def _log_contradiction(first: bytes, form: PixelFormat, sop_uid: str) -> None:
    try:
        contradiction = colour_contradiction(first, form)
    except ValueError:
        return  # said, with the number of the frame, when it is decoded
    if contradiction:
        log.warning("Frames of instance %s are %s: read as they are", sop_uid, contradiction)


def _name(uid: str) -> str:
    return f"{NAMES.get(uid, UID(uid).name)} ({uid})"
