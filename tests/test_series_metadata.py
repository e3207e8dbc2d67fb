"""The walk of raw DICOM JSON against pydicom's datasets, and what it refuses."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_io.errors import PacsAnswerInvalid, SlideGeometryInvalid
from dicom_io.series_metadata import read_series_metadata

PLACES = st.tuples(
    st.integers(1, 2**31 - 1),
    st.integers(1, 2**31 - 1),
    st.one_of(st.none(), st.floats(-9, 9)),
    st.one_of(st.none(), st.sampled_from(["1", "brightfield", "µ"])),
)


def frame_item(column: int, row: int, z_um: float | None, path: str | None) -> Dataset:
    position = Dataset()
    position.ColumnPositionInTotalImagePixelMatrix = column
    position.RowPositionInTotalImagePixelMatrix = row
    if z_um is not None:
        position.ZOffsetInSlideCoordinateSystem = f"{z_um:.6g}"
    item = Dataset()
    item.PlanePositionSlideSequence = [position]
    if path is not None:
        identification = Dataset()
        identification.OpticalPathIdentifier = path
        item.OpticalPathIdentificationSequence = [identification]
    return item


@given(st.lists(PLACES, min_size=1, max_size=20))
def test_agrees_with_datasets(places: list[tuple[int, int, float | None, str | None]]) -> None:
    ds = Dataset()
    ds.SOPInstanceUID = "1.2.3"
    ds.PerFrameFunctionalGroupsSequence = [frame_item(*place) for place in places]
    raw = json.dumps([ds.to_json_dict(), {}], ensure_ascii=False).encode()
    (first, second) = read_series_metadata(raw, "The PACS", "1.2")
    assert second.frames is None
    assert first.header == {"00080018": {"vr": "UI", "Value": ["1.2.3"]}}
    frames = first.frames
    assert frames is not None
    for number, item in enumerate(ds.PerFrameFunctionalGroupsSequence):
        (position,) = item.PlanePositionSlideSequence
        assert frames.corner[number].tolist() == [
            position.ColumnPositionInTotalImagePixelMatrix,
            position.RowPositionInTotalImagePixelMatrix,
        ]
        z_um = position.get("ZOffsetInSlideCoordinateSystem")
        z_mm = frames.z_mm[number]
        assert np.isnan(z_mm) if z_um is None else z_mm == z_um / 1000
        said = item.get("OpticalPathIdentificationSequence")
        named = frames.path[number]
        found = None if named < 0 else frames.path_identifiers[named]
        assert found == (said[0].OpticalPathIdentifier if said else None)


def test_numbers_may_stand_as_text_and_a_dataset_alone() -> None:
    position = {
        "0048021E": {"vr": "SL", "Value": ["257"]},
        "0048021F": {"vr": "SL", "Value": [1.0]},
        "0040074A": {"vr": "DS", "Value": ["0.25"]},
    }
    item = {"0048021A": {"vr": "SQ", "Value": [position]}, "00209111": {"vr": "SQ"}}
    raw = json.dumps({"52009230": {"vr": "SQ", "Value": [item]}}).encode()
    (instance,) = read_series_metadata(raw, "The PACS", "1.2")
    assert instance.frames is not None
    assert instance.frames.corner.tolist() == [[257, 1]]
    assert instance.frames.z_mm.tolist() == [0.00025]  # written in µm
    assert read_series_metadata(b"", "The PACS", "1.2") == []


@pytest.mark.parametrize(
    "raw",
    [b"<html>", b"[", b"[1]", b'[{"00080018": 3}]', b'"a"', b"\xff\xfe", b"[" * 100_000, b"[NaN]"],
)
def test_what_is_no_dicom_json_is_named(raw: bytes) -> None:
    with pytest.raises(PacsAnswerInvalid, match=r"The PACS answered .* series 1\.2 .*\.$"):
        read_series_metadata(raw, "The PACS", "1.2")


@pytest.mark.parametrize(
    "item",
    [
        {"0048021A": {"Value": 3}},
        {"0048021A": {"Value": [{"0048021E": {"Value": [None]}}]}},
        {"0048021A": {"Value": [{"0048021E": {"Value": [1.5]}}]}},
        {"0048021A": {"Value": [{"0048021E": {"Value": [10**30]}}]}},
        {"00480207": {"Value": [{"00480106": {"Value": [7]}}]}},
        None,
        [],
    ],
)
def test_malformed_place_is_named(item: Any) -> None:
    ds = {"00080018": {"vr": "UI", "Value": ["1.2.3"]}, "52009230": {"Value": [{}, item]}}
    with pytest.raises(SlideGeometryInvalid, match=r"Instance 1\.2\.3 .* frame 2 .*\.$"):
        read_series_metadata(json.dumps([ds]).encode(), "The PACS", "1.2")


@given(st.binary(max_size=60), st.integers(0, 400))
def test_damage_is_one_of_two_errors_or_none(damage: bytes, where: int) -> None:
    ds = Dataset()
    ds.SOPInstanceUID = "1.2.3"
    ds.PerFrameFunctionalGroupsSequence = [frame_item(1, 1, 0.5, "1")]
    raw = json.dumps([ds.to_json_dict()]).encode()
    with contextlib.suppress(PacsAnswerInvalid, SlideGeometryInvalid):
        read_series_metadata(raw[:where] + damage + raw[where + len(damage) :], "PACS", "1.2")
