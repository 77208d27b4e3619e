"""Budget stores: memory, SQLite, Redis. One contract (`base.py`), one test suite."""
