"""The report as people see it, for archives and readers that have nothing else.

Encapsulated PDF (PS3.3 A.45.1) and Secondary Capture (A.8.1): copies of what the SR says, made from
the same analysis, that refer to it and to the slide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from highdicom.base import SOPClass
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from dicom_io.analysis import Analysis
from dicom_io.codes import DOCUMENT_TITLE
from dicom_io.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    SERIAL_NUMBER,
    SOFTWARE_VERSION,
    complete_laterality,
    finish,
    result_uid,
    series_description,
)
from dicom_io.source_header import source_header
from models.records import UInt8

PDF_SERIES_NUMBER = 9004
CAPTURE_SERIES_NUMBER = 9005


def encode_pdf(analysis: Analysis, pdf: bytes, report: Dataset) -> Dataset:
    """Write the PDF of a report as an Encapsulated PDF instance.

    Parameters
    ----------
    analysis
    pdf
        The file; it holds the patient's name and number.
    report
        The SR that says the same.

    Raises
    ------
    InputError
        When the slide's header lacks an identifier.
    """
    header = source_header(analysis)
    document: Dataset = _document(
        analysis, header, EncapsulatedPDFStorage, "DOC", "PDF", PDF_SERIES_NUMBER
    )
    document.SeriesDescription = series_description(analysis, "Differential count, PDF")
    document.AcquisitionDateTime = header.get("AcquisitionDateTime", "")
    document.BurnedInAnnotation = "YES"
    document.ConversionType = "WSD"
    document.ConceptNameCodeSequence = [DOCUMENT_TITLE]
    document.DocumentTitle = "Bone marrow smear: nucleated differential count"
    document.VerificationFlag = report.VerificationFlag
    document.SourceInstanceSequence = [_reference(each) for each in (header, report)]
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    document.EncapsulatedDocumentLength = len(pdf)
    finish(document, analysis)
    return document


def encode_capture(analysis: Analysis, rgb: UInt8, name: str, number: int) -> Dataset:
    """Write a picture of a report as a Secondary Capture image.

    Parameters
    ----------
    analysis
    rgb : (H, W, 3) uint8
        Without patient data.
    name
        What it shows.
    number
        Among the pictures of the report, from 1.

    Raises
    ------
    InputError
        When the slide's header lacks an identifier.
    """
    header = source_header(analysis)
    # Not SM: a routing rule for slides would send the node its own pictures.
    document = _document(
        analysis, header, SecondaryCaptureImageStorage, "OT", "SC", CAPTURE_SERIES_NUMBER, name
    )
    document.InstanceNumber = number
    document.SeriesDescription = series_description(analysis, "Differential count, pictures")
    document.copy_specimen_information(header)
    document.ConversionType = "WSD"
    document.ImageType = ["DERIVED", "SECONDARY"]
    document.BurnedInAnnotation = "NO"
    document.PatientOrientation = ""  # Type 2C: the picture is not of the patient's body
    document.ImageComments = name
    document.SourceImageSequence = [_reference(header)]
    complete_laterality(document)
    document.set_pixel_data(np.ascontiguousarray(rgb), "RGB", 8, generate_instance_uid=False)
    document.compress(RLELossless, generate_instance_uid=False)
    finish(document, analysis)
    made: Dataset = document
    return made


def _document(
    analysis: Analysis,
    header: Dataset,
    class_uid: UID,
    modality: str,
    kind: str,
    series_number: int,
    *what: str,
) -> Any:
    """Patient, study, series and equipment (typed loosely: highdicom's class has no types)."""
    document = SOPClass(
        study_instance_uid=header.StudyInstanceUID,
        series_instance_uid=result_uid(analysis, kind, "series"),
        series_number=series_number,
        sop_instance_uid=result_uid(analysis, kind, "instance", *what),
        sop_class_uid=class_uid,
        instance_number=1,
        modality=modality,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        device_serial_number=SERIAL_NUMBER,
        software_versions=SOFTWARE_VERSION,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        patient_id=header.PatientID,
        patient_name=header.PatientName,
        patient_birth_date=header.PatientBirthDate,
        patient_sex=header.PatientSex,
        study_id=header.StudyID,
        accession_number=header.AccessionNumber,
        study_date=header.StudyDate,
        study_time=header.StudyTime,
        referring_physician_name=header.ReferringPhysicianName,
        specific_character_set=header.SpecificCharacterSet,
    )
    document.copy_patient_and_study_information(header)
    return document


def _reference(document: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = document.SOPClassUID
    item.ReferencedSOPInstanceUID = document.SOPInstanceUID
    return item
