"""`python -m otel_tokens`: the command of this very Python, whatever PATH says."""

from __future__ import annotations

from otel_tokens.cli import main

main()
