"""Result sets of every kind, looked at by the validators of others and by the node's own reading.

Few, many and no cells; one type and all; slides turned, sparse, in parts, with several optical
paths; names in many scripts; every form of annotation; signed revisions. Each set is all documents
that can be asked for, the FHIR bundle, and the HL7 v2 message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hl7
import numpy as np
import pytest
from fhir.resources.bundle import Bundle as BundleR5
from pydicom.dataset import Dataset

from conformance.agreement import check_agreement, check_standing
from dicom_io.analysis import Analysis, Decision, Standing
from dicom_io.annotation import annotated_types, decode_annotation
from dicom_io.optical_path import OpticalPath
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import Slide, open_slide
from models.cell_types import CELL_TYPES
from models.differential import count_differential
from models.records import Regions, UInt8
from node.config import OutputSettings
from node.ehr import EhrSettings, open_ehr
from node.fhir import build_bundle, conclusion_text
from node.hl7v2 import encode_oru
from node.outputs import KEPT, Renditions, encode_documents
from node.pictures import draw_differential
from node.report_pdf import draw_report
from tests.analyses import RULES, signed, small_slide, some_analysis
from tests.fhir_definitions import outside_definitions
from tests.fhir_fixture import FhirServer
from tests.slides import write_slide
from tests.test_source_header import NAMES, holding, named
from tests.validators import dcentvfy, dciodvfy, dsr2html, dsrdump, written

ALL = OutputSettings(pdf=True, captures=True, parametric_map=True)
CONCATENATION = "2.25.4711"


@dataclass(frozen=True)
class ResultSet:
    """How one set differs from a plain one of 600 cells."""

    slide: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Analysis], Analysis] = lambda analysis: analysis
    cells: int = 600
    output: dict[str, Any] = field(default_factory=dict)
    known: tuple[str, ...] = ()


def header(**values: Any) -> Callable[[Analysis], Analysis]:
    """With other values in the slide's header; None removes one."""

    def change(analysis: Analysis) -> Analysis:
        changed = deepcopy(analysis.slide.header)
        for keyword, value in values.items():
            if value is not None:
                setattr(changed, keyword, value)
            elif keyword in changed:
                delattr(changed, keyword)
        return replace(analysis, slide=replace(analysis.slide, header=changed))

    return change


def types(*keys: str) -> Callable[[Analysis], Analysis]:
    """Of these cell types only, found by a package that knows only these."""

    def change(analysis: Analysis) -> Analysis:
        rng = np.random.default_rng(len(keys))
        count = len(analysis.cells)
        cells = replace(
            analysis.cells,
            classes=keys,
            label=(np.arange(count) % len(keys)).astype(np.int32),
            probability=rng.dirichlet(np.ones(len(keys)), count).astype(np.float32),
        )
        return replace(analysis, cells=cells, differential=count_differential(cells, 12, RULES))

    return change


def changed(**values: Any) -> Callable[[Analysis], Analysis]:
    return lambda analysis: replace(analysis, **values)


def reviewed(
    decision: Decision, standing: Standing, revision: int = 2
) -> Callable[[Analysis], Analysis]:
    return lambda analysis: signed(analysis, decision, standing, revision, reason="Seen twice.")


def corrected(analysis: Analysis) -> Analysis:
    """A person gave the first twenty cells another type, and added the last."""
    cells = analysis.cells
    probability, score = cells.probability.copy(), cells.score.copy()
    probability[[*range(20), -1]], score[-1] = 0.0, 0.0
    label = cells.label.copy()
    label[:20] = (label[:20] + 1) % len(cells.classes)
    cells = replace(cells, probability=probability, score=score, label=label)
    by_hand = replace(analysis, cells=cells, differential=count_differential(cells, 12, RULES))
    return signed(by_hand, "corrected", "corrected", 3)


def without_regions(analysis: Analysis) -> Analysis:
    return replace(analysis, regions=Regions(np.zeros((0, 4)), np.zeros(0, np.float32), "frame"))


def of_several_paths(analysis: Analysis) -> Analysis:
    path = OpticalPath("2", 3, "the first of brightfield illumination")
    return replace(analysis, slide=replace(analysis.slide, optical_path=path))


def of_a_released_model(analysis: Analysis) -> Analysis:
    model = replace(
        analysis.model,
        name="a model with a name as long as a description of what it does may be",
        intended_use="Counts the nucleated cells of marrow smears stained by May-Grünwald-Giemsa.",
        demonstration=False,
    )
    return replace(analysis, model=model)


def converged(analysis: Analysis) -> Analysis:
    return replace(analysis, differential=replace(analysis.differential, converged_after=7))


def at_all_levels(change: Callable[[Dataset], None]) -> Callable[[Dataset, int], None]:
    return lambda dataset, level: change(dataset)


def concatenated(dataset: Dataset, level: int) -> None:
    if level == 0:
        dataset.SOPInstanceUIDOfConcatenationSource = CONCATENATION


TURNED = {"orientation": (-0.5, -(0.75**0.5), 0, -(0.75**0.5), 0.5, 0), "origin_mm": (18.4, 51.25)}
SETS: dict[str, ResultSet] = {
    "plain": ResultSet(),
    **{f"{count} cells": ResultSet(cells=count) for count in (0, 1, 2, 40, 499, 5_000, 50_000)},
    **{
        f"{graphic} {coordinates}": ResultSet(
            output={"graphic_type": graphic, "coordinates": coordinates}
        )
        for graphic in ("RECTANGLE", "POLYGON", "POINT")
        for coordinates in ("2D", "3D")
    },
    **{
        f"turned slide, {graphic} {coordinates}": ResultSet(
            slide=TURNED, output={"graphic_type": graphic, "coordinates": coordinates}
        )
        for graphic in ("RECTANGLE", "POINT")
        for coordinates in ("2D", "3D")
    },
    "slide along the axes": ResultSet(slide={"orientation": (1, 0, 0, 0, 1, 0)}),
    "sparse slide": ResultSet(slide={"organization": "TILED_SPARSE"}),
    "slide without an origin": ResultSet(slide={"origin_mm": None}),
    # The whole is named, of which an archive has only the parts.
    "slide in parts": ResultSet(slide={"parts": 3, "change": concatenated}, known=(CONCATENATION,)),
    "slide of odd tiles": ResultSet(slide={"tile_px": (96, 48)}),
    "several optical paths": ResultSet(change=of_several_paths),
    "colour profile": ResultSet(change=changed(icc_profile=b"\0" * 128 + b"an ICC profile")),
    "groups of 50": ResultSet(output={"cells_per_group": 50}),
    "one type": ResultSet(change=types("promyelocyte")),
    "one type outside the count": ResultSet(change=types("megakaryocyte")),
    "nothing classified": ResultSet(change=types("unclassified")),
    "no erythroid cell": ResultSet(change=types("myeloblast", "myelocyte", "eosinophil")),
    "all types": ResultSet(change=types(*CELL_TYPES)),
    "all types, 40 cells": ResultSet(cells=40, change=types(*CELL_TYPES)),
    "no region": ResultSet(cells=0, change=without_regions),
    "converged": ResultSet(change=converged),
    "released model": ResultSet(change=of_a_released_model),
    "second revision": ResultSet(change=changed(revision=2)),
    "confirmed": ResultSet(change=reviewed("confirmed", "final")),
    "confirmed, insufficient": ResultSet(cells=40, change=reviewed("confirmed", "final", 3)),
    "corrected": ResultSet(change=corrected),
    "confirmed after a correction": ResultSet(change=reviewed("confirmed", "corrected", 4)),
    "withdrawn": ResultSet(change=reviewed("withdrawn", "withdrawn")),
    "LOINC": ResultSet(output={"loinc": True}),
    "R5": ResultSet(output={"fhir": "R5"}),
    "no specimen": ResultSet(change=header(SpecimenDescriptionSequence=None)),
    "no container": ResultSet(change=header(ContainerIdentifier=None)),
    "nobody": ResultSet(
        slide={"change": at_all_levels(holding(PatientID="", PatientName="", PatientSex=""))}
    ),
    # Emptied in the results: dcentvfy sees that the slide still has them.
    "wrong sex and birth date": ResultSet(
        slide={"change": at_all_levels(holding(PatientSex="FEMALE", PatientBirthDate="1954"))},
        known=("<PatientSex>", "<PatientBirthDate>"),
    ),
    **{
        # dcentvfy compares bytes, of the slide's character set with those of UTF-8.
        f"name: {script}": ResultSet(
            slide={"change": at_all_levels(named(name, character_set))}, known=("<PatientName>",)
        )
        for script, (character_set, name) in NAMES.items()
    },
}


@dataclass(frozen=True)
class Made:
    """A set, what it replaces, and the slide's own files."""

    analysis: Analysis
    replaced: dict[str, Dataset]
    documents: dict[str, Dataset]
    bundle: dict[str, Any]
    message: str
    slide_files: tuple[Path, ...]
    output: OutputSettings
    known: tuple[str, ...]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> UInt8:
    """Every fourth pixel of a real one: RLE is written by Python, byte by byte."""
    analysis = some_analysis(small_slide(tmp_path_factory.mktemp("picture")))
    return draw_differential(analysis)[::4, ::4]


@pytest.fixture(scope="module")
def plain_slide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Slide, tuple[Path, ...]]:
    folder = tmp_path_factory.mktemp("slide")
    return small_slide(folder), tuple(folder.rglob("*.dcm"))


@pytest.fixture(params=SETS)
def made(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    picture: UInt8,
    plain_slide: tuple[Slide, tuple[Path, ...]],
) -> Made:
    chosen = SETS[request.param]
    slide, files = _slide(tmp_path / "slide", chosen.slide) if chosen.slide else plain_slide
    analysis = chosen.change(some_analysis(slide, chosen.cells))
    # No other set's report: the EHR is asked for each by its identifier.
    analysis = replace(analysis, configuration_digest=f"{list(SETS).index(request.param):064x}")
    output = replace(ALL, **chosen.output)
    pdf = draw_report(analysis, conclusion_text(analysis), {})
    renditions = Renditions(pdf, {"overview": picture, "differential": picture})
    before: dict[str, Dataset] = {}
    kept: dict[str, Dataset] = {}
    if analysis.signature is not None:
        before = encode_documents(replace(analysis, signature=None, revision=1), output, renditions)
        kept = {kind: before[kind] for kind in KEPT[analysis.signature.decision] if kind in before}
    predecessors = [before["SR"]] if before else []
    documents = encode_documents(analysis, output, renditions, kept, predecessors)
    replaced = {kind: document for kind, document in before.items() if kind not in kept}
    references = {
        kind: (str(d.StudyInstanceUID), str(d.SeriesInstanceUID), str(d.SOPInstanceUID))
        for kind, d in documents.items()
    }
    bundle = build_bundle(analysis, references, {}, output.loinc, pdf, output.fhir)
    message = encode_oru(analysis, bundle, pdf)
    return Made(analysis, replaced, documents, bundle, message, files, output, chosen.known)


def _slide(folder: Path, how: dict[str, Any]) -> tuple[Slide, tuple[Path, ...]]:
    made = write_slide(folder, **how)
    with open_pacs(folder.as_uri(), PacsSettings()) as pacs:
        return open_slide(pacs, made.study_uid, made.series_uid), made.paths


def test_there_are_at_least_forty() -> None:
    assert len(SETS) >= 40


@pytest.mark.filterwarnings("ignore:The string", "ignore:Invalid value for VR")
def test_a_result_set_conforms(made: Made, tmp_path: Path, fhir_server: FhirServer) -> None:
    paths = {
        kind: written(document, tmp_path / f"{kind}.dcm")
        for kind, document in made.documents.items()
    }
    for kind, path in paths.items():
        assert [line for line in dciodvfy(path) if line.startswith("Error")] == [], kind
    if "ANN" in paths and made.output.coordinates == "2D":  # the profile knows no 3D
        found = dciodvfy(paths["ANN"], profile="WG26SP2025")
        assert [line for line in found if line.startswith("Error")] == []
    replaced = [
        written(document, tmp_path / f"{kind} before.dcm")
        for kind, document in made.replaced.items()
    ]
    found = dcentvfy(*paths.values(), *replaced, *made.slide_files)
    assert [line for line in found if not any(map(line.__contains__, made.known))] == []
    for read in (dsrdump, dsr2html):
        printed, complaints = read(paths["SR"])
        assert complaints == ""
        assert "Nucleated differential count of a bone marrow smear" in printed
    assert check_agreement(made.documents.get("ANN"), made.documents["SR"], made.bundle) == []
    assert check_standing(made.documents["SR"], made.bundle) == []
    _annotation_says_the_cells(made)
    _message_says_the_same(made)
    if made.output.fhir == "R4":  # what the server speaks
        delivered = open_ehr(fhir_server.url, EhrSettings()).deliver(made.bundle)
        assert {each.status for each in delivered} <= {"created", "updated"}
    else:
        bundle = BundleR5.model_validate(made.bundle)
        types = {e["fullUrl"]: e["resource"]["resourceType"] for e in made.bundle["entry"]}
        assert list(outside_definitions(bundle, types)) == []


def _annotation_says_the_cells(made: Made) -> None:
    cells = made.analysis.cells
    if not len(cells) or made.analysis.standing == "withdrawn":
        assert "ANN" not in made.documents
        return
    document = made.documents["ANN"]
    assert annotated_types(document) == Counter(cells.classes[label] for label in cells.label)
    back = decode_annotation(document, made.analysis.slide)
    rows, order = (np.lexsort(each.box_px.round(2).T) for each in (back, cells))
    assert np.allclose(back.box_px[rows], cells.box_px[order], atol=2e-3)


def _message_says_the_same(made: Made) -> None:
    """Every number of the Observations, in the same order."""
    told = [
        str(segment[5])
        for segment in hl7.parse(made.message).segments("OBX")
        if str(segment[2]) == "NM" and str(segment[5])
    ]
    report = next(
        entry["resource"]
        for entry in made.bundle["entry"]
        if entry["resource"]["resourceType"] == "DiagnosticReport"
    )
    by_url = {entry["fullUrl"]: entry["resource"] for entry in made.bundle["entry"]}
    values = [
        part["valueQuantity"]["value"]
        for result in report["result"]
        for each in (by_url[result["reference"]],)
        for part in (each, *each.get("component", []))
        if "valueQuantity" in part
    ]
    assert [float(value) for value in told] == pytest.approx(values, abs=1e-6)
