"""The ways a process ends, and what has to happen before each of them.

`atexit` serves a program that runs to its end. Three ways pass it by: children of `multiprocessing` leave by
os._exit; its daemonic children (a `Pool`'s workers) it ends by SIGTERM; and uvicorn raises the signal that stopped
it once more, under the handler that was there before.
"""

from __future__ import annotations

import atexit
import functools
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from otel_tokens.capture.watch import when_imported

Step = Callable[[], object]


class Steps(NamedTuple):
    """What to do, none of it raising: at Python's own end, at one that passes that by, and where one is near."""

    at_exit: Step
    otherwise: Step
    flush: Step


_steps: Steps | None = None
_ending = 0  # the process in which a last step is being taken


def before_exit(steps: Steps) -> None:
    """Have these steps taken in this process and its forked children. Only the first call counts."""
    global _steps
    if _steps is not None:
        return
    _steps = steps
    atexit.register(_end, steps.at_exit)
    when_imported("multiprocessing.process", _watch_multiprocessing)
    when_imported("uvicorn.server", _watch_uvicorn)


def _end(step: Step) -> None:
    global _ending
    _ending = os.getpid()
    try:
        step()
    finally:
        _ending = 0


def finish(limit: float = 2.0) -> bool:
    """Do what is to be done before an end, in at most `limit` seconds: for the handler of a signal.

    On a thread, because the interrupted code may hold a lock that is needed for it: then time runs out. False when
    the interrupted code is doing just that: the handler has to return and leave the end to it.
    """
    if _steps is None:
        return True
    if _ending == os.getpid():
        return False
    thread = threading.Thread(target=_steps.otherwise, name="otel-tokens-end", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # too late for threads
        return True
    thread.join(limit)
    return True


# ---- multiprocessing
def _watch_multiprocessing(process: Any) -> None:
    bootstrap = process.BaseProcess._bootstrap

    @functools.wraps(bootstrap)
    def watched(child: Any, *args: Any, **kwargs: Any) -> Any:
        _child_begins(child)
        try:
            return bootstrap(child, *args, **kwargs)
        finally:
            if _steps is not None:
                _end(_steps.otherwise)

    process.BaseProcess._bootstrap = watched
    if process.parent_process() is not None and _steps is not None:  # too late: this child has begun
        from multiprocessing.util import Finalize  # loaded with `process`

        _child_begins(process.current_process())
        Finalize(None, _end, (_steps.otherwise,), exitpriority=0)


def _child_begins(child: Any) -> None:
    """Daemonic children are ended by SIGTERM as a matter of course; the others keep the default."""
    in_main = threading.current_thread() is threading.main_thread()
    if child.daemon and in_main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)


def _terminated(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not cut this short
    over = True
    try:
        over = finish()
    finally:
        if over:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)  # so that the parent sees a process ended by this signal


# ---- uvicorn
def _watch_uvicorn(server: Any) -> None:
    shutdown = server.Server.shutdown

    @functools.wraps(shutdown)
    async def watched(*args: Any, **kwargs: Any) -> Any:
        try:
            return await shutdown(*args, **kwargs)
        finally:
            if _steps is not None:
                _steps.flush()

    server.Server.shutdown = watched
