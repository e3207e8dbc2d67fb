"""Revisions follow one another: what is refused, decided twice or by two, or told late."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hl7
import numpy as np
import pytest
from highdicom import UID
from pydicom import dcmread

from dicom_io.errors import WorkFileMissing
from dicom_io.pacs import open_pacs
from models.errors import ReviewInvalid, ReviewRefused
from node.config import load_settings
from node.revisions import newest_revision
from tests.mllp_server import mllp_server
from tests.reviews import DELETE_ONE, RETYPE_ONE, Node, Result, at_once, edited_annotation
from tests.smears import Smear, small_smear


@pytest.fixture(scope="module")
def analysed_once(tmp_path_factory: pytest.TempPathFactory) -> Smear:
    """A smear that the command line has analysed, into folders."""
    smear = small_smear(tmp_path_factory.mktemp("analysed"))
    code, _, said = smear.analyse()
    assert code == 0, said
    return smear


@pytest.fixture
def node(analysed_once: Smear, tmp_path: Path) -> Node:
    """With folders for archive and EHR; its work folder has the analysis."""
    copy = tmp_path / "copy"
    shutil.copytree(analysed_once.folder, copy)
    paths = tuple(
        copy / path.relative_to(analysed_once.folder) for path in analysed_once.slide.paths
    )
    smear = Smear(replace(analysed_once.slide, paths=paths), copy)
    settings = load_settings(smear.settings(), {})
    return Node(smear, replace(settings, pacs_url=smear.pacs_url, ehr_url=smear.ehr_url))


def test_hl7_v2_is_final_corrected_deleted_and_never_preliminary_again(node: Node) -> None:
    with mllp_server() as receiver:
        node = replace(node, settings=replace(node.settings, ehr_url=receiver.url()))
        first = node.analyse()
        node.review(first, 1, "confirmed")
        node.analyse()
        node.review(first, 2, "corrected", corrections=RETYPE_ONE)
        node.review(first, 3, "corrected", corrections=DELETE_ONE)
        node.analyse()
        node.review(first, 4, "withdrawn", reason="Wrong slide")
        node.analyse()
        node.review(first, 1, "confirmed")  # late: not sent
        messages = [hl7.parse(message) for message in receiver.messages]
    told = [str(message.segment("OBR")[25]) for message in messages]
    assert told == ["P", "F", "F", "C", "C", "C", "C", "C"]
    results = [{str(each[11]) for each in message.segments("OBX")} for message in messages]
    assert all({"D"} == each for each in results[-2:])
    assert not any({"P", "D"} & each for each in results[1:-2])
    identifiers = [str(message.segment("MSH")[10]) for message in messages]
    # What says the same has the same identifier, what says another thing another.
    assert [identifiers.index(each) for each in identifiers] == [0, 1, 1, 3, 4, 4, 6, 6]
    assert len({str(message.segment("OBR")[3]) for message in messages}) == 1


def test_twice_the_same_is_once(node: Node) -> None:
    first = node.analyse()
    one = node.review(first, 1, "corrected", corrections=RETYPE_ONE)
    files = sorted(Path(node.smear.folder, "pacs").rglob("*"))
    two = node.review(first, 1, "corrected", corrections=RETYPE_ONE)
    assert (one["sr"], one["ann"]) == (two["sr"], two["ann"])
    assert {each["status"] for each in two["receipts"]} == {"already there"}
    assert sorted(Path(node.smear.folder, "pacs").rglob("*")) == files
    assert len(node.revisions(first)) == 2


@pytest.mark.parametrize(
    ("revision", "decision", "more", "said"),
    [
        (1, "confirmed", {}, "Revision 1 is no longer the newest: revision 2 is there, final"),
        (1, "withdrawn", {"reason": "x"}, "no longer the newest"),
        (3, "confirmed", {}, "There is no revision 3: the newest is 2"),
        (2, "corrected", {"corrections": {}}, "changes nothing of revision 2"),
        (2, "corrected", {"annotation_uid": "1.2.3"}, "has no annotations 1.2.3"),
        (2, "corrected", {"annotation_uid": "../x"}, r"has no annotations \.\./x"),
        (
            2,
            "corrected",
            {"corrections": {"added": [{"box_px": [-9, -9, -1, -1], "type": "blast"}]}},
            "outside the regions that were counted",
        ),
    ],
)
def test_what_is_refused_leaves_nothing(
    node: Node, revision: int, decision: str, more: dict[str, Any], said: str
) -> None:
    first = node.analyse()
    node.review(first, 1, "confirmed", name="Kim^Bo")
    files = sorted(Path(node.smear.folder, "pacs").rglob("*"))
    with pytest.raises(ReviewRefused, match=said):
        node.review(first, revision, decision, **more)
    assert len(node.revisions(first)) == 2
    assert sorted(Path(node.smear.folder, "pacs").rglob("*")) == files


def test_nothing_follows_on_a_withdrawal(node: Node) -> None:
    first = node.analyse()
    node.review(first, 1, "withdrawn", reason="Wrong slide")
    for decision, more in (
        ("confirmed", {}),
        ("corrected", {"corrections": RETYPE_ONE}),
        ("withdrawn", {"reason": "Again"}),
    ):
        with pytest.raises(ReviewRefused, match="is withdrawn and cannot be"):
            node.review(first, 2, decision, **more)


def test_annotations_about_another_image_are_refused(node: Node) -> None:
    first = node.analyse()
    edited = edited_annotation(node, node.fetched(node.revisions(first)[0])["ANN"])
    for change in (
        lambda ann: setattr(ann.ReferencedImageSequence[0], "ReferencedSOPInstanceUID", "1.2.3"),
        lambda ann: setattr(
            ann.AnnotationGroupSequence[0].AnnotationPropertyTypeCodeSequence[0], "CodeValue", "1"
        ),
        lambda ann: setattr(
            ann.AnnotationGroupSequence[0],
            "PointCoordinatesData",
            (
                np.frombuffer(ann.AnnotationGroupSequence[0].PointCoordinatesData, np.float32) + 1e6
            ).tobytes(),
        ),
    ):
        broken = dcmread(
            next(path for path in Path(node.smear.folder, "pacs").rglob(str(edited.SOPInstanceUID)))
        )
        broken.SOPInstanceUID = broken.file_meta.MediaStorageSOPInstanceUID = UID()
        change(broken)
        with open_pacs(node.settings.pacs_url, node.settings.pacs) as pacs:
            pacs.store([broken])
        with pytest.raises(
            ReviewInvalid, match=r"not about the base level|do not serve|outside of"
        ):
            node.review(first, 1, "corrected", annotation_uid=str(broken.SOPInstanceUID))
    assert len(node.revisions(first)) == 1


def test_a_report_that_is_not_in_the_archive_has_no_successor(node: Node) -> None:
    first = node.analyse()
    _, series, uid = first["sr"][0]
    (path,) = Path(node.smear.folder, "pacs").rglob(f"{series}/instances/{uid}")
    path.unlink()
    with pytest.raises(ReviewRefused, match="does not have the report of revision 1"):
        node.review(first, 1, "confirmed")


def test_of_two_at_the_same_time_one_is_refused(node: Node) -> None:
    """Both have looked at the revision before either wrote the next."""
    first = node.analyse()
    together = threading.Barrier(2)
    ended: dict[str, str] = {}

    def step(name: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        answer = at_once(name, stage)
        if name == "open review":
            together.wait(60)
        return answer

    def decide(name: str) -> None:
        try:
            node.review(first, 1, "confirmed", step, name=name)
            ended[name] = "done"
        except ReviewRefused as refusal:
            ended[name] = str(refusal)

    threads = [threading.Thread(target=decide, args=(name,)) for name in ("Lee^A", "Kim^B")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(word.split()[0] for word in ended.values()) == ["Revision", "done"]
    assert len(node.revisions(first)) == 2
    reports = [path for path in Path(node.smear.folder, "pacs").rglob("*") if is_report(path)]
    assert len(reports) == 2


@pytest.fixture
def restored(node: Node) -> Result:
    """A result whose correction the archive and the EHR have, and the work folder not."""
    first = node.analyse()
    backup = node.smear.folder / "backup"
    shutil.copytree(node.settings.work_folder, backup)
    node.review(first, 1, "corrected", corrections=RETYPE_ONE)
    shutil.rmtree(node.settings.work_folder)
    shutil.move(backup, node.settings.work_folder)
    assert len(node.revisions(first)) == 1
    return first


def delivered(node: Node) -> dict[Path, bytes]:
    folders = (node.smear.folder / name for name in ("pacs", "ehr"))
    return {
        path: path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".db"
    }


@pytest.mark.parametrize(
    ("decision", "more"), [("confirmed", {}), ("corrected", {"corrections": DELETE_ONE})]
)
def test_a_revision_that_only_the_archive_knows_of_is_not_replaced(
    node: Node, restored: Result, decision: str, more: dict[str, Any]
) -> None:
    """An older backup was restored, or hosts share no storage."""
    before = delivered(node)
    with pytest.raises(ReviewRefused, match="another revision 2 of this result"):
        node.review(restored, 1, decision, **more)
    assert len(node.revisions(restored)) == 1
    assert delivered(node) == before


def test_the_same_review_is_the_archives_when_an_older_backup_was_restored(
    node: Node, restored: Result
) -> None:
    before = delivered(node)
    again = node.review(restored, 1, "corrected", corrections=RETYPE_ONE)
    assert {each["status"] for each in again["receipts"]} == {"already there"}
    assert delivered(node) == before
    (_, second) = node.revisions(restored)
    assert second["review"]["at"] == second["issued"]


def test_hl7_v2_is_not_told_what_a_revision_in_the_archive_has_replaced(
    node: Node, restored: Result
) -> None:
    with mllp_server() as receiver:
        node = replace(node, settings=replace(node.settings, ehr_url=receiver.url()))
        again = node.analyse()
        assert receiver.messages == []
    assert again["receipts"][-1]["status"] == "not sent: revision 2 has replaced it"


def is_report(path: Path) -> bool:
    return path.is_file() and dcmread(path, specific_tags=["Modality"]).Modality == "SR"


def test_what_a_review_needs_of_an_analysis(node: Node) -> None:
    """Neither the model package nor the settings of today: both may be others by then."""
    first = node.analyse()
    later = replace(
        node.settings,
        model=replace(node.settings.model, name="another", folders=()),
        output=replace(node.settings.output, cells_per_group=1, coordinates="3D"),
    )
    reviewed = Node(node.smear, later).review(first, 1, "corrected", corrections=RETYPE_ONE)
    ann = node.fetched(node.revisions(first)[1])["ANN"]
    assert ann.AnnotationCoordinateType == "2D"
    assert reviewed["model"] == first["model"]
    assert reviewed["report"] == first["report"]


def test_a_result_that_this_folder_does_not_have(node: Node) -> None:
    with pytest.raises(ReviewRefused, match="nothing to review"):
        node.review({"identity": "0" * 64}, 1, "confirmed")


def test_a_review_that_a_host_without_the_result_took_may_come_to_another(node: Node) -> None:
    """Reviews are in one queue for all hosts that share a database."""
    first = node.analyse()
    url = "postgresql://nobody@127.0.0.1/asks-it"
    there = Node(node.smear, replace(node.settings, database_url=url))
    here = Node(
        node.smear, replace(there.settings, work_folder=node.smear.folder / "of another host")
    )
    with pytest.raises(WorkFileMissing, match="left to that host") as met:
        here.review(first, 1, "confirmed")
    assert met.value.transient
    assert there.review(first, 1, "confirmed")["revision"] == 2


def test_work_files_that_are_gone_are_told(node: Node) -> None:
    first = node.analyse()
    digest = node.revisions(first)[0]["analysis"]["cells"]
    (node.settings.work_folder / "files" / digest[:2] / digest).unlink()
    with pytest.raises(ReviewRefused, match="work files of revision 1 are gone"):
        node.review(first, 1, "confirmed")


def test_a_clock_that_stands_before_the_result_is_told(node: Node) -> None:
    first = node.analyse()
    with pytest.raises(ReviewRefused, match="correct the clock"):
        node.review(first, 1, "confirmed", at="2020-01-01T00:00:00+00:00")


def test_a_result_that_is_not_here_may_come_again(node: Node) -> None:
    """Another host has it, or it was purged: the analysis begins again."""
    with pytest.raises(WorkFileMissing, match="another host"):
        newest_revision(node.settings, "0" * 64)
