"""Recorded responses of many providers, served to the real SDKs: the provider's own numbers, on every path.

A new provider or oddity is one more file in tests/payloads/, not one more test.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from otel_tokens.demo.server import ModelServer, Reply
from otel_tokens.demo.wire import bedrock_frames
from otel_tokens.instrument import runtime
from otel_tokens.pricing.catalog import Catalog
from otel_tokens.pricing.price import Pricer
from otel_tokens.providers.hosts import resolve
from otel_tokens.values import TOKEN_FIELDS, Component, Cost, Record, Usage

# The SDK warns of models near their end; what was recorded stays true.
pytestmark = pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")

PAYLOADS = Path(__file__).parent.parent / "payloads"
CASES = {str(path.relative_to(PAYLOADS))[:-5]: path for path in sorted(PAYLOADS.glob("*/*.json"))}
WHOLE = {name for name, path in CASES.items() if '"events"' not in path.read_text()}


def load(name: str) -> dict[str, Any]:
    return json.loads(CASES[name].read_text(), parse_float=Decimal)


def reply_of(case: dict[str, Any]) -> Reply:
    plain = json.loads(json.dumps(case, default=float))
    if "events" not in plain:
        return Reply(body=plain["response"])
    events = [tuple(event) for event in plain["events"]]
    if "Bedrock" in case.get("client", ""):
        return Reply(events=bedrock_frames(events), headers={"content-type": "application/vnd.amazon.eventstream"})
    return Reply(events=events)


def make_client(case: dict[str, Any], url: str, *, asynchronous: bool) -> Any:
    prefix = "Async" if asynchronous else ""
    name = case.get("client", ".").rpartition(".")[2]
    if case["endpoint"].startswith("openai"):
        kind = getattr(openai, prefix + (name or "OpenAI"))
        if "Azure" in kind.__name__:
            return kind(api_key="k", api_version="2024-10-21", azure_endpoint=url, max_retries=0)
        return kind(api_key="k", base_url=f"{url}/v1", max_retries=0)
    kind = getattr(anthropic, prefix + (name or "Anthropic"))
    if "Bedrock" in kind.__name__:
        keys = {"aws_access_key": "a", "aws_secret_key": "s", "aws_region": "us-east-1"}
        return kind(**keys, base_url=url, max_retries=0)
    if "Vertex" in kind.__name__:
        return kind(region="us-east5", project_id="p", access_token="t", base_url=url, max_retries=0)
    return kind(api_key="k", base_url=url, max_retries=0)


def resource_of(case: dict[str, Any], client: Any) -> tuple[Any, str]:
    """The resource and the method that the case's endpoint is called by."""
    root = client.beta if case.get("beta") else client
    return {
        "openai.chat": lambda: (client.chat.completions, "create"),
        "openai.completions": lambda: (client.completions, "create"),
        "openai.responses": lambda: (root.responses, "create"),
        "openai.responses.compact": lambda: (root.responses, "compact"),
        "openai.embeddings": lambda: (client.embeddings, "create"),
        "anthropic.messages": lambda: (root.messages, "create"),
    }[case["endpoint"]]()


def arguments(case: dict[str, Any]) -> dict[str, Any]:
    asked = json.loads(json.dumps(case["request"], default=float))
    asked.pop("stream", None)
    extra = {key: asked.pop(key) for key in list(asked) if key in ("speed", "thinking_budget", "enable_thinking")}
    more: dict[str, Any] = {"stream": True} if "events" in case else {}
    return {**asked, **more, **({"extra_body": extra} if extra else {})}


def call(case: dict[str, Any], client: Any) -> Any:
    resource, method = resource_of(case, client)
    result = getattr(resource, method)(**arguments(case))
    return list(result) if "events" in case else result


def call_raw(case: dict[str, Any], client: Any) -> Any:
    resource, method = resource_of(case, client)
    raw = getattr(resource.with_raw_response, method)(**arguments(case))
    return list(raw.parse()) if "events" in case else raw


def call_bytes(case: dict[str, Any], client: Any) -> Any:
    resource, method = resource_of(case, client)
    with getattr(resource.with_streaming_response, method)(**arguments(case)) as response:
        return b"".join(response.iter_bytes())


def call_async(case: dict[str, Any], client: Any) -> Any:
    async def go() -> None:
        resource, method = resource_of(case, client)
        result = await getattr(resource, method)(**arguments(case))
        if "events" in case:
            async for _ in result:
                pass
        await client.close()

    asyncio.run(go())


FORMS: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "plain": call,
    "raw": call_raw,
    "bytes": call_bytes,
    "async": call_async,
}


WHEN = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
"""The moment at whose prices the costs were worked out."""

FACTS = ("response_model", "service_tier", "speed", "geo", "missing_reason")


def tokens_of(block: dict[str, Any]) -> dict[str, int]:
    return {name: int(block[name]) for name in TOKEN_FIELDS if name in block}


def part_of(block: dict[str, Any]) -> Component:
    """The component that a case expects. What its usage reported is of no matter here."""
    usage = Usage(**tokens_of(block), total=block.get("total"))
    return Component(block["kind"], block["model"], usage, block.get("calls", 0))


def expected_usage(expected: dict[str, Any]) -> Usage:
    """The whole usage that a case expects: what it does not list is zero, empty or None."""
    cost = expected.get("reported_cost")
    return Usage(
        **tokens_of(expected),
        total=expected.get("total"),
        reported_cost=None if cost is None else Decimal(cost),
        origin=expected["origin"],
        reported=frozenset(expected["reported"]),
        flags=tuple(expected.get("flags", ())),
        components=tuple(part_of(part) for part in expected.get("components", ())),
    )


def plain(usage: Usage) -> Usage:
    parts = (
        replace(part, usage=replace(part.usage, origin="missing", reported=frozenset())) for part in usage.components
    )
    return replace(usage, components=tuple(parts))


def check_expected(case: dict[str, Any], record: Record) -> None:
    expected = case["expect"]
    assert plain(record.usage) == expected_usage(expected)
    assert {name: getattr(record, name) for name in FACTS} == {name: expected.get(name) for name in FACTS}
    assert list(record.finish_reasons) == expected.get("finish_reasons", [])
    cost = price(case, record, at=WHEN)
    total = expected["cost"]["total"]
    assert (cost.total, cost.status) == (None if total is None else Decimal(total), expected["cost"]["status"])


def price(case: dict[str, Any], record: Record, *, at: float, address: str | None = None) -> Cost:
    call = record.call
    return PRICER(
        *(call.provider, call.model, record.usage), response_model=record.response_model, tier=record.service_tier,
        speed=record.speed, geo=record.geo, address=address or case["base_url_host"], at=at,
    )  # fmt: skip


PRICER = Pricer(Catalog())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_the_providers_numbers(idle_meter: Any, make_server: Any, name: str, form: str) -> None:
    case, meter = load(name), idle_meter
    meter.instrument(hosts=[{"match": "127.0.0.1", "provider": case["provider"]}])
    server: ModelServer = make_server(reply_of(case))
    client = make_client(case, server.url, asynchronous=form == "async")
    try:
        FORMS[form](case, client)
    finally:
        if form != "async":
            client.close()
    held = runtime()
    if case["request"].get("background") and held is not None:
        held.engine.end_open()  # it waits for a poll that nobody makes
    record = meter.one()
    check_expected(case, record)
    assert record.cost == price(case, record, at=record.started, address=record.call.server_address)
    (row,) = meter.ledger()
    assert (row.usage, row.cost) == (record.usage, record.cost)
    (span,) = meter.spans()
    if record.usage.origin == "provider" and "input" in record.usage.reported:
        counted = record.usage.input + sum(part.usage.input for part in record.usage.components)
        assert span.attributes["gen_ai.usage.input_tokens"] == counted
        assert meter.total("gen_ai.client.inference.usage.input_tokens") == counted


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("odd/")])
def test_the_biller_is_known_by_the_host(name: str) -> None:
    case = load(name)
    sdk = case["endpoint"].partition(".")[0]
    assert resolve(case["base_url"], sdk=sdk).provider == case["provider"]
