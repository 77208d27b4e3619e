"""What several commands share: options, where ledger and budgets are, how times are read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from otel_tokens.errors import ConfigError
from otel_tokens.reports.times import moment
from otel_tokens.settings import Settings, default_ledger, load_settings
from otel_tokens.text import printable

F = TypeVar("F", bound=Callable[..., Any])

_FIRST_PRINT, _NEXT_PRINT = 1.0, 5.0  # seconds

SQLITE = "sqlite:///"
"""How the URL of a store that is a file begins."""
PATIENCE = 2.0
"""Seconds that a command waits for the store of the budgets: a person waits longer than a call."""


def read_moment(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Callback of an option: a point in time as reports understand it, in unix seconds; None stays None."""
    try:
        return moment(value, time.time())
    except ConfigError as error:
        raise click.BadParameter(error.reason, ctx, param) from None


def config_option(function: F) -> F:
    """--config FILE."""
    return click.option("--config", metavar="FILE", help="Settings (default: ./otel-tokens.yaml; off: none).")(function)


def ledger_option(function: F) -> F:
    """--ledger PATH."""
    return click.option("--ledger", metavar="PATH", help="The ledger (default: what the settings say).")(function)


def settings_of(config: str | None, **given: Any) -> Settings:
    """The settings, with options as keywords. Raises ConfigError that speaks of options."""
    try:
        return load_settings(config_of(config), **given)
    except ConfigError as error:
        raise _as_options(error) from None


def config_of(config: str | None) -> str | Literal[False] | None:
    """What --config says: a file, False for "off", None when it was not given."""
    return False if config is not None and config.lower() in ("off", "none") else config or None


def _as_options(error: ConfigError) -> ConfigError:
    """The same error, saying "--otlp-endpoint" where Python would say "keyword: otlp_endpoint"."""
    if error.problems:
        return ConfigError.combined([_as_options(problem) for problem in error.problems])
    if error.where != "keyword":
        return error
    return ConfigError(error.reason, where="option", key=error.key)


def ledger_path(ledger: str | None, config: str | None = None) -> str:
    """The ledger to read: the option, else what the settings say, else the default place."""
    if ledger:
        return str(Path(ledger).expanduser())
    found = settings_of(config).ledger
    try:
        return found or default_ledger()
    except ValueError as error:
        raise ConfigError(str(error), where="ledger") from None


def sum_up(path: str, at_least: int = 20_000) -> None:
    """Take the rows of a ledger into its summary, if it lacks at least so many. Prints on stderr how far it is.

    Raises LedgerError if the ledger cannot be read.
    """
    from otel_tokens.ledger.catch_up import bring_up_to_date

    due = time.monotonic() + _FIRST_PRINT

    def progress(summed: int, rows: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _NEXT_PRINT
            done = f"{summed:,} of {rows:,} calls ({summed / rows:.0%})"
            click.echo(f"otel-tokens: summing up {printable(path)}, which is done once: {done}", err=True)

    bring_up_to_date(path, at_least=at_least, progress=progress)
