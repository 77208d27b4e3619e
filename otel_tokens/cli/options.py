"""Options and values that several commands share: where the ledger is, and what a moment in time looks like."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from otel_tokens.errors import ConfigError
from otel_tokens.settings import Settings, default_ledger, load_settings

F = TypeVar("F", bound=Callable[..., Any])

_AGO = re.compile(r"(\d+) ?(s|min|m|h|d|w)[a-z]*(?: ago)?")
_UNITS = {"s": "seconds", "min": "minutes", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Moment(click.ParamType):
    """A point in time: an ISO date or time (local unless it has an offset), "today", "yesterday", or "7d" ago."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Unix seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        text = str(value).strip().lower()
        now = datetime.now().astimezone()
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        words = {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}
        if text in words:
            return words[text].timestamp()
        if found := _AGO.fullmatch(text):
            return (now - timedelta(**{_UNITS[found[2]]: int(found[1])})).timestamp()
        try:
            return datetime.fromisoformat(text).timestamp()  # without an offset it is local time
        except (ValueError, OverflowError, OSError):
            self.fail(f"{value!r} is no time; write 7d, 24h, today, 2026-11-23 or 2026-11-23T14:30", param, ctx)


def config_option(function: F) -> F:
    """--config FILE."""
    return click.option(
        "--config", metavar="FILE", help="Configuration file (default: otel-tokens.yaml here, `off`: none)."
    )(function)


def ledger_option(function: F) -> F:
    """--ledger PATH."""
    return click.option("--ledger", metavar="PATH", help="The ledger's file (default: what the settings say).")(
        function
    )


def settings_of(config: str | None, **given: Any) -> Settings:
    """The settings, with options as keywords. Raises ConfigError that speaks of options."""
    try:
        return load_settings(config or None, **given)
    except ConfigError as error:
        raise _as_options(error) from None


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
