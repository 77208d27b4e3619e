"""The guard out of settings: declared budgets, checked and with all their mistakes, and the guard over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any, cast

from otel_tokens import context
from otel_tokens.conventions import BUDGET_NAME, BUDGET_SCOPE, BUDGET_THRESHOLD_EVENT, NAMESPACE
from otel_tokens.errors import ConfigError
from otel_tokens.settings import Settings, refuse
from otel_tokens.values import Cost, Usage

GUARD_OPTIONS = ("lease_seconds", "min_output", "clamp_unbounded", "on_cut")
ON_CUT = ("error", "finish")


def declared_budgets(settings: Settings, given: Sequence[Any]) -> list[Any]:
    """The budgets of the keyword and of the file, checked.

    Raises one ConfigError with file, line and key of every mistake, also of those in `guard:`. With
    `on_config_error: ignore` mistakes are logged, and the budgets without one are kept.
    """
    budgets, problems = examined_budgets(settings, given)
    refuse(problems, settings.on_config_error)
    return budgets


def listed(budgets: Any) -> tuple[Any, ...]:
    """What was given for the budgets, as a tuple; None is none. Raises ConfigError for one that stands alone."""
    if budgets is None:
        return ()
    if isinstance(budgets, (str, Mapping)) or not isinstance(budgets, Iterable):
        raise ConfigError("is not a list; write [Budget(...)]", key="budgets")
    return tuple(cast("Iterable[Any]", budgets))


def check_held(settings: Settings, guard: Any, given: tuple[Any, ...]) -> None:
    """Budgets given to a second `instrument()` must be held already: nobody would notice that they are not.

    Raises ConfigError; with `on_config_error: ignore` it is logged.
    """
    held = () if guard is None else guard.budgets
    wanted = declared_budgets(replace(settings, budgets=()), given)
    lost = [repr(budget.name) for budget in wanted if budget not in held]
    if lost:
        words = f"otel_tokens is on already, so these would not be held: {', '.join(lost)}"
        words += "; write them into otel-tokens.yaml, or call uninstrument() before"
        refuse([ConfigError(words, key="budgets")], settings.on_config_error)


def examined_budgets(settings: Settings, given: Sequence[Any] = ()) -> tuple[list[Any], list[ConfigError]]:
    """The budgets without a mistake, and every mistake in budgets and in `guard:`."""
    problems = list(_option_problems(settings))
    if not given and not settings.budgets:
        return [], problems
    from otel_tokens.guard.budget import Budget, budgets_from

    found: dict[str, Any] = {}
    for item in (*given, *settings.budgets):
        entry = item if hasattr(item, "error") else None
        value = item if entry is None else entry.value
        try:
            made = [value] if isinstance(value, Budget) else budgets_from(value, entry and entry.error)
            for budget in made:
                if budget.name in found:
                    fail = entry.error if entry is not None else ConfigError
                    raise fail(f"there is a budget named {budget.name!r} already; names are unique")
        except ConfigError as error:
            problems.append(error)
        else:
            found.update((budget.name, budget) for budget in made)
    return list(found.values()), problems


def _option_problems(settings: Settings) -> Iterator[ConfigError]:
    """What is wrong under `guard:`."""
    entry = settings.guard
    if entry is None:
        return
    for name, value in entry.value.items():
        wrong = (
            f"unknown option; allowed: {', '.join(GUARD_OPTIONS)}" if name not in GUARD_OPTIONS else _wrong(name, value)
        )
        if wrong:
            yield entry.error(wrong, name)


def _wrong(name: str, value: Any) -> str:
    """What is wrong with an option under `guard:`, or ""."""
    if name not in GUARD_OPTIONS:
        return f"unknown option; allowed: {', '.join(GUARD_OPTIONS)}"
    if name == "on_cut":
        return "" if value in ON_CUT else f"{value!r} is not one of {', '.join(ON_CUT)}"
    if name == "clamp_unbounded":
        return "" if isinstance(value, bool) else f"{value!r} is not true or false"
    number = not isinstance(value, bool) and isinstance(value, (int, float, Decimal))
    if name == "min_output":
        return "" if number and value >= 1 and value == int(value) else f"{value!r} is not a whole number from 1 up"
    return "" if number and value >= 1 else f"{value!r} is not a number of seconds from 1 up"


def guard_option(settings: Settings, name: str) -> Any:
    """An option of the file's `guard:` mapping; None where it is not given, or wrong and to be ignored."""
    value = None if settings.guard is None else settings.guard.value.get(name)
    return None if value is None or _wrong(name, value) else value


def store_url(settings: Settings) -> str:
    """Where budgets are kept: as set, else beside the ledger when there is one, else in memory."""
    if settings.store:
        return settings.store
    return f"sqlite:///{settings.ledger}.budgets" if settings.ledger else "memory"


def make_guard(settings: Settings, budgets: Sequence[Any], pricer: Any, spans: Any, metrics: Any) -> Any:
    """The guard over these budgets."""
    from otel_tokens.guard.guard import Guard
    from otel_tokens.guard.options import GuardOptions
    from otel_tokens.guard.store.open import open_store

    def told(event: Any) -> None:
        if event.kind in ("threshold", "downgrade", "clamp", "cut", "overdraft", "pause", "slow", "resume"):
            facts = {BUDGET_NAME: event.budget, BUDGET_SCOPE: event.scope, f"{NAMESPACE}.budget.event": event.kind}
            if event.ratio is not None:
                facts[f"{NAMESPACE}.budget.usage_ratio"] = event.ratio
            spans.event(BUDGET_THRESHOLD_EVENT, facts)

    from otel_tokens.pricing.bounds import Dearest, max_output, straight

    found: list[Dearest] = []

    def dearest(provider: str, usage: Usage, at: float) -> Cost:
        if not found:  # the catalogue may still be loading when the guard is made
            found.append(Dearest(pricer, pricer.catalog))
        return found[0](provider, usage, at)

    extra = {name: value for name in GUARD_OPTIONS[:3] if (value := guard_option(settings, name)) is not None}
    options = GuardOptions(
        fail=settings.store_fail,  # pyright: ignore[reportArgumentType]  # checked by the settings
        estimate=settings.estimate,  # pyright: ignore[reportArgumentType]
        unpriced=settings.unpriced,  # pyright: ignore[reportArgumentType]
        thresholds=[{"at": f"{share:g}%"} for share in settings.thresholds],
        tags=context.current_tags,
        max_output=max_output,
        dearest=dearest,
        straight=partial(straight, pricer),
        **extra,
    )
    store = open_store(store_url(settings), timeout=settings.store_timeout)
    guard = Guard(budgets, store, price=pricer, options=options, emit=told)
    metrics.observe_budgets(lambda: _budget_rows(guard))
    metrics.observe_decisions(lambda: ((b, d, p, m, n) for b, d, p, m, _, n in guard.decisions()))
    return guard


_GAUGE_UNITS = {"usd": "USD", "tokens": "token", "input_tokens": "token", "output_tokens": "token"}


_MANY = 1000
"""Accounts read at a time."""


def _every_status(guard: Any) -> Iterator[Any]:
    """The state of all budgets; where there are too many scopes, of some scopes of each."""
    rows = guard.status(limit=_MANY)
    if len(rows) < _MANY:
        yield from rows
        return
    for budget in guard.budgets:  # one with a scope per session must not crowd out the others
        yield from guard.status(budget.name, limit=_MANY)


def _budget_rows(guard: Any) -> Iterator[Any]:
    from otel_tokens.telemetry.budgets import BudgetRow

    for row in _every_status(guard):
        scope = dict(part.split("=", 1) for part in row.scope.split(",") if "=" in part)
        yield BudgetRow(row.name, scope, str(_GAUGE_UNITS.get(row.unit, row.unit)), row.limit, row.used)
