"""What the node promises, as data: services, SOP classes, transfer syntaxes, statuses, profiles.

Whatever the code has in a table is taken from there, and what the code does with a status is asked
of the code itself, so that the statement cannot say anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from http import HTTPStatus
from typing import Any

import requests
from pydicom.dataset import Dataset
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

from dicom_io.commitment import (
    NO_SUCH_TRANSACTION,
    NOT_TAKEN,
    STORAGE_COMMITMENT,
    TAKEN,
    VERIFICATION,
)
from dicom_io.decoding import ENCODINGS
from dicom_io.dimse import STUDY_ROOT_FIND, UNCOMPRESSED
from dicom_io.dimse_errors import (
    COMMITMENT_FAILURES,
    SUCCESS,
    answer_error,
)
from dicom_io.dimse_settings import DimseSettings, ReceiveSettings
from dicom_io.pacs import PacsSettings
from dicom_io.pacs_errors import (
    DUPLICATE,
    FAILURE_CLASSES,
    FAILURE_REASONS,
    STORE_WARNINGS,
    pacs_error,
    refusal_in,
)
from dicom_io.receiver import (
    CANNOT_UNDERSTAND,
    CLASS_MISMATCH,
    DOCUMENTS,
    LARGEST_PDU_BYTES,
    OUT_OF_RESOURCES,
    STORED,
)
from dicom_io.receiver import DUPLICATE as ANOTHER_CONTENT
from models.errors import MarrowNodeError

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
# Warnings of PS3.18 sections 11.6.3.2 and 11.7.3.2.
_UPS_STATE = "The submitted request is inconsistent with the state of the UPS Instance."
_UPS_CLAIM = "The target URI did not reference a claimed Workitem."
_UPS_CURRENT = "The submitted request is inconsistent with the current state of the Workitem."
# HTTP statuses of a DICOMweb origin server that the node tells apart (PS3.18 section 8.5).
HTTP_STATUSES = (400, 401, 403, 404, 406, 408, 409, 413, 415, 429, 500, 501, 502, 503)


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


@dataclass(frozen=True, slots=True)
class Status:
    """A status and what the node does with it, or when it gives it.

    Attributes
    ----------
    code
        As it is written in statements: ``0xA700``, or ``409``.
    meaning
    behaviour
    """

    code: str
    meaning: str
    behaviour: str


def storage_scu_statuses() -> Iterator[Status]:
    """What becomes of a result by the status of its C-STORE response."""
    yield Status(_hex(SUCCESS), "success", "The result counts as stored.")
    for code, meaning in STORE_WARNINGS.items():
        yield Status(
            _hex(code), f"warning: {meaning}", f"{_stored(code)} The receipt tells the warning."
        )
    for code, meaning in FAILURE_REASONS.items():
        if code == DUPLICATE:
            yield Status(_hex(code), meaning, "The result counts as stored; the receipt tells it.")
            continue
        yield Status(_hex(code), meaning, _after_failure(code))
    for high, meaning in _failure_classes():
        yield Status(high, meaning, _after_failure(int(high[2:4], 16) << 8))
    yield Status("no response", "time-out or broken association", _after_failure(None))


def _failure_classes() -> Iterator[tuple[str, str]]:
    """``0xA7xx``; those of one meaning in a row told once, as ``0xC0xx`` to ``0xCFxx``."""
    told: set[str] = set()
    for high, meaning in FAILURE_CLASSES.items():
        if meaning not in told:
            told.add(meaning)
            same = [each for each, other in FAILURE_CLASSES.items() if other == meaning]
            last = f" to 0x{same[-1]:02X}xx" if len(same) > 1 else ""
            yield f"0x{high:02X}xx{last}", meaning


def _after_failure(code: int | None) -> str:
    """What the code makes of a status."""
    answer = Dataset()
    if code is not None:
        answer.Status = code
    error = answer_error("the archive", "storing", answer)
    return _stored(code) if error is None else after_error(error)


def _stored(code: int | None) -> str:
    answer = Dataset()
    answer.Status = code
    error = answer_error("the archive", "storing", answer)
    return "The result counts as stored." if error is None else after_error(error)


def after_error(error: MarrowNodeError) -> str:
    """In words: whether it is tried again, and how the job ends."""
    again = "Tried again; if it stays so, the" if error.transient else "Not tried again; the"
    return f"{again} job ends with code {error.exit_code} ({type(error).__name__})."


def storage_scp_statuses() -> tuple[Status, ...]:
    """When `marrow-node receive` answers what."""
    return (
        Status(_hex(STORED), "success", "The object is whole, in the archive and on the disk."),
        Status(
            _hex(ANOTHER_CONTENT),
            "duplicate SOP instance",
            "An object of this UID with other content is here; the first is kept. The same "
            "content again is a success.",
        ),
        Status(_hex(OUT_OF_RESOURCES), "out of resources", "The disk cannot be written."),
        Status(
            _hex(CLASS_MISMATCH),
            "data set does not match SOP class",
            "The UIDs of command and data set differ.",
        ),
        Status(
            _hex(CANNOT_UNDERSTAND),
            "cannot understand",
            "The data set, or one of its UIDs, cannot be read.",
        ),
    )


def commitment_statuses() -> Iterator[Status]:
    """Failure Reason (0008,1197) of a storage commitment report, then the node's own answers."""
    for code, meaning in COMMITMENT_FAILURES.items():
        yield Status(
            _hex(code), f"in the report: {meaning}", "The job ends with code 35 (PacsRefused)."
        )
    yield Status(_hex(TAKEN), "answer to a report", "The outcome is noted.")
    yield Status(
        _hex(NO_SUCH_TRANSACTION), "answer to a report", "No such transaction was asked for."
    )
    yield Status(_hex(NOT_TAKEN), "answer to a report", "The outcome could not be noted.")


def web_statuses() -> Iterator[Status]:
    """What becomes of a DICOMweb request by its HTTP status."""
    for code in HTTP_STATUSES:
        response = requests.Response()
        response.status_code = code
        error = pacs_error("the archive", "it", requests.HTTPError(response=response))
        yield Status(str(code), HTTPStatus(code).phrase, after_error(error))


def store_reasons() -> Iterator[Status]:
    """Failure Reason (0008,1197), then Warning Reason (0008,1196), in a STOW-RS response."""
    for code, meaning in FAILURE_REASONS.items():
        if code == DUPLICATE:
            yield Status(_hex(code), meaning, "The result counts as stored; the receipt tells it.")
            continue
        yield Status(_hex(code), meaning, _after_refusal(code))
    for high, meaning in _failure_classes():
        yield Status(high, meaning, _after_refusal(int(high[2:4], 16) << 8))
    for code, meaning in STORE_WARNINGS.items():
        yield Status(
            _hex(code),
            f"warning: {meaning}",
            "The result counts as stored. The receipt tells the warning.",
        )


def _after_refusal(code: int) -> str:
    item, answer = Dataset(), Dataset()
    item.FailureReason = code
    answer.FailedSOPSequence = [item]
    refused = refusal_in("the archive", answer)
    if refused is None:
        raise RuntimeError(f"0x{code:04X} is no refusal")
    return after_error(refused)


_DIFFERS = "The job ends with code 38 (PacsReadBackDiffers), which names what differs."
# What was sent is compared with what the archive gives; tests hold the code to it.
CHANGES = (
    ("nothing: the object is missing", _DIFFERS),
    ("another PatientID or IssuerOfPatientID", _DIFFERS),
    ("another PatientName, PatientBirthDate or PatientSex", _DIFFERS),
    ("one of these three filled in that the slide does not have", "Accepted."),
    ("PatientName in other capitals, blanks or separators", "Accepted."),
    ("other groups, coordinates, types or values of an ANN; other pixels, another PDF", _DIFFERS),
    ("other counts, percentages or references of the SR", "The job ends with code 63."),
    ("other attributes", "Accepted."),
)

WORKER_ENDINGS = (
    (74, "worker: the job database cannot be written; started again, it goes on"),
    (75, "worker: silent for longer than jobs.lease_s, others have its jobs; start it again"),
    (76, "worker: it can start no process for a slide; started again, it goes on"),
)


def exit_codes() -> list[tuple[int, str]]:
    """(code, meaning) of every way a job, or the worker it runs in, can end."""
    known = {(0, "done: everything asked for is delivered and reconciled"), *WORKER_ENDINGS}
    waiting: list[type[MarrowNodeError]] = [MarrowNodeError]
    while waiting:
        error = waiting.pop()
        known.add((error.exit_code, error.meaning))
        waiting.extend(error.__subclasses__())
    return sorted(known)


def settings(tree: type[Any]) -> list[tuple[str, str]]:
    """(name, default) of a settings class."""
    defaults = tree()
    return [(entry.name, _shown(getattr(defaults, entry.name))) for entry in fields(tree)]


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
# HTTP statuses that the node itself answers as an origin server of DICOMweb.
SERVED_STATUSES: tuple[tuple[int, str], ...] = (
    (200, "success; also of a search without results"),
    (206, "part of one instance or value, as Range asks"),
    (304, "the client has it already (ETag)"),
    (400, "a search by what cannot be matched, or malformed"),
    (401, "credentials are missing or not known"),
    (403, "the role `read` is missing"),
    (404, "no such study, series, instance or bulk data among the results"),
    (405, "any method but GET and HEAD: nothing can be stored or deleted"),
    (406, "another media type or transfer syntax than those above"),
    (416, "the range lies outside"),
    (429, "too many requests in a second"),
    (503, "a result was purged while it was read"),
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
# What the origin server answers when it refuses; PS3.4 annex CC → status and warning of PS3.18.
UPS_STATUSES: tuple[Status, ...] = (
    Status("400", "", "a value, a UID or the dataset is not what the standard has"),
    Status("400", "", "C309: created in another state than SCHEDULED"),
    Status("400", "", "C314: suspension of what is no worklist's subscription"),
    Status("400", "The Transaction UID is missing.", "C301"),
    Status("400", "The Transaction UID is incorrect.", "C301"),
    Status("400", _UPS_STATE, "C303: to SCHEDULED"),
    Status("404", "", "C307: workitem or subscription unknown"),
    Status("406", "", "another media type than DICOM JSON and XML is asked for"),
    Status("409", "", "0111: the workitem exists"),
    Status("409", _UPS_STATE, "C300, C302, C304, C310, C311, C312"),
    Status("410", "", "C307: the workitem was deleted after its end"),
    Status("415", "", "the body is neither DICOM JSON nor DICOM XML"),
    Status("400", _UPS_CLAIM, "an update: C301"),
    Status("400", _UPS_CURRENT, "an update: C300, or an attribute that it may not set"),
    Status("409", _UPS_CLAIM, "an update: C310"),
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


def _hex(code: int) -> str:
    return f"0x{code:04X}"
