"""The model of the loopback server: routes requests by the end of their path, answers them, and counts tokens.

It answers in the formats of OpenAI (also Azure) and Anthropic (also Bedrock and Vertex). If a request offers tools, it
calls one first. If a request has a JSON schema, the answer fits it. Models named `error-STATUS` fail with that status.
Streams of `error-stream` end with an error event.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from otel_tokens.demo import anthropic_wire, openai_wire
from otel_tokens.demo.counting import Counter, tokens
from otel_tokens.demo.wire import Event, Json, Reply, Request, array, bedrock_exception, bedrock_frames, mapping

ANSWER = (
    "A token is the unit in which a language model reads and writes, and in which its provider bills. "
    "Count them where the call is made, price them with the rate of that day, and keep the record: "
    "what is not measured at the source can only be guessed later."
)
THOUGHT = "The user asks a general question. A short, correct answer is best."
BREAKS = "error-stream"

_FAILS = re.compile(r"error-(\d{3})$")
_BEDROCK = re.compile(r"/model/(?P<model>[^/]+)/(?P<verb>invoke|invoke-with-response-stream)$")
_VERTEX = re.compile(r"/models/(?P<model>[^/:]+):(?P<verb>rawPredict|streamRawPredict)$")
_STREAMED = ("invoke-with-response-stream", "streamRawPredict")
_AZURE = "/openai/deployments/"
_AZURE_MODEL = "gpt-4.1-2025-04-14"  # the name of a deployment does not say its model
_SAFE = {kind: {"filtered": False, "severity": "safe"} for kind in ("hate", "self_harm", "sexual", "violence")}


def example(schema: Json, root: Json | None = None) -> Any:
    """A value that fits a JSON schema: for structured outputs and the arguments of tool calls."""
    root = schema if root is None else root
    if "$ref" in schema:
        target: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return example(target, root)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    if "anyOf" in schema:
        return example(schema["anyOf"][0], root)
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: example(part, root) for name, part in mapping(schema.get("properties")).items()}
    if kind == "array":
        return [example(schema.get("items", {"type": "string"}), root)]
    return {"string": "Paris", "integer": 3, "number": 1.5, "boolean": True}.get(kind)


class Model:
    """Answers requests. `respond` is the function for a `ModelServer`. `delay`: seconds between events of a stream."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self._counter = Counter()
        self._lock = threading.Lock()
        self._stored: dict[str, Json] = {}

    def respond(self, request: Request) -> Reply:
        """The reply to one request. An unknown path gets a 404 in OpenAI's format."""
        path = request.path
        if match := _BEDROCK.search(path) or _VERTEX.search(path):
            return self._hosted(request, unquote(match["model"]), match["verb"])
        routes = (
            ("/messages/count_tokens", self._count),
            ("/messages", self._messages),
            ("/chat/completions", self._chat),
            ("/completions", self._completions),
            ("/embeddings", self._embeddings),
            ("/responses/compact", self._compact),
            ("/responses/input_tokens", self._count),
            ("/responses", self._responses),
        )
        for suffix, handler in routes:
            if path.endswith(suffix) and request.method == "POST":
                failed = _failure(request, anthropic="/messages" in suffix)
                return failed or handler(request)
        stored = self._stored.get(path.rpartition("/")[2])
        return Reply(body=stored) if stored else openai_wire.error(404, f"Unknown path {path}", code="not_found")

    # ---- OpenAI

    def _chat(self, request: Request) -> Reply:
        azure = _AZURE in request.path
        choices = int(request["n"] or 1)
        text, call = _answer(request, "messages", "tool")
        usage, cut = self._counter.usage(request, text, ("messages", "tools"), choices)
        more: Json = {"service_tier": _tier(request)} | ({"finish": "length"} if cut else {})
        model = _AZURE_MODEL if azure else str(request["model"])
        whole = openai_wire.chat_completion(model, usage, text[: cut or None], call=call, choices=choices, **more)
        filters = [{"prompt_index": 0, "content_filter_results": _SAFE}]
        if not request["stream"]:
            return Reply(body=whole | ({"prompt_filter_results": filters} if azure else {}))
        events = openai_wire.chat_events(whole, include_usage=_asks_usage(request))
        if azure:  # the first chunk has no choice and no model
            first = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": filters}
            events.insert(0, (None, first))
        return self._stream(request, events, openai_wire.error_event("Overloaded"))

    def _completions(self, request: Request) -> Reply:
        usage, cut = self._counter.usage(request, ANSWER, ("prompt",))
        finish = "length" if cut else "stop"
        whole = openai_wire.completion(str(request["model"]), usage, ANSWER[: cut or None], finish=finish)
        if not request["stream"]:
            return Reply(body=whole)
        events = openai_wire.completion_events(whole, include_usage=_asks_usage(request))
        return self._stream(request, events, openai_wire.error_event("Overloaded"))

    def _responses(self, request: Request) -> Reply:
        text, call = _answer(request, "input", "function_call_output")
        usage, cut = self._counter.usage(request, text, ("input", "instructions", "tools"))
        more: Json = {"service_tier": _tier(request), "max_output_tokens": request["max_output_tokens"]}
        if cut:
            more |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        whole = openai_wire.response(str(request["model"]), usage, text[: cut or None], call=call, **more)
        with self._lock:
            self._stored[whole["id"]] = whole
        if request["stream"]:
            broken: Json = {"type": "error", "code": "server_error", "message": "Overloaded", "param": None}
            return self._stream(
                request, openai_wire.response_events(whole), ("error", {**broken, "sequence_number": 9})
            )
        if request["background"]:  # the answer is fetched later
            return Reply(body={**whole, "status": "queued", "background": True, "output": [], "usage": None})
        return Reply(body=whole)

    def _compact(self, request: Request) -> Reply:
        usage, _ = self._counter.usage(request, THOUGHT, ("input", "instructions"))
        return Reply(body=openai_wire.compaction(usage))

    def _embeddings(self, request: Request) -> Reply:
        rows = array(request["input"]) or [request["input"]]
        packed = request["encoding_format"] == "base64"
        dimensions = int(request["dimensions"] or 8)
        whole = openai_wire.embeddings(
            str(request["model"]), tokens(*rows), count=len(rows), dimensions=dimensions, packed=packed
        )
        return Reply(body=whole)

    # ---- Anthropic

    def _count(self, request: Request) -> Reply:
        count = tokens(request["system"], request["messages"], request["input"], request["tools"])
        kind = {"object": "response.input_tokens"} if request.path.endswith("/input_tokens") else {}
        return Reply(body={**kind, "input_tokens": count})

    def _messages(self, request: Request) -> Reply:
        text, call = _answer(request, "messages", "tool_result")
        usage, cut = self._counter.usage(request, text, ("system", "messages", "tools"))
        blocks = [anthropic_wire.thinking(THOUGHT)] if usage.reasoning else []
        if call:
            blocks.append(anthropic_wire.tool_use(call[0], json.loads(call[1])))
        else:
            blocks.append(anthropic_wire.text(text[: cut or None]))
        more: Json = {"stop_reason": "max_tokens"} if cut else {}
        speed: Json = {"speed": request["speed"]} if request["speed"] else {}
        raw = anthropic_wire.message_usage(usage, **speed)
        whole = anthropic_wire.message(str(request["model"]), raw, blocks, **more)
        if not request["stream"]:
            return Reply(body=whole)
        broken = anthropic_wire.error_event("overloaded_error", "Overloaded")
        return self._stream(request, anthropic_wire.message_events(whole), broken)

    def _hosted(self, request: Request, model: str, verb: str) -> Reply:
        """Bedrock and Vertex: the model is in the path. Bedrock has its own framing of streams."""
        request = replace(request, json={**mapping(request.json), "model": model, "stream": verb in _STREAMED})
        if model == "count-tokens":
            return self._count(request)
        reply = _failure(request, anthropic=True) or self._messages(request)
        if reply.events is None or not verb.startswith("invoke"):
            return reply
        broken = model == BREAKS
        frames = bedrock_frames(reply.events[:-1] if broken else reply.events)
        if broken:
            frames.append(bedrock_exception("modelStreamErrorException", "Overloaded"))
        return replace(reply, events=frames, headers={"content-type": "application/vnd.amazon.eventstream"})

    def _stream(self, request: Request, events: Sequence[Event], broken: Event) -> Reply:
        if request["model"] == BREAKS:
            events = [*events[: len(events) // 2], broken]
        return Reply(events=events, delay=self.delay)


def _failure(request: Request, *, anthropic: bool) -> Reply | None:
    match = _FAILS.match(str(request["model"]))
    if match is None:
        return None
    status, words = int(match[1]), "The model was asked to fail."
    kinds = {400: "invalid_request_error", 429: "rate_limit_error"}
    if not anthropic:
        return openai_wire.error(status, words, kinds.get(status, "server_error"))
    kinds |= {401: "authentication_error", 404: "not_found_error", 529: "overloaded_error"}
    return anthropic_wire.error(status, kinds.get(status, "api_error"), words)


def _asks_usage(request: Request) -> bool:
    return bool(mapping(request["stream_options"]).get("include_usage"))


def _tier(request: Request) -> str:
    asked = str(request["service_tier"] or "auto")
    return {"auto": "default", "fast": "priority"}.get(asked, asked)


def _answer(request: Request, conversation: str, result: str) -> tuple[str, tuple[str, str] | None]:
    """The text of the answer, and its tool call (name, arguments as JSON) if the request offers tools.

    A conversation whose last item is a tool's `result` gets its answer.
    """
    last = mapping((array(request[conversation]) or [None])[-1])
    answered = any(
        result in (mapping(p).get("type"), mapping(p).get("role")) for p in (last, *array(last.get("content")))
    )
    for tool in () if answered else map(mapping, array(request["tools"])):
        function = mapping(tool.get("function")) or tool
        if schema := mapping(function.get("parameters") or function.get("input_schema")):
            call = json.dumps(example(schema))
            return call, (function["name"], call)
    schema = _schema(request)
    return (json.dumps(example(schema)) if schema else ANSWER), None


def _schema(request: Request) -> Json:
    """The JSON schema that the answer must fit, or None."""
    places = (request["response_format"], mapping(request["text"]).get("format"))
    places += (mapping(request["output_config"]).get("format"), request["output_format"])
    for place in map(mapping, places):
        if found := mapping(place.get("schema")) or mapping(mapping(place.get("json_schema")).get("schema")):
            return found
    return {}
