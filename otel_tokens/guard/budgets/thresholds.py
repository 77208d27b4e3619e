"""Thresholds of a budget and what to do there: declared as data, read from YAML or Python. Pure."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from otel_tokens.guard.budgets import units
from otel_tokens.guard.budgets.mistakes import Mistake, check, one_of
from otel_tokens.guard.budgets.presets import PAUSE_SECONDS, SLOW_SECONDS, STANDARD_THRESHOLDS
from otel_tokens.values import EXACT

Kind = Literal["log", "event", "callback", "checkpoint", "compact", "webhook", "downgrade", "clamp", "slow", "pause"]
KINDS = get_args(Kind)
HOOKS = frozenset({"callback", "checkpoint", "compact"})
STEERING = frozenset({"downgrade", "clamp", "slow", "pause"})
"""Actions that change the calls themselves; the others only tell."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do. `seconds` for slow and pause, `url` for webhook, `hook` for callback, checkpoint, compact.

    A hook is a callable that takes the `Event`, or "package.module:function". A checkpoint or compact action
    without a hook uses the one registered with the guard under its kind.
    """

    kind: Kind
    seconds: float = 0.0
    url: str = ""
    hook: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Threshold:
    """At `permille` of a budget used (700 = 70 %), do `actions`."""

    permille: int
    actions: tuple[Action, ...] = (Action("log"), Action("event"))

    @property
    def percent(self) -> str:
        """The share for people: "70 %"."""
        return f"{self.permille / 10:g} %"


def thresholds(value: object) -> tuple[Threshold, ...]:
    """Thresholds in any written form, lowest first.

    [70, 90, 100]; {70: log, 90: [log, {webhook: https://…}]}; [{at: 90%, actions: […]}]; "standard"; [] for none.
    Fractions up to 1.0 are shares, other numbers per cents. Raises `Wrong`.
    """
    if value == "standard":
        value = STANDARD_THRESHOLDS
    found: dict[int, Threshold] = {}
    if isinstance(value, Mapping):
        rows: list[_Row] = [
            (at, do, (at if isinstance(at, int) else str(at),), ())
            for at, do in cast("Mapping[object, object]", value).items()
        ]
    elif isinstance(value, (list, tuple)):
        rows = [_row(item, index) for index, item in enumerate(cast("list[object]", value))]
    else:
        raise Mistake("allowed: a list such as [70, 90, 100], a mapping of per cents to actions, or standard")
    for at, do, steps, within in rows:
        with Mistake.at(*steps):
            share = at if isinstance(do, Threshold) else permille(at)
        with Mistake.at(*steps, *within):
            threshold = do if isinstance(do, Threshold) else Threshold(cast("int", share), actions(do))
        with Mistake.at(*steps):
            check(threshold.permille not in found, f"{threshold.percent} is given twice")
            found[threshold.permille] = threshold
    return tuple(found[at] for at in sorted(found))


_Row = tuple[object, object, tuple[str | int, ...], tuple[str, ...]]
"""(at, actions, steps down to the row, further steps down to its actions)."""


def _row(item: object, index: int) -> _Row:
    if isinstance(item, Threshold):
        return item.permille, item, (index,), ()
    if not isinstance(item, Mapping):
        return item, None, (index,), ()
    row = dict(cast("Mapping[str, object]", item))
    with Mistake.at(index):
        for key in row:
            one_of(key, ("at", "actions"), "key")
        check("at" in row, "a threshold needs `at`, such as 70%")
    return row["at"], row.get("actions"), (index,), ("actions",)


def permille(value: object) -> int:
    """70, "70%", 0.7 → 700; a whole 1 is one per cent, 1.0 is all. Raises `Wrong`."""
    text = str(value).strip()
    try:
        number = units.duration(text.removesuffix("%").strip())
    except ValueError:
        raise Mistake(f"{value!r} is not a share; write 70%, 70 or 0.7") from None
    if "." in text and not text.endswith("%") and number <= 1:
        number = EXACT.multiply(number, 100)
    exact = EXACT.multiply(number, 10)
    check(exact == exact.to_integral_value() and 0 < exact <= 10_000, f"{value!r} must lie in 0.1% to 1000%")
    return int(exact)


def actions(value: object) -> tuple[Action, ...]:
    """Actions in any written form: "log", ["log", {"slow": "2s"}], a callable, None for log and event."""
    if value is None:
        return (Action("log"), Action("event"))
    if isinstance(value, (str, Mapping, Action)) or callable(value):
        return (_action(cast("object", value)),)
    if not isinstance(value, (list, tuple)):
        raise Mistake(f"{value!r} is not an action; allowed: {', '.join(KINDS)}")
    made: list[Action] = []
    for index, item in enumerate(cast("list[object]", value)):
        with Mistake.at(index):
            made.append(_action(item))
    return tuple(made)


def _action(item: object) -> Action:
    if isinstance(item, Action):
        return item
    if callable(item):
        return Action("callback", hook=item)
    word, given = item, cast("object", None)
    if isinstance(item, Mapping) and len(cast("Mapping[object, object]", item)) == 1:
        word, given = next(iter(cast("Mapping[object, object]", item).items()))
    kind = cast("Kind", one_of(word, KINDS, "action"))
    if kind == "webhook":
        url = given if isinstance(given, str) else ""
        check(url.startswith(("http://", "https://")), "webhook needs a URL: {webhook: https://…}")
        return Action(kind, url=url)
    if kind in HOOKS:
        check(given is not None or kind != "callback", "callback needs a function: {callback: package.module:function}")
        return Action(kind, hook=None if given is None else _hook(given))
    if kind in {"slow", "pause"}:
        default = SLOW_SECONDS if kind == "slow" else PAUSE_SECONDS
        return Action(kind, seconds=default if given is None else seconds(given))
    check(given is None, f"{kind} takes no value")
    return Action(kind)


def seconds(value: object) -> float:
    """A positive time such as "2s" or "10 min", in seconds. Raises `Wrong`."""
    try:
        number = units.duration(value)
    except ValueError as error:
        raise Mistake(str(error)) from None
    check(number >= 0, f"{value!r} is negative")
    return float(number)


def _hook(value: object) -> Callable[[Any], Any]:
    if callable(value):
        return value
    module, colon, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    check(bool(colon and module and name), f"{value!r} is not a function; write package.module:function")

    def later(event: Any) -> Any:
        # Imported when first needed: the application's modules may import us, and may not be importable yet.
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
        return target(event)

    later.__name__ = str(value)
    return later
