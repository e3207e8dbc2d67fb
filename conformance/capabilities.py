"""What the node promises, as data: services, SOP classes, transfer syntaxes, settings, profiles.

Whatever the code has in a table is taken from there. What it makes of statuses, and which ones it
answers, is in :mod:`conformance.statuses`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MicroscopyBulkSimpleAnnotationsStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    VLWholeSlideMicroscopyImageStorage,
)
from pynetdicom import DEFAULT_TRANSFER_SYNTAXES

from dicom_io.commitment import STORAGE_COMMITMENT, VERIFICATION
from dicom_io.decoding import ENCODINGS
from dicom_io.dimse import STUDY_ROOT_FIND, UNCOMPRESSED
from dicom_io.dimse_settings import DimseSettings, ReceiveSettings
from dicom_io.pacs import PacsSettings
from dicom_io.pacs_settings import is_setting
from dicom_io.receiver import DOCUMENTS, LARGEST_PDU_BYTES

PRODUCT = "marrow-node"
# What results may be written as; their order is that of making.
WRITTEN = (
    (MicroscopyBulkSimpleAnnotationsStorage, "nucleated cells, one group per type"),
    (SegmentationStorage, "regions in which cells were counted"),
    (Comprehensive3DSRStorage, "the differential count, TID 1500"),
    (EncapsulatedPDFStorage, "the report for people, where `output.pdf` asks for it"),
    (SecondaryCaptureImageStorage, "its pictures, where `output.captures` asks for them"),
    (ParametricMapStorage, "probability of regions, where `output.parametric_map` asks for it"),
)
_DEFAULT = tuple(str(each) for each in DEFAULT_TRANSFER_SYNTAXES)


@dataclass(frozen=True, slots=True)
class SopClass:
    """One SOP class of a DIMSE service.

    Attributes
    ----------
    uid
    role
        ``SCU`` or ``SCP``.
    transfer_syntaxes
        UIDs, in the order in which they are proposed or listed.
    what_for
    """

    uid: str
    role: str
    transfer_syntaxes: tuple[str, ...]
    what_for: str

    @property
    def name(self) -> str:
        return UID(self.uid).name


def sop_classes() -> tuple[SopClass, ...]:
    """Every presentation context of the two application entities."""
    uncompressed = tuple(str(each) for each in UNCOMPRESSED)
    sent = 'results (`results_url = "dimse://…"`)'
    return (
        SopClass(VERIFICATION, "SCU", _DEFAULT, "with every association"),
        *(SopClass(uid, "SCU", uncompressed, sent) for uid, _ in WRITTEN),
        SopClass(STORAGE_COMMITMENT, "SCU", (ExplicitVRLittleEndian,), "of results"),
        SopClass(STUDY_ROOT_FIND, "SCU", uncompressed, "whether a result is there"),
        SopClass(VERIFICATION, "SCP", _DEFAULT, "`marrow-node receive`"),
        SopClass(
            STORAGE_COMMITMENT,
            "SCU",
            _DEFAULT,
            "reports that an archive sends on an association of its own",
        ),
        SopClass(
            VLWholeSlideMicroscopyImageStorage,
            "SCP",
            tuple(ENCODINGS),
            "slides that are routed here",
        ),
        *(
            SopClass(uid, "SCP", (ExplicitVRLittleEndian, ImplicitVRLittleEndian), "kept with them")
            for uid in DOCUMENTS
        ),
    )


_DIFFERS = "The job ends with code 38 (PacsReadBackDiffers), which names what differs."
# What was sent is compared with what the archive gives; tests hold the code to it.
CHANGES = (
    ("nothing: the object is missing", _DIFFERS),
    ("another PatientID or IssuerOfPatientID", _DIFFERS),
    ("another PatientName, PatientBirthDate or PatientSex", _DIFFERS),
    ("one of these three filled in that the slide does not have", "Accepted."),
    ("PatientName in other capitals, blanks or separators", "Accepted."),
    ("other groups, coordinates, types or values of an ANN; other pixels, another PDF", _DIFFERS),
    ("other counts, percentages, references or standing of the SR", _DIFFERS),
    ("other attributes", "Accepted."),
)


def settings(tree: type[Any]) -> list[tuple[str, str]]:
    """(name, default) of a settings class."""
    defaults = tree()
    return [
        (entry.name, _shown(getattr(defaults, entry.name)))
        for entry in filter(is_setting, fields(tree))
    ]


def _shown(default: object) -> str:
    if default is None or default in ("", ()):
        return "none"
    return ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)


SETTINGS: dict[str, type[Any]] = {
    "pacs": PacsSettings,
    "dimse": DimseSettings,
    "receive": ReceiveSettings,
}
PDU_BYTES = LARGEST_PDU_BYTES

# What is asked of a DICOMweb origin server (PS3.18): transaction, resource, media types, what for.
WEB_SERVICES: tuple[tuple[str, str, str, str], ...] = (
    (
        "QIDO-RS search",
        "/studies/{study}/series; …/series/{series}/instances",
        "application/dicom+json",
        "levels of a slide; whether a result is there (SOPInstanceUID)",
    ),
    (
        "WADO-RS metadata",
        "/studies/{study}/series/{series}/metadata",
        "application/dicom+json",
        "levels, geometry, specimen",
    ),
    (
        "WADO-RS frames",
        "…/instances/{instance}/frames/{list}",
        'multipart/related; type="image/jpeg" and others, or application/octet-stream',
        "only those frames that hold regions",
    ),
    (
        "WADO-RS instance",
        "…/instances/{instance}",
        'multipart/related; type="application/dicom"',
        "results as read back; slides where there are no frames",
    ),
    (
        "WADO-RS bulk data",
        "as BulkDataURI tells",
        "application/octet-stream",
        "attributes that metadata leave out",
    ),
    (
        "STOW-RS",
        "/studies",
        'multipart/related; type="application/dicom"',
        "results, once; never again without asking",
    ),
)
# How datasets are given.
DATASETS = (
    'application/dicom+json; multipart/related; type="application/dicom+xml"; one alone also '
    "application/dicom+xml"
)
# What the node serves of its own results (PS3.18 section 10): transaction, resources, media types.
SERVED: tuple[tuple[str, str, str], ...] = (
    (
        "QIDO-RS search",
        "/studies; /studies/{study}/series; /studies/{study}/instances; "
        "/studies/{study}/series/{series}/instances; /series; /instances",
        DATASETS,
    ),
    (
        "WADO-RS instance",
        "study, series, instance",
        'multipart/related; type="application/dicom"; of one instance also application/dicom',
    ),
    ("WADO-RS metadata", "…/metadata of study, series, instance", DATASETS),
    (
        "WADO-RS bulk data",
        "…/bulkdata of study, series, instance; as BulkDataURI tells",
        'multipart/related; type="application/octet-stream"; of one value also '
        "application/octet-stream, in ranges",
    ),
)
# UPS-RS (PS3.18 section 11): transaction, resource below /dicom-web, as origin server, as user
# agent.
UPS_SERVICES: tuple[tuple[str, str, str, str], ...] = (
    ("Create Workitem", "POST /workitems", "yes", "no"),
    ("Retrieve Workitem", "GET /workitems/{workitem}", "yes", "yes"),
    ("Update Workitem", "POST /workitems/{workitem}", "yes", "yes"),
    ("Change Workitem State", "PUT /workitems/{workitem}/state", "yes", "yes"),
    ("Request Cancellation", "POST /workitems/{workitem}/cancelrequest", "yes", "no"),
    ("Search", "GET /workitems", "yes", "by state"),
    (
        "Subscribe, Unsubscribe",
        "POST, DELETE /workitems/{workitem}/subscribers/{aetitle}",
        "yes: workitem, worklist, filtered worklist",
        "subscribes to the worklist",
    ),
    (
        "Suspend Global Subscription",
        "POST /workitems/{worklist}/subscribers/{aetitle}/suspend",
        "yes",
        "no",
    ),
    (
        "Open Notification Connection, Send Event Report",
        "WebSocket /subscribers/{aetitle}; /ws/subscribers/{aetitle} as before 2019",
        "yes: event types 1 to 5",
        "yes: types 1 and 2 are acted on",
    ),
)
# Attributes of a slide that decide how it is read: keyword, needed or not, what without it.
READ_ATTRIBUTES: tuple[tuple[str, str, str], ...] = (
    ("TotalPixelMatrixColumns", "needed", "code 23"),
    ("TotalPixelMatrixRows", "needed", "code 23"),
    ("Rows", "needed", "code 23"),
    ("Columns", "needed", "code 23"),
    ("PixelSpacing", "needed", "code 23"),
    ("ImageOrientationSlide", "needed", "code 23"),
    ("ImageType", "used", "of its third value VOLUME and THUMBNAIL are read"),
    ("DimensionOrganizationType", "used", "frames are placed by their functional groups"),
    ("TotalPixelMatrixOriginSequence", "used", "millimetres count from the first pixel"),
    ("FrameOfReferenceUID", "used, carried over", "one derived from the series"),
    ("ICCProfile", "used where `read.icc` asks for it", "colours as stored"),
    ("ContainerIdentifier", "used, carried over", "left out"),
    ("SpecimenDescriptionSequence", "carried over", "left out"),
    ("PatientID", "carried over", "empty"),
    ("AccessionNumber", "carried over", "empty"),
)
# Security (PS3.15, PS3.18 section 8.3): what, where, how.
SECURITY: tuple[tuple[str, str, str], ...] = (
    (
        "TLS",
        "DICOMweb, FHIR",
        "server certificates are checked against the system's authorities or `ca_bundle`",
    ),
    (
        "TLS with client certificate",
        "DICOMweb, DIMSE both ways",
        "`certificate` and `key`; DIMSE by Python's default context: TLS 1.2 or later. No profile "
        "of PS3.15 Annex B is claimed.",
    ),
    ("HTTP basic, bearer token", "DICOMweb, FHIR", "secrets from environment or files only"),
    ("OAuth 2 client credentials", "DICOMweb, FHIR", "RFC 6749 §4.4; tokens are renewed"),
    (
        "SMART Backend Services",
        "FHIR",
        "a client assertion signed with RS384 or ES384 (private_key_jwt)",
    ),
    (
        "Access to the receiver",
        "DIMSE",
        "allowed networks, this machine alone unless set; allowed calling AE titles; the called "
        "AE title must be right",
    ),
    (
        "Access to the service",
        "DICOMweb and UPS-RS of the node, its pages and jobs",
        "API keys (kept as digests), OpenID Connect tokens or sign-in, client certificates; a role "
        "for every route but health checks; TLS by `serve.certificate`",
    ),
    (
        "Audit trail (PS3.15 A.5, A.6)",
        "syslog over TLS; FHIR AuditEvent",
        "applications that start and stop, refused credentials, what was read, searched, stored, "
        "exported, submitted, changed and signed; kept until a repository has taken it",
    ),
    ("De-identification (PS3.15 E)", "–", "not done: patient attributes are carried over"),
)
CHARACTER_SETS = (
    "All of PS3.3 C.12.1.1.2 that pydicom decodes are read. Results carry the slide's Specific "
    "Character Set; where all their text is ASCII they carry none. FHIR is UTF-8."
)
FHIR_RESOURCES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("Device", ("read", "search-type", "create", "update"), ("identifier",)),
    ("DiagnosticReport", ("read", "search-type", "create", "update"), ("identifier",)),
    ("Observation", ("read", "search-type", "create", "update"), ("identifier",)),
    ("Patient", ("search-type",), ("identifier",)),
    ("Provenance", ("search-type", "create"), ("target",)),
)


# What a result is, and how SR (VerificationFlag), DiagnosticReport, Observation, OBR-25 and OBX-11
# say so.
STANDINGS: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("unreviewed", "UNVERIFIED", "partial", "preliminary", "P", "P"),
    ("final", "VERIFIED", "final", "final", "F", "F"),
    ("corrected", "VERIFIED", "corrected", "corrected", "C", "C"),
    ("withdrawn", "VERIFIED", "entered-in-error", "entered-in-error", "C", "D"),
)
# What a person decides → how the revision's ANN came about, and what it writes anew.
DECISIONS: tuple[tuple[str, str, str], ...] = (
    ("confirmed", "the ANN that was confirmed is referred to, unchanged", "SR, PDF"),
    ("corrected", "a new one, SEMIAUTOMATIC", "ANN, SR, PDF, SC"),
    ("withdrawn", "none", "SR without numbers, PDF"),
)


@dataclass(frozen=True, slots=True)
class Demand:
    """One thing that an IHE profile asks of an actor.

    Attributes
    ----------
    what
    state
        ``met`` or ``partly``.
    how
    """

    what: str
    state: str
    how: str


IHE: dict[str, tuple[Demand, ...]] = {
    "AI Results (AIR), Evidence Creator": (
        Demand("Results are stored in the archive", "met", "STOW-RS or C-STORE"),
        Demand(
            "Storage commitment",
            "partly",
            "over DIMSE where the archive offers it; over DICOMweb results are read back and "
            "compared instead",
        ),
        Demand(
            "A root report that holds or names all results: Comprehensive 3D SR, TID 1500",
            "met",
            "it refers to ANN and SEG, and its evidence names them and the slide",
        ),
        Demand("Measurements and qualitative findings in TID 1501 groups", "met", "one group"),
        Demand("Regions as Segmentation", "met", "binary, of the regions that were counted in"),
        Demand(
            "Locations",
            "partly",
            "cells are Microscopy Bulk Simple Annotations, which the profile does not list; no "
            "SCOORD3D in the SR",
        ),
        Demand("Parametric maps", "met", "of regions, where `output.parametric_map` asks for it"),
        Demand("Tracking identifiers", "met", "derived from slide, model and settings"),
        Demand(
            "Algorithm identification (TID 4019, Algorithm Identification Macro)",
            "met",
            "name, version, family, manufacturer, digest of the package",
        ),
        Demand(
            "Results of radiology images", "partly", "the profile is radiology's; slides are SM"
        ),
    ),
    "AI Workflow for Imaging (AIW-I), Task Performer": (
        Demand(
            "Query UPS Workitems [RAD-81]",
            "partly",
            "all scheduled ones; other codes and stations are passed over here, not by keys",
        ),
        Demand(
            "Claim UPS Workitem [RAD-82]",
            "met",
            "Transaction UID written down first; input ready, station and code its own",
        ),
        Demand("Get UPS Workitem Contents [RAD-83]", "met", "before a claim"),
        Demand(
            "Update UPS Workitem [RAD-84]",
            "met",
            "progress, what was performed and made; Transaction UID in address or dataset",
        ),
        Demand(
            "Complete UPS Workitem [RAD-85]",
            "met",
            "COMPLETED with output references, CANCELED with the reason",
        ),
        Demand(
            "Open Event Channel [RAD-109], UPS Notification [RAD-87]",
            "met",
            "WebSocket; without one the list is polled, and cancel requests are not heard",
        ),
        Demand(
            "Inputs are retrieved, outputs stored",
            "partly",
            "from the node's own archive by UIDs: retrieval sequences are not read",
        ),
    ),
}
