"""How an instance's frames are stored, as far as it can be read here."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace

from pydicom.uid import UID

from dicom_io.decoding import (
    ENCODINGS,
    EXPLICIT_LE,
    JPEG_BASELINE,
    PixelFormat,
    colour_contradiction,
    transfer_syntax_of,
)
from dicom_io.dicom_json import value, values
from dicom_io.errors import PixelsUnsupported
from dicom_io.level_image import LevelImage
from dicom_io.pacs import InstanceReference, Pacs
from dicom_io.read_budget import most_frame_bytes

log = logging.getLogger(__name__)

# Of LossyImageCompressionMethod (PS3.3 C.7.6.1.1.5.1).
JPEG_METHOD = "ISO_10918_1"
# Names that the dictionary at hand is too old for.
NAMES = {
    "1.2.840.10008.1.2.1.98": "Encapsulated Uncompressed Explicit VR Little Endian",
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}


def transfer_syntax(pacs: Pacs, instance: InstanceReference, image: LevelImage) -> str:
    """Transfer syntax of the stored frames: as the archive or the header says, or a frame tells.

    The frame is asked for only where nothing else tells: an archive that reads the whole file for
    every request would read it once more.

    Raises
    ------
    PixelsUnsupported
        It, or the colours in it, cannot be decoded here.
    """
    uid = image.available_transfer_syntax
    if uid is None and _is_jpeg(image):
        uid = JPEG_BASELINE
    if uid is None:
        most_bytes = most_frame_bytes(image.tile_size_px)
        first = next(pacs.frames(instance, [0], most_bytes=most_bytes))
        uid = transfer_syntax_of(first, image.tile_size_px)
        if uid == EXPLICIT_LE and _is_of_jpeg(image):
            _check_not_decoded(
                first, image.tile_size_px, image.photometric_interpretation, image.sop_uid
            )
    return _readable(uid, image.photometric_interpretation, image.sop_uid)


def _is_jpeg(image: LevelImage) -> bool:
    """Whether the header says that it is a JPEG; :func:`told` sees whether that is true.

    An archive may refuse to give "whatever is stored", and give a JPEG by its name. Only where
    the header says that it is one: asked for what is not stored, an archive encodes it anew. Who
    names no method of lossy compression, though it is required, is taken to mean the usual one.
    """
    return _is_of_jpeg(image) and image.photometric_interpretation == "YBR_FULL_422"


def _is_of_jpeg(image: LevelImage) -> bool:
    """Whether the pixels have last been through a JPEG, as far as the header says."""
    lossy = value(image.metadata, "LossyImageCompression") == "01"
    method = (values(image.metadata, "LossyImageCompressionMethod") or [JPEG_METHOD])[-1]
    return bool(lossy and method == JPEG_METHOD)


def _check_not_decoded(
    frame: bytes, size_px: tuple[int, int], photometric_interpretation: str, sop_uid: str
) -> None:
    """Raise PixelsUnsupported where an archive that decodes may have turned colours into RGB."""
    if len(frame) >= 3 * size_px[0] * size_px[1] and photometric_interpretation != "RGB":
        raise PixelsUnsupported(
            f"Frames of instance {sop_uid} come decoded, though it is a JPEG in"
            f" {photometric_interpretation}, so that their colours cannot be told: let the archive"
            " give what is stored."
        )


def _readable(uid: str | None, photometric_interpretation: str, sop_uid: str) -> str:
    if uid not in ENCODINGS:
        name = "of an unknown kind" if uid is None else f"in transfer syntax {_name(uid)}"
        raise PixelsUnsupported(
            f"Frames of instance {sop_uid} are {name}: transcode the slide to JPEG baseline"
            " or JPEG 2000."
        )
    if photometric_interpretation not in ENCODINGS[uid].colours:
        raise PixelsUnsupported(
            f"Instance {sop_uid} stores {photometric_interpretation} colours in transfer syntax"
            f" {_name(uid)}, which cannot be read: convert the slide to RGB or JPEG baseline."
        )
    return uid


def told(first: bytes, form: PixelFormat, sop_uid: str) -> PixelFormat:
    """How an instance's frames are stored, now that its first frame is there.

    What was taken for JPEG baseline may be something else (:func:`transfer_syntax`): the frame is
    right. Where its colours are not what the header says, that is logged.

    Raises
    ------
    PixelsUnsupported
        The colours cannot be decoded in what the frames are, or cannot be told: the header is that
        of the JPEG, and an archive that decodes may have turned them into RGB or not.
    """
    if form.transfer_syntax_uid == JPEG_BASELINE:
        uid = transfer_syntax_of(first, form.size_px) or JPEG_BASELINE
        uid = _readable(uid, form.photometric_interpretation, sop_uid)
        if uid == EXPLICIT_LE:
            _check_not_decoded(first, form.size_px, form.photometric_interpretation, sop_uid)
        form = replace(form, transfer_syntax_uid=uid)
    try:
        contradiction = colour_contradiction(first, form)
    except ValueError:
        return form  # said, with the number of the frame, when it is decoded
    if contradiction:
        _log_once(sop_uid, contradiction)
    return form


@functools.lru_cache(maxsize=256)
def _log_once(sop_uid: str, contradiction: str) -> None:
    """A slide is read several times."""
    log.warning("Frames of instance %s are %s: read as they are", sop_uid, contradiction)


def _name(uid: str) -> str:
    return f"{NAMES.get(uid, UID(uid).name)} ({uid})"
