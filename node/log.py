"""Plain log lines on standard error: time, level, logger, sentence. Never patient data."""

from __future__ import annotations

import logging
import warnings


def set_up_logging(verbose: bool) -> None:
    """Log warnings, or with `verbose` everything the node itself says, to standard error."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name in ("node", "dicom_io", "models", "conformance"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.WARNING)
    # pynetdicom logs each refusal several times, and whole data sets on lower levels; the node
    # says each once, in its own words, without patient data.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    # DBOS prints tracebacks of failed workflows; the job layer reports those in one sentence.
    logging.getLogger("dbos").setLevel(logging.CRITICAL)
    # pydicom quotes values that break their VR's rules, and those may be a patient's.
    # highdicom quotes names of one word, which many people have.
    for library in ("pydicom", "highdicom"):
        logging.getLogger(library).propagate = False
        warnings.filterwarnings("ignore", module=library)
    warnings.filterwarnings("ignore", message="The string .* person name")
