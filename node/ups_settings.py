"""Settings of worklists: the node's own, and a manager's whose items it performs."""

from __future__ import annotations

from dataclasses import dataclass, field

from dicom_io.pacs_settings import PacsSettings


@dataclass(frozen=True, slots=True)
class UpsSettings:
    """Unified Procedure Steps (UPS-RS).

    Attributes
    ----------
    codes
        Scheduled Workitem Codes that the node performs, each VALUE^SCHEME; IHE AIW-I names none, so
        a site that schedules by a code of DICOM, for example 110004^DCM, adds it here.
    station
        Name of this node as a station: items that are scheduled for other stations only are left
        alone. It is also its AE title to a manager.
    worklist_label
        Of items in the node's own list that come without one.
    manager_url
        Base URL of a manager's UPS-RS service (https://…/dicom-web) whose items are performed;
        empty for the node's own list alone.
    manager
        How the manager is spoken to: the settings of [pacs], in a table of their own.
    poll_s
        Seconds between looks at the manager's list; its events are heeded at once.
    keep_days
        Days after which ended items leave the node's own list, unless somebody has locked them.
    """

    codes: tuple[str, ...] = ("marrow-ndc^99MARROW",)  # dicom_io.codes.WORKITEM
    station: str = "MARROW_NODE"
    worklist_label: str = "marrow-node"
    manager_url: str = ""
    manager: PacsSettings = field(default_factory=PacsSettings)
    poll_s: float = 10.0
    keep_days: float = 30.0
