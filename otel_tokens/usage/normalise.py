"""Raw counts to `Usage`: one convention for all providers, and its invariants.

`input` and `output` are inclusive totals. A detail that exceeds its total is cut to it and flagged: the
provider's total is what is billed. Source of each provider's rule: the provider file.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from otel_tokens.providers.registry import endpoint_named, providers
from otel_tokens.providers.spec import Endpoint
from otel_tokens.shapes import is_list
from otel_tokens.usage.read import Counts, flatten, get
from otel_tokens.values import EXACT, TOKEN_FIELDS, Component, Usage, make

ABSURD = 10**12
"""No call has a trillion tokens: such a number is a fault of the provider, kept out of every sum."""

TICK = Decimal("1e-10")
"""xAI's `cost_in_usd_ticks` counts 1e-10 USD."""

MAX_PLANS = 1000
_NOT_REPORTED = frozenset({"total", "reasoning_beside"})
_NO_TOKENS = frozenset({"total", "cost", "cost_ticks", "components"})

Expression = tuple[tuple[str, ...], ...]


class _Map:
    """A compiled usage map: per field its alternatives, each a tuple of keys that are added."""

    __slots__ = ("components", "cost", "cost_ticks", "fields", "plans", "total")

    def __init__(self, usage: Mapping[str, str]) -> None:
        compiled = {name: _compile(text) for name, text in usage.items()}
        self.fields = tuple((n, e) for n, e in compiled.items() if n not in _NO_TOKENS)
        self.total = compiled.get("total", ())
        self.cost = compiled.get("cost", ())
        self.cost_ticks = compiled.get("cost_ticks", ())
        self.components = compiled.get("components", ())
        self.plans: dict[tuple[str, ...], _Plan] = {}

    def plan(self, counts: Counts) -> _Plan:
        """Which keys make which field when just these keys are stated: the same for nearly all calls of a model."""
        shape = tuple(counts)
        plan = self.plans.get(shape)
        if plan is None:
            plan = _Plan(self, counts)
            if len(self.plans) < MAX_PLANS:
                self.plans[shape] = plan
        return plan


class _Plan:
    """A usage map resolved for one set of stated keys. What the keys cannot hold needs no look at the numbers."""

    __slots__ = ("has_components", "has_cost", "reported", "steps")

    def __init__(self, rules: _Map, counts: Counts) -> None:
        expressions = {**dict(rules.fields), "total": rules.total}
        found = {name: _stated(name, expressions, counts) for name in expressions}
        self.steps = tuple((name, keys) for name, keys in found.items() if keys)
        self.reported = frozenset(name for name, _ in self.steps if name not in _NOT_REPORTED)
        self.has_cost = any(key in counts for (key,) in (*rules.cost, *rules.cost_ticks))
        self.has_components = any(key.startswith(part) for (part,) in rules.components for key in counts)

    def values(self, counts: Counts) -> dict[str, int] | None:
        """The fields' values, or None when a count is not a plain, believable integer."""
        values: dict[str, int] = {}
        for name, keys in self.steps:
            if len(keys) == 1:
                value = counts[keys[0]]
                if type(value) is not int or not 0 <= value < ABSURD:
                    return None
            else:
                value = 0
                for key in keys:
                    part = counts[key]
                    if type(part) is not int or not 0 <= part < ABSURD:
                        return None
                    value += part
            values[name] = value
        return values


def _stated(name: str, expressions: Mapping[str, Expression], counts: Counts) -> tuple[str, ...]:
    """The keys to add for a field: those stated of its first alternative of which any is; "@field" stands for
    another field's keys."""
    for keys in expressions[name]:
        found: list[str] = []
        for key in keys:
            if key.startswith("@"):
                found += _stated(key[1:], expressions, counts)
            elif key in counts:
                found.append(key)
        if found:
            return tuple(found)
    return ()


def _compile(text: str) -> Expression:
    return tuple(tuple(key.strip() for key in part.split(" + ")) for part in text.split(" | "))


@lru_cache(maxsize=256)
def _map_of(endpoint: Endpoint) -> _Map:
    return _Map(endpoint.usage)


def normalise_block(raw: Any, endpoint: Endpoint) -> Usage:
    """The `Usage` of one raw usage block (dict or SDK object) of this endpoint."""
    counts: Counts = {}
    if not flatten(raw, counts):
        return Usage(flags=() if raw is None else ("unreadable",))
    return normalise(counts, endpoint)


def normalise(counts: Counts, endpoint: Endpoint) -> Usage:
    """The `Usage` of collected counts. `origin` is "provider", or "missing" when nothing usable was stated."""
    rules = _map_of(endpoint)
    flags: list[str] = []
    plan = rules.plan(counts)
    values, reported = plan.values(counts), plan.reported
    if values is None:
        values = _careful(plan, counts, flags)
        reported = frozenset(values) - _NOT_REPORTED
    total = values.pop("total", None)
    beside = values.pop("reasoning_beside", 0)
    cost = _cost(rules, counts) if plan.has_cost else None
    if "input" not in values and "output" not in values:
        return Usage(flags=(*flags, "unreadable") if counts else (), reported_cost=cost, total=total)
    if beside and "reasoning" not in values:
        # More reasoning than answer cannot be a part of it: Perplexity bills it beside the answer.
        values["reasoning"] = beside
        if beside > values.get("output", 0):
            values["output"] = values.get("output", 0) + beside
    _reconcile(values, total, flags)
    if endpoint.operation != "embeddings":
        flags += [f"missing:{name}" for name in ("input", "output") if name not in values]
    made: dict[str, Any] = {**values, "total": total, "reported_cost": cost, "origin": "provider", "reported": reported}
    if flags:
        made["flags"] = tuple(flags)
    if plan.has_components:
        made["components"] = _components(rules, counts, endpoint)
    return make(Usage, made)


def _careful(plan: _Plan, counts: Counts, flags: list[str]) -> dict[str, int]:
    """The fields' values where some count is text, a float, negative or absurd."""
    values: dict[str, int] = {}
    for name, keys in plan.steps:
        numbers = [_number(counts[key], name, flags) for key in keys]
        stated = [number for number in numbers if number is not None]
        if stated:
            values[name] = sum(stated)
    return values


def _number(value: Any, name: str, flags: list[str]) -> int | None:
    """A count as an int: text and whole floats are read; what cannot be a count is flagged and left out."""
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
        return 0
    if number >= ABSURD:
        flags.append(f"absurd:{name}")
        return None
    whole = int(number)
    if whole != number:
        flags.append(f"fraction:{name}")
        return round(number)
    return whole


def _reconcile(values: dict[str, int], total: int | None, flags: list[str]) -> None:
    """Make the invariants hold; the totals win over their parts."""
    given, made = values.get("input", 0), values.get("output", 0)
    reasoning = values.get("reasoning", 0)
    # xAI (and some proxies) count reasoning beside completion tokens; their total gives it away.
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
    """The TTL split is part of the cache writes; a split without its total states the total."""
    split = 0
    for name in _TTL:
        if name in values:
            split += values[name]
    if not split:
        return
    if not values.get("cache_write"):
        values["cache_write"] = min(split, max(given - values.get("cache_read", 0), 0))
    room = values["cache_write"]
    for name in _TTL:
        if values.get(name, 0) > room:
            flags.append(f"exceeds:{name}")
            values[name] = room
        room -= values.get(name, 0)


def _cost(rules: _Map, counts: Counts) -> Decimal | None:
    """The provider's own price in USD, from whichever field states it."""
    for expression, unit in ((rules.cost, Decimal(1)), (rules.cost_ticks, TICK)):
        for (key,) in expression:
            value = counts.get(key)
            if value is None:
                continue
            try:
                amount = EXACT.multiply(Decimal(str(value)), unit)
            except (InvalidOperation, ValueError):
                continue
            if amount.is_finite() and 0 <= amount < ABSURD:
                return amount
    return None


def _components(rules: _Map, counts: Counts, endpoint: Endpoint) -> tuple[Component, ...]:
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
            billed = [(key.rpartition(".")[2], UNNAMED_MODEL, block)] if block else []
        for kind, model, item in billed:
            usage = normalise_block(item, endpoint)
            if usage.origin == "provider":
                found.append(Component(kind, model if isinstance(model, str) else None, usage))
    return tuple(found)


UNNAMED_MODEL = "image_generation_tool"
"""Stands for the model of a tool that the provider bills without naming it: unpriced unless the user prices it."""

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
