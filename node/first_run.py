"""What was written of a result first stays what is said of it.

A SOP Instance UID names one content for ever (PS3.5 section 9), and the archive keeps the first
that it was given. So whoever makes the documents of a finished analysis again, because its work
files are gone, or another node's were never here, gives them the times of the first run: then all
of them are the same again, also those whose bytes hold a time, and the report in the EHR still says
when the result was issued. So it is with a review that is repeated where its revision is not known
any more, as after an older backup was restored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydicom.dataset import Dataset

from dicom_io.analysis import Analysis
from dicom_io.dimse import DimseArchive
from dicom_io.report import report_place
from dicom_io.report_content import report_times
from node.config import Settings
from node.delivery import open_destination

# What a report says, who says it, and about which one before; all else follows, or is copied.
_SAID = ("ContentSequence", "VerifyingObserverSequence", "PredecessorDocumentsSequence")


def with_first_times(settings: Settings, analysis: Analysis) -> Analysis:
    """An analysis, or a review, with the times of its first run, if the archive has its report.

    An archive that can only be asked by C-FIND returns no report: the times stay as they are.

    Raises
    ------
    PacsError
        When the archive cannot be asked.
    """
    report = _in_archive(settings, report_place(analysis))
    times = None if report is None else report_times(report)
    if times is None:
        return analysis
    started, issued = times
    if analysis.signature is None:
        return replace(analysis, started=started, finished=issued)
    signature = replace(analysis.signature, at=issued)
    finished = issued if analysis.by_hand else analysis.finished
    return replace(analysis, signature=signature, finished=finished)


def is_what_the_archive_has(settings: Settings, written: Mapping[str, Any]) -> bool:
    """Whether the archive's report, if it is there, was issued when these documents say.

    It was not where two nodes finished the same analysis at the same time: the archive has the
    documents of the quicker one.

    Parameters
    ----------
    settings
    written
        A revision, see :mod:`node.revisions`.

    Raises
    ------
    PacsError
        When the archive cannot be asked.
    """
    place = written["artifacts"]["SR"]
    report = _in_archive(settings, (place["study_uid"], place["series_uid"], place["uid"]))
    times = None if report is None else report_times(report)
    return times is None or times[1] == datetime.fromisoformat(written["issued"])


def archive_has_another(settings: Settings, report: Dataset) -> bool:
    """Whether the archive has a report of this UID that says something else.

    Parameters
    ----------
    settings
    report
        With the times of :func:`with_first_times`.

    Raises
    ------
    PacsError
        When the archive cannot be asked.
    """
    place = (report.StudyInstanceUID, report.SeriesInstanceUID, report.SOPInstanceUID)
    there = _in_archive(settings, place)
    return there is not None and any(there.get(name) != report.get(name) for name in _SAID)


def _in_archive(settings: Settings, place: tuple[str, str, str]) -> Dataset | None:
    with open_destination(settings) as archive:
        if isinstance(archive, DimseArchive) and not archive.reads_back:
            return None
        return archive.retrieve_instance(*place) if archive.has_instance(*place) else None
