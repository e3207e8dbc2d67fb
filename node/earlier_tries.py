"""What earlier tries of a job have written is delivered by later ones, whatever changed since.

A try may have stored results in the archive before it failed, as while the EHR is down. Made again
by the next version of the node, with another model, with other settings or of a slide to which a
level has come meanwhile, they would be other objects, and stand beside the first ones.

So it is with a completed job that is asked for again: its results are compared with what the
archive and the EHR have, and the log says that the slide has changed. It is analysed as it is now
once they are withdrawn, or neither their files nor the archive has them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from dicom_io.errors import ConfigurationInvalid
from node.config import Settings
from node.delivery import open_destination
from node.job_places import begun_with
from node.job_queue import JobQueue
from node.outputs import DICOM_MEDIA_TYPE
from node.stages import written_before
from node.workplace import Workplace

log = logging.getLogger(__name__)

Json = dict[str, Any]


def as_begun(place: Workplace, jobs: JobQueue, opened: Json, try_id: str) -> Json:
    """What a try goes on with once it has opened the slide.

    Parameters
    ----------
    place
    jobs
    opened
        Of :func:`node.stages.open_`.
    try_id

    Raises
    ------
    ConfigurationInvalid
        When an earlier try has delivered other results, whose files are not here.
    PacsError
        When the archive cannot be asked for them.
    """
    found = jobs.written_by_earlier(try_id)
    if found is None:
        return opened
    earlier, recorded = found
    if earlier["identity"] == opened["identity"]:
        return opened
    written = written_before(place, earlier["identity"])
    if written is None:
        if not _is_in_archive(place.settings, recorded):
            return opened
        raise ConfigurationInvalid(
            f"The slide, the model package, the settings or the node's version changed after job "
            f"{try_id} had written its results, whose files are not here: remove what it had "
            "stored from the archive and the EHR, then submit the slide again."
        )
    if begun_with(earlier) == begun_with(opened):  # all else being the same, the slide changed
        if written["standing"] == "withdrawn":
            return opened
        log.warning(
            "Series %s has changed since job %s wrote its results: these are delivered, of the "
            "slide as it was. Withdraw them, then submit it again, to have it analysed as it is.",
            opened["series_uid"],
            try_id,
        )
        written = written | {"summary": written["summary"] | {"slide_changed": True}}
    return opened | begun_with(earlier) | {"identity": earlier["identity"], "written": written}


def _is_in_archive(settings: Settings, written: Mapping[str, Any]) -> bool:
    """Whether any of a result's documents was delivered."""
    with open_destination(settings) as archive:
        return any(
            archive.has_instance(each["study_uid"], each["series_uid"], each["uid"])
            for each in written["artifacts"].values()
            if each["media_type"] == DICOM_MEDIA_TYPE
        )
