"""``python -m conformance``: write anew what is generated in this folder."""

from __future__ import annotations

from conformance.standard_tables import TABLES, generated_tables

if __name__ == "__main__":
    TABLES.write_text(generated_tables(), encoding="utf-8")
