"""`otel-tokens exporter`: the ledger's exact totals for Prometheus."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import click

from otel_tokens.cli.group import MISTAKE
from otel_tokens.cli.options import config_option, ledger_option, ledger_path, sum_up


@click.command(
    short_help="Serve the ledger's totals to Prometheus.",
    options_metavar="[OPTIONS]",
    epilog="""\b
Examples:
  otel-tokens exporter
  otel-tokens exporter --ledger /var/lib/app/ledger.db --port 9465
  curl -s http://127.0.0.1:9464/metrics | grep otel_tokens_cost

\b
For Prometheus:
  scrape_configs:
    - job_name: otel-tokens
      static_configs: [{targets: ["127.0.0.1:9464"]}]
""",
)
@ledger_option
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=9464, show_default=True, metavar="N", help="Port; 0: a free one."
)
@config_option
def command(ledger: str | None, host: str, port: int, config: str | None) -> None:
    """Serve the ledger's totals as a Prometheus endpoint, until Ctrl-C.

    Tokens, cost and calls of all processes that write to the ledger, exact and
    never going down: for servers with several workers and for short jobs, which
    no scraper can reach. Durations are not in a ledger; OTLP has them.
    """
    from otel_tokens.ledger.totals import LedgerTotals
    from otel_tokens.telemetry.ledger_collector import LedgerCollector

    path = ledger_path(ledger, config)
    totals = LedgerTotals(path)
    waiting = not Path(totals.path).exists()
    if waiting:
        click.echo(f"otel-tokens: there is no ledger at {path} yet; its calls are served once there is one", err=True)
    else:
        sum_up(path, at_least=1)  # a file that is no ledger is a mistake, now and not at the first scrape

    def refresh() -> Mapping[Any, Any]:
        nonlocal waiting
        waiting = waiting and not Path(totals.path).exists()
        return {} if waiting else totals.refresh()

    ended = _until_signal()
    server = LedgerCollector(refresh).serve(host, port)
    if server is None:  # the reason has been logged
        sys.exit(MISTAKE)
    shown = f"[{server.host}]" if ":" in server.host else server.host
    click.echo(f"serving {path} on http://{shown}:{server.port}/metrics (Ctrl-C ends it)", err=True)
    ended.wait()
    server.close()


def _until_signal() -> threading.Event:
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    return ended
