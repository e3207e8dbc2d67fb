"""Event reports of workitems (PS3.4 CC.2.4, PS3.18 §11.13), as DICOM JSON."""

from __future__ import annotations

from collections.abc import Iterator

from dicom_io.dicom_json import Json, attributes, key, value, values
from dicom_io.workitem import UPS_PUSH, workitem_uid

# PS3.4 table CC.2.4-1
STATE_REPORT, CANCEL_REQUESTED, PROGRESS_REPORT, SCP_STATUS_CHANGE, ASSIGNED = range(1, 6)
_REASONS = ("ReasonForCancellation", "ProcedureStepDiscontinuationReasonCodeSequence")
_REQUEST = (*_REASONS, "ContactURI", "ContactDisplayName")
_ASSIGNMENT = ("ScheduledStationNameCodeSequence", "ScheduledHumanPerformersSequence")
_PROGRESS = "ProcedureStepProgressInformationSequence"


def state_report(item: Json) -> Json:
    """State and readiness of a workitem, and why it was canceled if it was."""
    told = _picked(item, ("ProcedureStepState", "InputReadinessState"))
    for step in values(item, _PROGRESS):
        told |= _picked(step, _REASONS)
    return _event(workitem_uid(item), STATE_REPORT) | told


def cancel_requested(uid: str, requester: str, request: Json) -> Json:
    """Somebody wishes that the performer cancels."""
    told = attributes(RequestingAE=requester) | _picked(request, _REQUEST)
    return _event(uid, CANCEL_REQUESTED) | told


def restarted(uid: str) -> Json:
    """The worklist was restarted, and has lost neither workitems nor subscriptions."""
    return _event(uid, SCP_STATUS_CHANGE) | attributes(
        SCPStatus="RESTARTED",
        SubscriptionListStatus="WARM START",
        UnifiedProcedureStepListStatus="WARM START",
    )


def created_events(item: Json) -> Iterator[Json]:
    """What the creation of a workitem is told by."""
    yield state_report(item)
    if any(values(item, keyword) for keyword in _ASSIGNMENT):
        yield _assigned(item)


def update_events(before: Json, after: Json) -> Iterator[Json]:
    """What a change of a workitem is told by; nothing where nobody has to know."""
    if any(_differ(before, after, each) for each in ("ProcedureStepState", "InputReadinessState")):
        yield state_report(after)
    if _differ(before, after, _PROGRESS) and values(after, _PROGRESS):
        report = _event(workitem_uid(after), PROGRESS_REPORT)
        yield report | {key(_PROGRESS): after[key(_PROGRESS)]}
    if any(_differ(before, after, keyword) for keyword in _ASSIGNMENT):
        yield _assigned(after)


def event_of(report: Json) -> tuple[str, int]:
    """UID of the workitem that a report is about, and the type of the event."""
    uid, kind = value(report, "AffectedSOPInstanceUID"), value(report, "EventTypeID")
    return str(uid or ""), int(kind or 0)


def _assigned(item: Json) -> Json:
    told = _picked(item, ("ScheduledStationNameCodeSequence",))
    for human in values(item, "ScheduledHumanPerformersSequence")[:1]:
        told |= _picked(human, ("HumanPerformerCodeSequence", "HumanPerformerOrganization"))
    return _event(workitem_uid(item), ASSIGNED) | told


def _event(uid: str, kind: int) -> Json:
    return attributes(
        AffectedSOPClassUID=UPS_PUSH,
        AffectedSOPInstanceUID=uid,
        EventTypeID=kind,
    )


def _picked(item: Json, keywords: tuple[str, ...]) -> Json:
    return {key(each): item[key(each)] for each in keywords if values(item, each)}


def _differ(before: Json, after: Json, keyword: str) -> bool:
    return values(before, keyword) != values(after, keyword)
