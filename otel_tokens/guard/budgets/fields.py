"""Checks the fields of a budget declaration and converts them. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from types import SimpleNamespace
from typing import Any, cast

from otel_tokens.guard.budgets import presets, units
from otel_tokens.guard.budgets.ladder import Rung, ladder
from otel_tokens.guard.budgets.mistakes import Mistake, check, one_of
from otel_tokens.guard.budgets.thresholds import Threshold, seconds, thresholds
from otel_tokens.guard.budgets.windows import ALLOWED as WINDOWS
from otel_tokens.guard.budgets.windows import WEEKDAYS, Window, parse_window, zone_of

CALL_KEYS = ("model", "provider", "operation", "endpoint")
"""What a call says of itself; any other key of `per` and `match` is a tag."""
_TAG = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_FORGET_SECONDS = 7 * 86400
_SHORTEST_DAY = 3  # letters: mon, tue, wed …


@dataclass(frozen=True, slots=True)
class DeclaredLimit:
    """One limit of a budget, in smallest units; `by_weekday` (Monday first) where days differ; `grace` beyond it."""

    unit: str
    amount: int
    by_weekday: tuple[int, ...] = ()
    grace: int = 0


@dataclass(frozen=True, slots=True)
class Condition:
    """A budget is for calls whose `key` fits one of `patterns` (shell style; lower case for model and provider)."""

    key: str
    patterns: tuple[str, ...]
    _regex: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # One compiled expression: fnmatch remembers only 256 patterns, and there may be a thousand budgets.
        object.__setattr__(self, "_regex", re.compile("|".join(translate(pattern) for pattern in self.patterns)))

    @property
    def literal(self) -> bool:
        """Whether the patterns are plain values."""
        return not any(set(pattern) & set("*?[") for pattern in self.patterns)

    def fits(self, value: str) -> bool:
        """Whether `value` fits one of the patterns."""
        return self._regex.match(value) is not None


def derive(given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked forms of a budget's declared fields, by the names of `Budget`'s derived fields. Raises `Wrong`."""
    budget = SimpleNamespace(**given)
    name: object = budget.name
    with Mistake.at("name"):
        check(isinstance(name, str) and bool(name.strip()), "a name is a text")
        check(len(budget.name) <= 100 and budget.name.isprintable() and "|" not in budget.name, "use a plain name")
    with Mistake.at("enforce"):
        one_of(budget.enforce, ("hard", "soft", "observe"))
    with Mistake.at("estimate"):
        check(budget.estimate in (None, "upper", "expected"), "allowed: upper, expected")
    span = _span(budget)
    scope_keys = _scope_keys(budget)
    limits = _limits(budget, span)
    conditions = _conditions(budget)
    marks, rungs = _steps(budget)
    units_used = {units.family(limit.unit) for limit in limits}
    per_call = "call" in scope_keys
    if per_call:
        with Mistake.at("per"):
            check(scope_keys == ("call",) and span is None, "call stands alone, without a window")
            bad = units_used & {units.CALLS, units.OPERATIONS}
            check(not bad, f"a single call cannot be limited in {', '.join(bad)}")
    if units.OPERATIONS in units_used:
        with Mistake.at("operations"):
            used = {condition.key for condition in conditions} | set(scope_keys)
            check(not used & set(CALL_KEYS), "operations have no model or provider; match and split them by tags")
    return {
        "limits": limits,
        "scope_keys": scope_keys,
        "conditions": conditions,
        "span": span,
        "marks": marks,
        "rungs": rungs,
        "wait_seconds": 0.0 if budget.wait is None else _at("wait", seconds, budget.wait),
        "wall": _wall(budget, span, per_call),
        "keep_ms": _keep(budget, scope_keys),
    }


def _steps(budget: Any) -> tuple[tuple[Threshold, ...] | None, tuple[Rung, ...]]:
    marks = None if budget.thresholds is None else _at("thresholds", thresholds, budget.thresholds)
    rungs = () if budget.ladder is None else _at("ladder", ladder, budget.ladder)
    if not rungs and budget.thresholds != "standard":
        with Mistake.at("thresholds"):
            kinds = {action.kind for mark in marks or () for action in mark.actions}
            check("downgrade" not in kinds, "downgrade needs a ladder, such as ladder: [opus, sonnet, haiku]")
    return marks, rungs


def _at(step: str, read: Callable[[Any], Any], value: object) -> Any:
    with Mistake.at(step):
        return read(value)


def _span(budget: Any) -> Window | None:
    with Mistake.at("timezone"):
        check(isinstance(cast("object", budget.timezone), str), "a time zone is a text such as Europe/Berlin")
        zone_of(budget.timezone)
    with Mistake.at("week_start"):
        start = WEEKDAYS.index(one_of(str(budget.week_start).lower(), WEEKDAYS, "weekday"))
    with Mistake.at("reset_hour"):
        reset = _reset(budget.reset_hour)
    with Mistake.at("rolling"):
        check(isinstance(cast("object", budget.rolling), bool), "allowed: true, false")
        check(not budget.rolling or budget.window is not None, "rolling needs a window")
    if budget.window is None:
        return None
    with Mistake.at("window"):
        text: object = budget.window
        check(isinstance(text, str), f"{text!r} is not a window; allowed: {WINDOWS}")
        return parse_window(budget.window, zone=budget.timezone, reset=reset, week_start=start, rolling=budget.rolling)


def _reset(value: object) -> int:
    found = re.fullmatch(r"(\d{1,2})(?::(\d\d))?", str(value))
    hour, minute = (int(found[1]), int(found[2] or 0)) if found else (24, 0)
    check(hour < 24 and minute < 60, f"{value!r} is not a time of day; write 6 or 06:30")
    return hour * 3600 + minute * 60


def _scope_keys(budget: Any) -> tuple[str, ...]:
    with Mistake.at("per"):
        given: object = budget.per
        keys = (given,) if isinstance(given, str) else given
        check(isinstance(keys, (list, tuple)), "allowed: a tag, model, provider, call, or a list of them")
        names = tuple(cast("Sequence[object]", keys))
        for index, key in enumerate(names):
            with Mistake.at(*([] if isinstance(given, str) else [index])):
                check(isinstance(key, str) and bool(_TAG.fullmatch(key)), f"{key!r} cannot be a tag's name")
        check(len(set(names)) == len(names), "a key is given twice")
        return cast("tuple[str, ...]", names)


def _conditions(budget: Any) -> tuple[Condition, ...]:
    with Mistake.at("match"):
        given: object = budget.match
        check(isinstance(given, Mapping), 'allowed: a mapping such as {model: "*opus*"}')
        made: list[Condition] = []
        for key, value in cast("Mapping[object, object]", given).items():
            check(isinstance(key, str) and bool(_TAG.fullmatch(key)), f"{key!r} cannot be a tag's name")
            with Mistake.at(cast("str", key)):
                texts = _patterns(value)
                if key in {"model", "provider"}:
                    texts = [text.lower() for text in texts]
                # Each once: a budget found twice for one call would be charged twice.
                made.append(Condition(cast("str", key), tuple(dict.fromkeys(texts))))
        return tuple(made)


def _patterns(value: object) -> list[str]:
    texts = cast("Sequence[object]", value if isinstance(value, (list, tuple)) else (value,))
    check(bool(texts) and not isinstance(value, Mapping), "allowed: a pattern, or a list of them")
    for text in texts:
        check(isinstance(text, str), f'a pattern is a text: write "{text}"')
    return [str(text) for text in texts]


def _limits(budget: Any, span: Window | None) -> tuple[DeclaredLimit, ...]:
    amounts: dict[str, int] = {}
    for unit in units.CALL_UNITS:
        value = getattr(budget, unit)
        if value is not None:
            with Mistake.at(unit):
                amounts[unit] = _amount(unit, value)
    operations: object = budget.operations
    if isinstance(operations, Mapping):
        for kind, value in cast("Mapping[object, object]", operations).items():
            with Mistake.at("operations", str(kind)):
                check(bool(re.fullmatch(r"[\w.\-]{1,64}", str(kind))), f"{kind!r} cannot name an operation")
                amounts[f"{units.OPERATIONS}:{kind}"] = _amount(units.OPERATIONS, value)
    elif operations is not None:
        with Mistake.at("operations"):
            amounts[units.OPERATIONS] = _amount(units.OPERATIONS, operations)
    check(bool(amounts), f"a budget needs a limit; allowed: {', '.join(units.UNITS)}")
    graces = _graces(budget, amounts)
    by_day = _by_weekday(budget, amounts, span)
    return tuple(
        DeclaredLimit(unit, amount, tuple(by_day[unit]) if unit in by_day else (), graces.get(unit, 0))
        for unit, amount in amounts.items()
    )


def _amount(unit: str, value: object) -> int:
    amount = units.to_smallest(unit, value)
    check(amount >= 0, f"{value!r} is negative")
    return amount


def _graces(budget: Any, amounts: Mapping[str, int]) -> dict[str, int]:
    with Mistake.at("grace"):
        given: object = budget.grace
        if given is None or given is False:
            return {}
        if given is True:
            return {unit: _amount(unit, value) for unit, value in presets.OVERDRAFT.items() if unit in amounts}
        check(isinstance(given, Mapping), "allowed: true, false, or amounts such as {usd: 0.10}")
        graces: dict[str, int] = {}
        for unit, value in cast("Mapping[str, object]", given).items():
            with Mistake.at(unit):
                one_of(unit, tuple(amounts), "limit of this budget")
                graces[unit] = _amount(unit, value)
        return graces


def _by_weekday(budget: Any, amounts: Mapping[str, int], span: Window | None) -> dict[str, list[int]]:
    """For each unit with exceptions, its limit on every weekday."""
    found: dict[str, list[int]] = {}
    rules: list[tuple[tuple[str | int, ...], tuple[int, ...], object]] = []
    if budget.weekend is not None:
        rules.append((("weekend",), (5, 6), budget.weekend))
    with Mistake.at("on"):
        given: object = budget.on or {}
        check(isinstance(given, Mapping), "allowed: weekdays and their limits, such as {friday: {usd: 2}}")
        for days, limits in cast("Mapping[object, object]", given).items():
            with Mistake.at(str(days)):
                rules.append((("on", str(days)), _days(str(days)), limits))
    for steps, days, limits in rules:
        with Mistake.at(*steps):
            short = span is not None and (span.period in {"second", "minute", "hour"} or span == _one_day(span))
            check(short, "weekdays differ only in windows of a day or less")
            check(isinstance(limits, Mapping), "allowed: limits such as {usd: 5}")
            for unit, value in cast("Mapping[str, object]", limits).items():
                with Mistake.at(unit):
                    one_of(unit, tuple(amounts), "limit of this budget")
                    week = found.setdefault(unit, [amounts[unit]] * 7)
                    for day in days:
                        week[day] = _amount(unit, value)
    return found


def _one_day(span: Window) -> Window:
    return Window("day", 1, span.zone, span.reset, span.week_start, rolling=span.rolling)


def _days(text: str) -> tuple[int, ...]:
    if text.lower() == "weekend":
        return (5, 6)
    return tuple(_day(word.strip()) for word in text.split(","))


def _day(word: str) -> int:
    """A weekday by its name or the beginning of it. No more than that: "sat-sun" must not quietly mean Saturday."""
    for index, day in enumerate(WEEKDAYS):
        if len(word) >= _SHORTEST_DAY and day.startswith(word.lower()):
            return index
    return WEEKDAYS.index(one_of(word, WEEKDAYS, "weekday"))


def _wall(budget: Any, span: Window | None, per_call: bool) -> bool:
    with Mistake.at("clock"):
        if budget.clock is not None:
            one_of(budget.clock, ("wall", "calls"))
            check(not per_call, "a call has only one clock")
            check(budget.clock != "wall" or span is None, "wall time needs a scope without a window")
            return budget.clock == "wall"
    return span is None and not per_call


def _keep(budget: Any, scope_keys: tuple[str, ...]) -> int:
    if budget.forget is not None:
        return int(_at("forget", seconds, budget.forget) * 1000)
    return _FORGET_SECONDS * 1000 if scope_keys else 0
