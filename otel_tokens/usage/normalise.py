"""Raw counts to `Usage`: one convention for all providers, and its invariants.

`input` and `output` are inclusive totals. A part that is larger than its total is cut to the total and flagged, because
the provider bills its total. The source of each provider's rule is in the provider's file.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from otel_tokens.providers.registry import endpoint_named, providers
from otel_tokens.providers.spec import Endpoint
from otel_tokens.shapes import is_list
from otel_tokens.usage.counts import Counts, flatten
from otel_tokens.usage.maps import ABSURD, NOT_REPORTED, Plan, UsageMap
from otel_tokens.usage.paths import get
from otel_tokens.usage.tools import IMAGES, UNNAMED_MODEL, stated_tools
from otel_tokens.values import EXACT, TOKEN_FIELDS, Component, Usage, make

SMALLEST = -30
"""The exponent of the smallest believable amount in USD."""

TICK = Decimal("1e-10")
"""xAI's `cost_in_usd_ticks` counts 1e-10 USD."""

GOOGLE = frozenset({"gcp.gemini", "gcp.vertex_ai", "gcp.gen_ai"})
"""Providers whose OpenAI-compatible hosts leave thinking out of `completion_tokens`: only the total has it."""


@lru_cache(maxsize=256)
def _map_of(endpoint: Endpoint) -> UsageMap:
    return UsageMap(endpoint.usage)


def normalise_block(raw: Any, endpoint: Endpoint, provider: str = "") -> Usage:
    """The `Usage` of one raw usage block (dict or SDK object) of this endpoint."""
    counts: Counts = {}
    if not flatten(raw, counts):
        return Usage(flags=() if raw is None else ("unreadable",))
    return normalise(counts, endpoint, provider)


def normalise(counts: Counts, endpoint: Endpoint, provider: str = "") -> Usage:
    """The `Usage` of collected counts. `origin` is "provider", or "missing" when nothing usable was stated.

    A negative, absurd or unreadable number is left out and flagged: it states nothing.
    """
    rules = _map_of(endpoint)
    flags: list[str] = []
    plan = rules.plan(counts)
    values, reported = plan.values(counts), plan.reported
    if values is None:
        values = _careful(plan, counts, flags)
        reported = frozenset(values) - NOT_REPORTED
    total = values.pop("total", None)
    beside = values.pop("reasoning_beside", 0)
    cost = _cost(rules, counts) if plan.has_cost else None
    if "input" not in values and "output" not in values:
        unread = ("unreadable",) if any(counts.values()) else ()  # zeros of tools that did not run say nothing
        return Usage(flags=(*flags, *unread), reported_cost=cost, total=total)
    if beside and "reasoning" not in values:
        # More reasoning than output is no part of the output: Perplexity bills it beside the answer.
        values["reasoning"] = beside
        if beside > values.get("output", 0):
            values["output"] = values.get("output", 0) + beside
    if provider in GOOGLE and total is not None:
        _add_thinking(values, total)
    _reconcile(values, total, flags)
    if endpoint.operation != "embeddings":
        flags += [f"missing:{name}" for name in ("input", "output") if name not in values]
    made: dict[str, Any] = {**values, "total": total, "reported_cost": cost, "origin": "provider", "reported": reported}
    if flags:
        made["flags"] = tuple(flags)
    if plan.has_components:
        made["components"] = _components(rules, counts, endpoint)
    return make(Usage, made)


def impossible_sides(usage: Usage) -> frozenset[str]:
    """The sides ("input", "output") of which the provider stated a number that cannot be."""
    if not usage.flags:
        return _NEITHER
    return frozenset(side for side in ("input", "output") for fault in IMPOSSIBLE if f"{fault}:{side}" in usage.flags)


IMPOSSIBLE = ("negative", "absurd", "not_a_number")
_NEITHER: frozenset[str] = frozenset()


def _careful(plan: Plan, counts: Counts, flags: list[str]) -> dict[str, int]:
    """The fields' values where some count is text, a float, negative or absurd."""
    values: dict[str, int] = {}
    for name, keys in plan.steps:
        numbers = [_number(counts[key], name, flags) for key in keys]
        stated = [number for number in numbers if number is not None]
        if stated:
            values[name] = sum(stated)
    return values


def _number(value: Any, name: str, flags: list[str]) -> int | None:
    """A count as an int. Text and whole floats are read. What cannot be a count is flagged and gives None."""
    try:
        number = Decimal(str(value))
    except (InvalidOperation, ValueError):
        flags.append(f"not_a_number:{name}")
        return None
    if not number.is_finite():
        flags.append(f"not_a_number:{name}")
        return None
    if number < 0:
        flags.append(f"negative:{name}")
        return None
    if number >= ABSURD:
        flags.append(f"absurd:{name}")
        return None
    whole = int(number)
    if whole != number:
        flags.append(f"fraction:{name}")
        return round(number)
    return whole


def _add_thinking(values: dict[str, int], total: int) -> None:
    """Count what the total has beyond input and output as thinking, which is billed as output."""
    rest = total - values.get("input", 0) - values.get("output", 0)
    if rest > 0:
        values["output"] = values.get("output", 0) + rest
        values["reasoning"] = max(values.get("reasoning", 0), rest)


def _reconcile(values: dict[str, int], total: int | None, flags: list[str]) -> None:
    """Correct numbers that contradict each other: a total counts more than its parts."""
    given, made = values.get("input", 0), values.get("output", 0)
    reasoning = values.get("reasoning", 0)
    # xAI and some proxies count reasoning beside the completion tokens: then the total is larger by the reasoning.
    if reasoning and total == given + made + reasoning:
        made = values["output"] = made + reasoning
    for name, value in values.items():
        if value > (made if name in PARTS_OF_OUTPUT else given) and name in PARTS:
            flags.append(f"exceeds:{name}")
            values[name] = made if name in PARTS_OF_OUTPUT else given
    if values.get("cache_write", 0) > (room := given - values.get("cache_read", 0)):
        flags.append("exceeds:cache_write")
        values["cache_write"] = room
    _ttl(values, given, flags)
    if total is not None and not given + made - reasoning <= total <= given + made:
        flags.append("exceeds:total" if total < given + made else "unaccounted:total")


PARTS_OF_OUTPUT = frozenset({"reasoning"} | {name for name in TOKEN_FIELDS if name.startswith("output_")})
PARTS_OF_INPUT = frozenset(name for name in TOKEN_FIELDS if name.startswith(("input_", "cache_")))
PARTS = PARTS_OF_OUTPUT | PARTS_OF_INPUT
_TTL = ("cache_write_5m", "cache_write_30m", "cache_write_1h", "cache_write_12h")


def _ttl(values: dict[str, int], given: int, flags: list[str]) -> None:
    """Keep the split by lifetime within the cache writes. A split without a total gives the total."""
    split = 0
    for name in _TTL:
        if name in values:
            split += values[name]
    if not split:
        return
    if "cache_write" not in values:
        values["cache_write"] = min(split, max(given - values.get("cache_read", 0), 0))
    room = values["cache_write"]
    for name in _TTL:
        if values.get(name, 0) > room:
            flags.append(f"exceeds:{name}")
            values[name] = room
        room -= values.get(name, 0)


def _cost(rules: UsageMap, counts: Counts) -> Decimal | None:
    """The provider's own price in USD, from whichever field states it.

    With the caller's own key the provider behind bills the caller too: its price is added. A provider's price of 0
    beside that of the provider behind it means the same.
    """
    stated = _amount(counts, rules.costs["cost"])
    if stated is None:
        ticks = _amount(counts, rules.costs["cost_ticks"])
        stated = None if ticks is None else EXACT.multiply(ticks, TICK)
    if stated and not any(counts.get(key) for key in rules.costs["own_key"]):
        return stated
    upstream = _amount(counts, rules.costs["upstream_cost"])
    return stated if upstream is None else EXACT.add(stated or Decimal(0), upstream)


def _amount(counts: Counts, keys: tuple[str, ...]) -> Decimal | None:
    """The first of these counts that is an amount."""
    for key in keys:
        try:
            amount = Decimal(str(counts[key]))
        except (KeyError, InvalidOperation, ValueError):
            continue
        # The exponent first: all that is done with an amount later takes as long as its digits.
        if amount.is_finite() and 0 <= amount < ABSURD and (not amount or amount.adjusted() >= SMALLEST):
            return amount if amount else Decimal(0)
    return None


def _components(rules: UsageMap, counts: Counts, endpoint: Endpoint) -> tuple[Component, ...]:
    """Extra billed parts of a call that its top-level numbers leave out.

    Anthropic lists every pass of a call under `iterations`. The top level is the sum of the serving model's own
    `message` passes; `compaction` is billed beside it, and `advisor_message` on the advisor's model. Hops that
    declined before a fallback served are listed as `message` too, and not billed. OpenAI states the tokens of an
    image-generation tool as a block of their own, of a model it does not name.
    """
    found: list[Component] = []
    for (key,) in rules.components:
        entries = counts.get(key)
        if is_list(entries):
            billed = [(str(get(item, "type")), get(item, "model"), item) for item in entries]
            billed = [entry for entry in billed if entry[0] in BILLED_BESIDE]
        else:
            block = {k[len(key) + 1 :]: v for k, v in counts.items() if k.startswith(f"{key}.")}
            billed = [(IMAGES, UNNAMED_MODEL, block)] if block and key.endswith(IMAGES) else []
        for kind, model, item in billed:
            usage = normalise_block(item, endpoint)
            if usage.input or usage.output:  # a tool that did not run states zeros
                found.append(Component(kind, model if isinstance(model, str) else None, usage))
    if rules.tools:
        found += stated_tools(counts, rules.tools)
    return tuple(found)


BILLED_BESIDE = frozenset({"compaction", "advisor_message"})


def endpoint_of(provider: str, raw: Any, name: str | None = None) -> Endpoint:
    """The endpoint whose rules a raw usage block follows: by name, else by provider and the block's fields.

    Raises ValueError for an unknown name.
    """
    if name is not None:
        return _named(name)
    own = next((item for item in providers() if item.id == provider and item.sdk != "openai"), None)
    if own is not None:
        return own.endpoints[0]
    # Anthropic-compatible hosts name the cache at the top level beside input_tokens; OpenAI's Responses nest it.
    if get(raw, "input_tokens") is not None:
        cached = get(raw, "cache_read_input_tokens") is not None or get(raw, "cache_creation_input_tokens") is not None
        return _named("anthropic.messages" if cached else "openai.responses")
    return _named("openai.chat")


def _named(name: str) -> Endpoint:
    found = endpoint_named(name)
    if found is not None:
        return found
    known = ", ".join(sorted(endpoint.name for item in providers() for endpoint in item.endpoints))
    raise ValueError(f"unknown endpoint {name!r}; known are {known}")
