"""Frames of an instance over WADO-RS: what an archive refuses is learnt and not asked for again.

An archive may take one frame a request, or few; refuse the name of a transfer syntax; leave frames
out and say 200; cut its answers; or give whole instances only. Each is answered by the next way to
get the *stored* bytes. Nothing here asks an archive to encode pixels anew: loss or another colour
space would pass in silence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple

import requests

from dicom_io.errors import FrameInvalid, PacsAnswerInvalid, PacsError, PacsRefused
from dicom_io.frame_answers import (
    accept_headers,
    frame_number,
    frame_parts,
    same_bytes,
    transfer_syntax_given,
)
from dicom_io.multipart import AnswerTooLarge, Part
from dicom_io.pacs_http import OTHER_MEDIA_MAY_HELP, Faults, Service
from dicom_io.read_budget import most_of_frames
from dicom_io.request_size import RequestSizes
from dicom_io.whole_instances import WholeInstances

FEWER_MAY_HELP = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.REQUEST_URI_TOO_LONG,
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    HTTPStatus.NOT_IMPLEMENTED,
}
# What an archive answers that knows no frames at all; the others are about one transfer syntax.
NO_FRAMES_HERE = {
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.GONE,
    HTTPStatus.NOT_IMPLEMENTED,
}
ASKED_TOO_MUCH = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
# Frames of an answer that are given on before the rest of it has come.
GIVEN_TOGETHER = 32


class InstanceReference(NamedTuple):
    """Where an instance lies."""

    study_uid: str
    series_uid: str
    sop_uid: str

    @property
    def path(self) -> str:
        return f"studies/{self.study_uid}/series/{self.series_uid}/instances/{self.sop_uid}"


class FrameRequests:
    """Asks for frames, and remembers what this archive is like.

    May be used from several threads; two that meet the same refusal both learn it.
    """

    def __init__(
        self, service: Service, whole: WholeInstances, sizes: RequestSizes, faults: Faults
    ) -> None:
        self._service, self._whole, self._sizes, self._faults = service, whole, sizes, faults
        # By transfer syntax: the place of the media type in which its frames came.
        self._media: dict[str | None, int] = {}
        self._whole_only: set[str] = set()
        self._gives_instances_only = False

    def frames(
        self,
        instance: InstanceReference,
        numbers: Sequence[int],
        transfer_syntax_uid: str | None,
        most_bytes: int,
        arrived: Callable[[list[bytes]], None],
    ) -> None:
        """Give stored bytes of frames, counted from 1, in the order of `numbers`, as they come."""
        asked = _Asked(instance, numbers, transfer_syntax_uid, most_bytes, arrived)
        if self._gives_instances_only or transfer_syntax_uid in self._whole_only:
            arrived(self._from_whole(asked, numbers))
            return
        try:
            self._in_batches(asked)
        except PacsError as refused:
            if not self._whole_may_help(asked, refused):
                raise
            self._from_whole_after(asked, refused)

    def _whole_may_help(self, asked: _Asked, refused: PacsError) -> bool:
        """Unless frames came before: of this transfer syntax, or of any if it is about frames."""
        if refused.status in NO_FRAMES_HERE:
            return not self._media
        return refused.status in OTHER_MEDIA_MAY_HELP and not self._gives(asked)

    def _gives(self, asked: _Asked) -> bool:
        """Whether frames of this transfer syntax came; of an unknown one nothing is known."""
        uid = asked.transfer_syntax_uid
        return uid is not None and uid in self._media

    def _from_whole_after(self, asked: _Asked, refused: PacsError) -> None:
        instance = asked.instance
        try:
            frames = self._from_whole(asked, asked.numbers[asked.given :])
        except PacsError as error:
            raise refused from error  # the frames were asked for; the instance is not there either
        self._learnt("whole instances only", instance, "no frames are given")
        if refused.status in NO_FRAMES_HERE:
            self._gives_instances_only = True
        elif asked.transfer_syntax_uid is not None:
            self._whole_only.add(asked.transfer_syntax_uid)
        asked.arrived(frames)

    def _from_whole(self, asked: _Asked, numbers: Sequence[int]) -> list[bytes]:
        instance = asked.instance
        return self._whole.frames(
            instance.path, instance.sop_uid, numbers, lambda: asked.arrived([])
        )

    def _in_batches(self, asked: _Asked) -> None:
        """Fewer at a time where more are refused."""
        size, refused = min(len(asked.numbers), self._sizes.limit), False
        while (start := asked.given) < len(asked.numbers):
            batch = asked.numbers[start : start + size]
            try:
                self._in_some_media_type(asked, batch)
            except PacsError as error:
                if len(batch) == 1 and self._lacks_it(asked, error):
                    raise self._missing(asked.instance, batch[0], error) from error
                if len(batch) == 1 or not _fewer_may_help(error):
                    raise
                size = max(1, min(len(batch) // 2, _frames_given(error) or len(batch)))
                refused = True
                continue
            asked.give(start + len(batch))
            if refused:
                self._learnt("fewer frames a request", asked.instance, f"{size} are given")
                self._sizes.refused_above(size)
                refused = False

    def _lacks_it(self, asked: _Asked, error: PacsError) -> bool:
        """Whether an archive that gives frames says that it has not this one."""
        if error.status == HTTPStatus.BAD_REQUEST:  # may be about the transfer syntax
            return self._gives(asked)
        return _frames_given(error) is not None or (
            bool(self._media) and error.status == HTTPStatus.NOT_FOUND
        )

    def _missing(self, instance: InstanceReference, number: int, error: PacsError) -> FrameInvalid:
        got = f"status {error.status}" if error.status else "another number of frames"
        return FrameInvalid(
            f"{self._service.name} does not give frame {number} of instance {instance.sop_uid}"
            f" ({got} when it alone was asked for): store the instance again, complete."
        )

    def _in_some_media_type(self, asked: _Asked, batch: Sequence[int]) -> None:
        accepts = accept_headers(asked.transfer_syntax_uid)
        start = self._media.get(asked.transfer_syntax_uid, 0)
        for index in range(start, len(accepts)):
            try:
                self._complete(asked, batch, accepts[index])
            except PacsError as error:
                last = index == len(accepts) - 1
                many = error.status == HTTPStatus.BAD_REQUEST and len(batch) > 1
                if last or many or error.status not in OTHER_MEDIA_MAY_HELP:
                    raise
                continue
            if index > start:
                self._learnt("another media type", asked.instance, accepts[index])
            self._media[asked.transfer_syntax_uid] = index
            return
        raise RuntimeError("no media type was asked for")

    def _complete(self, asked: _Asked, batch: Sequence[int], accept: str) -> None:
        """Ask until all came; what came whole is not asked for again."""
        wrong_counts = self._service.retries if len(batch) == 1 else 1  # else fewer are asked for
        while missing := asked.missing(batch):
            what = f"frames {missing[0]} to {missing[-1]} of instance {asked.instance.sop_uid}"
            try:
                self._service.ask(what, lambda: self._request(asked, batch, accept))
            except PacsError as error:
                if _frames_given(error) is not None and wrong_counts > 0:
                    wrong_counts -= 1
                elif not error.transient or asked.missing(batch) == missing:
                    raise

    def _request(self, asked: _Asked, batch: Sequence[int], accept: str) -> None:
        """Ask once for what is missing; frames that came are kept even where it fails."""
        missing = asked.missing(batch)
        if not missing:
            return  # the answer was cut after the last frame
        asked.arrived([])
        path = f"{asked.instance.path}/frames/{','.join(map(str, missing))}"
        came: list[tuple[int | None, bytes]] = []
        n_bytes, whole = 0, False
        most_bytes = most_of_frames(asked.most_bytes, len(missing))
        start = time.perf_counter()
        try:
            with closing(self._service.get(path, accept)) as response:
                for part in frame_parts(response, len(missing), asked.most_bytes):
                    label, content = frame_number(part), self._content(part, asked)
                    came.append((label, content))
                    n_bytes += len(content)
                    if n_bytes > most_bytes:
                        raise AnswerTooLarge(f"more than {most_bytes} bytes came")
                    if len(came) > len(missing):
                        break
                    if label == missing[len(came) - 1] and content:
                        asked.in_turn(label, content)
            whole = True
        except requests.HTTPError as error:
            if error.response.status_code in ASKED_TOO_MUCH:
                self._sizes.too_many()
            raise
        finally:
            self._sort_in(asked, missing, came, whole)
        seconds = time.perf_counter() - start
        self._sizes.measured(asked.instance.sop_uid, len(missing), seconds, n_bytes)

    def _content(self, part: Part, asked: _Asked) -> bytes:
        """Bytes of a part, unless they are not the stored ones."""
        given = transfer_syntax_given(part)
        if same_bytes(given, asked.transfer_syntax_uid):
            return part.content
        refused = PacsRefused(
            f"{self._service.name} gave frames of instance {asked.instance.sop_uid} in transfer"
            f" syntax {given} instead of {asked.transfer_syntax_uid}, as it is stored: let it give"
            " what is stored."
        )
        refused.status = HTTPStatus.NOT_ACCEPTABLE
        raise refused

    def _sort_in(
        self,
        asked: _Asked,
        missing: Sequence[int],
        came: Sequence[tuple[int | None, bytes]],
        whole: bool,
    ) -> None:
        """Give each part its frame: by its Content-Location, else in the order asked for."""
        if whole and len(came) == len(missing) and not asked.missing(missing):
            return  # each came in its turn
        of = f"of instance {asked.instance.sop_uid}"
        found: dict[int, bytes] = {}
        labels = {label for label, _ in came}
        # One label on every part says nothing of any, unless they are one part, sent again.
        alike = len({content for _, content in came}) == 1
        by_label = labels <= set(missing) and (len(labels) > 1 or alike)
        if came and by_label:
            for label, content in came:
                if label is not None and found.setdefault(label, content) != content:
                    raise PacsAnswerInvalid(
                        f"{self._service.name} gave frame {label} {of} twice, and not the same:"
                        " check what lies between."
                    )
        elif len(came) == len(missing) or (not whole and len(came) < len(missing)):
            found = dict(zip(missing, (content for _, content in came), strict=False))
        for number, content in found.items():
            if not content:
                raise FrameInvalid(
                    f"Frame {number} {of} is empty: store the instance again, complete."
                )
        if any(asked.twice.get(number, found[number]) != found[number] for number in found):
            # A frame was left out before the cut, so those after it had the wrong number.
            asked.forget()
            raise self._wrong_count(missing, len(came), of)
        asked.twice.clear()
        if 0 < len(found) < len(missing) and not by_label:
            number, content = found.popitem()
            asked.twice[number] = content
        asked.received.update(found)
        if whole and len(found) != len(missing):
            raise self._wrong_count(missing, len(came), of)

    def _wrong_count(self, missing: Sequence[int], given: int, of: str) -> PacsAnswerInvalid:
        wrong = PacsAnswerInvalid(
            f"{self._service.name} gave {given} of {len(missing)} frames asked for between"
            f" frame {min(missing)} and {max(missing)} {of}: store the instance again, complete."
        )
        wrong.frames_given = given
        return wrong

    def _learnt(self, kind: str, instance: InstanceReference, what: str) -> None:
        self._faults.saw(kind, f"{self._service.name}, instance {instance.sop_uid}: {what}")


@dataclass(slots=True)
class _Asked:
    """Frames that were asked for, and what came of them so far.

    Attributes
    ----------
    most_bytes
        Of one frame.
    arrived
        Is given the frames in the order of `numbers`.
    received
        Frame number → stored bytes.
    twice
        The last frame of an answer that was cut: asked for again to see that it has the same
        number then, because an archive that leaves frames out does not say which.
    sure
        So many of `numbers`, from the first on, came in their turn.
    given
        So many have been given to `arrived`.
    """

    instance: InstanceReference
    numbers: Sequence[int]
    transfer_syntax_uid: str | None
    most_bytes: int
    arrived: Callable[[list[bytes]], None]
    received: dict[int, bytes] = field(default_factory=dict)
    twice: dict[int, bytes] = field(default_factory=dict)
    sure: int = 0
    given: int = 0

    def missing(self, batch: Sequence[int]) -> list[int]:
        return [number for number in dict.fromkeys(batch) if number not in self.received]

    def in_turn(self, number: int, content: bytes) -> None:
        """Take a frame whose label and place in the answer agree: it need not wait for the end."""
        self.received[number] = content
        if self.numbers[self.sure] == number:
            self.sure += 1
            if self.sure >= self.given + GIVEN_TOGETHER:
                self.give(self.sure)

    def give(self, end: int) -> None:
        """Give what has come of `numbers`, up to `end`."""
        frames = [self.received[number] for number in self.numbers[self.given : end]]
        self.given = end
        self.sure = max(self.sure, end)
        if frames:
            self.arrived(frames)

    def forget(self) -> None:
        """What came may have had wrong numbers."""
        self.received.clear()
        self.twice.clear()
        self.sure = self.given


def _frames_given(error: PacsError) -> int | None:
    return error.frames_given if isinstance(error, PacsAnswerInvalid) else None


def _fewer_may_help(error: PacsError) -> bool:
    return _frames_given(error) is not None or error.status in FEWER_MAY_HELP
