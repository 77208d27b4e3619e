"""Usage maps: which raw counts make which field of `Usage`, compiled once for each endpoint."""

from __future__ import annotations

from collections.abc import Mapping

from otel_tokens.usage.counts import Counts

ABSURD = 10**12
"""No call has a trillion tokens: such a number is a fault of the provider, kept out of every sum."""

MAX_PLANS = 1000
NOT_REPORTED = frozenset({"total", "reasoning_beside"})
_COSTS = ("cost", "cost_ticks", "upstream_cost", "own_key")
_NO_TOKENS = frozenset({"total", "components", "tools", *_COSTS})

Expression = tuple[tuple[str, ...], ...]


class UsageMap:
    """A compiled usage map: per field its alternatives, each a tuple of keys that are added."""

    __slots__ = ("components", "costs", "fields", "plans", "tools", "total")

    def __init__(self, usage: Mapping[str, str]) -> None:
        compiled = {name: _compile(text) for name, text in usage.items()}
        self.fields = tuple((n, e) for n, e in compiled.items() if n not in _NO_TOKENS)
        self.total = compiled.get("total", ())
        self.costs = {name: tuple(key for (key,) in compiled.get(name, ())) for name in _COSTS}
        self.components = compiled.get("components", ())
        self.tools = usage.get("tools", "")
        self.plans: dict[tuple[str, ...], Plan] = {}

    def plan(self, counts: Counts) -> Plan:
        """The plan for exactly these keys. Nearly all calls of a model state the same keys."""
        shape = tuple(counts)
        plan = self.plans.get(shape)
        if plan is None:
            plan = Plan(self, counts)
            if len(self.plans) < MAX_PLANS:
                self.plans[shape] = plan
        return plan


class Plan:
    """A usage map resolved for one set of stated keys: the work that does not depend on the numbers is done once."""

    __slots__ = ("has_components", "has_cost", "reported", "steps")

    def __init__(self, rules: UsageMap, counts: Counts) -> None:
        expressions = {**dict(rules.fields), "total": rules.total}
        found = {name: _stated(name, expressions, counts) for name in expressions}
        self.steps = tuple((name, keys) for name, keys in found.items() if keys)
        self.reported = frozenset(name for name, _ in self.steps if name not in NOT_REPORTED)
        self.has_cost = any(key in counts for keys in rules.costs.values() for key in keys)
        beside = [*(part for (part,) in rules.components), *filter(None, (rules.tools,))]
        self.has_components = any(key.startswith(part) for part in beside for key in counts)

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
