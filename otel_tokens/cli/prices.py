"""`otel-tokens prices`: the price of a model, the rule that gives it, and its source."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from otel_tokens.cli.options import config_option, read_moment, settings_of
from otel_tokens.text import printable

if TYPE_CHECKING:
    from otel_tokens.pricing.explain import Explanation, PricedRate

UNPRICED = 1
"""Exit code when no price is known."""


@click.command(
    options_metavar="[OPTIONS]",
    epilog="""\b
Examples:
  otel-tokens prices gpt-5.4
  otel-tokens prices claude-sonnet-4-6 --provider aws.bedrock
  otel-tokens prices gpt-5.4 --tier flex
  otel-tokens prices gpt-4o --at 2024-09-01       the price of that day

\b
A price of your own goes into otel-tokens.yaml and wins over all others:
  prices:
    - {model: my-model, provider: my_vendor, input: 0.50, output: 1.50}

\b
Exit code 1: no price is known for the model.
""",
)
@click.argument("model")
@click.option(
    "--provider", metavar="NAME", help="Provider: openai, aws.bedrock, moonshot_ai … (default: the maker of MODEL)."
)
@click.option("--tier", metavar="TIER", help="Service tier: batch, flex, priority, fast …")
@click.option("--at", callback=read_moment, metavar="TIME", help="The price at that time (default: now).")
@click.option("--json", "as_json", is_flag=True, help="As JSON, amounts as text.")
@config_option
def command(
    model: str, provider: str | None, tier: str | None, at: float | None, as_json: bool, config: str | None
) -> None:
    """Show what MODEL costs, and where that price comes from.

    Calls are priced by the same rules: your own prices, then the exact name,
    then an alias, then the model's family. A model that none of them knows is
    unpriced: its calls are counted and its cost is unknown, never 0.
    """
    from otel_tokens.cli.launch.declared import catalog  # loads the price lists
    from otel_tokens.pricing.explain import explain

    found = explain(model, provider=provider, tier=tier, at=at, catalog=catalog(settings_of(config)))
    if as_json:
        click.echo(json.dumps(_object(found), indent=2))
    else:
        click.echo("\n".join(map(printable, _lines(found, tier, at))))
    if not found.priced:
        sys.exit(UNPRICED)


def _lines(found: Explanation, tier: str | None, at: float | None) -> list[str]:
    whose = f" ({found.provider})" if found.provider else ""
    conditions = [f"tier {tier}"] if tier else []
    if at is not None:
        conditions.append(f"on {datetime.fromtimestamp(at, UTC):%Y-%m-%d}")
    title = ", ".join([f"{found.model}{whose}", *conditions])
    if not found.priced:
        lines = [f"{title}: unpriced", f"  {found.reason}"]
        if found.near:
            lines.append(f"  similar names with a price: {', '.join(found.near)}")
        if found.elsewhere:
            lines.append(f"  priced at other providers: {', '.join(found.elsewhere)} (--provider NAME)")
        lines.append("  a price of your own goes under `prices:` in otel-tokens.yaml (otel-tokens prices --help)")
        return lines
    lines = [title, *_rates(found.rates)]
    if found.until is not None:
        lines.append(f"  until      {datetime.fromtimestamp(found.until, UTC):%Y-%m-%d %H:%M} UTC, when it may change")
    lines.append(f"  rule       {found.rule}")
    if found.source and found.source != found.rule:
        lines += _named("source", found.source.split(", "))
    lines.append(f"  catalogue  {found.version}")
    lines += _named("estimated", [found.estimated] if found.estimated else [])
    lines += _named("note", [note for note in found.notes if note != found.source])
    return lines


def _named(name: str, values: Sequence[str]) -> list[str]:
    return [f"  {name if at == 0 else '':<9}  {value}" for at, value in enumerate(values)]


def _rates(rates: Sequence[PricedRate]) -> list[str]:
    """The rates in groups with the same unit and the same lower bound of tokens."""
    lines: list[str] = []
    width = max((len(rate.name) for rate in rates), default=0)
    numbers = [_plain(rate.amount) for rate in rates]
    before = max((len(number.partition(".")[0]) for number in numbers), default=0)
    group: tuple[str, int | None] | None = None
    for rate, number in zip(rates, numbers, strict=True):
        if (rate.unit, rate.above) != group:
            group = (rate.unit, rate.above)
            above = f", above {rate.above:,} input tokens" if rate.above is not None else ""
            lines.append(f"  {rate.unit}{above}")
        lines.append(f"    {rate.name:<{width}}  {' ' * (before - len(number.partition('.')[0]))}{number}")
    return lines


def _plain(amount: Decimal) -> str:
    """The amount with all its decimals, at least two."""
    whole, _, rest = f"{amount:f}".partition(".")
    return f"{whole}.{rest.ljust(2, '0')}"


def _object(found: Explanation) -> dict[str, object]:
    return {
        "model": found.model,
        "provider": found.provider,
        "priced": found.priced,
        "rule": found.rule or None,
        "source": found.source or None,
        "catalogue": found.version,
        "estimated": found.estimated or None,
        "until": None if found.until is None else datetime.fromtimestamp(found.until, UTC).isoformat(),
        "notes": list(found.notes),
        "rates": [
            {"name": rate.name, "amount": _plain(rate.amount), "unit": rate.unit, "above": rate.above}
            for rate in found.rates
        ],
        "reason": found.reason or None,
        "near": list(found.near),
        "elsewhere": list(found.elsewhere),
    }
