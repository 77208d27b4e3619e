"""`otel-tokens run`: meter a program without touching its code, and say at the end what it used."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from otel_tokens.cli.group import MISTAKE, fail
from otel_tokens.cli.launch import process, session
from otel_tokens.cli.launch.figures import read
from otel_tokens.cli.launch.live import LiveLine
from otel_tokens.cli.options import PATIENCE, SQLITE, config_option, settings_of
from otel_tokens.errors import ConfigError, OtelTokensError
from otel_tokens.safely import strict
from otel_tokens.settings import Settings, default_ledger
from otel_tokens.settings.schema import ENV_PREFIX
from otel_tokens.text import printable

BOOTSTRAP = Path(__file__).parent / "bootstrap"

NOTHING = """\
otel-tokens run meters the program that you name after it, for example

  otel-tokens run python app.py
  otel-tokens run uvicorn app:app --port 8000

and prints what its LLM calls used and cost. `otel-tokens run --help` has the options,
`otel-tokens demo` shows it at work without a program of your own."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `run`."""

    config: str | None
    ledger: str | None
    no_ledger: bool
    prometheus: bool | None
    port: int | None
    otlp: str | None
    tag: tuple[str, ...]
    budget: str | None
    by: tuple[str, ...]
    quiet: bool
    report_json: str | None


@click.command(
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
    epilog="""\b
Examples:
  otel-tokens run python app.py
  otel-tokens run pytest tests/ -x
  otel-tokens run --budget 5USD --tag team=blue python agent.py
  otel-tokens run --prometheus --port 9464 uvicorn app:app
  otel-tokens run --otlp http://localhost:4318 gunicorn -w 4 app:app
  otel-tokens run --quiet --report-json cost.json make nightly

\b
Python started with -I, -E or -S is not metered.
""",
)
@config_option
@click.option("--ledger", metavar="PATH", help="Keep the calls here (default: your own ledger).")
@click.option("--no-ledger", is_flag=True, help="Keep nothing after this run's report.")
@click.option("--prometheus/--no-prometheus", default=None, help="Serve /metrics from the program.")
@click.option("--port", type=click.IntRange(0, 65535, clamp=False), metavar="N", help="Port of /metrics (9464).")
@click.option("--otlp", metavar="URL", help="Send spans and metrics to this endpoint.")
@click.option("--tag", multiple=True, metavar="NAME=VALUE", help="Put a tag on every call; repeatable.")
@click.option("--budget", metavar="AMOUNT", help="Refuse calls beyond: 5USD, 200k tokens.")
@click.option("--by", multiple=True, metavar="WHAT", help="Group the report by: model, agent, day …")
@click.option("--quiet", "-q", is_flag=True, help="No live line, no report on stderr.")
@click.option("--report-json", metavar="FILE", help="Write the report here as well.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="CMD [ARGS]...")
def command(command: tuple[str, ...], **options: Any) -> None:
    """Run CMD with every LLM call in it counted, priced and recorded.

    CMD and the Python processes it starts are metered from outside: their code
    and their files stay as they are. Ctrl-C, signals, standard input and the
    exit code are CMD's own. On a terminal a line at the bottom shows calls,
    tokens and cost so far; a report follows at the end.
    """
    if not command:
        click.echo(NOTHING, err=True)
        sys.exit(MISTAKE)
    _run(list(command), Options(**options))


def _run(command: list[str], options: Options) -> None:
    settings = _settings(options)
    tags = _tags(options.tag)
    _check_budget(options, settings)
    folder = tempfile.mkdtemp(prefix="otel-tokens-")
    try:
        status = _launch(command, options, settings, tags, folder)
    except process.CannotStart as error:
        fail(_with_hint(str(error), command[0]), error.code)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    process.leave(status)


def _launch(command: list[str], options: Options, settings: Settings, tags: dict[str, str], folder: str) -> int:
    ledger = _ledger(options, settings, folder)
    this = _session(folder, tags, options.budget)
    env = _environment(options, settings, this, ledger)
    began = time.time() - 1  # clocks of processes may differ by a little
    live = LiveLine(2, lambda: read(ledger, began, this.tag, this.id)) if _wants_live(options, settings) else None
    try:
        status = process.run(command, env, live.tick if live else lambda: 3600.0)
    finally:
        if live:
            live.close()
    try:
        _summarise(options, settings, this, ledger, began)
    except Exception as error:  # whatever becomes of the report, the exit code is the program's
        if strict() and not isinstance(error, (OtelTokensError, OSError)):
            raise
        with contextlib.suppress(Exception):  # stderr may be what is gone
            click.echo(f"otel-tokens: no report: {printable(str(error))}", err=True)
    return status


def _summarise(options: Options, settings: Settings, this: session.Session, ledger: str, began: float) -> None:
    from otel_tokens.cli.launch.summary import Wanted, summarise  # tables are not needed before the program has ended

    budgets = _budget_lines(options, settings, ledger, began)
    known = options.ledger is None and options.config is None
    wanted = Wanted(options.by, options.report_json, options.quiet, budgets, known, settings.enabled)
    summarise(this, ledger, began, wanted)


def _budget_lines(options: Options, settings: Settings, ledger: str, began: float) -> list[str]:
    """The budgets that this run has used, the fullest first; the reason if they cannot be read."""
    if options.quiet or not (settings.budgets or options.budget):
        return []
    try:
        return _used_budgets(settings, ledger, began)
    except OtelTokensError as error:  # the calls are in the ledger all the same, and so in the report
        return [f"the budgets cannot be read: {error}"]


def _used_budgets(settings: Settings, ledger: str, began: float) -> list[str]:
    from otel_tokens.assemble_guard import store_url
    from otel_tokens.cli.budgets.rows import lines, sentence
    from otel_tokens.guard.store.open import open_store

    store = open_store(store_url(replace(settings, ledger=ledger)), timeout=PATIENCE)
    try:
        rows = [(line, line.status) for line in lines(store, ()) if line.status is not None]
    finally:
        store.close()
    found = [line for line, row in rows if (row.updated or 0) >= began or row.finished or row.ratio >= 1]
    return [sentence(line) for line in sorted(found, key=lambda line: -line.ratio)]


# ---- before


def _settings(options: Options) -> Settings:
    if options.ledger and options.no_ledger:
        raise click.UsageError("--ledger and --no-ledger exclude each other")
    settings = settings_of(
        options.config,
        ledger=options.ledger,
        prometheus=options.prometheus,
        prometheus_port=options.port,
        otlp_endpoint=options.otlp,
    )
    if options.report_json:
        place = Path(options.report_json).expanduser()
        if not place.parent.is_dir():
            raise click.BadParameter(f"there is no folder {place.parent}", param_hint="--report-json")
    return settings


def _tags(given: tuple[str, ...]) -> dict[str, str]:
    from otel_tokens.context import tags

    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            if not equals:
                raise ValueError(f"{text!r} has no '='; write name=value")
            tags(**{name: value})
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--tag") from None
        found[name] = value
    return found


def _check_budget(options: Options, settings: Settings) -> None:
    """Mistakes in budgets end here, before the program has begun."""
    if options.budget is not None:
        from otel_tokens.guard.budgets.units import parse_amount

        try:
            _, amount = parse_amount(options.budget)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--budget") from None
        if amount <= 0:
            raise click.BadParameter(f"{options.budget!r} allows nothing", param_hint="--budget")
    if settings.budgets or settings.guard or settings.prices or settings.prices_file:
        from otel_tokens.cli.launch.declared import check

        check(settings)


def _ledger(options: Options, settings: Settings, folder: str) -> str:
    """The ledger of this run; one that is gone after it when none is wanted."""
    if options.no_ledger or settings.ledger is False:
        return str(Path(folder) / "ledger.db")
    try:
        return str(Path(settings.ledger or default_ledger()).expanduser().absolute())
    except ValueError as error:
        raise ConfigError(str(error), where="ledger") from None


def _session(folder: str, tags: dict[str, str], budget: str | None) -> session.Session:
    from otel_tokens.providers.registry import providers

    outer = session.current()
    identity = f"{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    sdks = tuple(dict.fromkeys(provider.package for provider in providers()))
    if outer is None:
        return session.Session(identity, folder, "run", tags, budget, sdks)
    depth = int(outer.tag.partition(".")[2] or 1) + 1
    inherited = {**outer.tags, outer.tag: outer.id, **tags}
    return session.Session(identity, folder, f"run.{depth}", inherited, budget, sdks)


def _environment(options: Options, settings: Settings, this: session.Session, ledger: str) -> dict[str, str]:
    env = dict(os.environ)
    ours = str(BOOTSTRAP)
    # An empty part of PYTHONPATH would mean the current directory.
    rest = [part for part in env.get("PYTHONPATH", "").split(os.pathsep) if part and part != ours]
    env["PYTHONPATH"] = os.pathsep.join([ours, *rest])
    env[session.VARIABLE] = this.to_env()
    # Absolute, and read once: a program that changes its directory must not come across other settings.
    env[ENV_PREFIX + "CONFIG"] = str(Path(settings.config).absolute()) if settings.config else "off"
    env[ENV_PREFIX + "LEDGER"] = ledger
    if settings.store and settings.store.startswith(SQLITE):
        env[ENV_PREFIX + "STORE"] = SQLITE + str(Path(settings.store.removeprefix(SQLITE)).absolute())
    if options.prometheus is not None or options.port is not None:  # who names a port wants it served
        env[ENV_PREFIX + "PROMETHEUS"] = "false" if options.prometheus is False else "true"
    if options.port is not None:
        env[ENV_PREFIX + "PROMETHEUS_PORT"] = str(options.port)
    if options.otlp is not None:
        env[ENV_PREFIX + "OTLP_ENDPOINT"] = options.otlp
    return env


def _wants_live(options: Options, settings: Settings) -> bool:
    if options.quiet or settings.live is False or os.environ.get("TERM", "dumb") == "dumb":
        return False
    try:
        return os.isatty(2)
    except OSError:
        return False


def _with_hint(message: str, word: str) -> str:
    """What a person may have meant."""
    if Path(word).suffix == ".py" and Path(word).is_file():
        return f"{message}; try: otel-tokens run python {word}"
    if word == "python":
        return f"{message}; this Python is {sys.executable}"
    return message
