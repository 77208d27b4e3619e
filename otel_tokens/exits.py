"""Hands over what is pending before the process ends, in each of the ways in which it can end.

`atexit` covers a program that runs to its end. Three ways do not run it: os._exit, which ends forked children (RQ jobs,
Celery workers, `multiprocessing`); SIGTERM, with which `multiprocessing` ends daemonic children (workers of a `Pool`);
and uvicorn, which raises the signal that stopped it again, with the handler that was there before.
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

from otel_tokens.capture.watch import forget_import, when_imported

Step = Callable[[], object]


class Steps(NamedTuple):
    """What to do before an end. No step raises.

    `at_exit`: at an end that runs `atexit`. `otherwise`: at an end that does not. `flush`: when an end is near.
    `counted` returns whether this process has made calls; without calls os._exit does nothing more. `limit` returns
    the seconds that a step may take.
    """

    at_exit: Step
    otherwise: Step
    flush: Step
    counted: Callable[[], bool]
    limit: Callable[[], float]


_steps: Steps | None = None
_ending = 0  # the process that runs its last step now
_ended = 0  # the process that has run its last step
_undo: list[Step] = []


def before_exit(steps: Steps) -> None:
    """Run these steps in this process and its forked children. Until `forget_steps` only the first call counts."""
    global _steps
    if _steps is not None:
        return
    _steps = steps
    atexit.register(_end, steps.at_exit)
    _watch_os_exit()
    for module, watch in _WATCHED:
        when_imported(module, watch)


def forget_steps() -> None:
    """Undo `before_exit`, and put back the functions that it wrapped.

    A wrapper that somebody else has wrapped since stays, and does nothing. Handlers of SIGTERM in children of
    `multiprocessing` stay.
    """
    global _steps
    _steps = None
    atexit.unregister(_end)
    for module, watch in _WATCHED:
        forget_import(module, watch)
    while _undo:
        _undo.pop()()


def _wrap(owner: Any, name: str, wrapper: Any) -> None:
    """Set `owner.name` to `wrapper` until `forget_steps`."""
    original = getattr(owner, name)
    setattr(owner, name, wrapper)

    def undo() -> None:
        if getattr(owner, name, None) is wrapper:
            setattr(owner, name, original)

    _undo.append(undo)


def _end(step: Step) -> None:
    global _ending, _ended
    _ending = os.getpid()
    try:
        step()
    finally:
        _ending, _ended = 0, os.getpid()


def finish() -> bool:
    """Run the step for an end that does not run `atexit`. For handlers of signals.

    It runs on a thread and has a time limit, because the interrupted code may hold a lock that the step needs. Returns
    False when the interrupted code is running its last step already: then the handler must return.
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

    _wrap(os, "_exit", watched)


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

    _wrap(process.BaseProcess, "_bootstrap", watched)
    if process.parent_process() is not None and _steps is not None:  # too late: this child has begun
        from multiprocessing.util import Finalize  # loaded with `process`

        _child_begins(process.current_process())
        Finalize(None, _end, (_steps.otherwise,), exitpriority=0)


def _child_begins(child: Any) -> None:
    """Handle SIGTERM in daemonic children, which `multiprocessing` ends with it. Others keep the default."""
    if not child.daemon or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    if getattr(signal.getsignal(signal.SIGTERM), "__name__", "") == _terminated.__name__:  # that of a run, or ours
        _repeat_until_handled()


def _repeat_until_handled() -> None:
    """Repeat SIGTERM from a thread until its handler has run.

    Python runs handlers between bytecodes. A signal just before a blocking call would wait for the end of that call,
    and the parent, which joins the child, would wait as well.
    """
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

    _wrap(server.Server, "shutdown", watched)


_WATCHED = (("multiprocessing.process", _watch_multiprocessing), ("uvicorn.server", _watch_uvicorn))
