"""One daemon thread for work that must not run where it arose: in a finaliser, or in the caller's way.

Fork-safe: a child starts its own thread on its first job. `submit` may be called from a finaliser: it takes no
lock that ordinary code holds.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable

from otel_tokens.safely import safely

Job = Callable[[], object]


class Worker:
    """A queue of jobs and the thread that runs them, started when `ensure` or the first `submit` asks for it."""

    def __init__(self, name: str = "otel-tokens") -> None:
        self._name = name
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        # SimpleQueue.put is reentrant, so a finaliser that runs inside another put cannot deadlock.
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def ensure(self) -> None:
        """Start the thread, from ordinary code: a finaliser is no place to start one."""
        if self._thread is None and self._starting.acquire(blocking=False):
            try:
                if self._thread is None:
                    self._keep_up()
                    thread = threading.Thread(target=self._run, args=(self._jobs,), name=self._name, daemon=True)
                    thread.start()
                    self._thread = thread
            except RuntimeError:
                pass  # the interpreter is shutting down: flush() runs what is queued
            finally:
                self._starting.release()

    def _keep_up(self) -> None:
        """Take a queue of the kind that threads now have: gevent may have turned them into greenlets since.

        A greenlet that waits at a queue of threads would keep its whole thread waiting.
        """
        before = self._jobs
        if type(before) is queue.SimpleQueue:
            return
        self._jobs = queue.SimpleQueue()
        while not before.empty():
            self._jobs.put(before.get_nowait())

    def submit(self, job: Job) -> None:
        """Queue a job. Safe in finalisers."""
        self._jobs.put(job)

    def flush(self, timeout: float = 2.0) -> None:
        """Run what is queued, here, and wait for the job in progress, at most `timeout` seconds."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                safely("background job", job)
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            done = threading.Event()
            self._jobs.put(done.set)
            done.wait(max(0.0, end - time.monotonic()))

    @staticmethod
    def _run(jobs: queue.SimpleQueue[Job | None]) -> None:
        while True:
            job = jobs.get()
            if job is None:
                return
            safely("background job", job)
            del job  # a finished call must not live until the next job
