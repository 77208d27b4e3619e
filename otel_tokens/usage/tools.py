"""Hosted tools: what the provider ran for an answer and bills by the call, beside the tokens.

Some providers count the calls in the usage block, others only show them in the answer. A call that is shown counts
once, unless the usage block states the number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from otel_tokens.providers.spec import Endpoint
from otel_tokens.shapes import is_list, is_mapping
from otel_tokens.usage.paths import dig, dig_all, get
from otel_tokens.values import Call, Component, Usage

WEB_SEARCH, IMAGES, PREVIEW = "web_search", "image_gen", "web_search_preview"
SVG = "svg"
"""An image tool's answer written by another model: its tokens are billed beside, and are not counted here."""

UNNAMED_MODEL = "image_generation_tool"
"""Stands for the model of an image tool that neither the answer nor the request names: unpriced unless the user prices
it."""

UNCOUNTED = frozenset({"code_interpreter", "code_execution", "shell", "google_search", SVG})
"""Tools whose bill does not follow from one answer: containers are billed by time and may serve several calls."""

# Kinds of items in an answer. What is not here (functions, MCP, computer use, tool search) has no fee of its own.
_ITEMS = {
    "web_search_call": WEB_SEARCH,
    "x_search_call": "x_search",
    "file_search_call": "file_search",
    "code_interpreter_call": "code_interpreter",
    "shell_call": "shell",
    "image_generation_call": IMAGES,
}
_SERVER_TOOLS = {  # Anthropic, by the tool's name; fetching pages is free
    "web_search": WEB_SEARCH,
    "code_execution": "code_execution",
    "bash_code_execution": "code_execution",
    "text_editor_code_execution": "code_execution",
}
_STATED = {"code_interpreter_calls": "code_interpreter", "image_generation_calls": IMAGES}
_NO_FEE = frozenset({"web_search_calls", "mcp_calls"})  # the first is read as `web_searches`
_ASKING = ("tools", "web_search_options", "search_parameters", "plugins")
_GROUNDING = frozenset({"gcp.gemini", "gcp.vertex_ai"})


def may_run(endpoint: Endpoint, call: Call, request: Mapping[str, Any]) -> bool:
    """Whether the answer may show tools that the provider ran.

    Answers of events always list their items. Chat answers are searched only if the request or the host suggests it.
    """
    if endpoint.shape == "events" or call.provider in _GROUNDING or "compound" in call.model:
        return True
    return any(request.get(key) is not None for key in _ASKING)


def count_tools(endpoint: Endpoint, payload: Any, tools: dict[str, int]) -> None:
    """Add the tool calls that a response or an event shows to `tools`. A whole list replaces what events showed."""
    for path in endpoint.tools:
        items = dig_all(payload, path)
        if items and path.endswith("*"):
            tools.clear()
        for item in items:
            kind, calls = _shown(item)
            if calls:
                tools[kind] = tools.get(kind, 0) + calls
            if kind == IMAGES and get(item, "svg_usage") is not None:
                tools[SVG] = tools.get(SVG, 0) + 1


def _shown(item: Any) -> tuple[str, int]:
    """The kind of tool that an item of an answer shows, and how many billed calls it stands for."""
    kind = get(item, "type")
    if kind == "server_tool_use":
        found = _SERVER_TOOLS.get(str(get(item, "name")))
        return (found, 1) if found else ("", 0)
    if kind is None:  # what grounds an answer of Gemini
        queries = get(item, "web_search_queries") or get(item, "webSearchQueries")
        return WEB_SEARCH, len(queries) if is_list(queries) else 0
    if get(item, "arguments") is not None and get(item, "index") is not None:  # a tool that Groq executed
        return (WEB_SEARCH if kind == "search" else str(kind)), 1
    found = _ITEMS.get(str(kind))
    free = (
        found is None
        or get(item, "status") == "failed"
        # Opening a page and looking into it are no searches (OpenAI's guide on web search).
        or (found == WEB_SEARCH and dig(item, "action.type") not in (None, "search"))
        or (found == "shell" and dig(item, "environment.type") == "local")
    )
    return (found or "", 0 if free else 1)


def stated_tools(counts: Mapping[str, Any], place: str) -> Iterator[Component]:
    """The tool calls that a usage block counts by name below `place`, other than web searches (xAI)."""
    for key, calls in counts.items():
        name = key.removeprefix(f"{place}.")
        if name != key and name not in _NO_FEE and isinstance(calls, int) and calls > 0:
            yield Component(_STATED.get(name, name.removesuffix("_calls")), None, Usage(), calls)


def with_tools(usage: Usage, tools: Mapping[str, int], request: Mapping[str, Any]) -> Usage:
    """`usage` with the tool calls that its answer shows: searches, and a component for each other kind."""
    parts = _named(usage.components, request)
    stated = {part.kind for part in parts}
    searches = usage.web_searches
    if "web_searches" not in usage.reported:
        searches = max(searches, tools.get(WEB_SEARCH, 0))
    for kind, calls in tools.items():
        # Anthropic does not bill code that runs for its search and fetch tools.
        free = kind == "code_execution" and (searches or usage.web_fetches)
        if kind not in stated and kind != WEB_SEARCH and not free:
            parts.append(Component(kind, _image_model(request) if kind == IMAGES else None, Usage(), calls))
    if searches and _asked(request, PREVIEW):
        parts.append(Component(PREVIEW, None, Usage(), searches))
    flags = [f"uncounted:{kind}" for kind in tools if kind in UNCOUNTED and any(part.kind == kind for part in parts)]
    if not searches and any(get(tool, "google_search") is not None for tool in _tools(request)):
        flags.append("uncounted:google_search")
    if searches == usage.web_searches and not flags and tuple(parts) == usage.components:
        return usage
    return replace(usage, web_searches=searches, components=tuple(parts), flags=(*usage.flags, *flags))


def _named(parts: tuple[Component, ...], request: Mapping[str, Any]) -> list[Component]:
    """The components, images with the model that the request names."""
    return [replace(part, model=_image_model(request)) if part.model == UNNAMED_MODEL else part for part in parts]


def _image_model(request: Mapping[str, Any]) -> str:
    models = {get(tool, "model") for tool in _tools(request) if get(tool, "type") == "image_generation"}
    model = models.pop() if len(models) == 1 else None
    return model if isinstance(model, str) and model else UNNAMED_MODEL


def _asked(request: Mapping[str, Any], kind: str) -> bool:
    return any(str(get(tool, "type")).startswith(kind) for tool in _tools(request))


def _tools(request: Mapping[str, Any]) -> list[Any]:
    tools = request.get("tools")
    return [tool for tool in tools if is_mapping(tool) or get(tool, "type") is not None] if is_list(tools) else []
