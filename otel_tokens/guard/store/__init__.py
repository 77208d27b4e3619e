"""Where budgets are kept: memory, SQLite, Redis; one contract (`base.py`), one suite."""
