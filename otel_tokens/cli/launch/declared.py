"""The budgets and prices of the configuration, checked without starting anything."""

from __future__ import annotations

from otel_tokens.errors import ConfigError
from otel_tokens.guard.budget import Budget, budgets_from
from otel_tokens.pricing.rules import PriceRule, parse_rules
from otel_tokens.settings import Settings, read_yaml


def check(settings: Settings) -> None:
    """Find all mistakes in `budgets:` and `prices:`. Raises one ConfigError with file, line and key of each."""
    problems: list[ConfigError] = []
    for look in (declared_budgets, declared_prices):
        try:
            look(settings)
        except ConfigError as error:
            problems += error.problems or (error,)
    if problems:
        raise ConfigError.combined(problems)


def declared_budgets(settings: Settings) -> list[Budget]:
    """The budgets of the file. Raises ConfigError."""
    found: list[Budget] = []
    problems: list[ConfigError] = []
    for entry in settings.budgets:
        try:
            made = budgets_from(entry.value, entry.error)
            for budget in made:
                if any(budget.name == other.name for other in found):
                    raise entry.error(f"two budgets are named {budget.name!r}", "name")
            found += made
        except ConfigError as error:
            problems += error.problems or (error,)
    if problems:
        raise ConfigError.combined(problems)
    return found


def declared_prices(settings: Settings) -> tuple[PriceRule, ...]:
    """The user's own prices: `prices:` and those of `prices_file`. Raises ConfigError."""
    rules = parse_rules(settings.prices, settings.config or "prices")
    if settings.prices_file:
        entry = read_yaml(settings.prices_file)
        has_list = isinstance(entry.value, dict) and "prices" in entry.value
        inner = entry.child("prices") if has_list else entry
        rules += parse_rules(tuple(inner.children()) if isinstance(inner.value, list) else inner.value, inner.where())
    return rules
