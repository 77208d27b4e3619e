"""Keeps a fault of this library away from the program's call.

A fault is logged, once per place with its traceback, and counted. With OTEL_TOKENS_STRICT=1, which the tests set, it is
raised instead. What the program's own signal handler raises while our code runs is no fault: it is raised as it is.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any, TypeVar

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

_PACKAGE = __name__.partition(".")[0]
_logged: set[str] = set()
_listener: Callable[[str], object] | None = None


def on_fault(listener: Callable[[str], object] | None) -> None:
    """Call `listener(where)` for each fault from now on. None: no listener."""
    global _listener
    _listener = listener


def strict() -> bool:
    """Whether faults are raised instead of logged."""
    return os.environ.get("OTEL_TOKENS_STRICT") == "1"


def report_fault(where: str, error: BaseException) -> None:
    """Log a fault that was caught at `where`, with its traceback the first time.

    Call it in the `except` clause that caught `error`. Raises what a signal handler of the program raised
    (`interruption`). Raises `error` if strict. Raises nothing else.
    """
    raised = interruption(error)
    if raised is not None:
        raise raised
    first = where not in _logged
    _logged.add(where)
    logger.log(
        logging.ERROR if first else logging.DEBUG,
        "otel_tokens failed in %s (%s: %s); your call is not affected",
        where,
        type(error).__name__,
        error,
        exc_info=error if first else None,
    )
    if _listener is not None:
        with suppress(Exception):  # the listener only counts: its own fault is dropped
            _listener(where)
    if strict():
        raise error


def safely(where: str, step: Callable[..., T], *args: object, **keywords: object) -> T | None:
    """Return `step(*args, **keywords)`, or None after a fault, which is reported.

    Raises BudgetExceededError of the step, what a signal handler of the program raised, and what is no Exception.
    """
    try:
        return step(*args, **keywords)
    except BudgetExceededError:
        raise
    except Exception as error:
        report_fault(where, error)
        return None


def interruption(error: BaseException) -> BaseException | None:
    """The exception that a signal handler of the program raised while our code ran, or None.

    It is `error` itself, or one from which a library made `error` (redis makes its own error of a TimeoutError). Call
    it in the `except` clause that caught `error`; then raise what it returns. Examples: Celery's SoftTimeLimitExceeded,
    a TimeoutError from SIGALRM.
    """
    return next((cause for cause in causes(error) if _interrupted_frame(cause) is not None), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and the exceptions that it was raised from or that were being handled then, the newest first.

    Not an older one, which the program was handling when it called us. Call it in the `except` clause that caught
    `error`.
    """
    passed: set[FrameType] = set()
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        frames = _frames(cause)
        if frames and passed and frames[0] not in passed:
            return  # caught in none of the functions that the newer ones passed through
        passed.update(frames)
        yield cause
        cause = cause.__cause__ or cause.__context__


def _frames(error: BaseException) -> list[FrameType]:
    """The frames that an exception passed through, the one that caught it first."""
    frames: list[FrameType] = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames


def interrupted_us(error: BaseException) -> bool:
    """Whether a signal handler raised `error` between two instructions of our own code.

    Then the step that was under way is to be done again. It is not when the handler ran in code that we called, the
    program's own callback for instance.
    """
    raised = interruption(error)
    frame = None if raised is None else _interrupted_frame(raised)
    if frame is None and not isinstance(error, Exception):  # Ctrl-C: its handler is no Python function
        frame = next(reversed(_frames(error)), None)
    return frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == _PACKAGE


def _interrupted_frame(error: BaseException) -> FrameType | None:
    """The frame in which a signal handler ran and raised `error`, or None: the traceback goes through no handler."""
    handlers = frozenset(_handlers())
    for above, frame in itertools.pairwise(_frames(error)):
        if frame.f_code in handlers or _was_given(frame, above):
            return above
    return None


def _handlers() -> Iterator[CodeType]:
    """The code of the signal handlers that are installed now."""
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while isinstance(handler, functools.partial):
            handler = handler.func
        function = handler if hasattr(handler, "__code__") else getattr(handler, "__call__", None)  # noqa: B004
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            yield code


def _was_given(frame: FrameType, above: FrameType) -> bool:
    """Whether a function was called with the frame in which it was called, as the interpreter calls handlers.

    This finds a signal handler that has put another one in its place before it raised. Trace functions are called so
    as well.
    """
    names, rest, _, values = inspect.getargvalues(frame)
    return any(values.get(name) is above for name in names) or any(
        given is above for given in values.get(rest or "", ())
    )
