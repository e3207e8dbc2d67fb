"""A person's review of a result: what was decided, by whom, and which cells were corrected.

:class:`Review` is the record, read from JSON with one sentence for what is wrong with it;
:data:`NEXT_STANDING` says what a decision makes of a result; :func:`resolve` finds the cells that
the corrections name.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dicom_io.analysis import Decision, Signature, Standing
from dicom_io.annotation import rows_of_groups
from models.boxes import centres
from models.cell_types import CELL_TYPES
from models.correction import Correction
from models.errors import ReviewInvalid, ReviewRefused
from models.records import Cells

MOST_CORRECTIONS = 100_000
MOST_REASON = 1024
# Most characters of a group of letters of a person name, and of an organisation (PS3.5 6.2).
MOST_NAME = 64
MOST_GROUPS = 3

Json = dict[str, Any]

# What a decision makes of a result. R4's "corrected" is said of what was final before; a person who
# confirms a corrected result leaves it a corrected one. Nothing follows on a withdrawal.
NEXT_STANDING: Mapping[tuple[Standing, Decision], Standing] = {
    ("unreviewed", "confirmed"): "final",
    ("unreviewed", "corrected"): "final",
    ("unreviewed", "withdrawn"): "withdrawn",
    ("final", "confirmed"): "final",
    ("final", "corrected"): "corrected",
    ("final", "withdrawn"): "withdrawn",
    ("corrected", "confirmed"): "corrected",
    ("corrected", "corrected"): "corrected",
    ("corrected", "withdrawn"): "withdrawn",
}

Number = Annotated[float, Field(allow_inf_nan=False)]
Ordinal = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class NamedCell:
    """A cell as a person names it: by group and index of its annotation, or by a place in its box.

    Attributes
    ----------
    group, index
        Annotation Group Number, and number of the annotation in it, both from 1 as in DICOM.
    at_px
        x, y on the base level.
    type
        Key of the type that it gets; None where it is taken out.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    group: Ordinal | None = None
    index: Ordinal | None = None
    at_px: tuple[Number, Number] | None = None
    type: str | None = None


@dataclass(frozen=True, slots=True)
class AddedCell:
    """A cell that was missed: its box x0, y0, x1, y1 on the base level, and its type's key."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    box_px: tuple[Number, Number, Number, Number]
    type: str


@dataclass(frozen=True, slots=True)
class Corrections:
    """What a person changed, as it came: small lists, written by hand or by a form."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    retyped: Annotated[tuple[NamedCell, ...], Field(max_length=MOST_CORRECTIONS)] = ()
    deleted: Annotated[tuple[NamedCell, ...], Field(max_length=MOST_CORRECTIONS)] = ()
    added: Annotated[tuple[AddedCell, ...], Field(max_length=MOST_CORRECTIONS)] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Corrections:
        """Read corrections.

        Raises
        ------
        ReviewInvalid
            When something is missing, unknown or of the wrong kind.
        """
        return _read(_CORRECTIONS, value)

    def as_json(self) -> Json:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Review:
    """One decision on one revision.

    Attributes
    ----------
    revision
        The one that the person saw: another that came meanwhile is not decided on.
    decision
    name
        Person name as DICOM writes it, for example ``"Lee^Anna^^Dr."``.
    organization
        For which the person signs.
    at
        UTC, ISO 8601.
    reason
        Why, in words; a withdrawal needs one.
    annotation_uid
        SOP Instance UID of an edited ANN in the archive, which says what the cells are.
    corrections
        The same by single cells.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    revision: Ordinal
    decision: Literal["confirmed", "corrected", "withdrawn"]
    name: str
    organization: str
    at: str
    reason: str = ""
    annotation_uid: str = ""
    corrections: Corrections | None = None

    def as_json(self) -> Json:
        return asdict(self)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what was decided, whenever: the same decision twice is one."""
        content = {name: value for name, value in self.as_json().items() if name != "at"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def signature(self, before: Standing) -> Signature:
        """The signature of the revision that this makes of one of standing `before`.

        Raises
        ------
        ReviewRefused
            When nothing can follow.
        """
        standing = NEXT_STANDING.get((before, self.decision))
        if standing is None:
            raise ReviewRefused(
                f"Revision {self.revision} is {before} and cannot be {self.decision}: analyse the "
                "slide again with another model or other settings for a new result."
            )
        return Signature(
            self.name,
            self.organization,
            datetime.fromisoformat(self.at),
            self.decision,
            standing,
            self.reason,
        )


_REVIEW: TypeAdapter[Review] = TypeAdapter(Review)
_CORRECTIONS: TypeAdapter[Corrections] = TypeAdapter(Corrections)
T = TypeVar("T")


def _read(kind: TypeAdapter[T], value: Mapping[str, Any]) -> T:
    try:
        return kind.validate_json(json.dumps(dict(value)), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ReviewInvalid(
            f"The review is not usable at {where}: {first['msg']}. Correct it and send it again."
        ) from None


def review_from(value: Mapping[str, Any]) -> Review:
    """Read a review.

    Parameters
    ----------
    value
        JSON object with the attributes of :class:`Review`.

    Raises
    ------
    ReviewInvalid
        When something is missing, unknown, of the wrong kind, or contradicts itself.
    """
    review = _read(_REVIEW, value)
    for wrong, what in _contradictions(review):
        if wrong:
            raise ReviewInvalid(f"The review is not usable: {what}.")
    # A name of one part is a family name, and DICOM's readers want to be told so.
    plain = "^" not in review.name and "=" not in review.name
    return replace(review, name=f"{review.name.strip()}^") if plain else review


def _contradictions(review: Review) -> Iterator[tuple[bool, str]]:
    """(whether it is wrong, what), in the order in which they are told."""
    corrections = review.corrections
    sources = bool(review.annotation_uid) + (corrections is not None)
    yield not review.name.strip("^= "), "it names nobody who reviewed"
    yield not review.organization.strip(), "it names no organization"
    groups = review.name.split("=")
    yield (
        len(groups) > MOST_GROUPS or not all(_is_text(group, MOST_NAME) for group in groups),
        (
            f"a name is at most {MOST_NAME} characters in each of three groups of letters, without "
            "backslash and control characters"
        ),
    )
    yield (
        not _is_text(review.organization, MOST_NAME),
        (
            f"an organization is at most {MOST_NAME} characters, without backslash and control "
            "characters"
        ),
    )
    yield (
        not _is_text(review.reason.replace("\\", "/"), MOST_REASON),
        (f"a reason is at most {MOST_REASON} characters on one line"),
    )
    yield review.decision == "withdrawn" and not review.reason.strip(), "a withdrawal has a reason"
    yield (
        review.decision == "corrected" and sources != 1,
        (
            "a correction comes from edited annotations or from single cells: give one of "
            "annotation_uid and corrections"
        ),
    )
    yield (
        review.decision != "corrected" and sources > 0,
        ("only a correction has annotation_uid or corrections"),
    )
    if corrections is not None:
        yield from _wrong_cells(corrections)
    yield not _is_moment(review.at), "the time is not ISO 8601 with a zone"


def _wrong_cells(corrections: Corrections) -> Iterator[tuple[bool, str]]:
    for kind, cells in (("retyped", corrections.retyped), ("deleted", corrections.deleted)):
        for number, cell in enumerate(cells):
            by_number = cell.group is not None and cell.index is not None
            halves = (cell.group is None) != (cell.index is None)
            yield (
                halves or by_number == (cell.at_px is not None),
                (f"{kind}[{number}] must name a cell by group and index, or by at_px"),
            )
            yield (
                (cell.type is not None) != (kind == "retyped"),
                (f"{kind}[{number}] must have {'a' if kind == 'retyped' else 'no'} type"),
            )
    for kind, types in (
        ("retyped", [cell.type for cell in corrections.retyped]),
        ("added", [cell.type for cell in corrections.added]),
    ):
        for number, key in enumerate(types):
            yield (
                key is not None and key not in CELL_TYPES,
                (f"{kind}[{number}].type is not a key of the table of cell types"),
            )
    for number, added in enumerate(corrections.added):
        x0, y0, x1, y1 = added.box_px
        yield not (x0 < x1 and y0 < y1), f"added[{number}].box_px is not x0 < x1 and y0 < y1"


def _is_text(text: str, most: int) -> bool:
    printable = all(unicodedata.category(sign) not in ("Cc", "Cs") for sign in text)
    return len(text) <= most and "\\" not in text and printable


def _is_moment(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == UTC.utcoffset(None)
    except ValueError:
        return False


def resolve(corrections: Corrections, cells: Cells, group_size: int) -> Correction:
    """Find the cells that corrections name.

    Parameters
    ----------
    corrections
    cells
        Of the revision that was seen.
    group_size
        Most cells of a group of its ANN.

    Raises
    ------
    ReviewInvalid
        When a cell is not there, or named twice.
    """
    groups = rows_of_groups(cells, group_size)
    retyped = [
        _row(cell, f"retyped[{number}]", cells, groups)
        for number, cell in enumerate(corrections.retyped)
    ]
    deleted = [
        _row(cell, f"deleted[{number}]", cells, groups)
        for number, cell in enumerate(corrections.deleted)
    ]
    named, counts = np.unique(np.array([*retyped, *deleted], np.int64), return_counts=True)
    if (counts > 1).any():
        x, y = centres(cells.box_px[named[counts > 1][:1]])[0]
        raise ReviewInvalid(
            f"The corrections name the cell at ({x:.1f}, {y:.1f}) px more than once: say once "
            "what it is."
        )
    changed = [
        (row, str(cell.type))
        for row, cell in zip(retyped, corrections.retyped, strict=True)
        if cells.classes[cells.label[row]] != cell.type
    ]
    return Correction(
        retyped=np.array([row for row, _ in changed], np.int64),
        retyped_as=tuple(key for _, key in changed),
        deleted=np.array(deleted, np.int64),
        added_px=np.array([cell.box_px for cell in corrections.added]).reshape(-1, 4),
        added_as=tuple(cell.type for cell in corrections.added),
    )


def _row(cell: NamedCell, where: str, cells: Cells, groups: list[Any]) -> int:
    """Row of a named cell."""
    if cell.at_px is not None:
        return _row_at(cell.at_px, where, cells)
    group, index = (cell.group or 0) - 1, (cell.index or 0) - 1  # numbers from 1 become 0-based
    if group >= len(groups) or index >= len(groups[group]):
        raise ReviewInvalid(
            f"{where} names annotation {cell.index} of group {cell.group}, which the annotations "
            "of the revision do not have: look at the ANN that was reviewed."
        )
    return int(groups[group][index])


def _row_at(at_px: tuple[float, float], where: str, cells: Cells) -> int:
    """Of the boxes that hold a place the one whose middle is nearest."""
    x, y = at_px
    x0, y0, x1, y1 = cells.box_px.T
    rows = np.flatnonzero((x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1))
    if not len(rows):
        raise ReviewInvalid(
            f"{where} names a cell at ({x:g}, {y:g}) px, where the revision has none: name a place "
            "inside a cell's box."
        )
    distance = np.linalg.norm(centres(cells.box_px[rows]) - np.array(at_px), axis=1)
    return int(rows[distance.argmin()])
