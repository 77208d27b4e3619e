"""Finds the limits that apply to a call: by literal tags, by pattern, by scope."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

from otel_tokens.guard.budgets.fields import CALL_KEYS, Condition
from otel_tokens.guard.budgets.limit import Limit, scope_name, slot_key
from otel_tokens.guard.budgets.units import INPUT_TOKENS, OUTPUT_TOKENS, SECONDS, TOKENS, USD
from otel_tokens.guard.estimate.bounds import NO_PRICE_LINES, PriceLines
from otel_tokens.guard.store.base import NEVER, Slot
from otel_tokens.values import Call

MAX_PLANS = 8192
MAX_SLOTS = 65_536
"""How many are kept of the newest; as many older ones stay until they are as many again."""
_MAX_MEMO = 4096
_BY_TOKENS = frozenset({USD, TOKENS, INPUT_TOKENS, OUTPUT_TOKENS})


class Shape:
    """What follows from a set of limits alone; shared by the plans of all scopes."""

    __slots__ = (
        "caps",
        "expected",
        "first_shares",
        "hard_money",
        "limits",
        "measures",
        "money",
        "names",
        "needed",
        "priced",
        "steered",
        "take",
        "take_actual",
        "timed",
        "watched",
    )

    def __init__(self, limits: tuple[Limit, ...], caps: tuple[Limit, ...]) -> None:
        every = (*limits, *caps)
        self.limits = limits
        self.caps = caps
        self.measures = tuple(limit.measure for limit in limits)
        self.first_shares = tuple(limit.thresholds[0].permille if limit.thresholds else NEVER for limit in limits)
        units = tuple(measure.removeprefix("~") for measure in self.measures)
        self.take = _taker(self.measures)
        self.take_actual = _taker(units)
        self.needed = frozenset(limit.measure for limit in every)
        self.money = USD in units
        self.priced = USD in self.needed
        self.expected = any(measure.startswith("~") for measure in self.needed)
        self.hard_money = any(limit.hard and limit.unit == USD for limit in every)
        self.steered = any(limit.steers for limit in limits)
        self.timed = any(limit.hard and limit.unit == SECONDS for limit in every)
        self.names = "\n".join(dict.fromkeys(limit.name for limit in limits))
        # What a stream is watched by: the output tokens that were reserved for hard budgets of money or tokens.
        bounded = [limit.measure for limit in every if limit.hard and limit.unit in _BY_TOKENS]
        self.watched: str | None = None
        if bounded:
            self.watched = "~output_tokens" if any(m.startswith("~") for m in bounded) else "output_tokens"


def _taker(names: tuple[str, ...]) -> Callable[[Mapping[str, int]], tuple[int, ...]]:
    """A function that takes these out of a mapping, in order."""
    return itemgetter(*names) if len(names) > 1 else lambda values: tuple([values[name] for name in names])


class Plan:
    """The limits and slots of one kind of call (model and tags), while all of their windows run.

    `decision_key` counts the decisions of all limits at once. It is text, as a text keeps its hash. `first_thresholds`
    has for each limit the declared limit, the used amount at its lowest threshold, and that threshold in permille.
    `take` picks what to reserve on each slot out of amounts by measure, `take_actual` what to charge out of amounts by
    unit. `price_lines` are those of the last call (`bounds`).
    """

    __slots__ = (
        "caps",
        "decision_key",
        "expected",
        "first_thresholds",
        "graceful",
        "limits",
        "measures",
        "model",
        "money",
        "needed",
        "price_lines",
        "priced",
        "provider",
        "shape",
        "since",
        "slots",
        "steered",
        "take",
        "take_actual",
        "timed",
        "until",
        "watched",
    )

    def __init__(
        self,
        kind: tuple[str, str],
        shape: Shape,
        slots: tuple[Slot, ...],
        until: int,
    ) -> None:
        self.model, self.provider = kind
        self.shape = shape
        self.slots = slots
        self.since = max([slot.start for slot in slots], default=0)
        self.until = until
        self.price_lines: PriceLines = NO_PRICE_LINES
        self.graceful = any([slot.grace for slot in slots])  # noqa: C419 (a list is faster, and this is per call kind)
        self.decision_key = f"{self.model}\n{self.provider}\n{shape.names}"
        # Copied, for a call asks for them again and again.
        self.limits = shape.limits
        rows = zip(slots, shape.first_shares, strict=True)
        self.first_thresholds = [(slot.limit, -(-slot.limit * share // 1000), share) for slot, share in rows]
        self.caps = shape.caps
        self.measures = shape.measures
        self.take = shape.take
        self.take_actual = shape.take_actual
        self.needed = shape.needed
        self.money = shape.money
        self.priced = shape.priced
        self.expected = shape.expected
        self.steered = shape.steered
        self.timed = shape.timed
        self.watched = shape.watched

    @property
    def hard_money(self) -> bool:
        """Whether a call without a known price cannot be admitted."""
        return self.shape.hard_money


def shape_of(shapes: dict[tuple[Limit, ...], Shape], limits: Sequence[Limit]) -> Shape:
    """The shape of these limits (single-call caps among them), made once."""
    key = tuple(limits)
    shape = shapes.get(key)
    if shape is None:
        caps = tuple(limit for limit in key if limit.scope_keys == ("call",))
        shape = shapes[key] = Shape(tuple(limit for limit in key if limit.scope_keys != ("call",)), caps)
    return shape


class Index:
    """All limits. `plan` costs a dictionary look-up for a kind of call seen before."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self.limits = tuple(limits)
        self._always: list[tuple[Limit, tuple[Condition, ...]]] = []
        self._literal: dict[str, dict[str, list[tuple[Limit, tuple[Condition, ...]]]]] = {}
        self._pattern: dict[str, list[tuple[Limit, tuple[Condition, ...]]]] = {}
        self._memo: dict[tuple[str, str], list[tuple[Limit, tuple[Condition, ...]]]] = {}
        for limit in self.limits:
            self._add(limit)
        keys = {c.key for limit in self.limits for c in limit.budget.conditions}
        keys |= {key for limit in self.limits for key in limit.scope_keys if key != "call"}
        self._tag_keys = tuple(sorted(keys - set(CALL_KEYS)))
        self._shapes: dict[tuple[Limit, ...], Shape] = {}
        self._plans: dict[tuple[str | None, ...], Plan] = {}
        self._old_plans: dict[tuple[str | None, ...], Plan] = {}
        self._slots: dict[str, Slot] = {}
        self._old_slots: dict[str, Slot] = {}

    def _add(self, limit: Limit) -> None:
        conditions = limit.budget.conditions
        literal = next((c for c in conditions if c.literal), None)
        if literal is not None:
            values = self._literal.setdefault(literal.key, {})
            for value in literal.patterns:
                values.setdefault(value, []).append((limit, tuple(c for c in conditions if c is not literal)))
        elif conditions:
            self._pattern.setdefault(conditions[0].key, []).append((limit, conditions))
        else:
            self._always.append((limit, ()))

    def plan(self, call: Call, model: str, now: int) -> Plan:
        """The plan of a call that goes to `model`."""
        tags = call.tags
        kind = (model, call.provider, call.operation, call.endpoint, *map(tags.get, self._tag_keys))
        found = self._plans.get(kind)
        # A clock may be put back: the windows of later on hold then as little as those that are over.
        if found is not None and found.since <= now < found.until:
            return found
        found = self._old_plans.get(kind)
        if found is None or not found.since <= now < found.until:
            facts: dict[str, str] = {key: tags[key] for key in self._tag_keys if key in tags}
            facts["model"], facts["provider"] = model.lower(), call.provider.lower()
            facts["operation"], facts["endpoint"] = call.operation, call.endpoint
            found = self._make((model, call.provider), facts, now)
        if len(self._plans) >= MAX_PLANS:
            self._old_plans, self._plans = self._plans, {}
        self._plans[kind] = found
        return found

    def operations(self, tags: Mapping[str, str], units: Sequence[str], now: int) -> tuple[list[Limit], list[Slot]]:
        """The limits that count these operations ("operations", "operations:file_edit") under these tags."""
        limits = [limit for limit in self._matching(tags) if limit.unit in units]
        return limits, [self._slot(limit, tags, now) for limit in limits]

    def _make(self, kind: tuple[str, str], facts: Mapping[str, str], now: int) -> Plan:
        limits = [limit for limit in self._matching(facts) if not limit.counts_operations]
        if len(self._shapes) >= _MAX_MEMO:
            self._shapes.clear()
        shape = shape_of(self._shapes, limits)
        slots: list[Slot] = []
        until = NEVER
        for limit in shape.limits:
            slots.append(self._slot(limit, facts, now))
            turns = limit.now(now)[3]
            if turns < until:  # noqa: PLR1730 (min() costs a call)
                until = turns
        return Plan(kind, shape, tuple(slots), until)

    def _slot(self, limit: Limit, facts: Mapping[str, str], now: int) -> Slot:
        """The slot of a limit; the same object for all calls of one scope and window, by which stores know it."""
        scope = (
            scope_name(limit.scope_keys, [facts.get(key, "") for key in limit.scope_keys]) if limit.scope_keys else ""
        )
        key = slot_key(limit, scope)
        start, end, most, _ = limit.now(now)
        found = self._slots.get(key) or self._old_slots.get(key)
        if found is None or found.start != start or found.end != end or found.limit != most:
            found = limit.slot(scope, key, now)
        if len(self._slots) >= MAX_SLOTS:
            self._old_slots, self._slots = self._slots, {}
        self._slots[key] = found
        return found

    def _matching(self, facts: Mapping[str, str]) -> list[Limit]:
        """The limits all of whose conditions hold."""
        candidates = list(self._always)
        for key, values in self._literal.items():
            value = facts.get(key)
            if value is not None:
                candidates += values.get(value, ())
        for key, rows in self._pattern.items():
            value = facts.get(key)
            if value is not None:
                candidates += self._by_pattern(key, value, rows)
        return [limit for limit, rest in candidates if not rest or all(_holds(c, facts) for c in rest)]

    def _by_pattern(
        self, key: str, value: str, rows: list[tuple[Limit, tuple[Condition, ...]]]
    ) -> list[tuple[Limit, tuple[Condition, ...]]]:
        """The rows whose first condition holds for `value`; remembered, for there may be a thousand patterns."""
        found = self._memo.get((key, value))
        if found is None:
            if len(self._memo) >= _MAX_MEMO:
                self._memo.clear()
            found = self._memo[key, value] = [(limit, rest[1:]) for limit, rest in rows if rest[0].fits(value)]
        return found


def _holds(condition: Condition, facts: Mapping[str, str]) -> bool:
    value = facts.get(condition.key)
    return value is not None and condition.fits(value)
