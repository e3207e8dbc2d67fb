"""The root of the error tree and the branch that belongs to models.

The whole tree, with every exit code, is drawn in :mod:`dicom_io.errors`.
"""

from __future__ import annotations

from typing import ClassVar


class MarrowNodeError(Exception):
    """Anything the node can say in one sentence: what object, what is wrong, what to do.

    Attributes
    ----------
    exit_code
        Exit status of the command line for this class of failure.
    meaning
        What the exit code means; ``--help`` prints it.
    transient
        Whether the same attempt may succeed later without anybody changing anything.
    """

    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = "unexpected failure: a defect of the node, please report it"
    transient: ClassVar[bool] = False


class ModelError(MarrowNodeError):
    exit_code = 40
    meaning = "model: the package cannot be used"


class ModelNotFound(ModelError):
    exit_code = 41
    meaning = "model: no package of that name is installed"


class ManifestInvalid(ModelError):
    exit_code = 42
    meaning = "model: the manifest is missing, malformed or contradicts itself"


class DigestMismatch(ModelError):
    exit_code = 43
    meaning = "model: a file differs from the SHA-256 in its manifest"


class InferenceFailed(ModelError):
    exit_code = 44
    meaning = "model: the runtime could not run the network"


class TrainingInvalid(ModelError):
    exit_code = 45
    meaning = "model: training data or a training configuration cannot be used"


class ReviewRefused(MarrowNodeError):
    exit_code = 70
    meaning = "review: refused: not the newest revision, withdrawn, or nothing to change"


class ReviewInvalid(ReviewRefused):
    exit_code = 71
    meaning = "review: malformed, or its corrections do not fit the cells of the slide"
