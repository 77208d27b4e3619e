"""`otel-tokens budget`: look at running budgets from outside, and change them."""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from otel_tokens.cli.budgets.place import Place, opened, place_options
from otel_tokens.cli.budgets.rows import Line, as_json, details, lines, table
from otel_tokens.text import printable, shown_url

if TYPE_CHECKING:
    from otel_tokens.guard.store.base import Change

F = TypeVar("F", bound=Callable[..., Any])

NOTHING = 1
"""Exit code when there is no such budget."""


class _InOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use."""
        return list(self.commands)


@click.group(
    cls=_InOrder,
    no_args_is_help=True,
    epilog="""\b
Examples:
  otel-tokens budget list
  otel-tokens budget show daily
  otel-tokens budget add daily 5USD                    for this window
  otel-tokens budget set per-task "50k tokens" --scope task=42
  otel-tokens budget finish per-task --scope task=42   refuse all its calls
  otel-tokens budget watch --store redis://localhost

\b
AMOUNT is 5USD, "50k tokens", "100 calls", 15min.
SCOPE is what the list shows, such as tenant=acme or session=s1,agent=writer.
""",
)
def command() -> None:
    """See and change budgets while programs run under them.

    Budgets are declared in otel-tokens.yaml. What they have used is in a store
    that processes share: a file beside the ledger, or Redis. What is changed
    here holds from the next call on; a call that is paused goes on at once.
    """


def _scoped(function: F) -> F:
    return click.option("--scope", metavar="SCOPE", help="Only in this scope (default: all).")(function)


@command.command("list")
@click.option("--json", "as_text", is_flag=True, help="As JSON, amounts as text.")
@place_options
def list_(as_text: bool, **options: Any) -> None:
    """List all budgets and how far they are used."""
    with opened(**options) as place:
        found = lines(place.store, place.declared)
    if as_text:
        click.echo(json.dumps(as_json(found), indent=2))
    elif found:
        _draw(found)
    else:
        click.echo(f"no budget is declared, and none has been used ({shown_url(place.address)})")


@command.command()
@click.argument("name")
@_scoped
@click.option("--json", "as_text", is_flag=True, help="As JSON, amounts as text.")
@place_options
def show(name: str, scope: str | None, as_text: bool, **options: Any) -> None:
    """Show budget NAME in each of its scopes."""
    with opened(**options) as place:
        found = lines(place.store, place.declared, name, scope)
        if not found:
            _not_there(place, name, scope)
    if as_text:
        click.echo(json.dumps(as_json(found), indent=2))
    else:
        click.echo("\n".join(text for line in found for text in details(line)))


@command.command(context_settings={"ignore_unknown_options": True})  # -5USD is an amount
@click.argument("name")
@click.argument("amount")
@_scoped
@place_options
def add(name: str, amount: str, scope: str | None, **options: Any) -> None:
    """Give NAME so much more (-5USD takes away).

    It holds in the window that is running; for good where there is no window.
    """
    _change("add", name, amount, scope, options)


@command.command("set")
@click.argument("name")
@click.argument("amount")
@_scoped
@place_options
def set_(name: str, amount: str, scope: str | None, **options: Any) -> None:
    """Make AMOUNT the limit of NAME, until `unset`."""
    _change("set", name, amount, scope, options)


@command.command()
@click.argument("name")
@click.argument("unit")
@_scoped
@place_options
def unset(name: str, unit: str, scope: str | None, **options: Any) -> None:
    """Go back to the declared limit of NAME.

    UNIT is the limit's: USD, tokens, calls, seconds …
    """
    _change("unset", name, unit, scope, options)


@command.command()
@click.argument("name")
@_scoped
@place_options
def reset(name: str, scope: str | None, **options: Any) -> None:
    """Start NAME over: nothing used, nothing added, not finished."""
    _change("reset", name, None, scope, options)


@command.command()
@click.argument("name")
@_scoped
@place_options
def finish(name: str, scope: str | None, **options: Any) -> None:
    """Refuse all further calls of NAME.

    Until its window ends, or until `reset` or `add`. Paused calls end too.
    """
    _change("finish", name, None, scope, options)


@command.command()
@click.argument("name")
@click.option("--for", "length", metavar="TIME", default="10min", show_default=True, help="How long a call may wait.")
@_scoped
@place_options
def review(name: str, length: str, scope: str | None, **options: Any) -> None:
    """Keep the paused calls of NAME waiting while you decide."""
    _change("review", name, length, scope, options)


@command.command()
@click.argument("name", required=False)
@_scoped
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds between looks.")
@place_options
def watch(name: str | None, scope: str | None, interval: float, **options: Any) -> None:
    """Show budgets as they are used, until Ctrl-C.

    On a terminal the table stays in place; into a pipe goes a line of JSON for
    each change.
    """
    with opened(**options, make=True) as place:
        try:
            _watch(place, name, scope, interval)
        except KeyboardInterrupt:
            sys.exit(0)


def _watch(place: Place, name: str | None, scope: str | None, interval: float) -> None:
    if sys.stdout is None or not sys.stdout.isatty():
        before: list[dict[str, Any]] = []
        while True:
            now = as_json(lines(place.store, place.declared, name, scope))
            for row in now:
                if row not in before:
                    click.echo(json.dumps(row))
            before = now
            time.sleep(interval)
    from rich.live import Live  # only here something is drawn in place

    with Live(auto_refresh=False) as live:
        while True:
            live.update(table(lines(place.store, place.declared, name, scope)), refresh=True)
            time.sleep(interval)


def _change(op: Change, name: str, amount: str | None, scope: str | None, options: dict[str, Any]) -> None:
    from otel_tokens.guard.reporting.administration import change

    with opened(**options, make=op == "set") as place:
        _check_unit(place, op, name, amount)
        try:
            changed = change(place.store, op, name, amount, scope=scope)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        if not changed:
            _not_there(place, name, scope)
        found = [line for line in lines(place.store, place.declared, name, scope) if line.status is not None]
    if found:
        click.echo("\n".join(text for line in found for text in details(line)))
    else:
        click.echo(f"{printable(name)}: changed, and holds from its first call on")


def _check_unit(place: Place, op: Change, name: str, amount: str | None) -> None:
    """End with an error if the budget has no limit of this unit; say so if nobody knows the budget."""
    from otel_tokens.guard.budgets import units

    if op not in {"add", "set"}:
        return
    try:
        unit, _ = units.parse_amount(amount or "")
    except ValueError:
        return  # the change itself says what is wrong
    every = lines(place.store, place.declared)
    has = {line.unit for line in lines(place.store, place.declared, name)}
    if has and unit not in has:
        words = f"budget {name!r} has no limit in {units.name(unit)}; it has {', '.join(sorted(map(units.name, has)))}"
        _say(words)
        sys.exit(NOTHING)
    if not has and op == "set" and every:
        hint = _hint(name, sorted({line.name for line in every}))
        _say(f"no budget {name!r} is known here{hint}")


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}" if known else ""


def _not_there(place: Place, name: str, scope: str | None) -> None:
    known = sorted({line.name for line in lines(place.store, place.declared)})
    where = f" in scope {scope}" if scope else ""
    if name in known:
        words = f"budget {name!r} has not been used yet{where}; `set` works before the first call"
    else:
        words = f"there is no budget {name!r}{where}{_hint(name, known)}"
    _say(words)
    sys.exit(NOTHING)


def _say(words: str) -> None:
    click.echo(f"otel-tokens budget: {printable(words)}", err=True)


def _draw(found: list[Line]) -> None:
    from rich.console import Console

    Console(highlight=False).print(table(found))
