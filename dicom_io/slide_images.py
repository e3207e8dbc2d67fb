"""Which instances of an archive make up a slide: its series, thumbnails, and other series."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence

from pydicom.config import IGNORE
from pydicom.uid import UID

from dicom_io.dicom_json import value
from dicom_io.errors import (
    InputError,
    NotWholeSlideImage,
    PacsNotFound,
    PacsRefused,
    SeriesNotFound,
)
from dicom_io.level_image import LevelImage, image_kind, level_image
from dicom_io.pacs import Pacs
from dicom_io.pyramid import by_level, is_coarser_view, one_pyramid
from dicom_io.series_metadata import InstanceMetadata, read_series_metadata

log = logging.getLogger(__name__)

WHOLE_SLIDE_IMAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
# A slide whose coarsest level is longer than this has no low level: it may lie in another series.
LOW_LEVEL_PX = 8192
MAX_OTHER_SERIES = 20


def volume_images(
    pacs: Pacs, study_uid: str, series_uid: str
) -> tuple[list[LevelImage], list[InstanceMetadata]]:
    """Ask for the levels of a series, and for what may serve as a further one.

    Returns
    -------
    images
        ImageType value 3 VOLUME, finest first.
    thumbnails
        ImageType value 3 THUMBNAIL.

    Raises
    ------
    SeriesNotFound, NotWholeSlideImage, SlideGeometryInvalid, dicom_io.errors.PacsError
    """
    metadata = _metadata(pacs, study_uid, series_uid)
    slides = [m for m in metadata if value(m.header, "SOPClassUID") == WHOLE_SLIDE_IMAGE]
    if not slides:
        raise NotWholeSlideImage(
            f"Series {series_uid} holds no VL Whole Slide Microscopy image: choose a series of"
            " whole slide images."
        )
    volume = _of_kind("VOLUME", slides)
    if not volume:
        raise NotWholeSlideImage(
            f"Series {series_uid} holds no VOLUME level, only label, overview or thumbnail images:"
            " choose the series with the scanned slide."
        )
    images = one_pyramid((level_image(instance) for instance in volume), series_uid)
    return images, _of_kind("THUMBNAIL", slides)


def low_level(
    pacs: Pacs,
    study_uid: str,
    groups: Sequence[Sequence[LevelImage]],
    thumbnails: Sequence[InstanceMetadata],
    instances: Collection[str] | None = None,
) -> list[list[LevelImage]]:
    """Levels coarser than the slide's own: its thumbnail, and those in other series if need be.

    Taken are only images that :func:`dicom_io.pyramid.is_coarser_view` lets pass.

    Parameters
    ----------
    pacs, study_uid
    groups
        Instances of each level, finest first.
    thumbnails
    instances
        SOP Instance UIDs of those that may be taken; None for all.
    """
    base, coarsest = groups[0][0], groups[-1][0]
    added = list(_coarser(base, coarsest, by_level(_usable(_among(thumbnails, instances)))))
    if max((added or groups)[-1][0].size_px) <= LOW_LEVEL_PX:
        return added
    for series_uid in _other_series(pacs, study_uid, base.series_uid):
        there = _among(_read_metadata(pacs, study_uid, series_uid), instances)
        slides = [m for m in there if value(m.header, "SOPClassUID") == WHOLE_SLIDE_IMAGE]
        images = _usable([*_of_kind("VOLUME", slides), *_of_kind("THUMBNAIL", slides)])
        for group in _coarser(base, (added or groups)[-1][0], by_level(images)):
            log.info("Series %s lends a low level to series %s", series_uid, base.series_uid)
            added.append(group)
    return added


def _among(
    found: Iterable[InstanceMetadata], instances: Collection[str] | None
) -> list[InstanceMetadata]:
    return [
        each
        for each in found
        if instances is None or str(value(each.header, "SOPInstanceUID")) in instances
    ]


def _coarser(
    base: LevelImage, coarsest: LevelImage, groups: Iterable[list[LevelImage]]
) -> Iterator[list[LevelImage]]:
    for group in groups:
        if all(is_coarser_view(base, coarsest, image) for image in group):
            coarsest = group[0]
            yield group
        else:
            log.info("Instance %s is not used as a level of the slide", group[0].sop_uid)


def _usable(instances: Iterable[InstanceMetadata]) -> Iterator[LevelImage]:
    """Images that can be read at all; nothing depends on those that cannot."""
    for instance in instances:
        try:
            yield level_image(instance)
        except InputError as error:
            log.info("An image beside the pyramid is not used: %s", error)


def _of_kind(kind: str, instances: Iterable[InstanceMetadata]) -> list[InstanceMetadata]:
    return [instance for instance in instances if image_kind(instance.header) == kind]


def _other_series(pacs: Pacs, study_uid: str, series_uid: str) -> list[str]:
    try:
        found = pacs.search_series(study_uid)
    except (PacsNotFound, PacsRefused) as error:
        log.warning("Series %s has no low level, and no other is searched: %s", series_uid, error)
        return []
    uids = {
        str(value(series, "SeriesInstanceUID"))
        for series in found
        if value(series, "Modality") in ("SM", None)
        and value(series, "StudyInstanceUID") in (study_uid, None)
    }
    sound = (uid for uid in uids - {series_uid} if UID(uid, validation_mode=IGNORE).is_valid)
    return sorted(sound)[:MAX_OTHER_SERIES]


def _metadata(pacs: Pacs, study_uid: str, series_uid: str) -> list[InstanceMetadata]:
    absent = SeriesNotFound(
        f"{pacs.name} knows no series {series_uid} in study {study_uid}: check the UIDs and that"
        " the slide has arrived."
    )
    for uid in (study_uid, series_uid):
        if not UID(uid, validation_mode=IGNORE).is_valid:
            raise SeriesNotFound(f"{uid!r} is not a DICOM UID: give study and series UID.")
    try:
        metadata = _read_metadata(pacs, study_uid, series_uid)
    except PacsNotFound as error:
        raise absent from error
    # An archive that ignores the path answers with other series too. A tuple: what is no UID at all
    # may not fit into a set.
    metadata = [m for m in metadata if value(m.header, "SeriesInstanceUID") in (series_uid, None)]
    if not metadata:
        raise absent
    modalities = {str(found) for m in metadata if (found := value(m.header, "Modality"))}
    if modalities and "SM" not in modalities:
        raise NotWholeSlideImage(
            f"Series {series_uid} has modality {', '.join(sorted(modalities))}, not SM: choose a"
            " series of whole slide images."
        )
    return metadata


def _read_metadata(pacs: Pacs, study_uid: str, series_uid: str) -> list[InstanceMetadata]:
    """Metadata of each instance once: some archives list one that was sent again twice."""
    raw = pacs.series_metadata_bytes(study_uid, series_uid)
    once: dict[str, InstanceMetadata] = {}
    for instance in read_series_metadata(raw, pacs.name, series_uid):
        sop_uid = str(value(instance.header, "SOPInstanceUID"))
        if sop_uid in once:
            log.warning("%s lists instance %s of series %s twice", pacs.name, sop_uid, series_uid)
        once.setdefault(sop_uid, instance)
    return list(once.values())
