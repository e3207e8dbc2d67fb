"""How an instance's frames are stored, as far as it can be read here."""

from __future__ import annotations

from pydicom.uid import UID

from dicom_io.decoding import DECODERS, EXPLICIT_LE, PHOTOMETRIC_INTERPRETATIONS, transfer_syntax_of
from dicom_io.errors import PixelsUnsupported
from dicom_io.level_image import LevelImage
from dicom_io.pacs import InstanceReference, Pacs


def transfer_syntax(pacs: Pacs, instance: InstanceReference, image: LevelImage) -> str:
    """Transfer syntax of the stored frames, from the metadata or else from the first frame.

    Raises
    ------
    PixelsUnsupported
        It, or the colours in it, cannot be decoded here.
    """
    uid = image.available_transfer_syntax
    if uid is None:
        first = next(pacs.frames(instance, [0]))
        uid = transfer_syntax_of(first, image.tile_size_px)
    if uid not in DECODERS:
        name = "of an unknown kind" if uid is None else f"in transfer syntax {UID(uid).name}"
        raise PixelsUnsupported(
            f"Frames of instance {image.sop_uid} are {name}: transcode the slide to JPEG baseline"
            " or JPEG 2000."
        )
    photometric = image.photometric_interpretation
    if photometric not in PHOTOMETRIC_INTERPRETATIONS[DECODERS[uid]] or (
        image.planar and uid == EXPLICIT_LE
    ):
        raise PixelsUnsupported(
            f"Instance {image.sop_uid} stores {photometric} colours in transfer syntax"
            f" {UID(uid).name}, which cannot be read: convert the slide to RGB or JPEG baseline."
        )
    return uid
