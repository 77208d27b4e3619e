"""`otel-tokens report`: what the ledger's calls used and cost."""

from __future__ import annotations

from pathlib import Path

import click

from otel_tokens.cli.options import config_option, ledger_option, ledger_path, read_moment, sum_up
from otel_tokens.errors import LedgerError


@click.command(
    options_metavar="[OPTIONS]",
    epilog="""\b
WHAT is one of
  model, response_model, provider, operation, outcome, error_type,
  session, task, tenant, user, agent, feature, or a tag of your own,
  hour, day, week, month, service_tier, server_address, origin, host, pid

\b
TIME is 90m, 24h, 7d, 2w (ago), today, yesterday, or an ISO date or time.

\b
Examples:
  otel-tokens report                            by model, everything
  otel-tokens report --by agent --since today
  otel-tokens report --by day --by provider --since 30d
  otel-tokens report --where tenant=acme --by model
  otel-tokens report --by day --csv > cost.csv
  otel-tokens report --json | jq .total.cost
""",
)
@click.option("--by", multiple=True, metavar="WHAT", help="Group by this; may be repeated (default: model).")
@click.option("--since", callback=read_moment, metavar="TIME", help="Only calls from then on.")
@click.option("--until", callback=read_moment, metavar="TIME", help="Only calls before then.")
@click.option("--where", multiple=True, metavar="WHAT=VALUE", help="Only calls with this; may be repeated.")
@click.option("--run", metavar="ID", help="Only calls of this `otel-tokens run`.")
@click.option("--json", "form", flag_value="json", help="As JSON: exact amounts, stable fields.")
@click.option("--csv", "form", flag_value="csv", help="As CSV: one line per row, no total.")
@ledger_option
@config_option
def command(
    by: tuple[str, ...],
    since: float | None,
    until: float | None,
    where: tuple[str, ...],
    run: str | None,
    form: str | None,
    ledger: str | None,
    config: str | None,
) -> None:
    """Show what the calls in the ledger used and cost.

    The ledger is filled by `otel-tokens run` and by programs that are set to
    keep one. Totals are exact sums of its rows; what is not known is marked.
    """
    from otel_tokens.reports.report import report

    conditions = [_condition(text) for text in where]
    if run is not None:
        conditions.append(("tag:run", run))
    path = ledger_path(ledger, config)
    if not Path(path).exists():
        raise LedgerError("there is no ledger here; `otel-tokens run python app.py` keeps one", path=path)
    sum_up(path)
    found = report(
        path,
        by=[name for text in by for name in text.split(",")] or ["model"],
        since=since,
        until=until,
        where=dict(conditions),
    )
    if form == "json":
        click.echo(found.json())
    elif form == "csv":
        click.echo(found.csv(), nl=False)
    else:
        click.echo(found.table(), nl=False)


def _condition(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text!r} has no '='; write model=gpt-5 or tenant=acme", param_hint="--where")
    return name.strip(), value or None
