"""A meter around the real SDKs: what was recorded, as records, spans, metrics and ledger rows."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ["OTEL_TOKENS_STRICT"] = "1"  # faults of ours fail the test


@pytest.fixture
def meter(idle_meter: Any, request: pytest.FixtureRequest) -> Any:
    """Instrumented, with all sinks on.

    With the mark `priced` the loopback server bills as OpenAI (below /v1) and Anthropic; without, as nobody known.
    """
    idle_meter.instrument(**({} if request.node.get_closest_marker("priced") else {"hosts": ()}))
    return idle_meter
