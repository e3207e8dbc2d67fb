"""What is logged, and what never is."""

from __future__ import annotations

import subprocess
import sys

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
