"""Runs the actions of thresholds: log, event, callback, webhook, checkpoint. Slow actions run on their own thread."""

from __future__ import annotations

import asyncio
import heapq
import inspect
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from otel_tokens.guard.budgets import units
from otel_tokens.guard.budgets.thresholds import HOOKS, Action
from otel_tokens.guard.options import GuardOptions
from otel_tokens.guard.reporting.events import Emit, Event
from otel_tokens.safely import safely
from otel_tokens.text import shown_url

logger = logging.getLogger("otel_tokens")

CAPACITY = 1000
WEBHOOK_TIMEOUT = 5.0
WEBHOOK_TRIES = 4
_BACKOFF = 0.5


class Actions:
    """Does the telling actions; those that steer calls (downgrade, clamp, slow, pause) are the admission's."""

    def __init__(self, emit: Emit, options: GuardOptions) -> None:
        self._emit = emit
        self._hooks = options.hooks
        self._worker = Scheduler()

    def report(self, event: Event) -> None:
        """Hand an event to telemetry, here: it may concern the current span."""
        safely("guard.emit", self._emit, event)

    def do(self, action: Action, event: Event) -> None:
        """Do one action for `event`."""
        if action.kind == "log":
            logger.warning("%s", describe(event))
        elif action.kind == "event":
            self.report(event)
        elif action.kind == "webhook":
            self._post(action.url, event, 1)
        elif action.kind in HOOKS:
            hook = action.hook or self._hooks.get(action.kind)
            if hook is not None:
                self.call(hook, event)

    def call(self, hook: Callable[[Any], object], event: Event) -> None:
        """Run the application's function on the worker thread; a coroutine function gets a loop of its own."""

        def run() -> None:
            result = hook(event)
            if inspect.isawaitable(result):
                asyncio.run(_await(result))

        if not self._worker.add(0.0, f"guard hook {getattr(hook, '__name__', hook)}", run):
            logger.warning("too many actions are waiting: the hook for %s is skipped", describe(event))

    def _post(self, url: str, event: Event, attempt: int) -> None:
        def run() -> None:
            problem = post(url, event)
            if problem is None:
                return
            if attempt < WEBHOOK_TRIES:
                self._post(url, event, attempt + 1)
                return
            logger.warning("webhook %s failed %d times: %s", shown_url(url, path=False), WEBHOOK_TRIES, problem)
            self.report(Event("failed_action", event.budget, event.scope, event.unit, detail=f"webhook: {problem}"))

        delay = 0.0 if attempt == 1 else _BACKOFF * 2 ** (attempt - 2)
        if not self._worker.add(delay, "guard webhook", run):
            logger.warning("too many actions are waiting: the webhook for %s is skipped", describe(event))

    def flush(self, timeout: float) -> bool:
        """Wait for what is due now, at most `timeout` seconds; says whether nothing is left."""
        return self._worker.flush(timeout)

    def after_fork(self) -> None:
        """The parent does its own actions."""
        self._worker.after_fork()


class Scheduler:
    """A daemon thread that runs jobs when they are due, at most `CAPACITY` of them waiting."""

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """Begin empty, without a thread."""
        self._new_condition()
        self._jobs: list[tuple[float, int, str, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._busy = False

    def _new_condition(self) -> None:
        self._condition, self._kind = threading.Condition(), threading.RLock

    def add(self, delay: float, name: str, job: Callable[[], object]) -> bool:
        """Run `job` after `delay` seconds; False if too many wait already."""
        if self._thread is None and self._kind is not threading.RLock:
            self._new_condition()  # gevent has turned threads into greenlets since, which need locks of their own
        with self._condition:
            if len(self._jobs) >= CAPACITY:
                return False
            heapq.heappush(self._jobs, (time.monotonic() + delay, next(self._numbers), name, job))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="otel-tokens-actions", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:
                    self._thread = None  # the interpreter is shutting down
                    return False
            self._condition.notify_all()
        return True

    def flush(self, timeout: float) -> bool:
        """Wait until nothing waits or runs, at most `timeout` seconds."""
        end = time.monotonic() + timeout
        with self._condition:
            while self._jobs or self._busy:
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._condition.wait(left)
        return True

    def _run(self) -> None:
        condition = self._condition
        while True:
            with condition:
                while not self._jobs or self._jobs[0][0] > time.monotonic():
                    condition.wait(self._jobs[0][0] - time.monotonic() if self._jobs else None)
                _, _, name, job = heapq.heappop(self._jobs)
                self._busy = True
            _guarded(name, job)
            with condition:
                self._busy = False
                condition.notify_all()


def _guarded(name: str, job: Callable[[], object]) -> None:
    """Run the application's code: its errors are logged, for nobody waits for them."""
    try:
        job()
    except Exception:
        logger.exception("%s failed; your calls are not affected", name)


async def _await(result: Any) -> None:
    await result


def post(url: str, event: Event) -> str | None:
    """POST the event as JSON, once; returns what went wrong, or None."""
    # urllib is slow to import, and most processes never post.
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    body = json.dumps(event.to_dict()).encode()
    request = Request(url, body, {"Content-Type": "application/json", "User-Agent": "otel-tokens"})  # noqa: S310
    try:
        with urlopen(request, timeout=WEBHOOK_TIMEOUT) as answer:  # noqa: S310 (the user's own URL, http or https)
            answer.read(1024)
    except HTTPError as error:
        error.close()
        return f"HTTP {error.code}"
    except OSError as error:
        return str(error) or type(error).__name__
    except (HTTPException, ValueError) as error:  # their texts have the URL in them
        return type(error).__name__
    return None


def describe(event: Event) -> str:
    """The event in one line for people."""
    name = f"budget {event.budget!r}" + (f" ({event.scope})" if event.scope else "")
    amounts = f"{event.used} of {event.limit} {units.name(event.unit)}"
    if event.kind == "threshold":
        return f"{name}: {event.threshold} used: {amounts}"
    numbers = f": {amounts} used" if event.limit is not None else ""
    return f"{name}: {event.kind}{numbers}" + (f": {event.detail}" if event.detail else "")
