"""Python imports this at start-up because `otel-tokens run` puts its folder first on PYTHONPATH.

It waits for the program to import an SDK, and meters it then: a process that never does (a build tool, a gunicorn
master) pays next to nothing and takes no port, and an application that sets up OpenTelemetry, or calls
`instrument()` itself, before that import is respected.

It leaves nothing behind that the program could notice: its folder leaves `sys.path` (the variable stays, for Python
processes that this one starts), and a `sitecustomize` that it hides is run and takes its name.
"""

from __future__ import annotations

# Every Python process of a run pays for this file: it imports what the interpreter has loaded already or has built
# in, and nothing else (`signal` alone costs as much as all of this), least of all otel_tokens.
import _thread
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import FrameType, ModuleType
else:
    import _signal

VARIABLE = "OTEL_TOKENS_RUN"
SEPARATOR = "\x1f"
_HERE = os.path.realpath(os.path.dirname(__file__))  # noqa: PTH120
_lock = _thread.allocate_lock()


def _is_here(entry: str) -> bool:
    try:
        return bool(entry) and os.path.realpath(entry) == _HERE
    except (OSError, ValueError, TypeError):
        return False


def _find(name: str) -> ModuleSpec | None:
    """As importlib.util.find_spec, for a name without dots."""
    for finder in sys.meta_path:
        look = getattr(finder, "find_spec", None)  # finders of old have another method
        spec = look(name, None) if look is not None else None
        if spec is not None:
            return spec
    return None


def _chain() -> None:
    """Import the `sitecustomize` that would have run without us; its errors are its own, as without us."""
    if _find("sitecustomize") is None:
        return
    ours = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize  # noqa: F401  # pyright: ignore[reportUnusedImport]  (another one: this folder is not on the path any more)
    except BaseException:
        sys.modules["sitecustomize"] = ours  # the import system takes it away itself
        raise


def _start() -> None:
    """Begin to wait for an SDK; never raises."""
    sdks, _, rest = os.environ.get(VARIABLE, "").partition(SEPARATOR)
    folder = rest.partition(SEPARATOR)[0]
    if not folder:
        return
    try:
        if _find("otel_tokens") is None:  # a Python of another environment: the program runs on
            _note(folder, f"missing {sys.executable}")
            return
        _note(folder, "seen")
        watcher = _Watcher(frozenset(sdks.split(",")), folder)
        sys.meta_path.insert(0, watcher)
        _flush_on_sigterm()
        os.register_at_fork(after_in_child=watcher.forked)
    except Exception as error:  # the program comes first
        _note(folder, f"failed {type(error).__name__}: {error}")


def _note(folder: str, words: str) -> None:
    """Tell the run about this process, in a line: "seen", "on" (metered), "missing PYTHON" or "failed WHY"."""
    # One short write with O_APPEND: lines of different processes do not mix. The run may be over by now.
    try:
        place = os.open(f"{folder}/notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:
        return
    try:
        os.write(place, words.replace("\n", " ").encode(errors="replace") + b"\n")
    except OSError:
        pass
    finally:
        os.close(place)


class _Watcher:
    """A finder that finds nothing: the import system asks it first, so it sees an SDK just before its import."""

    def __init__(self, sdks: frozenset[str], folder: str) -> None:
        self._sdks = sdks
        self._folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Starts the metering when `name` is an SDK's package."""
        if name in self._sdks:
            with _lock:  # another thread may be importing another SDK
                if self in sys.meta_path:
                    self._meter()
                    sys.meta_path.remove(self)
        return None

    def forked(self) -> None:
        """A child that meters nothing yet ends by SIGTERM as without us: see the price that a handler has."""
        if self in sys.meta_path and _signal.getsignal(_signal.SIGTERM) is _terminated:
            _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)

    def _meter(self) -> None:
        _flush_on_sigterm()  # again, in a forked child
        try:
            from otel_tokens.cli.launch.child import meter  # only now: it takes a fifth of a second

            words = meter()
        except Exception as error:  # otel_tokens itself cannot be imported, whyever
            words = f"failed {type(error).__name__}: {error}"
        _note(self._folder, words)


def _flush_on_sigterm() -> None:
    """SIGTERM ends a Python process without `atexit`; then what OTLP still has queued would be lost.

    Only where nobody handles the signal. Servers that do (gunicorn, uvicorn) replace this handler; gunicorn's workers
    end by `sys.exit`, and so by `atexit`; uvicorn restores the handlers it found and raises the signal again, so this
    one runs then. Programs started with exec have the default again; forked children inherit the handler.

    The price, as of any handler in Python: it runs when the main thread next executes Python code. A signal that
    arrives in the instant before a blocking call waits for the end of that call, or for the next signal.
    """
    try:
        if _signal.getsignal(_signal.SIGTERM) == _signal.SIG_DFL:
            _signal.signal(_signal.SIGTERM, _terminated)
    except ValueError:
        pass  # not the main thread: an embedded interpreter


def _terminated(number: int, frame: FrameType | None) -> None:
    _signal.signal(number, _signal.SIG_IGN)  # a second one must not cut the flush short
    over = True
    try:
        finish = getattr(sys.modules.get("otel_tokens.exits"), "finish", None)
        if finish is not None:
            over = finish()  # False: the program is at its end by itself
    finally:
        if over:
            _signal.signal(number, _signal.SIG_DFL)
            os.kill(os.getpid(), number)  # so that the parent sees a process ended by this signal


sys.path[:] = [entry for entry in sys.path if not _is_here(entry)]
try:
    _chain()
finally:
    _start()
