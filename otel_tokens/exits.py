"""The ways a process ends, and what has to happen before each of them.

`atexit` serves a program that runs to its end. Three ways pass it by: os._exit, by which forked children leave (RQ's
jobs, Celery's workers, those of `multiprocessing`); SIGTERM, by which `multiprocessing` ends its daemonic children (a
`Pool`'s workers); and uvicorn raises the signal that stopped it once more, under the handler that was there before.
"""

from __future__ import annotations

import atexit
import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from otel_tokens.capture.watch import when_imported

Step = Callable[[], object]


class Steps(NamedTuple):
    """What to do, none of it raising: at Python's own end, at one that passes that by, and where one is near.

    `counted` says whether this process has made calls: without any, os._exit is as quick as ever. `limit` gives the
    seconds that the step of an end may take.
    """

    at_exit: Step
    otherwise: Step
    flush: Step
    counted: Callable[[], bool]
    limit: Callable[[], float]


_steps: Steps | None = None
_ending = 0  # the process in which a last step is being taken
_ended = 0  # and the one in which it has been taken


def before_exit(steps: Steps) -> None:
    """Have these steps taken in this process and its forked children. Only the first call counts."""
    global _steps
    if _steps is not None:
        return
    _steps = steps
    atexit.register(_end, steps.at_exit)
    _watch_os_exit()
    when_imported("multiprocessing.process", _watch_multiprocessing)
    when_imported("uvicorn.server", _watch_uvicorn)


def _end(step: Step) -> None:
    global _ending, _ended
    _ending = os.getpid()
    try:
        step()
    finally:
        _ending, _ended = 0, os.getpid()


def finish() -> bool:
    """Do what is to be done before an end, in the time there is for it: for the handler of a signal.

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
    thread.join(_steps.limit())
    return True


# ---- os._exit
def _watch_os_exit() -> None:
    leave = os._exit

    @functools.wraps(leave)
    def watched(status: int) -> NoReturn:
        try:
            if _steps is not None and _ended != os.getpid() and _steps.counted():
                finish()
        finally:
            leave(status)

    os._exit = watched


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
    if not child.daemon or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    if getattr(signal.getsignal(signal.SIGTERM), "__name__", "") == _terminated.__name__:  # that of a run, or ours
        _mind_sigterm()


def _mind_sigterm() -> None:
    """Python runs a handler between two steps of its own: a signal in the instant before a blocking call waits for
    the end of that call, and whoever joins the child would wait for ever. A thread says it again until it is heard."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    taken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    if taken != -1:  # the application's own, or that of its event loop
        signal.set_wakeup_fd(taken)
        os.close(reader)
        os.close(writer)
        return
    os.register_at_fork(after_in_child=_leave_wakeup)  # or signals of the child's children would be taken for its own
    threading.Thread(target=_repeat_sigterm, args=(reader,), name="otel-tokens-sigterm", daemon=True).start()


def _repeat_sigterm(reader: int) -> None:
    main, handler = threading.main_thread().ident or 0, signal.getsignal(signal.SIGTERM)
    while signal.SIGTERM not in os.read(reader, 64):
        continue
    while signal.getsignal(signal.SIGTERM) is handler:  # it ignores the signal as soon as it runs
        time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGTERM)


def _leave_wakeup() -> None:
    signal.set_wakeup_fd(-1)


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
