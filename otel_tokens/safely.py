"""The one wall between our bugs and the caller: our steps may fail, the user's call may not.

Silent for users (one log line per place), loud for us: with OTEL_TOKENS_STRICT=1, as our tests run, a fault
of ours is raised.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from otel_tokens.errors import BudgetExceededError
from otel_tokens.text import printable

logger = logging.getLogger("otel_tokens")
"""The one logger of this library. Each message is one line without control characters."""


def _make_printable(record: logging.LogRecord) -> bool:
    """Filter of the logger: names and tags in a message or an exception may come from anybody."""
    with suppress(Exception):  # a message that cannot be made is the handler's to report
        message = record.getMessage()
        shown = printable(message)
        if shown != message:
            record.msg, record.args = shown, ()
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = _traceback(record.exc_info[1])
    return True


def _traceback(error: BaseException) -> str:
    lines: list[str] = []
    for part in traceback.format_exception(error):
        of_frames = part.startswith((" ", "\n", "Traceback"))  # what else there is, is the text of an exception
        lines += map(printable, part.splitlines() if of_frames else [part.removesuffix("\n")])
    return "\n".join(lines)


logger.addFilter(_make_printable)

T = TypeVar("T")

_told: set[str] = set()
_listener: Callable[[str], object] | None = None


def on_fault(listener: Callable[[str], object] | None) -> None:
    """Have `listener(where)` told of every contained fault: a counter."""
    global _listener
    _listener = listener


def strict() -> bool:
    """Whether faults of ours are raised instead of logged."""
    return os.environ.get("OTEL_TOKENS_STRICT") == "1"


def report_fault(where: str, error: BaseException) -> None:
    """Log a fault of ours, with its traceback the first time it happens at `where`; never raises unless strict."""
    first = where not in _told
    _told.add(where)
    logger.log(
        logging.ERROR if first else logging.DEBUG,
        "otel_tokens failed in %s (%s: %s); your call is not affected",
        where,
        type(error).__name__,
        error,
        exc_info=error if first else None,
    )
    if _listener is not None:
        with suppress(Exception):  # a fault while telling of a fault stays untold
            _listener(where)
    if strict():
        raise error


def safely(where: str, step: Callable[..., T], *args: object, **keywords: object) -> T | None:
    """Run one of our own steps. Its fault is reported and None returned; `BudgetExceededError` passes."""
    try:
        return step(*args, **keywords)
    except BudgetExceededError:
        raise
    except Exception as error:  # the wall: whatever it is, it is ours
        report_fault(where, error)
        return None
