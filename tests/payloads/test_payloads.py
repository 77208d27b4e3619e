"""The corpus itself: every file is well formed, and the real SDKs, not instrumented, hand its payload on unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from otel_tokens.demo.server import Reply
from otel_tokens.demo.wire import bedrock_frames
from otel_tokens.values import TOKEN_FIELDS

# The SDK warns of models near their end; what was recorded stays true.
pytestmark = pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")

HERE = Path(__file__).parent
FILES = {str(path.relative_to(HERE))[:-5]: path for path in sorted(HERE.glob("*/*.json"))}
CALLS = {
    "openai.chat": "chat.completions.create",
    "openai.completions": "completions.create",
    "openai.responses": "responses.create",
    "openai.responses.compact": "responses.compact",
    "openai.embeddings": "embeddings.create",
    "anthropic.messages": "messages.create",
}
CLIENTS: dict[str, dict[str, Any]] = {
    "openai.OpenAI": {"api_key": "test"},
    "openai.AzureOpenAI": {"api_key": "test", "api_version": "2024-10-21"},
    "anthropic.Anthropic": {"api_key": "test"},
    "anthropic.AnthropicBedrock": {"api_key": "test", "aws_region": "us-east-1"},
    "anthropic.AnthropicVertex": {"access_token": "test", "region": "us-east5", "project_id": "ours"},
}
FACTS = {"response_model", "service_tier", "speed", "geo", "finish_reasons"}
OTHERS = {"total", "reported_cost", "components", "origin", "reported", "flags", "missing_reason", "cost"}
NEEDED = {"origin", "reported", "cost"}


def load(name: str) -> dict[str, Any]:
    return json.loads(FILES[name].read_text())


def sent(case: dict[str, Any]) -> list[Any]:
    """The data of the events that reach a caller: no comment, no ping, no end marker."""
    return [data for event, data in case["events"] if isinstance(data, dict) and event != "ping"]


def test_there_are_many() -> None:
    assert len([name for name in FILES if not name.startswith("odd/")]) >= 60
    assert len({name.partition("/")[0] for name in FILES}) >= 20


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_well_formed(name: str) -> None:
    case = load(name)
    needed = {"provider", "endpoint", "base_url_host", "base_url", "request", "expect"}
    assert needed <= set(case) <= needed | {"response", "events", "client", "beta", "note"}
    assert ("response" in case) != ("events" in case)
    assert bool(case["request"].get("stream")) == ("events" in case)
    assert urlsplit(case["base_url"]).netloc == case["base_url_host"]
    assert case["endpoint"] in CALLS
    assert case.get("client", "openai.OpenAI") in CLIENTS
    for event in case.get("events", ()):
        assert len(event) == 2


@pytest.mark.parametrize("name", FILES)
def test_what_is_expected_is_possible(name: str) -> None:
    expect = load(name)["expect"]
    assert set(expect) >= NEEDED
    assert set(expect) <= {*TOKEN_FIELDS, *FACTS, *OTHERS}
    assert set(expect["cost"]) == {"total", "status"}
    for block in (expect, *expect.get("components", ())):

        def of(field: str, block: dict[str, Any] = block) -> int:
            return block.get(field, 0)

        if "input" not in block or "output" not in block:
            continue
        ttls = sum(of(f"cache_write_{ttl}") for ttl in ("5m", "30m", "1h", "12h"))
        assert of("cache_read") + of("cache_write") <= of("input")
        assert ttls in (0, of("cache_write"))
        assert of("reasoning") <= of("output")
        assert of("input_text") + of("input_audio") + of("input_image") in (0, of("input"))
        assert of("output_text") + of("output_audio") + of("output_image") in (
            0,
            of("output"),
            of("output") - of("reasoning"),
        )


@pytest.mark.parametrize("name", FILES)
async def test_the_sdk_hands_it_on_unchanged(sdk: Any, make_server: Any, name: str) -> None:
    case = load(name)
    cls = case.get("client") or {"openai": "openai.OpenAI", "anthropic": "anthropic.Anthropic"}[name_of_sdk(case)]
    if "events" in case:
        framed = bedrock_frames(case["events"]) if "Bedrock" in cls else case["events"]
        server = make_server(Reply(events=framed))
    else:
        server = make_server(Reply(body=case["response"]))
    where = "azure_endpoint" if "Azure" in cls else "base_url"
    request = dict(case["request"])
    extra = {"extra_body": {"speed": request.pop("speed")}} if "speed" in request else {}
    async with sdk.client(cls, **{where: server.url}, **CLIENTS[cls]) as client:
        method = client.beta if case.get("beta") else client
        for step in CALLS[case["endpoint"]].split("."):
            method = getattr(method, step)
        if "events" in case:
            got = [item.to_dict(warnings=False) for item in await sdk.every(method(**request, **extra))]
        else:
            got = (await sdk.done(method(**request, **extra))).to_dict(warnings=False)
    # Of an odd payload the SDK may make what it can (text into a number); it must only not refuse it.
    if not name.startswith("odd/"):
        assert got == (sent(case) if "events" in case else case["response"])


def name_of_sdk(case: dict[str, Any]) -> str:
    return case["endpoint"].partition(".")[0]
