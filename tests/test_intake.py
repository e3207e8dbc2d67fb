"""When a slide in an archive is taken as whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from node.config import Settings
from node.intake import WHOLE, await_whole
from node.pipeline import SlideReference
from tests.reviews import at_once
from tests.small_slides import write_small_slide


def test_a_base_level_that_is_there_first_is_not_the_slide(tmp_path: Path) -> None:
    """It has all its frames; the others come while it is looked at again."""
    slide = write_small_slide(tmp_path / "pacs")
    base, *others = sorted(slide.paths, key=lambda path: path.stat().st_size, reverse=True)
    elsewhere = tmp_path / "scanner"
    elsewhere.mkdir()
    for path in others:
        path.rename(elsewhere / path.name)
    settings = replace(Settings(), pacs_url=base.parent.as_uri())
    looks: list[int] = []

    def wait(seconds: float) -> None:
        assert seconds == settings.jobs.look_s
        looks.append(len(list(base.parent.iterdir())))
        if others:
            path = others.pop()
            (elsewhere / path.name).rename(path)

    reference = SlideReference(slide.study_uid, slide.series_uid, "test")
    assert await_whole(settings, reference, at_once, wait) == {"arrival": WHOLE}
    # Taken at the second look that found all of them.
    assert looks == [*range(1, len(slide.paths) + 1)]
