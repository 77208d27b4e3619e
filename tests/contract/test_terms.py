"""The terms that an answer states (tier, speed, place) reach its price."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest

from otel_tokens.demo import anthropic_wire, openai_wire
from otel_tokens.demo.server import Reply
from otel_tokens.values import Usage

pytestmark = pytest.mark.priced

MESSAGES: Any = [{"role": "user", "content": "Count to three."}]
USAGE = Usage(input=1000, output=100, origin="provider")
D = Decimal


@pytest.mark.parametrize(("tier", "cost"), [("default", D("0.0040")), ("flex", D("0.0020")), ("priority", D("0.0080"))])
@pytest.mark.parametrize("stream", [False, True])
def test_openai_tiers(meter: Any, make_server: Any, tier: str, cost: Decimal, stream: bool) -> None:
    whole = {**openai_wire.chat_completion("gpt-5.4", USAGE, "1, 2, 3"), "service_tier": tier}
    events = openai_wire.chat_events(whole, include_usage=True)
    server = make_server(Reply(events=events) if stream else Reply(body=whole))
    with openai.OpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0) as client:
        answer = client.chat.completions.create(model="gpt-5.4", messages=MESSAGES, stream=stream)
        if stream:
            list(answer)
    assert (meter.one().service_tier, meter.one().cost.total) == (tier, cost)


@pytest.mark.parametrize(
    ("terms", "cost"),
    [
        ({"service_tier": "standard"}, D("0.0075")),
        ({"service_tier": "batch"}, D("0.00375")),
        ({"inference_geo": "us"}, D("0.00825")),
    ],
)
def test_anthropic_terms(meter: Any, make_server: Any, terms: dict[str, str], cost: Decimal) -> None:
    message = anthropic_wire.message("claude-opus-4-6", USAGE, "1, 2, 3")
    message["usage"].update(terms)
    server = make_server(Reply(body=message))
    with anthropic.Anthropic(api_key="k", base_url=server.url, max_retries=0) as client:
        client.messages.create(model="claude-opus-4-6", max_tokens=100, messages=MESSAGES)
    assert meter.one().cost.total == cost
