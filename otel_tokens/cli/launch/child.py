"""Inside a Python process of `otel-tokens run`: meter it once it imports an SDK, and flush when it is terminated.

Not at start-up: a process that never imports an SDK (a build tool, a gunicorn master) pays nothing and takes no port,
and an application that sets up OpenTelemetry, or calls `instrument()` itself, before that import is respected.
"""

from __future__ import annotations

# Only what Python's own start-up has imported: every Python process of the run goes through here.
import _thread
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from otel_tokens.cli.launch import session as sessions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import FrameType, ModuleType

_FLUSH = 2.0  # seconds a terminated process may take

_lock = _thread.allocate_lock()
_held: list[object] = []  # what has to live as long as the process: the lock file of /metrics


def start() -> None:
    """Begin to wait for an SDK. Called by the bootstrap; never raises."""
    session = sessions.current()
    if session is None:
        return
    session.note("seen")
    try:
        sys.meta_path.insert(0, _Watcher(session))
        _flush_on_sigterm()
    except Exception as error:  # the program comes first
        session.note("failed", f"{type(error).__name__}: {error}")


class _Watcher:
    """A finder that finds nothing: the import system asks it first, so it sees an SDK just before its import."""

    def __init__(self, session: sessions.Session) -> None:
        self._session = session

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Starts the metering when `name` is an SDK's package."""
        if name in self._session.sdks:
            with _lock:  # another thread may be importing another SDK
                if self in sys.meta_path:
                    _meter(self._session)
                    sys.meta_path.remove(self)
        return None


def _meter(session: sessions.Session) -> None:
    from otel_tokens.errors import ConfigError

    try:
        _instrument(session)
    except ConfigError as error:
        # `run` has checked the settings, so they changed underway. Running on could mean running without a budget;
        # who prefers that sets on_config_error: ignore.
        session.note("failed", str(error))
        _say(str(error))
        os._exit(2)
    except Exception as error:
        session.note("failed", f"{type(error).__name__}: {error}")
        _say(f"calls of process {os.getpid()} are not counted: {type(error).__name__}: {error}")
    else:
        session.note("on")


def _instrument(session: sessions.Session) -> None:
    from otel_tokens import context
    from otel_tokens.instrument import instrument, runtime

    context.process_tags({**session.tags, session.tag: session.id})
    options: dict[str, Any] = {}
    if not _owns_metrics_port(session):
        options["prometheus"] = False
    if session.budget is not None:
        options["budgets"] = [_budget(session)]
    already = runtime() is not None
    instrument(**options)
    if already and session.budget is not None:
        _say("the program called instrument() itself: --budget is not applied, declare it there")


def _budget(session: sessions.Session) -> Any:
    from otel_tokens.guard.budget import Budget

    return Budget(session.tag, usd=session.budget, per=[session.tag])


def _owns_metrics_port(session: sessions.Session) -> bool:
    """Whether this process is the one of the run that may serve /metrics: the first that asks, while it lives."""
    try:
        import fcntl
    except ImportError:  # Windows: the port itself decides
        return True
    try:
        place = os.open(os.path.join(session.folder, "metrics.lock"), os.O_RDWR | os.O_CREAT, 0o600)  # noqa: PTH118
    except OSError:
        return True
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(place)
        return False
    _held.append(place)  # closed, and so given up, when the process ends or is replaced (exec)
    return True


def _say(message: str) -> None:
    try:
        sys.stderr.write(f"otel-tokens: {message}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # no stderr: pythonw, a daemon


def _flush_on_sigterm() -> None:
    """SIGTERM ends a Python process without `atexit`; then what OTLP still has queued would be lost.

    Only where nobody handles the signal. Servers that do (gunicorn, uvicorn) replace this handler; gunicorn's workers
    end by `sys.exit`, and so by `atexit`; uvicorn restores the handlers it found and raises the signal again, so this
    one runs then. Programs started with exec have the default again; forked children inherit the handler.
    """
    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminated)
    except ValueError:
        pass  # not the main thread: an embedded interpreter


def _terminated(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not cut the flush short
    try:
        _flush()
    finally:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # so that the parent sees a process ended by this signal


def _flush() -> None:
    instrument = sys.modules.get("otel_tokens.instrument")
    flush = getattr(instrument, "flush", None)
    if flush is None:
        return
    done = _thread.allocate_lock()
    done.acquire()

    def work() -> None:
        try:
            flush(_FLUSH)
        except Exception:
            pass  # the process is ending
        finally:
            done.release()

    # In a thread, because the interrupted code may hold a lock that the flush needs: then time runs out, and the
    # process ends all the same.
    try:
        _thread.start_new_thread(work, ())
    except RuntimeError:
        return
    done.acquire(timeout=_FLUSH)
