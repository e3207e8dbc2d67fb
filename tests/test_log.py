"""What is logged, and what never is."""

from __future__ import annotations

import re
import subprocess
import sys

from node.log import where_raised

QUOTING = """
from node.log import set_up_logging
set_up_logging(verbose=True)
from pydicom.dataset import Dataset
ds = Dataset()
ds.PatientBirthDate = "born in May"
ds.PatientID = "x" * 65
from highdicom.valuerep import check_person_name
check_person_name("Mononymous")
"""


def test_libraries_quote_no_patient_data() -> None:
    said = subprocess.run(
        [sys.executable, "-c", QUOTING], check=False, capture_output=True, text=True
    )
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_where_an_unexpected_error_was_raised_is_told_without_its_words() -> None:
    try:
        raise KeyError("Papadopoulou^Maria")
    except KeyError as error:
        told = where_raised(error)
    assert re.fullmatch(r"KeyError at tests/test_log\.py:\d+", told)
