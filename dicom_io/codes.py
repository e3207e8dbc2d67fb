"""Codes of the documents: SNOMED CT, DICOM, UCUM, and the node's own where none was verified.

Cell types come from the table :mod:`models.cell_types`; nothing here invents a standard code.
"""

from __future__ import annotations

from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

from models.cell_types import CELL_TYPES

LOCAL_SCHEME = "99MARROW"
# The node's own code system as FHIR names it: a UID derived once from the project's namespace.
LOCAL_SYSTEM_URI = "urn:oid:2.25.187217246532934265011836259160412553953"

CELL_CATEGORY = CodedConcept("91723000", "SCT", "Anatomical structure")
ARTIFACT_CATEGORY = CodedConcept("260787004", "SCT", "Physical object")
REGION_CATEGORY = CodedConcept("309825002", "SCT", "Spatial and Relational Concept")
REGION_TYPE = CodedConcept("111099", "DCM", "Selected region")
ALGORITHM_FAMILY = CodedConcept("123110", "DCM", "Artificial Intelligence")
BONE_MARROW = CodedConcept("14016003", "SCT", "Bone marrow")

PERCENT = CodedConcept("%", "UCUM", "Percent")
NO_UNITS = CodedConcept("1", "UCUM", "no units")
CELLS = CodedConcept("{cells}", "UCUM", "cells")
TILES = CodedConcept("{tiles}", "UCUM", "tiles")
RATIO = CodedConcept("{ratio}", "UCUM", "ratio")
MICROMETRE = CodedConcept("um", "UCUM", "micrometer")
SQUARE_MM = CodedConcept("mm2", "UCUM", "square millimeter")

PROBABILITY = CodedConcept("probability", LOCAL_SCHEME, "Probability of the reported type")
CELL_PROBABILITY = CodedConcept(
    "cell-probability", LOCAL_SCHEME, "Probability of a nucleated cell within the outline"
)
WIDTH = CodedConcept("103355008", "SCT", "Width")
HEIGHT = CodedConcept("121207", "DCM", "Height")
COUNT = CodedConcept("count", LOCAL_SCHEME, "Number of cells")
SHARE = CodedConcept("ndc-percentage", LOCAL_SCHEME, "Percentage of nucleated differential count")
INTERVAL_LOW = CodedConcept("wilson-95-low", LOCAL_SCHEME, "Lower bound of Wilson 95 % interval")
INTERVAL_HIGH = CodedConcept("wilson-95-high", LOCAL_SCHEME, "Upper bound of Wilson 95 % interval")
CELLS_IN_NDC = CodedConcept("38257-2", "LN", "Total cells counted")
CELLS_FOUND = CodedConcept("cells-found", LOCAL_SCHEME, "Nucleated cells found")
ME_RATIO = CodedConcept("11138-5", "LN", "Myeloid/Erythroid ratio")
ME_NUMERATOR = CodedConcept("me-numerator", LOCAL_SCHEME, "Types in the numerator of M:E")
ME_DENOMINATOR = CodedConcept("me-denominator", LOCAL_SCHEME, "Types in the denominator of M:E")
TILES_COUNTED = CodedConcept("tiles-counted", LOCAL_SCHEME, "Tiles counted")
REGION_AREA = CodedConcept("region-area", LOCAL_SCHEME, "Area of the regions of interest")
CHI_SQUARE = CodedConcept("chi-square", LOCAL_SCHEME, "Chi-square distance of the last histograms")
CHI_SQUARE_LIMIT = CodedConcept(
    "chi-square-limit", LOCAL_SCHEME, "Chi-square distance below which the count has converged"
)
CONVERGED_AFTER = CodedConcept("converged-after", LOCAL_SCHEME, "Tiles until convergence")
CONVERGENCE = CodedConcept("convergence", LOCAL_SCHEME, "Convergence of the cell histogram")
CONVERGED = CodedConcept("converged", LOCAL_SCHEME, "Converged")
NOT_CONVERGED = CodedConcept("not-converged", LOCAL_SCHEME, "Not converged")
SUFFICIENCY = CodedConcept("sufficiency", LOCAL_SCHEME, "Sufficiency for a differential count")
SUFFICIENT = CodedConcept("sufficient", LOCAL_SCHEME, "Sufficient")
INSUFFICIENT = CodedConcept("insufficient", LOCAL_SCHEME, "Insufficient")
INSUFFICIENCY_REASON = CodedConcept("insuff-reason", LOCAL_SCHEME, "Reason of insufficiency")
QUALITY_FINDING = CodedConcept("111052", "DCM", "Quality Finding")
NO_QUALITY_ISSUE = CodedConcept("no-issue", LOCAL_SCHEME, "No quality issue found")
NO_ERYTHROID_CELLS = CodedConcept("no-erythroid", LOCAL_SCHEME, "No erythroid cell was counted")
DEMONSTRATION_MODEL = CodedConcept(
    "demonstration", LOCAL_SCHEME, "Demonstration model, not for clinical use"
)
ORIGIN_UNKNOWN = CodedConcept(
    "origin-unknown", LOCAL_SCHEME, "The slide does not say where on the glass its pixels lie"
)
WITHDRAWN = CodedConcept("withdrawn", LOCAL_SCHEME, "Result withdrawn by a person")
REVIEW_REASON = CodedConcept("review-reason", LOCAL_SCHEME, "Reason given by the reviewer")
NORMAL_RANGE_LOW = CodedConcept("385524004", "SCT", "Normal Range Lower Limit")
NORMAL_RANGE_HIGH = CodedConcept("371933006", "SCT", "Normal Range Upper Limit")
ABNORMALLY_LOW = CodedConcept("371880002", "SCT", "Abnormally Low")
ABNORMALLY_HIGH = CodedConcept("371879000", "SCT", "Abnormally High")
NORMAL = CodedConcept("17621005", "SCT", "Normal")
ANNOTATIONS = CodedConcept("annotations", LOCAL_SCHEME, "Annotations of the counted cells")
REGIONS = CodedConcept("regions", LOCAL_SCHEME, "Segmentation of the regions of interest")
REGION_PROBABILITY = CodedConcept("region-prob", LOCAL_SCHEME, "Probability of assessable cells")
WORKITEM = CodedConcept("marrow-ndc", LOCAL_SCHEME, "Differential count of a bone marrow smear")
DOCUMENT_TITLE = CodedConcept("48807-2", "LN", "Bone marrow aspiration report")
LIGHT_MICROSCOPY = CodedConcept("104157003", "SCT", "Light microscopy")
INTENDED_USE = CodedConcept("intended-use", LOCAL_SCHEME, "Intended use of the algorithm")
REPORT_TITLE = codes.DCM.ImagingMeasurementReport
FINDING = CodedConcept(
    "diff-count", LOCAL_SCHEME, "Nucleated differential count of a bone marrow smear"
)

_WITHOUT_LINEAGE = {"smudge_cell", "platelet_clump", "artifact", "debris"}


def cell_type_code(key: str) -> CodedConcept:
    """The code of a cell type: SNOMED CT where one is verified, else the node's own."""
    row = CELL_TYPES[key]
    if row.snomed:
        return CodedConcept(row.snomed, "SCT", row.snomed_meaning)
    return CodedConcept(row.code, LOCAL_SCHEME, row.name)


def cell_category_code(key: str) -> CodedConcept:
    """Category of an annotated cell type (PS3.16 CID 7150)."""
    return ARTIFACT_CATEGORY if key in _WITHOUT_LINEAGE else CELL_CATEGORY


def cell_type_key(value: str, scheme: str) -> str | None:
    """Key of the cell type that a code means, None for a code that is not in the table."""
    if scheme == LOCAL_SCHEME:
        return next((key for key, row in CELL_TYPES.items() if value in (key, row.code)), None)
    if scheme != "SCT" or not value:
        return None
    return next((key for key, row in CELL_TYPES.items() if row.snomed == value), None)
