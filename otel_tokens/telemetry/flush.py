"""A flush that is bounded, whatever the collector at the other end does.

`force_flush` of the OpenTelemetry SDK may wait for tens of seconds on a collector that does not answer, its
timeout notwithstanding. So it runs on threads of ours. They are started beforehand: while an interpreter shuts
down, when a flush is needed most, Python 3.12 and later start no more threads.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from otel_tokens.safely import logger

Job = Callable[[], object]


class Flusher:
    """A waiting daemon thread that flushes one provider on demand."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self.start()
        _flushers.add(self)

    def start(self) -> None:
        """Start the thread; again in a forked child, which has no threads but its first."""
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        with contextlib.suppress(RuntimeError):  # too late for threads: then a flush is not done, and says so
            threading.Thread(target=_run, args=(self._jobs,), name="otel-tokens-flush", daemon=True).start()

    def order(self, timeout: float) -> threading.Event:
        """Ask for a flush; the event is set when it has succeeded."""
        done = threading.Event()

        def job() -> None:
            if self._provider.force_flush(timeout_millis=max(1, int(timeout * 1000))) is not False:
                done.set()

        self._jobs.put(job)
        return done

    def stop(self, *, shutdown: bool = True) -> None:
        """End the thread after what was ordered, and by default the provider with it; returns at once."""
        if shutdown:
            self._jobs.put(self._provider.shutdown)
        self._jobs.put(None)
        _flushers.discard(self)


def _run(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        try:
            job()
        except Exception as error:  # a collector that is down is no fault of ours
            logger.debug("flush failed: %s", error)


def flush(flushers: Iterable[Flusher], timeout: float = 2.0) -> bool:
    """Flush all at once, in at most `timeout` seconds altogether. False if any did not make it."""
    end = time.monotonic() + timeout
    pending = [flusher.order(timeout) for flusher in flushers]
    # A list: every one is waited for, also after one that failed.
    return all([event.wait(max(0.0, end - time.monotonic())) for event in pending])  # noqa: C419


def flush_providers(providers: Iterable[Any], timeout: float = 2.0) -> bool:
    """Flush providers that are not ours (those without `force_flush` are left out), in at most `timeout` seconds."""
    flushers = [Flusher(provider) for provider in providers if hasattr(provider, "force_flush")]
    done = flush(flushers, timeout)
    for flusher in flushers:
        flusher.stop(shutdown=False)
    return done


_flushers: weakref.WeakSet[Flusher] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for flusher in list(_flushers):
        flusher.start()


os.register_at_fork(after_in_child=_after_fork_in_child)
