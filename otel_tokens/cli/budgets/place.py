"""Where the budgets are kept that other processes use: the store, seen from the command line."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from otel_tokens.assemble_guard import store_url
from otel_tokens.cli.launch.declared import budgets
from otel_tokens.cli.options import PATIENCE, SQLITE, config_option, settings_of
from otel_tokens.errors import ConfigError
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.store.base import Store
from otel_tokens.guard.store.open import open_store
from otel_tokens.settings import Settings, default_ledger

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Place:
    """A store that is open, its address, and the budgets that the configuration declares."""

    store: Store
    address: str
    declared: tuple[Budget, ...]


def place_options(function: F) -> F:
    """--store, --ledger and --config."""
    function = config_option(function)
    function = click.option("--ledger", metavar="PATH", help="The ledger beside which the budgets are.")(function)
    return click.option("--store", metavar="URL", help="sqlite:///PATH or redis://… (default: settings).")(function)


@contextmanager
def opened(store: str | None, ledger: str | None, config: str | None, *, make: bool = False) -> Generator[Place]:
    """The store that the options and settings name, closed at the end.

    A file that is not there is made only if `make`; else the store is an empty one.
    """
    if store and ledger:
        raise click.UsageError("--store and --ledger exclude each other")
    settings = settings_of(config, store=store)
    address = _address(settings, ledger)
    missing = address.startswith(SQLITE) and not Path(address.removeprefix(SQLITE)).exists()
    held = open_store("memory" if missing and not make else address, timeout=max(settings.store_timeout, PATIENCE))
    try:
        yield Place(held, address, tuple(budgets(settings)))
    finally:
        held.close()


def _address(settings: Settings, ledger: str | None) -> str:
    try:
        place = str(Path(ledger or settings.ledger or default_ledger()).expanduser().absolute())
    except ValueError as error:
        raise ConfigError(str(error), key="store") from None
    # Where `otel-tokens run` keeps them when nobody says: it has a ledger even if the settings have none.
    address = store_url(replace(settings, ledger=place, store=None if ledger else settings.store))
    if address.startswith("memory"):
        raise ConfigError(
            "is memory: each process keeps its budgets to itself, and nobody sees them from outside; "
            "use sqlite:///path or redis://…",
            where=settings.sources.get("store"),
            key="store",
        )
    return address
