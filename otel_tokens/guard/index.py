"""Which lines a call falls under, found without looking at the others: by literal tags, by pattern, by scope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from otel_tokens.guard.declare import CALL_KEYS, Condition
from otel_tokens.guard.line import NEVER, Line, scope_name, slot_key
from otel_tokens.guard.store.base import Slot
from otel_tokens.guard.units import INPUT_TOKENS, OUTPUT_TOKENS, SECONDS, TOKENS, USD
from otel_tokens.values import Call

MAX_PLANS = 16_384
MAX_SLOTS = 131_072
_MAX_MEMO = 4096
_BY_TOKENS = frozenset({USD, TOKENS, INPUT_TOKENS, OUTPUT_TOKENS})


class Plan:
    """The lines and slots of one kind of call (model and tags), until the first of their windows ends."""

    __slots__ = (
        "caps",
        "expected",
        "first_marks",
        "graceful",
        "hard_money",
        "lines",
        "measures",
        "model",
        "money",
        "needed",
        "priced",
        "provider",
        "slots",
        "steered",
        "tally",
        "timed",
        "units",
        "until",
        "watched",
    )

    def __init__(
        self, kind: tuple[str, str], lines: Sequence[Line], slots: Sequence[Slot], caps: Sequence[Line], until: int
    ) -> None:
        self.model, self.provider = kind
        self.lines = tuple(lines)
        self.slots = tuple(slots)
        self.caps = tuple(caps)
        self.until = until
        self.measures = tuple(line.measure for line in lines)
        self.units = tuple(measure.removeprefix("~") for measure in self.measures)
        self.needed = frozenset(line.measure for line in (*lines, *caps))
        self.money = USD in self.units
        self.priced = "usd" in self.needed
        self.expected = any(measure.startswith("~") for measure in self.needed)
        self.hard_money = any(line.hard and line.unit == USD for line in (*lines, *caps))
        self.steered = any(line.steers for line in lines)
        self.graceful = any(slot.grace for slot in slots)
        self.timed = any(line.hard and line.unit == SECONDS for line in (*lines, *caps))
        # What a stream is watched by: the output tokens that were reserved for hard budgets of money or tokens.
        bounded = [line.measure for line in (*lines, *caps) if line.hard and line.unit in _BY_TOKENS]
        self.watched = None
        if bounded:
            self.watched = "~output_tokens" if any(m.startswith("~") for m in bounded) else "output_tokens"
        # Text, because its hash is kept: one look-up counts the decision of all lines.
        self.tally = "\n".join((self.model, self.provider, *dict.fromkeys(line.name for line in lines)))
        # The least used amount at which any threshold can matter: below it a settlement looks no further.
        self.first_marks = tuple(
            slot.limit * line.thresholds[0].permille // 1000 if line.thresholds else NEVER
            for line, slot in zip(lines, slots, strict=True)
        )


class Index:
    """All lines. `plan` costs a dictionary look-up for a kind of call seen before."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = tuple(lines)
        self._always: list[tuple[Line, tuple[Condition, ...]]] = []
        self._literal: dict[str, dict[str, list[tuple[Line, tuple[Condition, ...]]]]] = {}
        self._pattern: dict[str, list[tuple[Line, tuple[Condition, ...]]]] = {}
        self._memo: dict[tuple[str, str], list[tuple[Line, tuple[Condition, ...]]]] = {}
        for line in self.lines:
            self._add(line)
        keys = {c.key for line in self.lines for c in line.budget.conditions}
        keys |= {key for line in self.lines for key in line.scope_keys if key != "call"}
        self._tag_keys = tuple(sorted(keys - set(CALL_KEYS)))
        self._plans: dict[tuple[str | None, ...], Plan] = {}
        self._slots: dict[str, Slot] = {}

    def _add(self, line: Line) -> None:
        conditions = line.budget.conditions
        literal = next((c for c in conditions if c.literal), None)
        if literal is not None:
            values = self._literal.setdefault(literal.key, {})
            for value in literal.patterns:
                values.setdefault(value, []).append((line, tuple(c for c in conditions if c is not literal)))
        elif conditions:
            self._pattern.setdefault(conditions[0].key, []).append((line, conditions))
        else:
            self._always.append((line, ()))

    def plan(self, call: Call, model: str, now: int) -> Plan:
        """The plan of a call that goes to `model`."""
        tags = call.tags
        kind = (model, call.provider, call.operation, call.endpoint, *[tags.get(key) for key in self._tag_keys])
        found = self._plans.get(kind)
        if found is not None and now < found.until:
            return found
        facts: dict[str, str] = {key: tags[key] for key in self._tag_keys if key in tags}
        facts["model"], facts["provider"] = model.lower(), call.provider.lower()
        facts["operation"], facts["endpoint"] = call.operation, call.endpoint
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
        made = self._plans[kind] = self._make((model, call.provider), facts, now)
        return made

    def operations(self, tags: Mapping[str, str], units: Sequence[str], now: int) -> tuple[list[Line], list[Slot]]:
        """The lines that count these operations ("operations", "operations:file_edit") under these tags."""
        lines = [line for line in self._matching(tags) if line.unit in units]
        return lines, [self._slot(line, tags, now) for line in lines]

    def _make(self, kind: tuple[str, str], facts: Mapping[str, str], now: int) -> Plan:
        lines: list[Line] = []
        caps: list[Line] = []
        slots: list[Slot] = []
        until = NEVER
        for line in self._matching(facts):
            if line.unit.startswith("operations"):
                continue
            if line.scope_keys == ("call",):
                caps.append(line)
                continue
            lines.append(line)
            slots.append(self._slot(line, facts, now))
            until = min(until, line.now(now)[3])
        return Plan(kind, lines, slots, caps, until)

    def _slot(self, line: Line, facts: Mapping[str, str], now: int) -> Slot:
        """The slot of a line; the same object for all calls of one scope and window, by which stores know it."""
        scope = scope_name(line.scope_keys, [facts.get(key, "") for key in line.scope_keys]) if line.scope_keys else ""
        key = slot_key(line, scope)
        start, end, limit, _ = line.now(now)
        slot = self._slots.get(key)
        if slot is None or slot.start != start or slot.end != end or slot.limit != limit:
            if len(self._slots) >= MAX_SLOTS:
                self._slots.clear()
            slot = self._slots[key] = line.slot(scope, key, now)
        return slot

    def _matching(self, facts: Mapping[str, str]) -> list[Line]:
        """The lines all of whose conditions hold."""
        candidates = list(self._always)
        for key, values in self._literal.items():
            value = facts.get(key)
            if value is not None:
                candidates += values.get(value, ())
        for key, rows in self._pattern.items():
            value = facts.get(key)
            if value is not None:
                candidates += self._by_pattern(key, value, rows)
        return [line for line, rest in candidates if not rest or all(_holds(c, facts) for c in rest)]

    def _by_pattern(
        self, key: str, value: str, rows: list[tuple[Line, tuple[Condition, ...]]]
    ) -> list[tuple[Line, tuple[Condition, ...]]]:
        """The rows whose first condition holds for `value`; remembered, for there may be a thousand patterns."""
        found = self._memo.get((key, value))
        if found is None:
            if len(self._memo) >= _MAX_MEMO:
                self._memo.clear()
            found = self._memo[key, value] = [(line, rest[1:]) for line, rest in rows if rest[0].fits(value)]
        return found


def _holds(condition: Condition, facts: Mapping[str, str]) -> bool:
    value = facts.get(condition.key)
    return value is not None and condition.fits(value)
