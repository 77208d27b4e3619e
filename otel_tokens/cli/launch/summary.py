"""What `otel-tokens run` says after the program: the report of this run, or why there is nothing to report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from otel_tokens.cli.launch.session import Session, State
from otel_tokens.errors import LedgerError
from otel_tokens.reports.report import Report, report
from otel_tokens.reports.text import counted
from otel_tokens.text import printable

_SWITCHED_OFF = "no LLM call was counted: otel-tokens is switched off (enabled, OTEL_TOKENS_ENABLED)"
_MANY_BUDGETS = 5
_MANY = 3  # processes with the same trouble are named up to here


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be said: the report's dimensions and its file, whether to say anything, and the state of budgets.

    `known_ledger`: `otel-tokens report` finds the ledger without being told. `enabled`: the settings want metering.
    """

    by: Sequence[str] = ()
    json_file: str | None = None
    quiet: bool = False
    budgets: Sequence[str] = ()
    known_ledger: bool = False
    enabled: bool = True


def summarise(session: Session, ledger: str, since: float, wanted: Wanted) -> None:
    """Print the report of the run on stderr, and write it to a file. Raises LedgerError and ConfigError."""
    notes = session.notes()
    found = _report(session, ledger, since, wanted.by or ("model",))
    if wanted.json_file is not None:
        _write(wanted.json_file, found)
    if wanted.quiet:
        return
    for line in _troubles(notes):
        _say(line)
    if found is None or not found.total.calls:
        _say(_why_nothing(session, notes) if wanted.enabled else _SWITCHED_OFF)
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        click.echo("", err=True)
        click.echo(found.table(width, color=_coloured()), err=True, nl=False)
    for line in wanted.budgets[:_MANY_BUDGETS]:
        _say(line)
    if len(wanted.budgets) > _MANY_BUDGETS:
        _say(f"{len(wanted.budgets) - _MANY_BUDGETS} more budgets: otel-tokens budget list")
    if found is not None and found.total.calls and not ledger.startswith(session.folder):
        where = "" if wanted.known_ledger else f" --ledger {_short(ledger)}"
        _say(f"this table again: otel-tokens report --run {session.id}{where}")


def _report(session: Session, ledger: str, since: float, by: Sequence[str]) -> Report | None:
    if not Path(ledger).exists():  # nobody made a call
        return None
    return report(ledger, by=by, since=since, where={f"tag:{session.tag}": session.id})


def _write(file: str, found: Report | None) -> None:
    text = found.json() if found is not None else None
    place = Path(file).expanduser()
    try:
        place.write_text(f"{text}\n" if text else '{"schema": 1, "rows": [], "total": {"calls": 0}}\n', "utf-8")
    except OSError as error:
        raise LedgerError(f"cannot write the report: {error.strerror}", path=str(place)) from None


def _troubles(notes: Sequence[tuple[State, str]]) -> list[str]:
    missing = list(dict.fromkeys(words for state, words in notes if state == "missing"))
    failed = list(dict.fromkeys(words for state, words in notes if state == "failed"))
    lost = sum(int(words) for state, words in notes if state == "lost" and words.isdecimal())
    return [
        *(
            f"{python} has no otel_tokens, its calls are not counted; pip install it there"
            for python in missing[:_MANY]
        ),
        *(f"some calls are not counted: {reason}" for reason in failed[:_MANY]),
        *(
            [f"not in the report, as the ledger could not keep {_them(lost)}: {counted(lost, 'record')}"]
            if lost
            else []
        ),
    ]


def _them(count: int) -> str:
    return "it" if count == 1 else "them"


def _why_nothing(session: Session, notes: Sequence[tuple[State, str]]) -> str:
    states = {state for state, _ in notes}
    if "on" in states:
        return "no LLM call was recorded"
    if "seen" in states:
        return f"no LLM call was counted: no Python process of this run imported {' or '.join(session.sdks)}"
    if states:
        return "no LLM call was counted"
    return "no LLM call was counted: no Python process took part (python -I, -E and -S skip what meters it)"


def _short(path: str) -> str:
    home = str(Path("~").expanduser())
    return f"~{path[len(home) :]}" if path.startswith(home + "/") else path


def _coloured() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # None: it was closed when we began


def _say(message: str) -> None:
    click.echo(f"otel-tokens: {printable(message)}", err=True)
