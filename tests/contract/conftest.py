"""A meter around the real SDKs: what was recorded, as records, spans, metrics and ledger rows."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest

import otel_tokens
from otel_tokens import Budget

collect_ignore = [] if find_spec("anthropic._middleware") else ["test_middleware.py"]

os.environ["OTEL_TOKENS_STRICT"] = "1"  # faults of ours fail the test


@pytest.fixture
def meter(idle_meter: Any, request: pytest.FixtureRequest) -> Any:
    """Instrumented, with all sinks on.

    With the mark `priced` the loopback server bills as OpenAI (below /v1) and Anthropic; without, as nobody known.
    """
    idle_meter.instrument(**({} if request.node.get_closest_marker("priced") else {"hosts": ()}))
    return idle_meter


@pytest.fixture
def guarded(idle_meter: Any) -> Any:
    """A meter with a budget of tokens; `spent()` is (used, reserved)."""
    idle_meter.instrument(budgets=[Budget("all", tokens=10**6)], store="memory")

    def spent() -> tuple[int, int]:
        idle_meter.records()
        (row,) = otel_tokens.guard().status()
        return int(row.used), int(row.reserved)

    idle_meter.spent = spent
    return idle_meter
