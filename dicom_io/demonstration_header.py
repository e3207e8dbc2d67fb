"""The data sets of the demonstration slide's levels, all but their pixels.

Patient, study, specimen and optical path are written in full, with values that cannot be mistaken
for a person's (PS3.3 A.32.8, VL Whole Slide Microscopy Image IOD).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from highdicom import (
    SpecimenCollection,
    SpecimenDescription,
    SpecimenPreparationStep,
    SpecimenSampling,
    SpecimenStaining,
)
from highdicom.sr import CodedConcept
from PIL import ImageCms
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

from dicom_io.derived_uid import derive_uid

# One moment for all dates: the same slide is the same bytes.
_MOMENT: Final = datetime(2026, 1, 2, 9, 30)
_DATE: Final = _MOMENT.strftime("%Y%m%d")
_TIME: Final = _MOMENT.strftime("%H%M%S")
# Outer corner of the matrix on the glass, (x, y) in mm; columns run along −y, rows along −x.
_CORNER_MM: Final = (18.0, 50.0)
_DEPTH_MM: Final = 0.001


def demonstration_headers(
    study_uid: str,
    series_uid: str,
    sizes_px: Sequence[tuple[int, int]],
    um_per_px: float,
    tile_px: int,
) -> list[Dataset]:
    """One data set per level of `sizes_px` (width, height), each half as fine as the one before."""
    shared = Dataset()
    _add_patient_and_study(shared, study_uid)
    _add_series_and_equipment(shared, series_uid)
    _add_specimen(shared, series_uid)
    _add_optical_path(shared)
    base_mm = um_per_px / 1000
    volume_mm = (sizes_px[0][0] * base_mm, sizes_px[0][1] * base_mm)
    headers = []
    for level, size_px in enumerate(sizes_px):
        header = Dataset()
        header.update(shared)
        _add_image(header, series_uid, level)
        _add_matrix(header, size_px, tile_px, base_mm * 2**level)
        header.ImagedVolumeWidth, header.ImagedVolumeHeight = volume_mm
        header.ImagedVolumeDepth = _DEPTH_MM * 1000
        headers.append(header)
    return headers


def _add_patient_and_study(header: Dataset, study_uid: str) -> None:
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PatientName = "DEMONSTRATION^MARROW"
    header.PatientID = "DEMO-MARROW-1"
    header.IssuerOfPatientID = "MARROW-NODE-DEMO"
    header.PatientBirthDate = "19000101"
    header.PatientSex = "O"
    header.StudyInstanceUID = study_uid
    header.StudyDate = header.SeriesDate = header.ContentDate = _DATE
    header.StudyTime = header.SeriesTime = header.ContentTime = _TIME
    header.AcquisitionDateTime = _DATE + _TIME
    header.StudyID = "DEMO-1"
    header.AccessionNumber = "DEMO-ACC-1"
    header.ReferringPhysicianName = "DEMONSTRATION^REFERRER"
    header.StudyDescription = "Demonstration bone marrow smear, composed from published cells"


def _add_series_and_equipment(header: Dataset, series_uid: str) -> None:
    header.Modality = "SM"
    header.SeriesInstanceUID = series_uid
    header.SeriesNumber = 1
    header.SeriesDescription = "Demonstration slide, not of a patient"
    header.FrameOfReferenceUID = derive_uid(series_uid, "frame of reference")
    header.PositionReferenceIndicator = "SLIDE_CORNER"
    header.Manufacturer = "marrow-node"
    header.ManufacturerModelName = "demonstration slide composer"
    header.DeviceSerialNumber = "none"
    header.SoftwareVersions = "1"


def _add_specimen(header: Dataset, series_uid: str) -> None:
    """One smear of an aspirate, Romanowsky stain."""
    marrow = CodedConcept("119359002", "SCT", "Bone marrow specimen")
    aspirate, smear = "DEMO-MARROW-1-A", "DEMO-MARROW-1-A-1"
    steps = [
        SpecimenPreparationStep(
            aspirate,
            SpecimenCollection(CodedConcept("14766002", "SCT", "Aspiration")),
            specimen_type=marrow,
        ),
        SpecimenPreparationStep(
            smear,
            SpecimenSampling(
                CodedConcept("433465004", "SCT", "Sampling of tissue specimen"), aspirate, marrow
            ),
        ),
        SpecimenPreparationStep(
            smear,
            SpecimenStaining([CodedConcept("255810000", "SCT", "Romanowsky stain")]),
        ),
    ]
    header.ContainerIdentifier = smear
    header.IssuerOfTheContainerIdentifierSequence = []
    header.ContainerTypeCodeSequence = [CodedConcept("433466003", "SCT", "Microscope slide")]
    header.SpecimenDescriptionSequence = [
        SpecimenDescription(
            smear,
            derive_uid(series_uid, "specimen"),
            specimen_preparation_steps=steps,
            primary_anatomic_structures=[CodedConcept("14016003", "SCT", "Bone marrow")],
            specimen_type=CodedConcept("119359002", "SCT", "Bone marrow specimen"),
            specimen_short_description="Bone marrow smear, composed",
        )
    ]
    # Type 2 of the issuer, empty: there is none.
    header.SpecimenDescriptionSequence[0].IssuerOfTheSpecimenIdentifierSequence = []


def _add_optical_path(header: Dataset) -> None:
    path = Dataset()
    path.OpticalPathIdentifier = "1"
    path.OpticalPathDescription = "Brightfield"
    path.IlluminationTypeCodeSequence = [CodedConcept("111744", "DCM", "Brightfield illumination")]
    path.IlluminationColorCodeSequence = [CodedConcept("414298005", "SCT", "Full Spectrum")]
    path.ObjectiveLensPower = 40
    path.ICCProfile = _srgb_profile()
    path.ColorSpace = "SRGB"
    header.OpticalPathSequence = [path]
    header.NumberOfOpticalPaths = 1


def _srgb_profile() -> bytes:
    """The sRGB profile of littleCMS, its date of making set to the one of the slide.

    Bytes 24 to 35 of the header are year, month, day, hour, minute, second (ICC.1, 7.2.8).
    """
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    fields = (_MOMENT.year, _MOMENT.month, _MOMENT.day, _MOMENT.hour, _MOMENT.minute, 0)
    profile[24:36] = b"".join(value.to_bytes(2, "big") for value in fields)
    return bytes(profile + b"\0" * (len(profile) % 2))


def _add_image(header: Dataset, series_uid: str, level: int) -> None:
    header.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    header.SOPInstanceUID = derive_uid(series_uid, f"level {level}")
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    header.InstanceNumber = level + 1
    kind = ("ORIGINAL", "NONE") if level == 0 else ("DERIVED", "RESAMPLED")
    header.ImageType = [kind[0], "PRIMARY", "VOLUME", kind[1]]
    header.SamplesPerPixel = 3
    header.PhotometricInterpretation = "YBR_FULL_422"
    header.PlanarConfiguration = 0
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit = 7
    header.PixelRepresentation = 0
    header.LossyImageCompression = "01"
    header.LossyImageCompressionMethod = "ISO_10918_1"
    header.BurnedInAnnotation = "NO"
    header.SpecimenLabelInImage = "NO"
    header.FocusMethod = "AUTO"
    header.ExtendedDepthOfField = "NO"
    header.VolumetricProperties = "VOLUME"
    header.AcquisitionContextSequence = []
    # One acquisition; all levels come from it (asked for by the profile of the WG-26 connectathon).
    header.AcquisitionUID = derive_uid(series_uid, "acquisition")
    header.PyramidUID = derive_uid(series_uid, "pyramid")


def _add_matrix(header: Dataset, size_px: tuple[int, int], tile_px: int, spacing_mm: float) -> None:
    width, height = size_px
    header.Rows = header.Columns = tile_px
    header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows = width, height
    header.TotalPixelMatrixFocalPlanes = 1
    header.NumberOfFrames = -(-width // tile_px) * -(-height // tile_px)
    header.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    # The centre of the top-left pixel, PS3.3 C.8.12.4: half a pixel of this level inside.
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = round(_CORNER_MM[0] - spacing_mm / 2, 7)
    origin.YOffsetInSlideCoordinateSystem = round(_CORNER_MM[1] - spacing_mm / 2, 7)
    header.TotalPixelMatrixOriginSequence = [origin]
    dimensions = Dataset()
    dimensions.DimensionOrganizationUID = derive_uid(header.SeriesInstanceUID, "dimensions")
    header.DimensionOrganizationSequence = [dimensions]
    header.DimensionOrganizationType = "TILED_FULL"
    measures = Dataset()
    measures.PixelSpacing = [spacing_mm, spacing_mm]
    measures.SliceThickness = _DEPTH_MM
    kind = Dataset()
    kind.FrameType = list(header.ImageType)
    path = Dataset()
    path.OpticalPathIdentifier = "1"
    groups = Dataset()
    groups.PixelMeasuresSequence = [measures]
    groups.WholeSlideMicroscopyImageFrameTypeSequence = [kind]
    groups.OpticalPathIdentificationSequence = [path]
    header.SharedFunctionalGroupsSequence = [groups]
