"""UIDs that are always the same for the same things."""

from __future__ import annotations

import uuid

from pydicom.uid import UID

# Root of all derived UIDs: a UUID made once for this project.
_NAMESPACE = uuid.UUID("5b0cf1d2-3b3e-5d0e-9c1b-6a0b7c5a2d41")


def derive_uid(*parts: str) -> UID:
    """The UID of what `parts` name: UUIDv5 under 2.25 (PS3.5 B.2). Same parts, same UID."""
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, '|'.join(parts)).int}")
