"""One call between its request and its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from otel_tokens.errors import BudgetExceededError
from otel_tokens.lifecycle.ending import Ending
from otel_tokens.lifecycle.engine import MAX_PARKED, Engine
from otel_tokens.lifecycle.sizes import sizes
from otel_tokens.providers.spec import Endpoint
from otel_tokens.safely import safely
from otel_tokens.usage.read import Facts, dig, get, glance, length
from otel_tokens.usage.size import Size
from otel_tokens.values import Call, Outcome, Reservation

current: ContextVar[ActiveCall | None] = ContextVar("otel_tokens_call", default=None)
"""The call whose request is under way here: retries and the SDK's own span belong to it."""


class ActiveCall:
    """One call between its request and its end. Ends exactly once, whoever ends it first.

    `idle` is true while a stream waits for its consumer: a close that comes then is the consumer's own.
    """

    __slots__ = (
        "__weakref__",
        "_attached",
        "_token",
        "attempts",
        "body",
        "call",
        "cut_at",
        "cut_chunks",
        "ended",
        "endpoint",
        "engine",
        "facts",
        "first",
        "glance",
        "hide_usage",
        "idle",
        "lease",
        "own_span",
        "parsed",
        "reason",
        "size",
        "span",
        "started",
    )

    def __init__(self, engine: Engine, call: Call, endpoint: Endpoint, body: Mapping[str, Any]) -> None:
        self.ended = False
        self.engine = engine
        self.call = call
        self.endpoint = endpoint
        self.body: Mapping[str, Any] | None = body
        self.facts = Facts(endpoint)
        self.facts.measured = engine.estimator.wants(call.model)
        self.glance = glance(endpoint)
        self.lease: Reservation | None = None
        self.span: Any = None
        self.own_span = True
        self._attached: Any = None
        self.attempts = 1
        self.parsed = False
        self.size: Size | None = None
        self.idle = False
        self.hide_usage = False
        self.first: float | None = None
        self.cut_at: int | None = None
        self.cut_chunks = 0
        self.reason: str | None = None
        self._token: Any = None
        self.started = time.perf_counter()

    # ---- before -----------------------------------------------------------------------------------------------
    def input_bytes(self) -> int:
        """The bytes of text in the request."""
        body = self.body
        return 0 if body is None else sum(length(body.get(key)) for key in self.endpoint.input)

    def admit(self) -> None:
        """Ask the guard; raises BudgetExceededError, and then nothing is sent."""
        guard = self.engine.guard
        if guard is None:
            return
        try:
            self.lease = safely("guard.admit", guard.admit, self.call, sizes(self))
        except BudgetExceededError as error:
            self.refuse(error)
            error.__traceback__ = None  # the caller's line and ours, not the guard's inner ones
            raise
        except BaseException:  # interrupted while waiting for budget: nothing was sent
            self.ended = True
            raise
        self._take_lease()

    async def aadmit(self) -> None:
        """`admit` for async callers."""
        guard = self.engine.guard
        if guard is None:
            return
        try:
            self.lease = await guard.aadmit(self.call, sizes(self))
        except BudgetExceededError as error:
            self.refuse(error)
            error.__traceback__ = None  # the caller's line and ours, not the guard's inner ones
            raise
        except Exception as error:  # the wall, which has no async form
            safely("guard.admit", _reraise, error)
        except BaseException:  # cancelled while waiting for budget: nothing was sent
            self.ended = True
            raise
        self._take_lease()

    def _take_lease(self) -> None:
        lease = self.lease
        if lease is not None:
            if lease.model:
                self.call = replace(self.call, model=lease.model, asked_model=self.call.model)
            self._look_next(lease)

    def _look_next(self, lease: Reservation) -> None:
        """Set how much text may arrive before the guard wants to look at the stream."""
        at = lease.look_at
        self.cut_at = None if at is None else self.engine.estimator.text_bytes(self.call.model, "output", at)
        self.cut_chunks = at or 0

    def refuse(self, error: BudgetExceededError) -> None:
        """Note a refusal: no span, no record, nothing was sent."""
        self.ended = True
        safely("spans.refused", self.engine.spans.refused, error, self.call)

    def enter(self, foreign: Any = None, *, native: bool = False) -> None:
        """Make this the current call and open its span, unless another instrumentation's `foreign` one is open.

        `native`: the SDK is about to open a span of its own, which will be adopted.
        """
        self._token = current.set(self)
        if foreign is not None:
            self.adopt(foreign)
        elif not native:
            self.open_span()

    def open_span(self) -> None:
        """Start a span of our own, and make it current until `leave`."""
        safely("spans.start", self._open_span)

    def _open_span(self) -> None:
        spans = self.engine.spans
        self.span = spans.start(self.call)
        self._attached = spans.attach(self.span)

    def adopt(self, span: Any) -> None:
        """Write on a span of another instrumentation instead of one of our own."""
        self.span, self.own_span = span, False

    def leave(self) -> None:
        """Undo `enter` in the same context; the span stays open until the call ends."""
        attached, self._attached = self._attached, None
        try:
            current.reset(self._token)
        except ValueError:
            return  # a coroutine that is closed by the collector: its context is gone, and all that was set in it
        if attached is not None:
            safely("spans.detach", self.engine.spans.detach, attached)

    # ---- while it runs ----------------------------------------------------------------------------------------
    def see(self, payload: Any) -> None:
        """Take a whole response."""
        safely("read", self.facts.read_whole, payload)

    def see_chunk(self, chunk: Any) -> bool:
        """Take a stream chunk; say whether to hide it from the caller. (Parsed chunks: `capture.stream`, inline.)"""
        if self.first is None:
            self.first = time.perf_counter()
        safely("read chunk", self.glance, self.facts, chunk)
        return self.facts.complete and self.hides(chunk)

    def hides(self, chunk: Any) -> bool:
        """Whether a chunk is the one with usage and nothing else, which the caller did not ask for."""
        return self.hide_usage and not getattr(chunk, "choices", True)

    def seen_last(self, chunk: Any) -> None:
        """End with a stream's last event if the span is others': they end it with that event, before the stream."""
        if not self.own_span and get(chunk, "type") in self.endpoint.last:
            self.end("ok")

    def over(self) -> BudgetExceededError | None:
        """Whether the guard wants this stream cut now; one comparison while far from the limit."""
        facts = self.facts
        # A chunk is a token at least: scripts that take several tokens for a character would pass unseen.
        if self.cut_at is None or (facts.text_bytes < self.cut_at and facts.chunks < self.cut_chunks):
            return None
        if facts.complete:
            return None  # billed already: a cut would save nothing
        guard, lease = self.engine.guard, self.lease
        if guard is None or lease is None:
            return None
        tokens = max(facts.chunks, self.engine.estimator.tokens(self.call.model, "output", facts.text_bytes))
        error = safely("guard.look", guard.look, lease, tokens)
        if error is None:
            self._look_next(lease)
        return error

    # ---- calls that run on at the provider ----------------------------------------------------------------------
    def park(self) -> bool:
        """Keep this call until a poll finds its answer, if it is one that runs on; says whether it is."""
        facts, endpoint, parked = self.facts, self.endpoint, self.engine.parked
        if facts.id is None or not endpoint.pending.intersection(facts.finish):
            return False
        parked[facts.id] = self
        while len(parked) > MAX_PARKED:
            parked.pop(next(iter(parked))).end("ok")
        return True

    def polled(self, payload: Any) -> None:
        """Take what a poll found: the end, unless it is pending still."""
        if payload is None:
            return
        self.see(payload)
        if not self.endpoint.pending.intersection(self.facts.finish):
            self.unpark()
            self.end("ok")

    def unpark(self) -> None:
        """Stop waiting for polls."""
        if self.facts.id is not None:
            self.engine.parked.pop(self.facts.id, None)

    # ---- the end ----------------------------------------------------------------------------------------------
    def fail(self, error: BaseException) -> None:
        """End with an exception; some carry a billed response (a parse that failed on a cut answer)."""
        if isinstance(error, GeneratorExit):
            self.drop("cancelled", error)  # a coroutine that is closed, maybe by the collector
            return
        for name in ("completion", "response"):
            billed = getattr(error, name, None)
            if billed is not None and dig(billed, self.endpoint.at[0]) is not None:
                self.see(billed)
                break
        # Whatever interrupts the caller (asyncio, trio, Ctrl-C) is no Exception: the provider may work on and bill.
        self.end("error" if isinstance(error, Exception) else "cancelled", error)

    def drop(self, outcome: Outcome = "abandoned", error: BaseException | None = None) -> None:
        """End from a finaliser: the work is done elsewhere, as this code may run inside anybody's lock."""
        if not self.ended:
            self.ended = True
            self.engine.worker.submit(Ending(self, outcome, error, time.perf_counter()))

    def end(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """End the call; only the first end counts."""
        if not self.ended:
            self.ended = True
            safely("end", Ending(self, outcome, error, time.perf_counter()))

    def __del__(self) -> None:
        """A call whose response was dropped unread."""
        if not self.ended and not sys.is_finalizing():
            self.drop()


def _reraise(error: BaseException) -> None:
    raise error
