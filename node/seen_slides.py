"""Slides that somebody looked for and found, with what was decided about each: kept for good."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import ColumnElement, Connection, insert, select

from node.worklist_database import SEEN, WorklistDatabase


class SeenSlides:
    """The slides that one search has come to.

    Parameters
    ----------
    database
    source
        Names the search; another one has seen nothing of it.
    """

    def __init__(self, database: WorklistDatabase, source: str) -> None:
        self._database, self._source = database, source

    def __contains__(self, slide: tuple[str, str]) -> bool:
        """Whether a slide (study UID, series UID) was seen."""
        with self._database.reading() as connection:
            return self._is_there(connection, *slide)

    def add(self, study_uid: str, series_uid: str, decision: str) -> None:
        """Note what was decided; the first decision about a slide stays."""
        with self._database.changing() as connection:
            if not self._is_there(connection, study_uid, series_uid):
                connection.execute(
                    insert(SEEN).values(
                        source=self._source,
                        study_uid=study_uid,
                        series_uid=series_uid,
                        decision=decision,
                    )
                )

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        """Study UID, series UID and decision of every slide that was seen."""
        query = select(SEEN.c.study_uid, SEEN.c.series_uid, SEEN.c.decision)
        with self._database.reading() as connection:
            rows = connection.execute(query.where(self._own)).all()
        yield from map(tuple, rows)

    @property
    def _own(self) -> ColumnElement[bool]:
        return SEEN.c.source == self._source

    def _is_there(self, connection: Connection, study_uid: str, series_uid: str) -> bool:
        one = self._own & (SEEN.c.study_uid == study_uid) & (SEEN.c.series_uid == series_uid)
        return connection.execute(select(SEEN.c.series_uid).where(one)).first() is not None
