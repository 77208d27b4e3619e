"""Inside a Python process of `otel-tokens run` that is about to import its first SDK: the metering is set up."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from otel_tokens import context
from otel_tokens.cli.launch.session import Session, current
from otel_tokens.errors import ConfigError

_held: list[int] = []  # what has to stay open as long as the process lives: the lock file of /metrics


def meter() -> str:
    """Instrument this process as the run wants it; says what came of it ("on", or "failed WHY"). Never raises."""
    session = current()
    if session is None:
        return "failed: the variable of the run is damaged"
    try:
        _instrument(session)
    except ConfigError as error:
        # `run` has checked the settings, so they changed underway. Running on could mean running without a budget;
        # who prefers that sets on_config_error: ignore.
        _say(str(error))
        os._exit(2)
    except Exception as error:
        _say(f"calls of process {os.getpid()} are not counted: {type(error).__name__}: {error}")
        return f"failed {type(error).__name__}: {error}"
    return "on"


def join_run() -> None:
    """Entry point of `opentelemetry-instrument`, whose `sitecustomize` hides ours: meter this process here and now.

    Its providers are made by then, so they are used. Does nothing outside of a run.
    """
    session = current()
    if session is not None:
        session.note(meter())


def _instrument(session: Session) -> None:
    from otel_tokens.instrument import instrument, runtime  # the composition root loads all rooms

    context.process_tags({**session.tags, session.tag: session.id})
    options: dict[str, Any] = {}
    if not _owns_metrics_port(session):
        options["prometheus"] = False
    if session.budget is not None:
        options["budgets"] = [_budget(session, session.budget)]
    if runtime() is not None and session.budget is not None:
        _say("the program called instrument() itself: --budget is not applied, declare it there")
    instrument(**options)


def _budget(session: Session, amount: str) -> Any:
    from otel_tokens.guard.budget import Budget
    from otel_tokens.guard.units import from_smallest, parse_amount

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
