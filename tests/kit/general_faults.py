"""Faults of any DICOM object."""

from __future__ import annotations

from copy import deepcopy

from pydicom.dataelem import DataElement

from tests.kit.bases import Case
from tests.kit.raw import put


def study_uid_empty(case: Case) -> None:
    case.sr.StudyInstanceUID = ""


def patient_id_missing(case: Case) -> None:
    del case.ann.PatientID


def group_label_missing(case: Case) -> None:
    del case.ann.AnnotationGroupSequence[1].AnnotationGroupLabel


def annotation_groups_empty(case: Case) -> None:
    case.ann.AnnotationGroupSequence = []


def uid_leading_zero(case: Case) -> None:
    put(case.seg, "SeriesInstanceUID", b"1.2.03.4")


def uid_too_long(case: Case) -> None:
    put(case.ann, "FrameOfReferenceUID", b"1.2." + b"3" * 62)
    case.ann.PositionReferenceIndicator = ""  # of the same module, type 2


def date_impossible(case: Case) -> None:
    put(case.ann, "ContentDate", b"20261141")


def decimal_comma(case: Case) -> None:
    put(_first_number(case).MeasuredValueSequence[0], "NumericValue", b"12,5")


def string_too_long(case: Case) -> None:
    put(case.sr, "AccessionNumber", b"A" * 20)


def colour_of_two_values(case: Case) -> None:
    case.ann.AnnotationGroupSequence[0].RecommendedDisplayCIELabValue = [1, 2]


def sex_unknown_code(case: Case) -> None:
    case.sr.PatientSex = "X"


def modality_of_another(case: Case) -> None:
    case.ann.Modality = "SM"


def graphic_type_unknown(case: Case) -> None:
    case.ann.AnnotationGroupSequence[0].GraphicType = "CIRCLE"


def generation_type_unknown(case: Case) -> None:
    case.ann.AnnotationGroupSequence[0].AnnotationGroupGenerationType = "AUTO"


def segmentation_type_unknown(case: Case) -> None:
    case.seg.SegmentationType = "BIT"


def completion_flag_unknown(case: Case) -> None:
    case.sr.CompletionFlag = "DONE"


def image_flavour_unknown(case: Case) -> None:
    case.slide.ImageType = ["ORIGINAL", "PRIMARY", "MICROSCOPY", "NONE"]


def charset_missing(case: Case) -> None:
    case.sr.pop("SpecificCharacterSet", None)
    put(case.sr, "PatientName", "Παπαδόπουλος^Γιώργος".encode("iso8859-7"))


def charset_misspelt(case: Case) -> None:
    put(case.sr, "SpecificCharacterSet", b"UTF-8 ")


def private_without_creator(case: Case) -> None:
    case.ann[0x00991001] = DataElement(0x00991001, "LO", "nobody's")


def meta_of_another_instance(case: Case) -> None:
    case.ann.file_meta.MediaStorageSOPInstanceUID = "1.2.3"


def sop_class_unknown(case: Case) -> None:
    # The file meta information too, so that only one thing is wrong.
    seg = case.seg
    seg.SOPClassUID = seg.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.999"


def code_without_meaning(case: Case) -> None:
    del case.ann.AnnotationGroupSequence[0].AnnotationPropertyTypeCodeSequence[0].CodeMeaning


def code_without_scheme(case: Case) -> None:
    group = case.ann.AnnotationGroupSequence[0]
    del group.AnnotationPropertyCategoryCodeSequence[0].CodingSchemeDesignator


def code_twice(case: Case) -> None:
    name = _first_number(case).ConceptNameCodeSequence[0]
    name.LongCodeValue = "a code value of more than sixteen"


def two_concept_names(case: Case) -> None:
    item = case.sr.ContentSequence[0]
    item.ConceptNameCodeSequence.append(deepcopy(item.ConceptNameCodeSequence[0]))


def dcm_code_unknown(case: Case) -> None:
    name = _first_number(case).ConceptNameCodeSequence[0]
    name.CodeValue, name.CodingSchemeDesignator = "999999", "DCM"


def loinc_check_digit(case: Case) -> None:
    for _, item in all_items(case.sr):
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == "38257-2":
            item.ConceptNameCodeSequence[0].CodeValue = "38257-3"


def snomed_check_digit(case: Case) -> None:
    kind = case.ann.AnnotationGroupSequence[0].AnnotationPropertyTypeCodeSequence[0]
    kind.CodeValue = "4421006"


def unit_not_ucum(case: Case) -> None:
    group = case.ann.AnnotationGroupSequence[0]
    unit = group.MeasurementsSequence[0].MeasurementUnitsCodeSequence[0]
    unit.CodeValue, unit.CodingSchemeDesignator = "1", "99UNITS"


def unit_misspelt(case: Case) -> None:
    value = _first_number(case).MeasuredValueSequence[0]
    value.MeasurementUnitsCodeSequence[0].CodeValue = "percent%"


def pixels_too_short(case: Case) -> None:
    case.seg.PixelData = case.seg.PixelData[:-2]


def high_bit(case: Case) -> None:
    case.slide.HighBit = 6


def all_items(container):  # type: ignore[no-untyped-def]
    """(path, content item) of a report."""
    from conformance.reading import content_items

    return [(path, item) for path, item, _ in content_items(container)]


def _first_number(case: Case):  # type: ignore[no-untyped-def]
    return next(item for _, item in all_items(case.sr) if item.ValueType == "NUM")
