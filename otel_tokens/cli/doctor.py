"""`otel-tokens doctor`: what is metered here and what is not, and why."""

from __future__ import annotations

import json
import logging
import platform
import sys
from collections.abc import Sequence
from typing import Any

import click

from otel_tokens.cli.checks import config as configuration
from otel_tokens.cli.checks.finding import Finding
from otel_tokens.cli.group import own_version
from otel_tokens.cli.options import config_option
from otel_tokens.reports.text import counted
from otel_tokens.settings import Settings, load_settings
from otel_tokens.text import printable

WRONG = 1
"""Exit code when something is wrong."""

_MARKS = {"ok": ("ok", "green"), "note": ("-", "dim"), "warning": ("warn", "yellow"), "error": ("FAIL", "red")}


@click.command(
    options_metavar="[OPTIONS]",
    epilog="""\b
Run it with the Python and in the folder of the program that is to be metered:
  otel-tokens doctor
  otel-tokens run otel-tokens doctor
  otel-tokens doctor --json | jq .healthy

\b
Exit code 1: something that was asked for does not work (FAIL).
""",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--ledger", metavar="PATH", help="Look at this ledger.")
@config_option
def command(as_json: bool, ledger: str | None, config: str | None) -> None:
    """Say what is metered here, what is not, and why.

    Looks at the installed SDKs and whether every place where they are patched
    is there, other instrumentations, the settings and where each comes from,
    OTLP, the port of /metrics, the ledger, unpriced models, and the budgets'
    store. Changes nothing and makes no LLM call.
    """
    settings = _settings(config, ledger)
    findings = _look(settings)
    healthy = not any(finding.level == "error" for finding in findings)
    if as_json:
        click.echo(json.dumps(_object(settings, findings, healthy=healthy), indent=2))
    else:
        _draw(settings, findings)
    if not healthy:
        sys.exit(WRONG)


def _settings(config: str | None, ledger: str | None) -> Settings:
    logger = logging.getLogger("otel_tokens")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # every mistake becomes a finding
    try:
        return load_settings(config or None, ledger=ledger, on_config_error="ignore")
    finally:
        logger.setLevel(level)


def _look(settings: Settings) -> list[Finding]:
    from otel_tokens.cli.checks import outputs, sdks  # import the SDKs, and take seconds

    logging.getLogger("otel_tokens").setLevel(logging.CRITICAL)
    found: list[Finding] = []
    for part in (sdks, outputs, configuration):
        try:
            found += part.check(settings)
        except Exception as error:  # a doctor that falls ill says so and looks on
            found.append(Finding(part.__name__.rpartition(".")[2], "error", f"{type(error).__name__}: {error}"))
    return found


def _draw(settings: Settings, findings: Sequence[Finding]) -> None:
    click.echo(f"otel-tokens {own_version()}, Python {platform.python_version()} ({sys.executable})")
    part = ""
    for finding in findings:
        if finding.part != part:
            part = finding.part
            click.secho(f"\n{part}", bold=True)
        mark, colour = _MARKS[finding.level]
        click.echo(
            f"  {click.style(f'{mark:<4}', fg=None if colour == 'dim' else colour, dim=colour == 'dim')}  ", nl=False
        )
        click.echo(printable(finding.text))
        if finding.hint:
            click.echo(f"        {click.style(printable(finding.hint), dim=True)}")
    rows = configuration.given(settings)
    if rows:
        click.echo("")
        width = max(len(name) for name, _, _ in rows)
        for name, value, source in rows:
            click.echo(f"        {name:<{width}}  {value}  {click.style(source, dim=True)}")
    errors = sum(finding.level == "error" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    click.echo("")
    click.echo(f"{_count(errors, 'failure')}, {_count(warnings, 'warning')}")


def _object(settings: Settings, findings: Sequence[Finding], *, healthy: bool) -> dict[str, Any]:
    return {
        "schema": 1,
        "healthy": healthy,
        "version": own_version(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "findings": [{"part": f.part, "level": f.level, "text": f.text, "hint": f.hint or None} for f in findings],
        "settings": {name: {"value": value, "source": source} for name, value, source in configuration.given(settings)},
    }


def _count(number: int, word: str) -> str:
    return counted(number, word) if number else f"no {word}s"
