"""What other rooms than that of the settings read of the configuration, checked without starting anything."""

from __future__ import annotations

from collections.abc import Callable

from otel_tokens.assemble import examined_sdks, make_pricer
from otel_tokens.assemble_guard import declared_budgets
from otel_tokens.errors import ConfigError
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.pricing.catalog import Catalog
from otel_tokens.settings import Settings, refuse


def check(settings: Settings) -> None:
    """Find all mistakes in SDKs' names, `budgets:` and `prices:`. Raises one ConfigError with the place of each."""
    problems: list[ConfigError] = []
    looks: tuple[Callable[[Settings], object], ...] = (sdks, budgets, catalog)
    for look in looks:
        try:
            look(settings)
        except ConfigError as error:
            problems += error.problems or (error,)
    if problems:
        raise ConfigError.combined(problems)


def sdks(settings: Settings) -> tuple[str, ...]:
    """The SDKs that are not patched. Raises ConfigError with all mistakes."""
    refuse(examined_sdks(settings), settings.on_config_error)
    return settings.disabled_sdks


def budgets(settings: Settings) -> list[Budget]:
    """The budgets of the file. Raises ConfigError with all mistakes."""
    return declared_budgets(settings, ())


def catalog(settings: Settings) -> Catalog:
    """The prices, the user's own first. Raises ConfigError with all mistakes."""
    return make_pricer(settings).catalog
