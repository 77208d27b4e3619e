"""Counts the tokens of the demo model: about four characters a token, long prompts cached. Invented but consistent."""

from __future__ import annotations

import itertools
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from otel_tokens.demo.wire import Json, Request, array, mapping
from otel_tokens.values import Component, Usage

CHARS = 4
"""Characters in a token."""

_CACHEABLE = 1024  # tokens: shorter prompts are not cached
_GRAIN = 128  # OpenAI reports cached tokens in steps
_EFFORT = {"none": 0, "minimal": 16, "low": 32, "medium": 96, "high": 256, "xhigh": 512}
_REASONS = re.compile(r"(o[134]|gpt-5)(\b|-)")
_PAYS_WRITES = re.compile(r"gpt-5\.[6-9]")


def letters(value: Any) -> int:
    """The number of characters in all strings inside a JSON value."""
    if isinstance(value, str):
        return len(value)
    parts = cast("Mapping[str, Any]", value).values() if isinstance(value, Mapping) else array(value)
    return sum(map(letters, parts))


def tokens(*values: Any) -> int:
    """The approximate number of tokens in JSON values, at least 1."""
    return max(1, math.ceil(sum(map(letters, values)) / CHARS))


class Counter:
    """Counts the tokens of calls, and remembers the prompts for its cache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[object, int] = {}

    def usage(self, request: Request, answer: str, keys: tuple[str, ...], choices: int = 1) -> tuple[Usage, int]:
        """Returns the usage of a call, and how many characters of the answer its limit allows (0: all).

        `keys` are the members of the request that are billed as input.
        """
        limit = request["max_completion_tokens"] or request["max_output_tokens"] or request["max_tokens"]
        reasoning = _reasoning(request)
        visible = tokens(answer)
        room = max(1, int(limit) - reasoning) if limit else visible
        parts = [request[key] for key in keys]
        usage = Usage(
            input=tokens(*parts),
            output=(min(visible, room) + reasoning) * choices,
            reasoning=reasoning * choices,
            origin="provider",
        )
        usage = self._with_marked(usage, parts) if "system" in keys else self._with_prefix(usage, request, parts)
        return _with_compaction(usage, request), room * CHARS if room < visible else 0

    def _with_prefix(self, usage: Usage, request: Request, parts: Sequence[Any]) -> Usage:
        """OpenAI caches long prompts automatically. Only the newest models bill the write."""
        if usage.input < _CACHEABLE:
            return usage
        size = usage.input // _GRAIN * _GRAIN
        known = self._remember((request["model"], str(parts)[: _CACHEABLE * CHARS]), size)
        if known:
            return replace(usage, cache_read=min(known, size))
        written = size if _PAYS_WRITES.match(str(request["model"])) else 0
        return replace(usage, cache_write=written, cache_write_30m=written)

    def _with_marked(self, usage: Usage, parts: Sequence[Any]) -> Usage:
        """Anthropic caches up to each block with `cache_control`, for five minutes or an hour."""
        for block in _blocks(parts):
            size = min(tokens(block), usage.input)
            mark = mapping(block.get("cache_control"))
            if not mark or size < _CACHEABLE:
                continue
            if self._remember(str(block), size):
                usage = replace(usage, cache_read=usage.cache_read + size)
                continue
            name = "cache_write_1h" if mark.get("ttl") == "1h" else "cache_write_5m"
            more: dict[str, Any] = {name: getattr(usage, name) + size}
            usage = replace(usage, cache_write=usage.cache_write + size, **more)
        return usage

    def _remember(self, key: object, size: int) -> int:
        with self._lock:
            known = self._seen.get(key, 0)
            self._seen[key] = size
            return known


def _blocks(parts: Sequence[Any]) -> list[Json]:
    """The blocks of system prompt, tools and messages, flat."""
    items = itertools.chain.from_iterable(map(array, parts))
    return [mapping(block) for item in items for block in (array(mapping(item).get("content")) or [item])]


def _reasoning(request: Request) -> int:
    thinking = mapping(request["thinking"])
    if thinking.get("type") in ("enabled", "adaptive"):
        return min(_EFFORT["medium"], int(thinking.get("budget_tokens") or _EFFORT["medium"]))
    effort = request["reasoning_effort"] or mapping(request["reasoning"]).get("effort")
    if effort is None and _REASONS.match(str(request["model"])):
        effort = "low"
    return _EFFORT.get(str(effort), 0)


def _with_compaction(usage: Usage, request: Request) -> Usage:
    """A compaction, if a beta request asks for one. It is billed and not part of the top-level numbers."""
    edits = array(mapping(request["context_management"]).get("edits"))
    if not any(str(mapping(edit).get("type")).startswith("compact") for edit in edits):
        return usage
    summary = Usage(input=usage.input * 3, output=200, origin="provider")
    return replace(usage, components=(Component("compaction", None, summary),))
