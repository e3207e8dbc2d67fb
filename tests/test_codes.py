"""Codes are valid DICOM and lead back to the cell type they came from."""

from __future__ import annotations

import pytest
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

from dicom_io import codes as node_codes
from dicom_io.codes import (
    ALGORITHM_FAMILY,
    LOCAL_SCHEME,
    LOCAL_SYSTEM_URI,
    REGION_TYPE,
    cell_category_code,
    cell_type_code,
    cell_type_key,
)
from dicom_io.derived_uid import derive_uid
from models.cell_types import CELL_TYPES

CONCEPTS = {
    name: value for name, value in vars(node_codes).items() if isinstance(value, CodedConcept)
}


@pytest.mark.parametrize("key", CELL_TYPES)
def test_cell_type_codes_lead_back_to_their_key(key: str) -> None:
    code = cell_type_code(key)
    assert cell_type_key(code.value, code.scheme_designator) == key
    assert cell_type_key(key, LOCAL_SCHEME) == key


def test_cell_type_without_verified_snomed_code_is_a_local_one() -> None:
    assert cell_type_code("mast_cell").scheme_designator == LOCAL_SCHEME
    assert cell_type_code("myeloblast").scheme_designator == "SCT"


def test_a_key_that_is_too_long_for_a_code_has_a_shorter_one() -> None:
    code = cell_type_code("megakaryocyte_nucleus")
    assert (code.value, code.scheme_designator) == ("mk-nucleus", LOCAL_SCHEME)
    assert cell_type_key("mk-nucleus", LOCAL_SCHEME) == "megakaryocyte_nucleus"


def test_unknown_code_is_no_cell_type() -> None:
    assert cell_type_key("15622002", LOCAL_SCHEME) is None
    assert cell_type_key("", "SCT") is None


def test_a_smudge_is_no_anatomical_structure() -> None:
    assert cell_category_code("smudge_cell") != cell_category_code("myeloblast")


@pytest.mark.parametrize("name", CONCEPTS)
def test_concept_fits_its_value_representations(name: str) -> None:
    """Code value SH: 16 characters; meaning LO: 64, ASCII so that no character set is needed."""
    concept = CONCEPTS[name]
    assert len(concept.value) <= 16
    assert len(concept.meaning) <= 64
    assert concept.meaning.isascii()


def test_dicom_codes_are_those_of_the_dictionary() -> None:
    known = codes.DCM.ArtificialIntelligence
    assert (ALGORITHM_FAMILY.value, ALGORITHM_FAMILY.meaning) == (known.value, known.meaning)
    selected = codes.DCM.SelectedRegion
    assert (REGION_TYPE.value, REGION_TYPE.meaning) == (selected.value, selected.meaning)


def test_local_concepts_have_different_codes() -> None:
    local = [c.value for c in CONCEPTS.values() if c.scheme_designator == LOCAL_SCHEME]
    assert len(local) == len(set(local))
    assert not set(local) & CELL_TYPES.keys()


def test_code_system_of_fhir_is_a_valid_uid() -> None:
    assert derive_uid("any").is_valid
    uid = type(derive_uid("any"))(LOCAL_SYSTEM_URI.removeprefix("urn:oid:"))
    assert uid.is_valid
