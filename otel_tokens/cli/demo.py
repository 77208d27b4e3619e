"""`otel-tokens demo`: real SDKs against a model server on this machine, metered, priced, exported and reported."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from otel_tokens.cli.group import fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from otel_tokens.demo.show import Screen
    from otel_tokens.demo.workload import Step
    from otel_tokens.guard.reporting.events import Event
    from otel_tokens.values import Record

SDKS = ("openai", "anthropic")
_DELAY = 0.004  # seconds between the chunks of a stream
_PAUSE = 0.12  # seconds before each step, where somebody watches
_FOREIGN = ("OTEL_", "OPENAI_", "ANTHROPIC_", "AZURE_OPENAI_")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@click.command(
    short_help="See it work: real SDKs, on this machine only.",
    options_metavar="[OPTIONS]",
    epilog="""\b
Examples:
  otel-tokens demo
  otel-tokens demo --ledger demo.db && otel-tokens report --ledger demo.db
""",
)
@click.option("--ledger", metavar="PATH", help="Keep the record of the demo's calls here.")
def command(ledger: str | None) -> None:
    """See it work: real OpenAI and Anthropic SDKs, on this machine only.

    A model server on the loopback interface answers like OpenAI, Anthropic and
    Moonshot. A small team of agents calls it: sync and async, streams, cached
    prompts, a stream abandoned half-way, an unknown model, a failing call, a
    budget. Nothing leaves this machine and no key is needed.
    """
    missing = [name for name in SDKS if find_spec(name) is None]
    if missing:
        lacking = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        fail(f'the demo calls the real SDKs, and {lacking}: pip install "otel-tokens[demo]"')
    from rich.console import Console  # tables are only for commands that draw them

    _own_environment()
    with tempfile.TemporaryDirectory(prefix="otel-tokens-demo-") as folder:
        path = str(Path(ledger).expanduser().absolute()) if ledger else str(Path(folder) / "ledger.db")
        _play(Console(highlight=False), path, keep=ledger is not None)


def _own_environment() -> None:
    """The demo must not send anything to a real provider, collector or proxy, nor take a real key."""
    for name in list(os.environ):
        if name.startswith(_FOREIGN) or name.lower() in _PROXIES:
            del os.environ[name]
    os.environ["OTEL_TOKENS_CONFIG"] = "off"


def _play(console: Console, ledger: str, *, keep: bool) -> None:
    from otel_tokens.demo import show, workload
    from otel_tokens.demo.model import Model
    from otel_tokens.demo.server import ModelServer
    from otel_tokens.instrument import flush

    began = time.time()
    versions = " and ".join(f"{name} {_version(name)}" for name in SDKS)
    console.print(f"[bold]{versions}[/bold] against a model server on this machine.\n")
    make: Callable[[Console], show.Screen] = show.LiveScreen if console.is_terminal else show.PlainScreen
    stage = _Stage(make(console), _PAUSE if console.is_terminal else 0.0)
    with ModelServer(workload.respond(Model(_DELAY))) as server:
        hosts = workload.hosts(urlsplit(server.url).port or 0)
        with _metered(ledger=ledger, hosts=hosts, on_record=stage.record, budgets=[workload.budget(stage.event)]):
            clients = workload.make_clients(server.url)
            with stage.screen:
                workload.run(clients, stage.before)
                flush()
            console.print()
            console.rule("[bold]a budget", align="left")
            stage.screen = make(console)
            with stage.screen:
                refusal = workload.run_budget(clients, stage.before)
                flush()
                if refusal is not None:
                    stage.screen.notice(f"100 %: refused, nothing was sent. {refusal}")
            console.print()
            _report(console, ledger, began)
            _scrape(console)
    _next(console, ledger if keep else None)


class _Stage:
    """Hands what happens to the screen of the moment."""

    def __init__(self, screen: Screen, pause: float) -> None:
        self.screen = screen
        self._pause = pause

    def before(self, step: Step) -> None:
        """A step begins."""
        self.screen.step(step)
        time.sleep(self._pause)

    def record(self, record: Record) -> None:
        """A call has ended."""
        self.screen.record(record)

    def event(self, event: Event) -> None:
        """The guard says something; the refusal speaks for itself."""
        if event.kind != "threshold":
            return
        what = "from here on a cheaper model" if event.threshold.startswith("90") else "a warning"
        self.screen.notice(f"{event.threshold}: {what} (budget {event.budget}: {event.used} of {event.limit} USD used)")


@contextmanager
def _metered(**options: Any) -> Generator[None]:
    from otel_tokens.instrument import instrument, uninstrument

    instrument(prometheus=True, prometheus_port=0, **options)
    try:
        yield
    finally:
        uninstrument()


def _report(console: Console, ledger: str, since: float) -> None:
    from otel_tokens.cli.budgets.rows import Line, sentence
    from otel_tokens.instrument import guard
    from otel_tokens.reports.report import report

    console.rule("[bold]otel-tokens report", align="left")
    for by in ("model", "agent"):
        table = report(ledger, by=by, since=since).table(console.width, color=console.is_terminal)
        console.out(table, highlight=False)
    for row in guard().status():
        console.out(sentence(Line(row.name, row.scope, row.unit, row.limit, row)), highlight=False)
    console.print()


def _scrape(console: Console) -> None:
    """What the demo's own /metrics says, as Prometheus would read it."""
    from urllib.request import urlopen

    from otel_tokens.demo.show import excerpt

    url = _metrics_url()
    if url is None:
        return
    text = ""
    for _ in range(2):  # the first scrape shows each new series as 0, so that increase() sees its first value
        with urlopen(url, timeout=5) as answer:  # noqa: S310 (loopback)
            text = answer.read().decode()
    console.rule(f"[bold]curl {url}", align="left")
    for line in excerpt(text, console.width):
        console.print(line, markup=False, soft_wrap=True)
    console.print()


def _metrics_url() -> str | None:
    from otel_tokens.instrument import runtime

    held = runtime()
    reader = held.providers.prometheus if held is not None and held.providers is not None else None
    server = reader.server if reader is not None else None
    return None if server is None else f"http://{server.host}:{server.port}/metrics"


def _next(console: Console, ledger: str | None) -> None:
    option = f" --ledger {ledger}" if ledger else ""
    console.rule("[bold]next", align="left")
    rows = (
        ("otel-tokens run python your_app.py", "your own program, its code untouched"),
        (f"otel-tokens report{option} --by day", "what it cost"),
        ("otel-tokens prices gpt-5.4", "where a price comes from"),
        ("otel-tokens doctor", "what is metered here, and what is not"),
    )
    for line, words in rows:
        console.print(f"  {line:<36} [dim]{words}[/dim]", soft_wrap=True)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(unknown version)"
