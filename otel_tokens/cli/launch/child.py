"""Inside a Python process of `otel-tokens run` that is about to import its first SDK: the metering is set up."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from otel_tokens import context
from otel_tokens.cli.launch.session import Session, current
from otel_tokens.errors import ConfigError
from otel_tokens.text import printable

_held: list[int] = []  # what has to stay open as long as the process lives: the lock file of /metrics


def meter(options: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Instrument this process as the run wants it; says what came of it ("on", or "failed WHY"). Never raises.

    `options` are further keywords of `instrument()`.
    """
    session = current()
    if session is None:
        return "failed: the variable of the run is damaged"
    try:
        _instrument(session, options)
    except ConfigError as error:
        # `run` has checked the settings, so they changed underway. Running on could mean running without a budget;
        # who prefers that sets on_config_error: ignore.
        _say(str(error))
        os._exit(2)
    except Exception as error:
        words = printable(f"{type(error).__name__}: {error}")
        _say(f"calls of process {os.getpid()} are not counted: {words}")
        return f"failed {words}"
    return "on"


def join_run(options: Mapping[str, Any]) -> bool:
    """For `opentelemetry-instrument`, whose `sitecustomize` hides ours: meter this process here and now.

    `options` are keywords of `instrument()`. False, and nothing is done, outside of a run.
    """
    session = current()
    if session is None:
        return False
    session.note(meter(options))
    return True


def _instrument(session: Session, given: Mapping[str, Any]) -> None:
    from otel_tokens.instrument import instrument, runtime  # the composition root loads all rooms

    context.process_tags({**session.tags, session.tag: session.id})
    options = dict(given)
    if not _owns_metrics_port(session):
        options["prometheus"] = False
    if session.budget is not None:
        options["budgets"] = [_budget(session, session.budget)]
    if runtime() is not None and session.budget is not None:
        _say("the program called instrument() itself: --budget is not applied, declare it there")
    anew = runtime() is None
    instrument(**options)
    held = runtime()
    if anew and held is not None and held.ledger is not None:
        _tell_losses(session, held.ledger)


def _tell_losses(session: Session, ledger: Any) -> None:
    """What the ledger cannot keep is not in the report of the run: the report has to say so."""
    told = ledger.on_lost

    def lost(count: int) -> None:
        session.note(f"lost {count}")
        if told is not None:
            told(count)

    ledger.on_lost = lost


def _budget(session: Session, amount: str) -> Any:
    from otel_tokens.guard.budgets.budget import Budget
    from otel_tokens.guard.budgets.units import from_smallest, parse_amount

    unit, smallest = parse_amount(amount)
    limit: dict[str, Any] = {unit: from_smallest(unit, smallest)}
    return Budget(session.tag, per=[session.tag], **limit)


def _owns_metrics_port(session: Session) -> bool:
    """Whether this process is the one of the run that may serve /metrics: the first that asks, while it lives."""
    try:
        import fcntl
    except ImportError:  # Windows: the port itself decides
        return True
    with contextlib.suppress(OSError):
        place = os.open(os.path.join(session.folder, "metrics.lock"), os.O_RDWR | os.O_CREAT, 0o600)  # noqa: PTH118
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(place)
            return False
        _held.append(place)  # closed, and so given up, when the process ends or is replaced (exec)
    return True


def _say(message: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no stderr: pythonw, a daemon
        sys.stderr.write(f"otel-tokens: {message}\n")
        sys.stderr.flush()
