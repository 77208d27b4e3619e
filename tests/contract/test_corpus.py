"""Recorded responses of many providers, served to the real SDKs: the provider's own numbers, on every path.

A new provider or oddity is one more file in tests/payloads/, not one more test.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from otel_tokens.demo.server import ModelServer, Reply
from otel_tokens.demo.wire import bedrock_frames
from otel_tokens.instrument import runtime
from otel_tokens.providers.hosts import resolve
from otel_tokens.values import TOKEN_FIELDS

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


def check_expected(record: Any, expected: dict[str, Any]) -> None:
    usage = record.usage
    for key, value in expected.items():
        if key == "origin":
            assert usage.origin == value
        elif key == "origin_not":
            assert usage.origin != value
        elif key == "flags":
            assert bool(usage.flags) == value
        elif key == "reported_cost":
            assert usage.reported_cost == (None if value is None else Decimal(value))
        elif key == "components":
            assert [part.kind for part in usage.components] == [part["kind"] for part in value]
            for part, wanted in zip(usage.components, value, strict=True):
                for name, number in wanted.items():
                    if name in TOKEN_FIELDS:
                        assert getattr(part.usage, name) == number
        elif key in ("response_model", "service_tier", "speed", "geo"):
            assert getattr(record, key) == value
        elif key == "finish_reasons":
            assert list(record.finish_reasons) == value
        else:
            assert getattr(usage, key) == value, key


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_the_providers_numbers(meter: Any, make_server: Any, name: str, form: str) -> None:
    case = load(name)
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
    check_expected(record, case["expect"])
    (row,) = meter.ledger()
    assert (row.usage, row.cost) == (record.usage, record.cost)
    (span,) = meter.spans()
    if record.usage.origin == "provider" and "input" in record.usage.reported:
        assert span.attributes["gen_ai.usage.input_tokens"] == record.usage.input
        components = record.usage.components
        counted = record.usage.input + sum(part.usage.input for part in components)
        assert meter.total("gen_ai.client.inference.usage.input_tokens") == counted


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("odd/")])
def test_the_biller_is_known_by_the_host(name: str) -> None:
    case = load(name)
    sdk = case["endpoint"].partition(".")[0]
    assert resolve(case["base_url"], sdk=sdk).provider == case["provider"]
