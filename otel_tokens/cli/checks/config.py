"""Settings: where each comes from, and what is wrong with them, with budgets and prices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from otel_tokens.assemble import examined_prices, examined_sdks
from otel_tokens.assemble_guard import examined_budgets
from otel_tokens.cli.checks.finding import Finding
from otel_tokens.cli.launch.session import VARIABLE
from otel_tokens.errors import ConfigError
from otel_tokens.reports.text import counted
from otel_tokens.settings import SETTINGS, Settings, unknown_variables
from otel_tokens.text import printable, shown_url

PART = "settings"


def check(settings: Settings) -> Iterator[Finding]:
    """All problems of the configuration; settings were read with `on_config_error: ignore`."""
    problems = (*settings.problems, *examined_sdks(settings))
    yield from (Finding(PART, "error", str(problem)) for problem in problems)
    for look, words in ((_budgets, "budget"), (_rules, "price")):
        try:
            found = len(look(settings))
        except ConfigError as error:
            yield from (Finding(PART, "error", str(problem)) for problem in error.problems or (error,))
        else:
            if found:
                yield Finding(PART, "ok", f"{counted(found, words)} declared")
    for name, hint in unknown_variables(os.environ):
        if name != VARIABLE:
            yield Finding(PART, "warning", f"{name} is not a variable of otel-tokens{hint}")
    if not settings.enabled:
        source = settings.sources.get("enabled", "")
        yield Finding(PART, "warning", f"otel-tokens is switched off ({source})")
    if settings.config is None and Path("otel_tokens.yaml").exists():
        yield Finding(PART, "warning", "otel_tokens.yaml is not read: the name is otel-tokens.yaml")


def _budgets(settings: Settings) -> Sequence[object]:
    found, problems = examined_budgets(settings)
    if problems:
        raise ConfigError.combined(problems)
    return found


def _rules(settings: Settings) -> Sequence[object]:
    rules, problems = examined_prices(settings)
    if problems:
        raise ConfigError.combined(problems)
    return rules


def given(settings: Settings) -> list[tuple[str, str, str]]:
    """(name, value, source) of every setting that is not a default."""
    return [
        (setting.name, _shown(getattr(settings, setting.name)), settings.sources[setting.name])
        for setting in SETTINGS
        if setting.name in settings.sources and settings.sources[setting.name] != "keyword"
    ]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        items: tuple[object, ...] = value  # pyright: ignore[reportUnknownVariableType]
        plain = all(isinstance(item, (str, int, float)) for item in items)
        return ", ".join(map(_shown, items)) if plain else f"{len(items)} entries"
    text = str(value) if isinstance(value, (str, int, float)) else "…"
    return shown_url(text) if "://" in text else printable(text)
