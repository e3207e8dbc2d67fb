"""What can go wrong over DIMSE → the tree in :mod:`dicom_io.errors`.

pynetdicom raises little: a refused or broken association and a missing answer are states of its
objects, and an archive's refusal is a status code.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pynetdicom.association import Association

from dicom_io.errors import (
    PacsBusy,
    PacsError,
    PacsRefused,
    PacsTimeout,
    PacsUnauthorized,
    PacsUnreachable,
)
from dicom_io.pacs_errors import (
    FAILURE_CLASSES,
    FAILURE_REASONS,
    OUT_OF_RESOURCES,
    STORE_WARNINGS,
)

SUCCESS = 0x0000
NOT_AUTHORIZED = 0x0124
RESOURCE_LIMITATION = 0x0213
PENDING = (0xFF00, 0xFF01)

# Of an instance that an archive does not commit itself to keep: PS3.3 C.14.1.1, Failure Reason.
COMMITMENT_FAILURES = {
    0x0110: "it failed while processing",
    0x0112: "it has no such instance",
    0x0119: "SOP class and instance do not belong together",
    0x0122: "it does not support the SOP class",
    0x0131: "the transaction UID was used before",
    0x0213: "it lacks resources",
}
# Rejected transient (PS3.8 table 9-21).
TRANSIENT_REJECTION = 2


def association_error(name: str, what: str, association: Association) -> PacsError:
    """Why `association` with the archive `name` was not established."""
    answer = association.acceptor.primitive
    if not association.is_rejected or answer is None:
        return PacsUnreachable(
            f"{name} could not be reached for {what}, or broke off the association: check host,"
            " port and TLS settings, and that it runs."
        )
    if answer.result == TRANSIENT_REJECTION:
        return PacsBusy(
            f"{name} rejected the association for {what} for now ({answer.reason_str}):"
            " try again later."
        )
    return PacsUnauthorized(
        f"{name} rejected the association for {what} ({answer.reason_str}): check both AE titles"
        " and that the archive knows this node."
    )


def answer_error(name: str, what: str, status: Dataset) -> PacsError | None:
    """Error that a DIMSE response's status stands for; None for success and warnings.

    Parameters
    ----------
    status
        As pynetdicom gives it: empty when no answer came in time or the association broke.
    """
    if "Status" not in status:
        return PacsTimeout(
            f"{name} did not answer {what} in time, or broke off the association: look for the"
            " object there and try again later."
        )
    code = int(status.Status)
    if code == SUCCESS or code in STORE_WARNINGS or code in PENDING:
        return None
    return _by_code(name, what, code)


def _by_code(name: str, what: str, code: int) -> PacsError:
    meaning = FAILURE_REASONS.get(code) or FAILURE_CLASSES.get(code >> 8, "reason not known")
    if code >> 8 == OUT_OF_RESOURCES or code == RESOURCE_LIMITATION:
        return PacsBusy(
            f"{name} refused {what}: out of resources (0x{code:04X}); try again later and free"
            " space there."
        )
    if code == NOT_AUTHORIZED:
        return PacsUnauthorized(
            f"{name} refused {what}: not authorised (0x{code:04X}); check what it lets this"
            " node's AE title do."
        )
    return PacsRefused(
        f"{name} refused {what}: {meaning} (0x{code:04X}); check what the archive accepts."
    )
