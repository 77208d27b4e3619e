"""Runs the program of `otel-tokens run` as if it had been started directly: its signals, its terminal, its end.

The program shares our process group, terminal and open files. What is typed at the terminal (Ctrl-C) reaches it by
itself; signals that somebody sends to us are handed on to it; when a signal ends it, the same signal ends us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

_NAMES = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGTTIN", "SIGTTOU")
_FORWARDED = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_BY_KERNEL = 0x80  # si_code of a signal that no process sent: the terminal's
_TICK = 0.05  # seconds between two looks, where signals cannot be waited for with a time limit (macOS)

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit codes, as shells have them."""


class CannotStart(Exception):  # noqa: N818
    """The program could not be started; `code` is the exit code that says so."""

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        super().__init__(message)


def run(command: Sequence[str], env: Mapping[str, str], tick: Callable[[], float] = lambda: 3600.0) -> int:
    """Run `command` until it ends and return its wait status. Raises CannotStart.

    `tick` is called now and then; it returns after how many seconds it wants to be called again.
    """
    if not hasattr(os, "posix_spawnp"):
        return _run_plainly(command, env)
    # What was ignored (nohup, `cmd &` in a script) stays ignored, here and in the program, which inherits it.
    handed = {number for number in _FORWARDED if signal.getsignal(number) is not signal.SIG_IGN}
    waited = {*handed, signal.SIGCHLD}
    # Blocked before the start, so that no signal falls between the start and the waiting.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    try:
        pid = _spawn(command, env, mask)
        return _wait(pid, waited, tick)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def leave(status: int) -> NoReturn:
    """End this process as the program ended."""
    _flush_output()
    if not os.WIFSIGNALED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has dumped core, that's enough
    with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler to reset
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError, ValueError):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # process 1 of a container survives its own signals


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _spawn(command: Sequence[str], env: Mapping[str, str], mask: set[Any]) -> int:
    # Python ignores these two for itself; the program shall find what we found.
    restored = [getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)]
    try:
        return os.posix_spawnp(command[0], list(command), env, setsigmask=mask, setsigdef=restored)
    except FileNotFoundError:
        what = "no such file" if os.sep in command[0] else "command not found"
        raise CannotStart(f"{command[0]}: {what}", NOT_FOUND) from None
    except PermissionError:
        raise CannotStart(f"{command[0]}: cannot be executed", NOT_EXECUTABLE) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        if getattr(error, "errno", 0) == errno.ENOEXEC and command[0] != "/bin/sh":  # a script without #!, as shells do
            path = shutil.which(command[0]) or command[0]
            return _spawn(["/bin/sh", path, *command[1:]], env, mask)
        raise CannotStart(f"{command[0]}: {getattr(error, 'strerror', None) or error}", NOT_EXECUTABLE) from None


def _wait(pid: int, waited: set[signal.Signals], tick: Callable[[], float]) -> int:
    pause = 0.0
    while True:
        found = _next_signal(waited, pause)
        if found is not None:
            number, from_terminal = found
            if number != signal.SIGCHLD and not from_terminal:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        status = _reap(pid)
        if status is not None:
            return status
        pause = tick()


def _reap(pid: int) -> int | None:
    """The wait status of `pid` once it has ended; other children (as process 1 of a container) are just buried."""
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 0  # somebody made SIGCHLD ignored: nobody knows how it ended
        if ended == pid:
            return status
        if ended == 0:
            return None


def _next_signal(waited: set[signal.Signals], seconds: float) -> tuple[int, bool] | None:
    """The next of the signals and whether the terminal sent it; None after `seconds`."""
    if hasattr(signal, "sigtimedwait"):
        info = signal.sigtimedwait(waited, seconds)
        return None if info is None else (info.si_signo, info.si_code == _BY_KERNEL)
    end = time.monotonic() + min(seconds, _TICK)
    while True:
        for number in signal.sigpending() & waited:
            signal.sigwait({number})
            return number, number in (signal.SIGINT, signal.SIGQUIT) and _in_foreground()
        if time.monotonic() >= end:
            return None
        time.sleep(_TICK)


def _in_foreground() -> bool:
    for stream in (0, 1, 2):
        with contextlib.suppress(OSError):
            return os.tcgetpgrp(stream) == os.getpgrp()
    return False


def _run_plainly(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Windows: no signals to hand on, and exit codes only."""
    import subprocess

    try:
        return (subprocess.run(command, env=dict(env), check=False).returncode & 0xFF) << 8  # noqa: S603
    except OSError as error:
        raise CannotStart(f"{command[0]}: {error.strerror or error}", NOT_FOUND) from None
