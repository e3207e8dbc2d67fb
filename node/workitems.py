"""The node's own worklist: workitems, who performs them, and who is told of their changes.

What PS3.4 annex CC allows stands in :mod:`dicom_io.workitem`. Every change is one transaction
together with the event reports that tell of it; any process of the node may make it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydicom.uid import generate_uid
from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from dicom_io.dicom_json import Json, attributes, value
from dicom_io.errors import Refusal, WorkitemRefused
from dicom_io.workitem import (
    CANCELED,
    COMPLETED,
    FINAL,
    IN_PROGRESS,
    SCHEDULED,
    canceled,
    check_change,
    check_transaction,
    checked,
    checked_uid,
    code_item,
    created,
    in_state,
    reason_in,
    refused,
    state_of,
    uid_of,
    updated,
    workitem_uid,
)
from dicom_io.workitem_events import (
    cancel_requested,
    created_events,
    restarted,
    state_report,
    update_events,
)
from dicom_io.workitem_search import Search, filter_of, keys_text, uid_list
from node.worklist_database import (
    REPORTS,
    SUBSCRIPTIONS,
    WORKITEMS,
    WORKLIST_SUBSCRIPTIONS,
    WorklistDatabase,
)

# Well-known UIDs of PS3.6 annex A.
WORKLIST = "1.2.840.10008.5.1.4.34.5"
FILTERED_WORKLIST = "1.2.840.10008.5.1.4.34.5.1"
GLOBAL = (WORKLIST, FILTERED_WORKLIST)
UNSPECIFIED = code_item("110513", "DCM", "Discontinued for unspecified reason")
LONGEST_TITLE = 16
# Reports that nobody has fetched are thrown away after a day.
REPORTS_KEPT_S = 86_400.0
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found.

    Attributes
    ----------
    items
    further
        How many more there are.
    """

    items: list[Json]
    further: int


class Workitems:
    """The worklist. May be used from several threads and processes.

    Parameters
    ----------
    database
    worklist_label
        Of items that come without one.
    clock
        Unix time in seconds.
    """

    def __init__(
        self,
        database: WorklistDatabase,
        worklist_label: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._label, self._clock = database, worklist_label, clock

    def create(self, given: Any, named: str = "") -> tuple[str, bool]:
        """Add a workitem (PS3.18 §11.4).

        Parameters
        ----------
        given
            Its dataset.
        named
            Its UID as the request's address has it, empty where it is in the dataset.

        Returns
        -------
        tuple
            Its UID, and whether more was put into it than UIDs and times.

        Raises
        ------
        WorkitemRefused
        """
        dataset = checked(given)
        uid = uid_of(named, dataset)
        made = created(dataset, uid, self._label, self._now())
        with self._database.changing() as connection:
            if connection.execute(select(WORKITEMS.c.uid).where(WORKITEMS.c.uid == uid)).first():
                raise WorkitemRefused(f"Workitem {uid} is there already.", Refusal.DUPLICATE)
            connection.execute(
                insert(WORKITEMS).values(
                    uid=uid,
                    state=SCHEDULED,
                    transaction_uid="",
                    item=json.dumps(made.item),
                    own=False,
                    cancel=False,
                    created_s=self._clock(),
                    updated_s=self._clock(),
                )
            )
            self._subscribe_new(connection, made.item)
            self._report(connection, uid, created_events(made.item))
        return uid, made.modified

    def retrieve(self, uid: str) -> Json:
        """One workitem, without its Transaction UID.

        Raises
        ------
        WorkitemRefused
            It is unknown, or was deleted.
        """
        with self._database.reading() as connection:
            return _item(self._row(connection, uid))

    def search(self, wanted: Search) -> Found:
        """Workitems that match, oldest first."""
        here, elsewhere = _conditions(wanted)
        query = select(WORKITEMS.c.item).where(*here)
        query = query.order_by(WORKITEMS.c.created_s, WORKITEMS.c.uid)
        with self._database.reading() as connection:
            if elsewhere:
                items = [json.loads(row.item) for row in connection.execute(query)]
                found = [item for item in items if wanted.matches(item)]
                total, page = len(found), found[wanted.offset : wanted.offset + wanted.limit]
            else:
                total = connection.execute(
                    select(func.count()).select_from(WORKITEMS).where(*here)
                ).scalar_one()
                paged = query.offset(wanted.offset).limit(wanted.limit)
                page = [json.loads(row.item) for row in connection.execute(paged)]
        further = max(0, total - wanted.offset - len(page))
        return Found([wanted.answer(item) for item in page], further)

    def version(self) -> tuple[float, int]:
        """Something that is another one whenever a workitem was added or changed."""
        query = select(func.max(WORKITEMS.c.updated_s), func.count()).select_from(WORKITEMS)
        with self._database.reading() as connection:
            changed_s, items = connection.execute(query).one()
        return float(changed_s or 0), int(items)

    def update(self, uid: str, given: Any, transaction_uid: str = "") -> None:
        """Change attributes (PS3.18 §11.6); whoever performs it proves it by the Transaction UID.

        Parameters
        ----------
        uid
        given
            What is set; it may hold the Transaction UID too.
        transaction_uid
            As the request's address has it.

        Raises
        ------
        WorkitemRefused
        """
        changes = checked(given)
        transaction = _one_transaction(transaction_uid, changes)
        with self._database.changing() as connection:
            row = self._row(connection, uid)
            before = _item(row)
            state = state_of(before)
            if state in FINAL:
                raise refused(before, Refusal.ENDED)
            if state == IN_PROGRESS:
                check_transaction(before, transaction, row.transaction_uid)
            elif transaction:
                raise refused(before, Refusal.NOT_CLAIMED)
            self._set(connection, before, updated(before, changes, self._now()))

    def change_state(
        self, uid: str, asked: str, transaction_uid: str, *, own: bool = False
    ) -> bool:
        """Claim, complete or cancel (PS3.18 §11.7).

        Parameters
        ----------
        uid, asked, transaction_uid
        own
            Whether the node itself asks.

        Returns
        -------
        bool
            False where the workitem was in the final state that is asked for.

        Raises
        ------
        WorkitemRefused
        """
        with self._database.changing() as connection:
            row = self._row(connection, uid)
            before = _item(row)
            if asked != SCHEDULED:
                check_transaction(before, transaction_uid, row.transaction_uid)
            if not check_change(before, asked):
                return False
            after = before | attributes(ProcedureStepState=asked)
            self._set(connection, before, after, transaction_uid=transaction_uid, own=own)
            return True

    def request_cancel(self, uid: str, given: Any, requester: str) -> bool:
        """Ask for a workitem to be canceled (PS3.18 §11.8, PS3.4 CC.2.2).

        Nobody performs a scheduled one: it is canceled at once. Otherwise its performer is told,
        which may be the node itself.

        Returns
        -------
        bool
            False where it is CANCELED already.

        Raises
        ------
        WorkitemRefused
            It is completed, or its performer cannot be told.
        """
        request = checked(given)
        with self._database.changing() as connection:
            row = self._row(connection, uid)
            item = _item(row)
            state = state_of(item)
            if state == CANCELED:
                return False
            if state == COMPLETED:
                raise WorkitemRefused(
                    f"Workitem {uid} is COMPLETED: there is nothing to cancel.", Refusal.COMPLETED
                )
            subscribers = self._subscribers(connection, uid)
            self._report(connection, uid, [cancel_requested(uid, requester, request)])
            if state == SCHEDULED:
                self._cancel_scheduled(connection, item, request)
            elif subscribers or row.own:
                connection.execute(
                    update(WORKITEMS).where(WORKITEMS.c.uid == uid).values(cancel=True)
                )
            else:
                raise WorkitemRefused(
                    f"Nobody is subscribed to workitem {uid}, so its performer cannot be told: "
                    "ask the performer itself.",
                    Refusal.PERFORMER_ABSENT,
                )
            return True

    def cancel_requests(self) -> set[str]:
        """Workitems in progress that somebody wishes to be canceled."""
        wanted = WORKITEMS.c.cancel & (WORKITEMS.c.state == IN_PROGRESS)
        with self._database.reading() as connection:
            return {row.uid for row in connection.execute(select(WORKITEMS.c.uid).where(wanted))}

    def subscribe(self, uid: str, aetitle: str, locked: bool, filters: list[str]) -> None:
        """Let an AE be told of a workitem, of all, or of those that match (PS3.4 table CC.2.3-2).

        Raises
        ------
        WorkitemRefused
        """
        _check_title(aetitle)
        if uid not in GLOBAL:
            with self._database.changing() as connection:
                item = _item(self._row(connection, uid))
                self._set_subscription(connection, aetitle, uid, locked)
                self._queue(connection, [aetitle], [state_report(item)])
            return
        if (uid == FILTERED_WORKLIST) != bool(filters):
            raise WorkitemRefused(
                f"A filter belongs to a subscription of {FILTERED_WORKLIST}, which needs one."
            )
        wanted = filter_of(filters) if filters else Search()
        with self._database.changing() as connection:
            _replace(
                connection,
                WORKLIST_SUBSCRIPTIONS,
                {"aetitle": aetitle, "resource": uid},
                {"filter": keys_text(wanted), "locked": locked},
            )
            for item in self._not_subscribed(connection, aetitle):
                if wanted.matches(item):
                    self._set_subscription(connection, aetitle, workitem_uid(item), locked)
                    if locked:
                        self._queue(connection, [aetitle], [state_report(item)])

    def unsubscribe(self, uid: str, aetitle: str) -> None:
        """Tell an AE no more; of a whole worklist, this ends its subscriptions of single items too.

        Raises
        ------
        WorkitemRefused
            There is no such subscription.
        """
        own = SUBSCRIPTIONS.c.aetitle == aetitle
        with self._database.changing() as connection:
            if uid in GLOBAL:
                ended = self._suspended(connection, uid, aetitle)
                ended += connection.execute(delete(SUBSCRIPTIONS).where(own)).rowcount
            else:
                self._row(connection, uid)
                ended = connection.execute(
                    delete(SUBSCRIPTIONS).where(own, SUBSCRIPTIONS.c.uid == uid)
                ).rowcount
            if not ended:
                raise _not_subscribed(aetitle)

    def suspend(self, uid: str, aetitle: str) -> None:
        """Subscribe an AE to no further workitem; it is still told of those it is subscribed to.

        Raises
        ------
        WorkitemRefused
        """
        if uid not in GLOBAL:
            raise WorkitemRefused(
                "Only the subscription of a worklist can be suspended.", Refusal.INAPPROPRIATE
            )
        with self._database.changing() as connection:
            if not self._suspended(connection, uid, aetitle):
                raise _not_subscribed(aetitle)

    def first_report(self, aetitle: str) -> int:
        """Number of the report from which a new connection of an AE is told."""
        unsent = select(REPORTS.c.number).where(
            REPORTS.c.aetitle == aetitle, REPORTS.c.sent.is_(False)
        )
        newest = select(REPORTS.c.number).order_by(REPORTS.c.number.desc()).limit(1)
        with self._database.reading() as connection:
            first = connection.execute(unsent.order_by(REPORTS.c.number).limit(1)).scalar()
            last = connection.execute(newest).scalar()
        return int(first) if first is not None else int(last or 0) + 1

    def reports(self, aetitle: str, first: int) -> list[tuple[int, Json]]:
        """Event reports for an AE from a number on."""
        query = (
            select(REPORTS.c.number, REPORTS.c.report)
            .where(REPORTS.c.aetitle == aetitle, REPORTS.c.number >= first)
            .order_by(REPORTS.c.number)
        )
        with self._database.reading() as connection:
            return [(row.number, json.loads(row.report)) for row in connection.execute(query)]

    def sent(self, numbers: list[int]) -> None:
        """Note that reports were sent."""
        with self._database.changing() as connection:
            connection.execute(
                update(REPORTS).where(REPORTS.c.number.in_(numbers)).values(sent=True)
            )

    def tell_restart(self) -> None:
        """Tell every subscriber that the list was restarted and is whole (event type 4)."""
        single, all_items = (
            select(table.c.aetitle) for table in (SUBSCRIPTIONS, WORKLIST_SUBSCRIPTIONS)
        )
        with self._database.changing() as connection:
            told = {row.aetitle for row in connection.execute(single.union(all_items))}
            self._queue(connection, sorted(told), [restarted(WORKLIST)])

    def purge(self, keep_days: float) -> int:
        """Delete items that ended long ago and that nobody has locked, and old reports.

        Returns
        -------
        int
            How many workitems were deleted; that they were there is remembered.
        """
        locked = select(SUBSCRIPTIONS.c.uid).where(SUBSCRIPTIONS.c.locked)
        old = (
            WORKITEMS.c.state.in_(FINAL)
            & (WORKITEMS.c.updated_s < self._clock() - keep_days * DAY_S)
            & WORKITEMS.c.uid.not_in(locked)
        )
        with self._database.changing() as connection:
            gone = [row.uid for row in connection.execute(select(WORKITEMS.c.uid).where(old))]
            connection.execute(
                update(WORKITEMS).where(WORKITEMS.c.uid.in_(gone)).values(state="", item="{}")
            )
            connection.execute(delete(SUBSCRIPTIONS).where(SUBSCRIPTIONS.c.uid.in_(gone)))
            connection.execute(
                delete(REPORTS).where(REPORTS.c.made_s < self._clock() - REPORTS_KEPT_S)
            )
        return len(gone)

    def _row(self, connection: Connection, uid: str) -> Row[Any]:
        query = select(WORKITEMS).where(WORKITEMS.c.uid == checked_uid(uid))
        row = connection.execute(query).first()
        if row is None:
            raise WorkitemRefused(f"Workitem {uid} is not in this list.", Refusal.UNKNOWN)
        if not row.state:
            raise WorkitemRefused(f"Workitem {uid} was deleted after its end.", Refusal.DELETED)
        return row

    def _set(self, connection: Connection, before: Json, after: Json, **more: Any) -> None:
        uid = workitem_uid(before)
        connection.execute(
            update(WORKITEMS)
            .where(WORKITEMS.c.uid == uid)
            .values(item=json.dumps(after), state=state_of(after), updated_s=self._clock(), **more)
        )
        self._report(connection, uid, update_events(before, after))

    def _cancel_scheduled(self, connection: Connection, item: Json, request: Json) -> None:
        """First IN PROGRESS, then CANCELED (PS3.4 CC.2.2.3), by the list itself."""
        claimed = in_state(item, IN_PROGRESS)
        self._set(connection, item, claimed, transaction_uid=generate_uid(prefix="2.25."))
        sentence = value(request, "ReasonForCancellation") or "Canceled by request."
        reason = canceled(self._now(), sentence, reason_in(request) or UNSPECIFIED)
        self._set(connection, claimed, in_state(claimed | reason, CANCELED))

    def _subscribe_new(self, connection: Connection, item: Json) -> None:
        for row in connection.execute(select(WORKLIST_SUBSCRIPTIONS)).all():
            if _global_search(row.filter).matches(item):
                self._set_subscription(connection, row.aetitle, workitem_uid(item), row.locked)

    def _set_subscription(
        self, connection: Connection, aetitle: str, uid: str, locked: bool
    ) -> None:
        _replace(
            connection, SUBSCRIPTIONS, {"aetitle": aetitle, "uid": uid}, {"locked": bool(locked)}
        )

    def _not_subscribed(self, connection: Connection, aetitle: str) -> Iterator[Json]:
        known = select(SUBSCRIPTIONS.c.uid).where(SUBSCRIPTIONS.c.aetitle == aetitle)
        others = WORKITEMS.c.uid.not_in(known) & (WORKITEMS.c.state != "")
        for row in connection.execute(select(WORKITEMS.c.item).where(others)).all():
            yield json.loads(row.item)

    def _suspended(self, connection: Connection, uid: str, aetitle: str) -> int:
        table = WORKLIST_SUBSCRIPTIONS
        own = (table.c.aetitle == aetitle) & (table.c.resource == uid)
        return connection.execute(delete(table).where(own)).rowcount

    def _subscribers(self, connection: Connection, uid: str) -> list[str]:
        query = select(SUBSCRIPTIONS.c.aetitle).where(SUBSCRIPTIONS.c.uid == uid)
        return [row.aetitle for row in connection.execute(query)]

    def _report(self, connection: Connection, uid: str, events: Iterable[Json]) -> None:
        self._queue(connection, self._subscribers(connection, uid), list(events))

    def _queue(self, connection: Connection, aetitles: list[str], events: list[Json]) -> None:
        rows = [
            {
                "aetitle": aetitle,
                "report": json.dumps(report),
                "sent": False,
                "made_s": self._clock(),
            }
            for report in events
            for aetitle in aetitles
        ]
        if rows:
            connection.execute(insert(REPORTS), rows)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def _conditions(wanted: Search) -> tuple[list[ColumnElement[bool]], bool]:
    """What of a search the database decides by itself, and whether more is to be compared."""
    here: list[ColumnElement[bool]] = [WORKITEMS.c.state != ""]
    elsewhere = False
    for key in wanted.keys:
        plain = key.wanted and not set(key.wanted) & set("*?")
        if key.path == ("ProcedureStepState",) and plain:
            here.append(WORKITEMS.c.state == key.wanted)
        elif key.path == ("SOPInstanceUID",) and plain:
            here.append(WORKITEMS.c.uid.in_(uid_list(key.wanted)))
        elif key.wanted:
            elsewhere = True
            if key.literal:  # far fewer are to be read
                here.append(WORKITEMS.c.item.contains(f'"{key.literal}"', autoescape=True))
    return here, elsewhere


def _item(row: Row[Any]) -> Json:
    item: Json = json.loads(row.item)
    return item


def _one_transaction(named: str, changes: Json) -> str:
    """Transaction UID of an update: in the address (PS3.18 since 2019), or in the dataset."""
    held = str(value(changes, "TransactionUID") or "")
    if named and held and named != held:
        raise WorkitemRefused(
            "The address and the dataset name two Transaction UIDs.", Refusal.TRANSACTION_WRONG
        )
    return named or held


def _check_title(aetitle: str) -> None:
    plain = aetitle.strip() and aetitle.isascii() and aetitle.isprintable() and "\\" not in aetitle
    if not plain or len(aetitle) > LONGEST_TITLE:
        raise WorkitemRefused("The subscriber's AE title is malformed (PS3.5 6.2, AE).")


def _global_search(text: str) -> Search:
    return filter_of([text]) if text else Search()


def _not_subscribed(aetitle: str) -> WorkitemRefused:
    return WorkitemRefused(f"{aetitle} has no such subscription.", Refusal.NOT_SUBSCRIBED)


def _replace(connection: Connection, table: Any, named: dict[str, Any], held: Any) -> None:
    """Insert a row, or change the one that is there."""
    same = [table.c[name] == given for name, given in named.items()]
    if not connection.execute(update(table).where(*same).values(**held)).rowcount:
        connection.execute(insert(table).values(**named, **held))
