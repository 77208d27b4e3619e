"""What an answer costs, through the real SDKs: fees, tiers, places, fallbacks, refusals, reports that cannot be.

Each amount was worked out by hand from the vendor's price page; the arithmetic stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from otel_tokens import Budget
from otel_tokens.demo.server import Reply
from otel_tokens.instrument import runtime
from otel_tokens.providers import openai as openai_provider
from otel_tokens.usage.tools import count_tools, with_tools
from otel_tokens.values import Record, Usage

Ask = Callable[..., Record]
MESSAGES: Any = [{"role": "user", "content": "What is a token? Answer in one sentence, please."}]
ZERO_TOOLS = {
    "image_gen": {
        "input_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
        "output_tokens": 0,
        "total_tokens": 0,
    },
    "web_search": {"num_requests": 0},
}


def responses_body(model: str, *, output: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    text = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": []}
    return {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "model": model,
        "output": [*(output or ()), text],
        "usage": {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100},
        **more,
    }


def chat_body(model: str, usage: dict[str, Any], **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "A token is a piece of text that a model reads or writes."}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": choices,
        "usage": usage,
        **more,
    }


def message_body(model: str, usage: dict[str, Any], content: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "A piece of text."}] if content is None else content
    return {"id": "m", "type": "message", "role": "assistant", "model": model, "content": content,
            "stop_reason": "end_turn", "stop_sequence": None, "usage": usage, **more}  # fmt: skip


@pytest.fixture
def ask(idle_meter: Any, make_server: Any) -> Iterator[Ask]:
    """`ask(provider, body, endpoint="responses", **request)`: the record of one call that is answered so."""
    clients: list[Any] = []

    def one(provider: str, answer: Any, *, endpoint: str = "chat", budgets: Any = (), **request: Any) -> Record:
        server = make_server(Reply(events=answer) if isinstance(answer, list) else Reply(body=answer))
        idle_meter.instrument(hosts=[{"match": "127.0.0.1", "provider": provider}], budgets=budgets)
        if isinstance(answer, list):
            request["stream"] = True
        model = request.pop("model", answer["model"] if isinstance(answer, dict) else "m")
        if endpoint == "messages":
            client: Any = anthropic.Anthropic(api_key="k", base_url=server.url, max_retries=0)
            call = client.beta.messages.create if request.pop("beta", False) else client.messages.create
            given = {"max_tokens": 100, "messages": MESSAGES}
        else:
            client = openai.OpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0)
            call = client.chat.completions.create if endpoint == "chat" else client.responses.create
            given = {"messages": MESSAGES} if endpoint == "chat" else {"input": "What is a token?"}
        clients.append(client)
        result = call(model=model, **given, **request)
        if isinstance(answer, list):
            list(result)
        held = runtime()
        if request.get("background") and held is not None:
            held.engine.end_open()
        return idle_meter.one()

    yield one
    for client in clients:
        client.close()


def money(record: Record) -> tuple[Decimal | None, str]:
    return record.cost.total, record.cost.status


# ---- hosted tools --------------------------------------------------------------------------------------------------
def test_tools_that_did_not_run_are_no_component(ask: Ask) -> None:
    record = ask("openai", responses_body("gpt-5.4", tool_usage=ZERO_TOOLS), endpoint="responses")
    assert record.usage.components == ()
    assert money(record) == (Decimal("0.0040"), "priced")  # 1,000 x 2.50 + 100 x 15 per million


def search(action: str | None = "search", status: str = "completed") -> dict[str, Any]:
    return {"type": "web_search_call", "id": "w", "status": status, "action": {"type": action} if action else None}


FILE_SEARCH = {"type": "file_search_call", "id": "f", "status": "completed", "queries": ["a"], "results": None}
PYTHON = {
    "type": "code_interpreter_call",
    "id": "p",
    "status": "completed",
    "code": "1",
    "container_id": "c",
    "outputs": None,
}
SHELL: dict[str, Any] = {"type": "shell_call", "id": "s", "call_id": "s", "status": "completed",
                         "action": {"commands": ["ls"]}}  # fmt: skip
HOSTED_SHELL = {**SHELL, "environment": {"type": "container_reference", "container_id": "c"}}
WEB = [{"type": "web_search"}]


@pytest.mark.parametrize(
    ("model", "output", "more", "total", "status"),
    [
        ("gpt-5.4", [search(), search()], {}, "0.0240", "priced"),  # + 2 x 0.01
        ("gpt-5.4", [search(None), search("open_page"), search("find_in_page")], {}, "0.0140", "priced"),
        ("gpt-5.4", [search(status="failed")], {}, "0.0040", "priced"),
        ("gpt-5.4", [search(), search()], {"tool_usage": {"web_search": {"num_requests": 1}}}, "0.0140", "priced"),
        ("gpt-5.4", [search()], {"tool_usage": ZERO_TOOLS}, "0.0040", "priced"),  # discounted, by the SDK's docstring
        ("gpt-5.4", [FILE_SEARCH, FILE_SEARCH], {}, "0.0090", "priced"),  # + 2 x 0.0025
        ("gpt-5.4", [PYTHON], {}, "0.0040", "estimated"),
        ("gpt-5.4", [HOSTED_SHELL], {}, "0.0040", "estimated"),
        ("gpt-5.4", [{**SHELL, "environment": {"type": "local"}}], {}, "0.0040", "priced"),
        ("gpt-4o", [search()], {}, "0.0135", "priced"),  # 1,000 x 2.50 + 100 x 10 per million, + 0.01
        ("codex-mini-latest", [search()], {}, "0.0021", "estimated"),  # no fee in the list
    ],
)  # fmt: skip
def test_fees_that_only_the_output_shows(
    ask: Ask, model: str, output: list[Any], more: dict[str, Any], total: str, status: str
) -> None:
    body = responses_body(model, output=output, **more)
    record = ask(
        "openai", body, endpoint="responses", tools=[*WEB, {"type": "shell", "environment": {"type": "local"}}]
    )
    assert money(record) == (Decimal(total), status)


def test_a_search_tool_of_the_older_kind_costs_more_on_models_that_do_not_reason(ask: Ask) -> None:
    body = responses_body("gpt-4.1", output=[search(), search()])
    record = ask("openai", body, endpoint="responses", tools=[{"type": "web_search_preview"}])
    assert money(record) == (Decimal("0.0528"), "priced")  # 1,000 x 2 + 100 x 8 per million, + 2 x 0.025


def test_a_request_need_not_name_the_tools(ask: Ask) -> None:
    """A stored prompt may have them."""
    record = ask("openai", responses_body("gpt-5.4", output=[search(), search()]), endpoint="responses")
    assert money(record) == (Decimal("0.0240"), "priced")


def test_what_cannot_be_counted_is_said(ask: Ask) -> None:
    record = ask("openai", responses_body("gpt-5.4", output=[PYTHON]), endpoint="responses", tools=WEB)
    assert record.usage.flags == ("uncounted:code_interpreter",)
    assert "code_interpreter calls have no known price" in record.cost.rule


def test_a_stream_shows_its_tools_too(ask: Ask) -> None:
    body = responses_body("gpt-5.4", output=[search(), FILE_SEARCH])
    done = [
        {"type": "response.output_item.done", "output_index": i, "item": item} for i, item in enumerate(body["output"])
    ]
    events = [{"type": "response.created", "response": {**body, "output": [], "usage": None}}, *done]
    ended = [*events, {"type": "response.completed", "response": body}]
    record = ask(
        "openai", [(event["type"], event) for event in ended], endpoint="responses", model="gpt-5.4", tools=WEB
    )
    assert money(record) == (Decimal("0.0165"), "priced")  # 0.0040 + 0.01 + 0.0025


@pytest.mark.parametrize(
    ("model", "total"), [("gpt-4o-search-preview", "0.0285"), ("gpt-4o-mini-search-preview", "0.02521"),
                         ("gpt-5-search-api", "0.01225")],
)  # fmt: skip
def test_models_that_always_search(ask: Ask, model: str, total: str) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    record = ask("openai", chat_body(model, usage))
    assert money(record) == (Decimal(total), "estimated")
    assert "one search for each request is assumed" in record.cost.rule


def test_tools_of_other_hosts(ask: Ask) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    details = {"web_search_calls": 2, "code_interpreter_calls": 1, "mcp_calls": 4, "x_search_calls": 0}
    record = ask("x_ai", chat_body("grok-4.5", {**usage, "server_side_tool_usage_details": details}))
    # 1,000 x 2 + 100 x 6 per million, + 3 x 0.005
    assert money(record) == (Decimal("0.0176"), "priced")


def test_a_tool_without_a_known_fee_leaves_the_cost_an_estimate(ask: Ask) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    record = ask("x_ai", chat_body("grok-4.5", {**usage, "server_side_tool_usage_details": {"x_search_calls": 2}}))
    assert money(record) == (Decimal("0.0026"), "estimated")
    assert [(part.kind, part.calls) for part in record.usage.components] == [("x_search", 2)]


def test_tools_that_groq_ran(ask: Ask) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    body = chat_body("openai/gpt-oss-120b", usage)
    body["choices"][0]["message"]["executed_tools"] = [{"index": 0, "type": "search", "arguments": "{}", "output": ""}]
    record = ask("groq", body, tools=[{"type": "browser_search"}])
    assert record.usage.web_searches == 1
    assert record.cost.status == "estimated"


@pytest.mark.parametrize(
    ("model", "total"),
    [
        ("gemini-2.5-flash", "0.03555"),  # 1,000 x 0.30 + 100 x 2.50 per million, + 0.035 for the prompt
        ("gemini-3-flash-preview", "0.0288"),  # 1,000 x 0.50 + 100 x 3 per million, + 2 x 0.014
    ],
)
def test_searches_that_ground_an_answer(ask: Ask, model: str, total: str) -> None:
    body = chat_body(model, {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100})
    body["choices"][0]["grounding_metadata"] = {"web_search_queries": ["a", "b"]}
    record = ask("gcp.gemini", body, extra_body={"tools": [{"google_search": {}}]})
    assert record.usage.web_searches == 2
    assert money(record) == (Decimal(total), "priced")


def test_searches_that_were_asked_for_and_are_not_shown(ask: Ask) -> None:
    body = chat_body("gemini-2.5-flash", {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100})
    record = ask("gcp.gemini", body, extra_body={"tools": [{"google_search": {}}]})
    assert record.usage.flags == ("uncounted:google_search",)
    assert money(record) == (Decimal("0.00055"), "estimated")


def test_anthropic_s_tools(ask: Ask) -> None:
    content = [
        {"type": "server_tool_use", "id": "a", "name": "bash_code_execution", "input": {"command": "ls"}},
        {"type": "text", "text": "Done."},
    ]
    usage = {"input_tokens": 1000, "output_tokens": 100}
    body = message_body("claude-sonnet-4-6", usage, content)
    record = ask(
        "anthropic", body, endpoint="messages", tools=[{"type": "code_execution_20250825", "name": "code_execution"}]
    )
    assert money(record) == (Decimal("0.0045"), "estimated")  # 1,000 x 3 + 100 x 15 per million
    assert record.usage.flags == ("uncounted:code_execution",)


def test_code_that_runs_for_a_search_is_free(ask: Ask) -> None:
    content = [{"type": "server_tool_use", "id": str(n), "name": name, "input": {}} for n, name in
               enumerate(("web_search", "code_execution"))]  # fmt: skip
    usage = {"input_tokens": 1000, "output_tokens": 100}
    record = ask("anthropic", message_body("claude-sonnet-4-6", usage, content), endpoint="messages",
                 tools=[{"type": "web_search_20260209", "name": "web_search"}])  # fmt: skip
    assert money(record) == (Decimal("0.0145"), "priced")  # + 0.01


IMAGE_GEN = {
    "input_tokens": 50,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 50},
    "output_tokens": 1000,
    "output_tokens_details": {"image_tokens": 1000, "text_tokens": 0},
    "total_tokens": 1050,
}


@pytest.mark.parametrize(
    ("tool", "total"),
    [
        ({"type": "image_generation", "model": "gpt-image-2"}, "0.03425"),  # 0.0040 + 50 x 5 + 1,000 x 30 per million
        (
            {"type": "image_generation", "model": "gpt-image-1-mini"},
            "0.0121",
        ),  # 0.0040 + 50 x 2 + 1,000 x 8 per million
        ({"type": "image_generation"}, None),
    ],
)
def test_an_image_tool_is_priced_by_the_model_that_the_request_names(ask: Ask, tool: Any, total: str | None) -> None:
    body = responses_body("gpt-5.4", tool_usage={"image_gen": IMAGE_GEN, "web_search": {"num_requests": 0}})
    record = ask("openai", body, endpoint="responses", tools=[tool])
    assert record.cost.total == (None if total is None else Decimal(total))
    assert record.usage.components[0].model == tool.get("model", "image_generation_tool")


def test_images_whose_tokens_are_not_stated(ask: Ask) -> None:
    svg = {"input_tokens": 1, "output_tokens": 2, "reasoning_tokens": 0, "total_tokens": 3, "model": "gpt-5.4"}
    image = {"type": "image_generation_call", "id": "i", "status": "completed", "result": None}
    for item, kinds in ((image, ["image_gen"]), ({**image, "svg_usage": svg}, ["image_gen", "svg"])):
        usage = with_tools(Usage(input=1, origin="provider"), shown(item), {})
        assert [part.kind for part in usage.components] == kinds
    record = ask("openai", responses_body("gpt-5.4", output=[image]), endpoint="responses")
    assert money(record) == (Decimal("0.0040"), "estimated")


def shown(item: dict[str, Any]) -> dict[str, int]:
    tools: dict[str, int] = {}
    count_tools(openai_provider.RESPONSES, {"output": [item]}, tools)
    return tools


# ---- what the provider charged ---------------------------------------------------------------------------------------
def byok(cost: float, behind: float | None, *, own: bool = True) -> dict[str, Any]:
    return {"cost": cost, "is_byok": own, "cost_details": {"upstream_inference_cost": behind}}


@pytest.mark.parametrize(
    ("usage", "total", "status", "source"),
    [
        (byok(0, 0.0360795), "0.0360795", "priced", "provider"),
        (byok(0.001, 0.02), "0.021", "priced", "provider"),  # the router's fee, and what the provider behind bills
        (byok(0.02, 0.02, own=False), "0.02", "priced", "provider"),
        (byok(0, None), "0.003", "estimated", "local"),
        ({"cost": 0}, "0.003", "estimated", "local"),  # 1,000 x 2 + 100 x 10 per million
        ({"estimated_cost": 0.00004}, "0.00004", "priced", "provider"),
    ],
)
def test_the_provider_s_own_cost(ask: Ask, usage: dict[str, Any], total: str, status: str, source: str) -> None:
    tokens = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    record = ask("openrouter", chat_body("openai/gpt-6-sol", {**tokens, **usage}))
    assert (*money(record), record.cost.source) == (Decimal(total), status, source)


def test_a_budget_fills_by_what_the_provider_behind_bills(ask: Ask, idle_meter: Any) -> None:
    details = byok(0, 0.0360795)
    tokens = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    ask(
        "openrouter",
        chat_body("openai/gpt-6-sol", {**tokens, **details}),
        budgets=[Budget("cap", usd=1, enforce="soft")],
    )
    held = runtime()
    assert held is not None
    assert held.guard.status()[0].used == Decimal("0.0360795")


def test_deepinfra(ask: Ask) -> None:
    usage = {"prompt_tokens": 15, "completion_tokens": 16, "total_tokens": 31, "estimated_cost": 0.0000268}
    record = ask("deepinfra", chat_body("meta-llama/Meta-Llama-3-8B-Instruct", usage))
    assert (*money(record), record.cost.source) == (Decimal("0.0000268"), "priced", "provider")


# ---- places and tiers ------------------------------------------------------------------------------------------------
@contextmanager
def openai_at(host: str, body: dict[str, Any]) -> Iterator[openai.OpenAI]:
    def respond(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json=body)

    client = httpx2.Client(transport=httpx2.MockTransport(respond))
    with openai.OpenAI(api_key="k", base_url=f"https://{host}/v1", max_retries=0, http_client=client) as made:
        yield made


@pytest.mark.parametrize(
    ("host", "model", "total"),
    [
        ("api.openai.com", "gpt-6-sol", "0.0030"),
        ("eu.api.openai.com", "gpt-6-sol", "0.0033"),  # 1.1 x (1,000 x 2 + 100 x 10 per million)
        ("us.api.openai.com", "gpt-6-sol", "0.0033"),
        ("jp.api.openai.com", "gpt-5.4-mini-2026-03-17", "0.00132"),  # 1.1 x (1,000 x 0.75 + 100 x 4.50 per million)
        ("eu.api.openai.com", "gpt-5.2", "0.00315"),  # released before 2026-03-05: 1,000 x 1.75 + 100 x 14 per million
        ("eu.api.openai.com", "gpt-4o", "0.0035"),
    ],
)
def test_openai_s_regional_processing(idle_meter: Any, host: str, model: str, total: str) -> None:
    idle_meter.instrument(hosts=(), budgets=[Budget("cap", usd=100)])
    body = chat_body(model, {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100})
    with openai_at(host, body) as client:
        client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=100)
    record = idle_meter.one()
    assert record.call.provider == "openai"
    assert money(record) == (Decimal(total), "priced")


def test_searches_have_no_uplift(idle_meter: Any) -> None:
    idle_meter.instrument(hosts=())
    with openai_at("eu.api.openai.com", responses_body("gpt-6-sol", output=[search()])) as client:
        client.responses.create(model="gpt-6-sol", input="x", tools=[{"type": "web_search"}])
    assert idle_meter.one().cost.total == Decimal("0.0133")


@pytest.mark.parametrize(
    ("traffic", "total"),
    [
        ("ON_DEMAND", "0.00055"),  # 1,000 x 0.30 + 100 x 2.50 per million
        ("ON_DEMAND_FLEX", "0.000275"),
        ("ON_DEMAND_PRIORITY", "0.00099"),
        ("PROVISIONED_THROUGHPUT", "0"),
        ("TRAFFIC_TYPE_UNSPECIFIED", "0.00055"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_vertex_s_traffic_types(ask: Ask, traffic: str, total: str, *, stream: bool) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100,
             "extra_properties": {"google": {"traffic_type": traffic}}}  # fmt: skip
    body: Any = chat_body("google/gemini-2.5-flash", usage)
    if stream:
        chunk = {
            **body,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"content": "A"}, "finish_reason": "stop"}],
        }
        body = [(None, chunk), (None, "[DONE]")]
    record = ask("gcp.vertex_ai", body, model="google/gemini-2.5-flash")
    assert money(record) == (Decimal(total), "priced")
    assert record.service_tier == traffic
    if traffic == "PROVISIONED_THROUGHPUT":
        assert "paid for in advance" in record.cost.rule


@pytest.mark.parametrize("provider", ["gcp.gemini", "gcp.vertex_ai"])
def test_thinking_that_only_gemini_s_total_has(ask: Ask, provider: str) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1400}
    record = ask(provider, chat_body("gemini-2.5-flash", usage))
    assert (record.usage.output, record.usage.reasoning, record.usage.flags) == (400, 300, ())
    assert money(record) == (Decimal("0.0013"), "priced")  # 1,000 x 0.30 + 400 x 2.50 per million


def test_a_total_that_another_host_does_not_explain_stays_in_doubt(ask: Ask) -> None:
    record = ask("openai", chat_body("gpt-4o", {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1400}))
    assert money(record) == (Decimal("0.0035"), "estimated")


# ---- Anthropic -------------------------------------------------------------------------------------------------------
def stream_of(model: str, start: dict[str, Any], delta: dict[str, Any], *, text: str = "Hi", stop: str = "end_turn",
              details: Any = None) -> list[Any]:  # fmt: skip
    message = message_body(model, start, [], stop_reason=None)
    block = [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        {"type": "content_block_stop", "index": 0},
    ]
    events = [
        {"type": "message_start", "message": message},
        *(block if text else ()),
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop, "stop_sequence": None, "stop_details": details},
            "usage": delta,
        },
        {"type": "message_stop"},
    ]
    return [(event["type"], event) for event in events]


COMPACTED = [
    {"type": "compaction", "input_tokens": 100, "cache_read_input_tokens": 5000, "output_tokens": 83},
    {"type": "message", "input_tokens": 181, "cache_read_input_tokens": 0, "output_tokens": 8},
]


def test_a_real_report_states_its_zeros(ask: Ask) -> None:
    start = {"input_tokens": 100, "cache_read_input_tokens": 5000, "output_tokens": 1}
    delta = {"input_tokens": 181, "cache_read_input_tokens": 0, "output_tokens": 8, "iterations": COMPACTED}
    record = ask(
        "anthropic", stream_of("claude-sonnet-4-6", start, delta), endpoint="messages", model="claude-sonnet-4-6"
    )
    usage = record.usage
    assert (usage.input, usage.cache_read, usage.output) == (181, 0, 8)
    assert [(p.kind, p.usage.input, p.usage.cache_read, p.usage.output) for p in usage.components] == [
        ("compaction", 5100, 5000, 83)
    ]
    # 181 x 3 + 8 x 15, and beside it 100 x 3 + 5,000 x 0.30 + 83 x 15 per million
    assert money(record) == (Decimal("0.003708"), "priced")


def test_one_rule_for_spans_and_metrics(ask: Ask, idle_meter: Any) -> None:
    usage = {"input_tokens": 181, "output_tokens": 8, "iterations": COMPACTED}
    ask("anthropic", message_body("claude-sonnet-4-6", usage), endpoint="messages", beta=True)
    (span,) = idle_meter.spans()
    for name, tokens in (("input", 5281), ("output", 91)):
        assert span.attributes[f"gen_ai.usage.{name}_tokens"] == tokens
        assert idle_meter.total(f"gen_ai.client.inference.usage.{name}_tokens") == tokens
    assert span.attributes["otel_tokens.usage.components.input_tokens"] == 5100


def report(given: int | None, made: int | None, *, read: int | None = None, **more: Any) -> dict[str, Any]:
    found = {"input_tokens": given, "cache_read_input_tokens": read, "output_tokens": made, **more}
    return {name: count for name, count in found.items() if count is not None}


SPLIT = {"cache_creation": {"ephemeral_5m_input_tokens": 90, "ephemeral_1h_input_tokens": 0}}


@pytest.mark.parametrize(
    ("start", "delta", "counted"),
    [
        # hosts that report nothing at the start, or nothing at the end
        (report(0, 0), report(50, 8), (50, 0, 0, 8)),
        (report(50, 1), report(0, 8), (50, 0, 0, 8)),
        (report(50, 1, read=7), report(0, 0, read=0), (57, 7, 0, 1)),
        # only the output at the end
        (report(50, 1, read=7), report(None, 8), (57, 7, 0, 8)),
        # all input came from the cache after all
        (report(50, 1), report(0, 8, read=50), (50, 50, 0, 8)),
        # what was to be written was not
        (
            report(5, 1, cache_creation_input_tokens=90, **SPLIT),
            report(95, 8, cache_creation_input_tokens=0),
            (95, 0, 0, 8),
        ),
    ],
)
def test_zeros_and_placeholders(ask: Ask, start: Any, delta: Any, counted: tuple[int, ...]) -> None:
    usage = ask(
        "anthropic", stream_of("claude-sonnet-4-6", start, delta), endpoint="messages", model="claude-sonnet-4-6"
    ).usage
    assert (usage.input, usage.cache_read, usage.cache_write, usage.output) == counted
    assert usage.flags == ()


@pytest.mark.parametrize("stream", [False, True])
def test_a_fallback_model_that_served_is_the_one_that_is_priced(ask: Ask, *, stream: bool) -> None:
    passes = [
        {"type": "message", "model": "claude-fable-5", "input_tokens": 400, "output_tokens": 1},
        {"type": "fallback_message", "model": "claude-opus-4-8", "input_tokens": 400, "output_tokens": 100},
    ]
    usage = {"input_tokens": 400, "output_tokens": 100, "iterations": passes}
    answer: Any = message_body("claude-opus-4-8", usage)
    if stream:
        answer = stream_of("claude-fable-5", {"input_tokens": 400, "output_tokens": 1}, usage)
    record = ask("anthropic", answer, endpoint="messages", beta=True, model="claude-fable-5",
                 fallbacks=[{"model": "claude-opus-4-8"}])  # fmt: skip
    assert record.response_model == "claude-opus-4-8"
    assert money(record) == (Decimal("0.0045"), "priced")  # 400 x 5 + 100 x 25 per million


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("category", "total"),
    [(None, "0"), ("cyber", "0"), ("general_harms", "0"), ("bio", "0.001515"), ("frontier_llm", "0.001515"),
     ("reasoning_extraction", "0.001515")],
)  # fmt: skip
def test_a_refusal_before_any_output(ask: Ask, category: str | None, total: str, *, stream: bool) -> None:
    """Billed again since 2026-09-24 for three categories, by Anthropic's release notes."""
    details = {"type": "refusal", "category": category, "explanation": None}
    usage = {"input_tokens": 500, "output_tokens": 1}
    answer: Any = message_body("claude-sonnet-4-6", usage, [], stop_reason="refusal", stop_details=details)
    if stream:
        answer = stream_of("claude-sonnet-4-6", usage, usage, text="", stop="refusal", details=details)
    record = ask("anthropic", answer, endpoint="messages", model="claude-sonnet-4-6")
    assert (record.usage.input, record.usage.output) == (500, 1)
    assert money(record) == (Decimal(total), "priced")  # 500 x 3 + 1 x 15 per million


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_after_some_output_is_billed(ask: Ask, *, stream: bool) -> None:
    usage = {"input_tokens": 500, "output_tokens": 5}
    answer: Any = message_body("claude-sonnet-4-6", usage, stop_reason="refusal")
    if stream:
        answer = stream_of("claude-sonnet-4-6", usage, usage, stop="refusal")
    record = ask("anthropic", answer, endpoint="messages", model="claude-sonnet-4-6")
    assert money(record) == (Decimal("0.001575"), "priced")


# ---- reports that cannot be ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "made"), [(-1000, 100), (1000, -100), (10**15, 100), ("many", 100)]
)  # fmt: skip
def test_an_impossible_report_is_never_charged_as_nothing(ask: Ask, given: Any, made: Any) -> None:
    usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": 5}
    budgets = [Budget("cap", usd=1)]
    record = ask("openai", chat_body("gpt-4o", usage), budgets=budgets, max_tokens=50)
    assert (record.usage.origin, record.missing_reason) == ("estimated", "parse_error")
    assert record.usage.input > 0
    assert record.usage.output > 0
    assert record.cost.status == "estimated"
    held = runtime()
    assert held is not None
    assert held.guard.status()[0].used == record.cost.total
    assert 0 < held.guard.status()[0].used < Decimal("0.1")


def test_a_report_of_which_nothing_can_be_is_charged_as_reserved(ask: Ask) -> None:
    usage = {"prompt_tokens": -5, "completion_tokens": -5, "total_tokens": -10}
    record = ask("openai", chat_body("gpt-4o", usage), budgets=[Budget("cap", usd=1)], max_tokens=50)
    assert (record.usage.origin, record.missing_reason) == ("missing", "parse_error")
    assert set(record.usage.flags) >= {"negative:input", "negative:output"}
    held = runtime()
    assert held is not None
    assert held.guard.status()[0].used > Decimal("0.0005")  # 50 tokens of output at 10 USD per million, and the input


def test_a_queued_answer_with_zeros_of_tools_is_in_the_background(ask: Ask) -> None:
    body = responses_body("gpt-5.4", status="queued", background=True, tool_usage=ZERO_TOOLS)
    record = ask("openai", {**body, "usage": None, "output": []}, endpoint="responses", background=True)
    assert (record.usage.origin, record.missing_reason) == ("missing", "background")
    assert record.usage.flags == ()


# ---- budgets in money ------------------------------------------------------------------------------------------------
def test_a_free_variant_is_admitted_under_a_hard_cap_in_money(ask: Ask) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100, "cost": 0}
    record = ask("openrouter", chat_body("deepseek/deepseek-r1:free", usage), budgets=[Budget("cap", usd="0.01")])
    assert money(record) == (0, "priced")
