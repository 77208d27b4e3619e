"""`python -m otel_tokens.cli`, where the command itself is not on PATH."""

from __future__ import annotations

from otel_tokens.cli import main

main()
