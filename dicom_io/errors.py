"""The error tree of the node.

::

    MarrowNodeError                1
    ├── InputError                20  the slide cannot be analysed as it is
    │   ├── SeriesNotFound        21
    │   ├── NotWholeSlideImage    22  not SM, or no VOLUME level
    │   ├── SlideGeometryInvalid  23  no pixel spacing, contradicting levels
    │   ├── PixelsUnsupported     24  16 bit, monochrome, unknown transfer syntax
    │   ├── FrameInvalid          25  truncated, empty, wrongly sized or missing frame
    │   ├── ConfigurationInvalid  26  settings file or command line
    │   ├── JobNotFound           27
    │   ├── JobRefused            28  the job's state does not allow it
    │   └── WorkitemRefused       29  missing, or its state or content does not allow it
    ├── PacsError                 30
    │   ├── PacsUnreachable       31  transient
    │   ├── PacsTimeout           32  transient
    │   ├── PacsUnauthorized      33  401, 403
    │   ├── PacsNotFound          34  404
    │   ├── PacsRefused           35  406, 409, other 4xx; a refused STOW
    │   ├── PacsBusy              36  429, 5xx; transient
    │   ├── PacsAnswerInvalid     37  HTML, malformed JSON or multipart
    │   └── PacsReadBackDiffers   38  what came back is not what was stored
    ├── ModelError                40
    │   ├── ModelNotFound         41
    │   ├── ManifestInvalid       42
    │   ├── DigestMismatch        43
    │   ├── InferenceFailed       44
    │   └── TrainingInvalid       45
    ├── EhrError                  50
    │   ├── EhrUnreachable        51  transient (also time-outs and 5xx)
    │   ├── EhrUnauthorized       52
    │   ├── EhrRefused            53
    │   ├── EhrAnswerInvalid      54
    │   └── EhrReadBackDiffers    55
    ├── ResourceError             60
    │   ├── SlideTooLarge         61
    │   ├── DiskFull              62  transient
    │   ├── ResultsDisagree       63  ANN, SR and FHIR do not say the same
    │   ├── JobCancelled          64  somebody stopped it
    │   ├── ProviderUnreachable   65  transient; keys of the OpenID Connect provider
    │   ├── CallbackFailed        66  transient
    │   ├── AuditUnreachable      67  transient
    │   ├── BudgetExceeded        68  bytes, pixels, seconds or memory
    │   ├── SlideProcessDied      69  transient until the slide is put aside
    │   ├── WorkFileMissing       72  transient; it lies on another host
    │   └── SharedStorageUnreachable  73  transient
    └── ReviewRefused             70  not the newest revision, withdrawn, nothing to change
        └── ReviewInvalid         71  malformed, or it does not fit the cells

Every foreign exception (requests, dicomweb-client, pydicom, decoders, OS) is mapped to one of
these where it crosses into the node.
"""

from __future__ import annotations

from enum import Enum

from models.errors import MarrowNodeError


class InputError(MarrowNodeError):
    exit_code = 20
    meaning = "input: the slide cannot be analysed as it is"


class SeriesNotFound(InputError):
    exit_code = 21
    meaning = "input: the PACS knows no such study or series"


class NotWholeSlideImage(InputError):
    exit_code = 22
    meaning = "input: not a VL Whole Slide Microscopy series with a VOLUME level"


class SlideGeometryInvalid(InputError):
    exit_code = 23
    meaning = "input: pixel spacing, matrix or tile geometry is missing or contradicts itself"


class PixelsUnsupported(InputError):
    exit_code = 24
    meaning = "input: pixels are not 8-bit colour, or their transfer syntax is not supported"


class FrameInvalid(InputError):
    exit_code = 25
    meaning = "input: a frame is missing, empty, truncated or of the wrong size"


class ConfigurationInvalid(InputError):
    exit_code = 26
    meaning = "input: the settings or the command line contradict themselves"


class JobNotFound(InputError):
    exit_code = 27
    meaning = "job: there is none of that name"


class JobRefused(InputError):
    exit_code = 28
    meaning = "job: its state does not allow what was asked"


class Refusal(Enum):
    """Why a worklist refuses, by the statuses of PS3.4 annex CC."""

    DUPLICATE = "0111"
    INVALID = "0106"
    ENDED = "C300"
    TRANSACTION_MISSING = "C301 missing"
    TRANSACTION_WRONG = "C301 incorrect"
    CLAIMED = "C302"
    NOT_SCHEDULABLE = "C303"
    NOT_FINAL = "C304"
    UNKNOWN = "C307"
    CREATED_IN_STATE = "C309"
    NOT_CLAIMED = "C310"
    COMPLETED = "C311"
    PERFORMER_ABSENT = "C312"
    INAPPROPRIATE = "C314"
    # PS3.18 tells these apart from those that never were.
    DELETED = "C307 deleted"
    NOT_SUBSCRIBED = "C307 subscription"


class WorkitemRefused(InputError):
    """A worklist, ours or another one, refuses what was asked of a workitem.

    Attributes
    ----------
    why
    """

    exit_code = 29
    meaning = "workitem: it is missing, or its state or content does not allow what was asked"

    def __init__(self, sentence: str, why: Refusal = Refusal.INVALID) -> None:
        super().__init__(sentence)
        self.why = why


class PacsError(MarrowNodeError):
    """The archive's side failed.

    Attributes
    ----------
    status
        HTTP status of the answer, if one came.
    retry_after_s
        Seconds to wait as the archive asked, if it did.
    failure_reason
        Of a STOW answer (0008,1197), if it gave one.
    """

    exit_code = 30
    meaning = "PACS: the archive could not be used"
    status: int | None = None
    failure_reason: int | None = None
    retry_after_s: float | None = None


class PacsUnreachable(PacsError):
    exit_code = 31
    meaning = "PACS: no connection"
    transient = True


class PacsTimeout(PacsError):
    exit_code = 32
    meaning = "PACS: no answer in time"
    transient = True


class PacsUnauthorized(PacsError):
    exit_code = 33
    meaning = "PACS: credentials are missing or not accepted (401, 403)"


class PacsNotFound(PacsError):
    exit_code = 34
    meaning = "PACS: the address answers 404"


class PacsRefused(PacsError):
    exit_code = 35
    meaning = "PACS: the request was refused (406, 409, other 4xx, or a failed STOW)"


class PacsBusy(PacsError):
    exit_code = 36
    meaning = "PACS: the archive is overloaded or failing (429, 5xx)"
    transient = True


class PacsAnswerInvalid(PacsError):
    """The answer cannot be used.

    Attributes
    ----------
    frames_given
        Frames in a whole answer where another number was asked for; None for other faults.
    """

    exit_code = 37
    meaning = "PACS: the answer is not what DICOMweb prescribes (HTML, malformed JSON or multipart)"
    frames_given: int | None = None


class PacsReadBackDiffers(PacsError):
    exit_code = 38
    meaning = "PACS: what was read back is not what was stored"


class EhrError(MarrowNodeError):
    exit_code = 50
    meaning = "EHR: the FHIR server could not be used"


class EhrUnreachable(EhrError):
    exit_code = 51
    meaning = "EHR: no connection, no answer in time, or a failing server (5xx)"
    transient = True


class EhrUnauthorized(EhrError):
    exit_code = 52
    meaning = "EHR: credentials are missing or not accepted (401, 403)"


class EhrRefused(EhrError):
    """The server will not take a resource.

    Attributes
    ----------
    status
        Of its answer; None where it did not come to that.
    """

    exit_code = 53
    meaning = "EHR: the report was refused"
    status: int | None = None


class EhrAnswerInvalid(EhrError):
    exit_code = 54
    meaning = "EHR: the answer is not FHIR"


class EhrReadBackDiffers(EhrError):
    exit_code = 55
    meaning = "EHR: what was read back is not what was sent"


class ResourceError(MarrowNodeError):
    exit_code = 60
    meaning = "resources: the machine or its budget does not suffice"


class SlideTooLarge(ResourceError):
    exit_code = 61
    meaning = "resources: the slide's matrix is larger than the configured budget"


class DiskFull(ResourceError):
    exit_code = 62
    meaning = "resources: the work folder cannot be written"
    transient = True


class ResultsDisagree(ResourceError):
    exit_code = 63
    meaning = "results: ANN, SR and FHIR as read back do not agree"


class JobCancelled(ResourceError):
    exit_code = 64
    meaning = "job: it was cancelled by request"


class ProviderUnreachable(ResourceError):
    exit_code = 65
    meaning = "service: the keys of the OpenID Connect provider cannot be had"
    transient = True


class CallbackFailed(ResourceError):
    exit_code = 66
    meaning = "service: whoever asked to be told of a job's end could not be told"
    transient = True


class AuditUnreachable(ResourceError):
    exit_code = 67
    meaning = "service: the audit repository cannot be reached; records wait"
    transient = True


class BudgetExceeded(ResourceError):
    exit_code = 68
    meaning = "resources: the slide needs more bytes, pixels, seconds or memory than its budget"


class SlideProcessDied(ResourceError):
    exit_code = 69
    meaning = "resources: the process that read the slide died or hung; after some times, put aside"
    transient = True


class WorkFileMissing(ResourceError):
    exit_code = 72
    meaning = "resources: work files lie on another host, or are gone; the analysis begins again"
    transient = True


class SharedStorageUnreachable(ResourceError):
    exit_code = 73
    meaning = "resources: the storage that hosts share cannot be read or written"
    transient = True
