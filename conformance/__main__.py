"""``python -m conformance``: write anew what is generated in this folder."""

from __future__ import annotations

from conformance.standard_tables import TABLES, generated_tables
from conformance.statement import (
    CAPABILITY_STATEMENT,
    STATEMENT,
    capability_statement,
    statement,
)

if __name__ == "__main__":
    TABLES.write_text(generated_tables(), encoding="utf-8")
    STATEMENT.write_text(statement(), encoding="utf-8")
    CAPABILITY_STATEMENT.write_text(capability_statement(), encoding="utf-8")
