"""What earlier tries of a job have written is delivered by later ones, whatever changed since.

A try may have stored results in the archive before it failed, as while the EHR is down. Made again
by the next version of the node, with another model or with other settings, they would be other
objects, and stand beside the first ones.
"""

from __future__ import annotations

from typing import Any

from dicom_io.errors import ConfigurationInvalid
from node.job_places import begun_with
from node.job_queue import JobQueue
from node.stages import written_before
from node.workplace import Workplace

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
        When an earlier try has written results in another way, which are not here.
    """
    earlier = jobs.written_by_earlier(try_id)
    if earlier is None or begun_with(earlier) == begun_with(opened):
        return opened
    written = written_before(place, earlier["identity"])
    if written is None:
        raise ConfigurationInvalid(
            f"The model package, the settings or the node's version changed after job {try_id} had "
            "written its results, whose files are not here: submit the slide again, and remove "
            "from the archive what the job had stored."
        )
    return opened | begun_with(earlier) | {"identity": earlier["identity"], "written": written}
