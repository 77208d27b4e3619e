"""The guard out of settings: declared budgets, checked and with all their mistakes, and the guard over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from otel_tokens import context
from otel_tokens.conventions import BUDGET_EVENT, BUDGET_NAME, BUDGET_RATIO, BUDGET_SCOPE, BUDGET_THRESHOLD_EVENT
from otel_tokens.errors import ConfigError
from otel_tokens.settings import Settings, refuse

if TYPE_CHECKING:
    from otel_tokens.guard.budgets.budget import Budget
    from otel_tokens.guard.guard import Guard
    from otel_tokens.guard.reporting.administration import Status
    from otel_tokens.guard.reporting.events import Event
    from otel_tokens.pricing.price import Pricer
    from otel_tokens.telemetry.budgets import BudgetRow
    from otel_tokens.telemetry.metrics import Metrics
    from otel_tokens.telemetry.spans import Spans


_MOST = 10**9
"""No number of the guard's settings is larger: to take a number's digits takes as long as there are."""


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float, Decimal)) and 1 <= value <= _MOST


GUARD_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lease_seconds": (_is_number, "a number of seconds from 1 up"),
    "min_output": (lambda value: _is_number(value) and value == int(value), "a whole number from 1 up"),
    "clamp_unbounded": (lambda value: isinstance(value, bool), "true or false"),
    "on_cut": (lambda value: value in ("error", "finish"), "one of error, finish"),
}
"""What may stand under `guard:`: the test of its value, and what the value has to be."""
_OWN_OPTIONS = ("lease_seconds", "min_output", "clamp_unbounded")
"""Those that are the guard's own; `on_cut` is the engine's."""
_ON_SPANS = frozenset({"threshold", "downgrade", "clamp", "cut", "overdraft", "pause", "slow", "resume"})
"""Kinds of the guard's events that become span events; a refusal has an event of its own."""


def declared_budgets(settings: Settings, given: Sequence[Any]) -> list[Budget]:
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


def check_held(settings: Settings, guard: Guard | None, given: tuple[Any, ...]) -> None:
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


def examined_budgets(settings: Settings, given: Sequence[Any] = ()) -> tuple[list[Budget], list[ConfigError]]:
    """The budgets without a mistake, and every mistake in budgets and in `guard:`."""
    problems = list(_option_problems(settings))
    if not given and not settings.budgets:
        return [], problems
    from otel_tokens.guard.budgets.budget import Budget, budgets_from

    found: dict[str, Budget] = {}
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
        if name not in GUARD_OPTIONS:
            yield entry.error(f"unknown option; allowed: {', '.join(GUARD_OPTIONS)}", name)
            continue
        fits, wanted = GUARD_OPTIONS[name]
        if not fits(value):
            yield entry.error(f"{value!r} is not {wanted}", name)


def guard_option(settings: Settings, name: str) -> Any:
    """An option of the file's `guard:` mapping; None where it is not given, or wrong and to be ignored."""
    value = None if settings.guard is None else settings.guard.value.get(name)
    return value if value is not None and GUARD_OPTIONS[name][0](value) else None


def store_url(settings: Settings) -> str:
    """Where budgets are kept: as set, else beside the ledger when there is one, else in memory."""
    if settings.store:
        return settings.store
    return f"sqlite:///{settings.ledger}.budgets" if settings.ledger else "memory"


def make_guard(settings: Settings, budgets: Sequence[Budget], pricer: Pricer, spans: Spans, metrics: Metrics) -> Guard:
    """The guard over these budgets; it tells `spans` and `metrics` of its events, decisions and budgets."""
    from otel_tokens.guard.guard import Guard
    from otel_tokens.guard.options import GuardOptions
    from otel_tokens.guard.store.open import open_store
    from otel_tokens.pricing.bounds import Dearest, max_output, straight

    def on_event(event: Event) -> None:
        if event.kind in _ON_SPANS:
            facts: dict[str, Any] = {BUDGET_NAME: event.budget, BUDGET_SCOPE: event.scope, BUDGET_EVENT: event.kind}
            if event.ratio is not None:
                facts[BUDGET_RATIO] = event.ratio
            spans.event(BUDGET_THRESHOLD_EVENT, facts)

    extra = {name: value for name in _OWN_OPTIONS if (value := guard_option(settings, name)) is not None}
    options = GuardOptions(
        fail=settings.store_fail,
        offline_share=settings.offline_share,
        estimate=settings.estimate,
        unpriced=settings.unpriced,
        thresholds=[{"at": f"{share:g}%"} for share in settings.thresholds],
        tags=context.current_tags,
        max_output=max_output,
        dearest=Dearest(pricer),
        straight=partial(straight, pricer),
        **extra,
    )
    store = open_store(store_url(settings), timeout=settings.store_timeout)
    guard = Guard(budgets, store, price=pricer, options=options, emit=on_event)
    metrics.observe_budgets(lambda: _budget_rows(guard))
    metrics.observe_decisions(guard.decisions)
    return guard


_GAUGE_UNITS = {"usd": "USD", "tokens": "token", "input_tokens": "token", "output_tokens": "token"}
_MANY = 1000
"""Accounts read at a time."""


def _every_status(guard: Guard) -> Iterator[Status]:
    """The state of all budgets; where there are too many scopes, of some scopes of each."""
    rows = guard.status(limit=_MANY)
    if len(rows) < _MANY:
        yield from rows
        return
    for budget in guard.budgets:  # one with a scope per session must not crowd out the others
        yield from guard.status(budget.name, limit=_MANY)


def _budget_rows(guard: Guard) -> Iterator[BudgetRow]:
    from otel_tokens.telemetry.budgets import BudgetRow

    for row in _every_status(guard):
        scope = dict(part.split("=", 1) for part in row.scope.split(",") if "=" in part)
        yield BudgetRow(row.name, scope, _GAUGE_UNITS.get(row.unit, row.unit), row.limit, row.used)
