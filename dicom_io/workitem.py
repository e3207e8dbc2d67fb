"""Workitems: Unified Procedure Steps as DICOM JSON, and what PS3.4 annex CC allows of them.

Everything here is a function of the workitem at hand: where workitems are kept, and who is told of
their changes, is for the worklist. A workitem never holds its Transaction UID (0008,1195), which is
the lock of whoever performs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydicom.dataset import Dataset

from dicom_io.arrival import LONGEST_UID
from dicom_io.dicom_json import (
    FROM_JSON_ERRORS,
    Json,
    attributes,
    is_dicom_json,
    key,
    nested,
    value,
    values,
)
from dicom_io.errors import Refusal, WorkitemRefused
from dicom_io.folder_index import UID

# Of every workitem, whichever of the UPS SOP classes a system speaks (PS3.4 CC.3.1).
UPS_PUSH = "1.2.840.10008.5.1.4.34.6.1"
State = Literal["SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"]
SCHEDULED: State = "SCHEDULED"
IN_PROGRESS: State = "IN PROGRESS"
COMPLETED: State = "COMPLETED"
CANCELED: State = "CANCELED"
FINAL: tuple[State, ...] = (COMPLETED, CANCELED)
TRANSACTION = key("TransactionUID")
_READY = ("INCOMPLETE", "UNAVAILABLE", "READY")

# PS3.4 table CC.2.5-3, column N-CREATE. Type 1: keyword → values that it may have, if enumerated.
_NEEDED: dict[str, tuple[str, ...]] = {
    "ScheduledProcedureStepPriority": ("HIGH", "MEDIUM", "LOW"),
    "ProcedureStepLabel": (),
    "ScheduledProcedureStepStartDateTime": (),
    "InputReadinessState": _READY,
    "ProcedureStepState": (SCHEDULED,),
}
# Type 2: there, if only empty.
_THERE = (
    "WorklistLabel",
    "ScheduledProcessingParametersSequence",
    "ScheduledStationNameCodeSequence",
    "ScheduledStationClassCodeSequence",
    "ScheduledStationGeographicLocationCodeSequence",
    "ScheduledWorkitemCodeSequence",
    "CommentsOnTheScheduledProcedureStep",
    "InputInformationSequence",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "ReferencedRequestSequence",
    "ProcedureStepProgressInformationSequence",
    "UnifiedProcedureStepPerformedProcedureSequence",
)
# There and empty when a workitem is created.
_EMPTY_AT_FIRST = (
    "TransactionUID",
    "ProcedureStepProgressInformationSequence",
    "UnifiedProcedureStepPerformedProcedureSequence",
)
# Column N-SET "not allowed": decided when the workitem was created, or by another operation.
_FIXED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "ProcedureStepState",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "OtherPatientIDsSequence",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "ReferencedRequestSequence",
    "ReplacedProcedureStepSequence",
)
# Column Final State: R, and of the performed procedure P, of the progress X.
_ALWAYS_AT_END = (
    "SOPClassUID",
    "SOPInstanceUID",
    "ScheduledProcedureStepPriority",
    "ScheduledProcedureStepModificationDateTime",
    "ScheduledProcedureStepStartDateTime",
    "InputReadinessState",
    "ProcedureStepState",
)
_PERFORMED_AT_END = (
    "PerformedStationNameCodeSequence",
    "PerformedProcedureStepStartDateTime",
    "PerformedWorkitemCodeSequence",
    "PerformedProcedureStepEndDateTime",
    "OutputInformationSequence",
)
_CANCELED_AT_END = (
    "ProcedureStepCancellationDateTime",
    "ProcedureStepDiscontinuationReasonCodeSequence",
)
_SCHEDULED_INFORMATION = tuple(
    keyword for keyword in (*_NEEDED, *_THERE) if keyword not in ("ProcedureStepState", *_FIXED)
)

# PS3.4 table CC.1.1-2, rows "Change State … with correct transaction UID": (state, asked for) →
# why not. Pairs that are not here are allowed.
_REFUSED: dict[tuple[State, State], Refusal] = {
    (IN_PROGRESS, IN_PROGRESS): Refusal.CLAIMED,
    (COMPLETED, IN_PROGRESS): Refusal.ENDED,
    (CANCELED, IN_PROGRESS): Refusal.ENDED,
    (SCHEDULED, COMPLETED): Refusal.NOT_CLAIMED,
    (CANCELED, COMPLETED): Refusal.ENDED,
    (SCHEDULED, CANCELED): Refusal.NOT_CLAIMED,
    (COMPLETED, CANCELED): Refusal.ENDED,
}
_SENTENCES = {
    Refusal.ENDED: "Workitem {uid} is {state} and changes no more: create another one.",
    Refusal.CLAIMED: "Workitem {uid} is already IN PROGRESS: it has a performer.",
    Refusal.NOT_CLAIMED: "Workitem {uid} is SCHEDULED: claim it (IN PROGRESS) first.",
    Refusal.NOT_SCHEDULABLE: "Workitem {uid} was SCHEDULED when it was created, and never again.",
    Refusal.TRANSACTION_MISSING: "The request names no Transaction UID for workitem {uid}: add it.",
    Refusal.TRANSACTION_WRONG: "The Transaction UID is not that of workitem {uid}'s performer.",
}


@dataclass(frozen=True, slots=True)
class Created:
    """A workitem as it was taken.

    Attributes
    ----------
    item
    modified
        Whether more was put into it than UIDs and times.
    """

    item: Json
    modified: bool


def checked(given: Any) -> Json:
    """Refuse what is no DICOM JSON of one dataset.

    Raises
    ------
    WorkitemRefused
    """
    if not isinstance(given, dict) or not is_dicom_json(given):
        raise WorkitemRefused("The body is not one dataset of DICOM JSON (PS3.18 annex F).")
    try:
        Dataset.from_json(given).to_json_dict()
    except (*FROM_JSON_ERRORS, NotImplementedError) as error:
        raise WorkitemRefused(
            f"A value of the dataset is not what its VR allows ({type(error).__name__})."
        ) from error
    return given


def created(given: Json, uid: str, worklist_label: str, at: datetime) -> Created:
    """A new workitem, as N-CREATE makes it (PS3.4 CC.2.5, PS3.18 §11.4).

    Raises
    ------
    WorkitemRefused
        A needed attribute is missing, has another value than it may have, or is there too early.
    """
    state = value(given, "ProcedureStepState")
    if state not in (None, SCHEDULED):
        raise WorkitemRefused(
            "A workitem is created SCHEDULED, and claimed later: correct Procedure Step State.",
            Refusal.CREATED_IN_STATE,
        )
    for keyword, allowed in _NEEDED.items():
        _check_value(given, keyword, allowed)
    for keyword in _EMPTY_AT_FIRST:
        if values(given, keyword):
            raise WorkitemRefused(f"{keyword} has to be empty when a workitem is created.")
    added = [keyword for keyword in _THERE if key(keyword) not in given]
    unlabelled = not values(given, "WorklistLabel")
    item = (
        attributes(**{keyword: [] for keyword in added})
        | {tag: element for tag, element in given.items() if tag != TRANSACTION}
        | (attributes(WorklistLabel=worklist_label) if unlabelled else {})
        | attributes(
            SOPClassUID=UPS_PUSH,
            SOPInstanceUID=uid,
            ScheduledProcedureStepModificationDateTime=moment(at),
        )
    )
    item.pop(key("AffectedSOPInstanceUID"), None)
    return Created(item, modified=bool(added) or unlabelled)


def uid_of(named: str, given: Json) -> str:
    """UID of a workitem that is to be created: in the request's address, or in the dataset.

    Raises
    ------
    WorkitemRefused
        There is none, they differ, or it is malformed.
    """
    found = {
        str(each)
        for each in (
            named,
            value(given, "SOPInstanceUID"),
            value(given, "AffectedSOPInstanceUID"),
        )
        if each
    }
    if len(found) != 1:
        raise WorkitemRefused(
            "The request names no UID for the workitem, or several: give one, in the address or as "
            "SOP Instance UID (0008,0018)."
        )
    (uid,) = found
    return checked_uid(uid)


def checked_uid(uid: str) -> str:
    """Refuse what PS3.5 §9.1 does not call a UID.

    Raises
    ------
    WorkitemRefused
    """
    if not UID.fullmatch(uid) or len(uid) > LONGEST_UID:
        raise WorkitemRefused("A UID is malformed: digits and dots, at most 64 (PS3.5 §9.1).")
    return uid


def updated(item: Json, changes: Json, at: datetime) -> Json:
    """A workitem with changes, as N-SET makes them (PS3.4 CC.2.6): attributes are set as wholes.

    Raises
    ------
    WorkitemRefused
        An attribute may not be changed, or not so.
    """
    for keyword in _FIXED:
        if key(keyword) in changes:
            raise WorkitemRefused(f"{keyword} of a workitem cannot be set by an update.")
    for keyword, allowed in _NEEDED.items():
        if key(keyword) in changes:
            _check_value(changes, keyword, allowed)
    replanned = any(key(keyword) in changes for keyword in _SCHEDULED_INFORMATION)
    changed = attributes(ScheduledProcedureStepModificationDateTime=moment(at)) if replanned else {}
    return item | {tag: each for tag, each in changes.items() if tag != TRANSACTION} | changed


def check_transaction(item: Json, given: str, own: str) -> None:
    """Compare a Transaction UID with that of the performer; without one, any that is given will do.

    Parameters
    ----------
    item
    given
        In the request.
    own
        Of the performer; empty while nobody has claimed the workitem.

    Raises
    ------
    WorkitemRefused
    """
    if not given:
        raise refused(item, Refusal.TRANSACTION_MISSING)
    checked_uid(given)
    if own and given != own:
        raise refused(item, Refusal.TRANSACTION_WRONG)


def check_change(item: Json, asked: str) -> bool:
    """Whether a change of state is still to be made; its Transaction UID was compared before.

    Returns
    -------
    bool
        False where the workitem is in that final state already.

    Raises
    ------
    WorkitemRefused
        As PS3.4 table CC.1.1-2 has it.
    """
    states: tuple[State, ...] = (IN_PROGRESS, *FINAL)
    found = [state for state in states if state == asked]
    if asked == SCHEDULED:
        raise refused(item, Refusal.NOT_SCHEDULABLE)
    if not found:
        raise WorkitemRefused("Procedure Step State is IN PROGRESS, COMPLETED or CANCELED.")
    why = _REFUSED.get((state_of(item), found[0]))
    if why is not None:
        raise refused(item, why)
    if state_of(item) == asked:
        return False
    lacking = lacking_for(item, found[0])
    if lacking:
        raise WorkitemRefused(
            f"Workitem {workitem_uid(item)} cannot become {asked} before it has "
            f"{', '.join(lacking)} (PS3.4 table CC.2.5-3): update it first.",
            Refusal.NOT_FINAL,
        )
    return True


def lacking_for(item: Json, state: State) -> list[str]:
    """Keywords that the final state asks for and that have no value (PS3.4 CC.2.5.1.1)."""
    if state not in FINAL:
        return []
    lacking = [keyword for keyword in _ALWAYS_AT_END if not values(item, keyword)]
    sequence, needed = (
        ("UnifiedProcedureStepPerformedProcedureSequence", _PERFORMED_AT_END)
        if state == COMPLETED
        else ("ProcedureStepProgressInformationSequence", _CANCELED_AT_END)
    )
    steps = values(item, sequence)
    if not steps:
        return [*lacking, sequence]
    return lacking + [
        keyword for keyword in needed if not all(values(step, keyword) for step in steps)
    ]


def refused(item: Json, why: Refusal) -> WorkitemRefused:
    """The refusal as one sentence."""
    sentence = _SENTENCES[why].format(uid=workitem_uid(item), state=state_of(item))
    return WorkitemRefused(sentence, why)


def in_state(item: Json, state: State) -> Json:
    return item | attributes(ProcedureStepState=state)


def state_of(item: Json) -> State:
    state: State = value(item, "ProcedureStepState")
    return state


def workitem_uid(item: Json) -> str:
    return str(value(item, "SOPInstanceUID") or "")


def moment(at: datetime) -> str:
    """A time as VR DT (PS3.5 6.2), in UTC."""
    return at.astimezone(UTC).strftime("%Y%m%d%H%M%S.%f+0000")


def codes_in(item: Json, sequence: str) -> set[str]:
    """Codes of a code sequence, each as ``VALUE^SCHEME``."""
    found = set()
    for code in values(item, sequence):
        named = [value(code, each) for each in ("CodeValue", "LongCodeValue", "URNCodeValue")]
        scheme = value(code, "CodingSchemeDesignator") or ""
        found |= {f"{each}^{scheme}" for each in named if each}
    return found


def input_series(item: Json, sop_class: str) -> list[tuple[str, str]]:
    """Study and series UID of the inputs that have instances of a SOP class, each once."""
    found: dict[tuple[str, str], None] = {}
    for given in values(item, "InputInformationSequence"):
        study, series = value(given, "StudyInstanceUID"), value(given, "SeriesInstanceUID")
        instances = values(given, "ReferencedSOPSequence")
        classes = {value(each, "ReferencedSOPClassUID") for each in instances}
        if sop_class in classes and _is_uid(study) and _is_uid(series):
            found[study, series] = None
    return list(found)


def progress(percent: float, doing: str) -> Json:
    """Changes that tell how far the step is (PS3.3 C.30.1)."""
    return attributes(
        ProcedureStepProgressInformationSequence=[
            attributes(
                ProcedureStepProgress=float(round(percent)), ProcedureStepProgressDescription=doing
            )
        ]
    )


def canceled(at: datetime, sentence: str, code: Json) -> Json:
    """Changes that a workitem needs before it becomes CANCELED.

    Parameters
    ----------
    at
    sentence
        Reason For Cancellation.
    code
        Procedure Step Discontinuation Reason, as an item of a code sequence.
    """
    return attributes(
        ProcedureStepProgressInformationSequence=[
            attributes(
                ProcedureStepCancellationDateTime=moment(at),
                ReasonForCancellation=sentence,
                ProcedureStepDiscontinuationReasonCodeSequence=[code],
            )
        ]
    )


@dataclass(frozen=True, slots=True)
class Output:
    """One instance that was made.

    Attributes
    ----------
    sop_class_uid, study_uid, series_uid, sop_uid
    """

    sop_class_uid: str
    study_uid: str
    series_uid: str
    sop_uid: str


def performed(
    scheduled: Json,
    station: Json,
    begun: datetime,
    ended: datetime,
    outputs: Iterable[Output],
    retrieval: Mapping[str, str],
) -> Json:
    """Changes that tell what was done (PS3.3 C.30.3).

    Parameters
    ----------
    scheduled
        The workitem: what was scheduled is what was performed.
    station
        Performed Station Name, as an item of a code sequence.
    begun, ended
    outputs
    retrieval
        ``url``: base URL of a DICOMweb service that has them, or ``ae_title`` of an archive.
    """
    codes = values(scheduled, "ScheduledWorkitemCodeSequence")
    return attributes(
        UnifiedProcedureStepPerformedProcedureSequence=[
            attributes(
                PerformedStationNameCodeSequence=[station],
                PerformedProcedureStepStartDateTime=moment(begun),
                PerformedProcedureStepEndDateTime=moment(ended),
                PerformedWorkitemCodeSequence=codes,
                OutputInformationSequence=[_output(each, retrieval) for each in outputs],
            )
        ]
    )


def code_item(code_value: str, scheme: str, meaning: str) -> Json:
    """An item of a code sequence (PS3.3 8.8)."""
    return attributes(CodeValue=code_value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _output(output: Output, retrieval: Mapping[str, str]) -> Json:
    """Referenced Instances and Access (PS3.3 10.31)."""
    where: Json = {}
    if "url" in retrieval:
        path = f"studies/{output.study_uid}/series/{output.series_uid}/instances/{output.sop_uid}"
        url = f"{retrieval['url'].rstrip('/')}/{path}"
        where = attributes(WADORSRetrievalSequence=[attributes(RetrieveURL=url)])
    elif "ae_title" in retrieval:
        title = attributes(RetrieveAETitle=retrieval["ae_title"])
        where = attributes(DICOMRetrievalSequence=[title])
    return (
        attributes(
            TypeOfInstances="DICOM",
            StudyInstanceUID=output.study_uid,
            SeriesInstanceUID=output.series_uid,
            ReferencedSOPSequence=[
                attributes(
                    ReferencedSOPClassUID=output.sop_class_uid,
                    ReferencedSOPInstanceUID=output.sop_uid,
                )
            ],
        )
        | where
    )


def _check_value(given: Json, keyword: str, allowed: tuple[str, ...]) -> None:
    found = value(given, keyword)
    if not found:
        raise WorkitemRefused(f"{keyword} has no value, and a workitem needs one.")
    if allowed and found not in allowed:
        raise WorkitemRefused(f"{keyword} is one of {', '.join(allowed)}.")
    if keyword.endswith("DateTime") and not re.match(r"\d{4}", str(found)):
        raise WorkitemRefused(f"{keyword} is not a date and time (PS3.5 6.2, DT).")


def _is_uid(found: Any) -> bool:
    return isinstance(found, str) and bool(UID.fullmatch(found)) and len(found) <= LONGEST_UID


def reason_in(item: Json) -> Json:
    """Discontinuation reason that a request proposes, empty if it has none."""
    return nested(item, "ProcedureStepDiscontinuationReasonCodeSequence")
