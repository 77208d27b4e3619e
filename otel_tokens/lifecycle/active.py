"""One call between its request and its end."""

from __future__ import annotations

import sys
import time
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

from otel_tokens.errors import BudgetExceededError
from otel_tokens.lifecycle.ending import Ending
from otel_tokens.lifecycle.engine import MAX_PARKED
from otel_tokens.lifecycle.sizes import sizes
from otel_tokens.lifecycle.state import CallState
from otel_tokens.safely import interruption, report_fault, safely
from otel_tokens.usage.read import dig, get
from otel_tokens.values import Outcome, Reservation

current: ContextVar[ActiveCall | None] = ContextVar("otel_tokens_call", default=None)
"""The call whose request is under way here: retries and the SDK's own span belong to it."""


class ActiveCall(CallState):
    """One call between its request and its end. Several parts may end it: the first one counts."""

    __slots__ = ()

    # ---- before -----------------------------------------------------------------------------------------------
    def admit(self) -> None:
        """Reserve budget for the call. Raises BudgetExceededError: then the call must not be sent."""
        guard = self.engine.guard
        if guard is None:
            return
        try:
            self.reservation = guard.admit(self.call, sizes(self))
        except BudgetExceededError as error:
            self.refuse(error)
            raise
        except Exception as error:
            self._unmeasured(error)
        self._take_reservation()

    async def aadmit(self) -> None:
        """`admit` for async callers."""
        guard = self.engine.guard
        if guard is None:
            return
        try:
            self.reservation = await guard.aadmit(self.call, sizes(self))
        except BudgetExceededError as error:
            self.refuse(error)
            raise
        except Exception as error:
            self._unmeasured(error)
        self._take_reservation()

    def _unmeasured(self, error: Exception) -> None:
        """Our own fault kept the guard from being asked. Raises BudgetExceededError where a budget may refuse."""
        report_fault("guard.admit", error)
        guard = self.engine.guard
        try:
            if guard is not None:
                guard.fault(self.call, error)
        except BudgetExceededError as refusal:
            self.refuse(refusal)
            raise

    def _take_reservation(self) -> None:
        reservation = self.reservation
        if reservation is not None:
            if reservation.model:
                self.call = replace(self.call, model=reservation.model, asked_model=self.call.model)
            self._look_next(reservation)

    def _look_next(self, reservation: Reservation) -> None:
        """Set how much text may arrive before the guard looks at the stream."""
        at = reservation.look_at
        self.cut_at = None if at is None else self.engine.estimator.text_bytes(self.call.model, "output", at)
        self.cut_chunks = at or 0

    def refuse(self, error: BudgetExceededError) -> None:
        """End a call that the guard refused: an event on the current span, no record."""
        self.ended = True
        safely("spans.refused", self.engine.spans.refused, error, self.call)
        error.__traceback__ = None  # the caller sees its own frame and the SDK's, not the guard's inner ones

    def enter(self, foreign: Any = None, *, native: bool = False) -> None:
        """Make this the current call. Start its span, unless another instrumentation has started one (`foreign`).

        `native`: the SDK will start a span of its own, which is adopted then.
        """
        self._outer_call = current.get()
        current.set(self)
        if foreign is not None:
            self.adopt(foreign)
        elif not native:
            self.open_span()

    def open_span(self) -> None:
        """Start a span of our own. It is the current span until `leave`."""
        safely("spans.start", self._open_span)

    def _open_span(self) -> None:
        spans = self.engine.spans
        self.span = spans.start(self.call)
        self._outer_context = spans.context()
        spans.attach(self.span)

    def adopt(self, span: Any) -> None:
        """Write on a span of another instrumentation instead of one of our own."""
        self.span, self.own_span = span, False

    def leave(self) -> None:
        """Undo `enter`; the span stays open until the call ends. A second time it does nothing.

        It does nothing in another context either: a coroutine that the garbage collector closes has lost its own.
        """
        if current.get() is self:
            if self._outer_context is not None:
                safely("spans.restore", self.engine.spans.restore, self._outer_context)
            current.set(self._outer_call)

    # ---- while it runs ----------------------------------------------------------------------------------------
    def see(self, payload: Any) -> None:
        """Read a whole response."""
        safely("read", self.facts.read_whole, payload)

    def see_chunk(self, chunk: Any) -> bool:
        """Read a stream chunk; return whether to hide it from the caller. (`capture.stream` reads parsed chunks.)"""
        if self.first is None:
            self.first = time.perf_counter()
        safely("read chunk", self.read_chunk, self.facts, chunk)
        return self.facts.complete and self.hides(chunk)

    def hides(self, chunk: Any) -> bool:
        """Whether a chunk has usage and nothing else, and came only because we asked for it."""
        if not self.hide_usage or getattr(chunk, "choices", True):
            return False
        self.engine.usage_option.add((self.call.server_address, self.call.server_port))
        return True

    def seen_last(self, chunk: Any) -> None:
        """End the call with the last event of a stream if the span is not ours: its owner ends it with that event."""
        if not self.own_span and get(chunk, "type") in self.endpoint.last:
            self.end("ok")

    def over(self) -> BudgetExceededError | None:
        """The error to cut this stream with, if the guard wants it cut now. Far from the limit: one comparison."""
        facts = self.facts
        # A chunk is one token at least: scripts with several tokens for a character would pass the limit on bytes.
        if self.cut_at is None or (facts.text_bytes < self.cut_at and facts.chunks < self.cut_chunks):
            return None
        if facts.complete:
            return None  # billed already: a cut saves nothing
        guard, reservation = self.engine.guard, self.reservation
        if guard is None or reservation is None:
            return None
        tokens = max(facts.chunks, self.engine.estimator.tokens(self.call.model, "output", facts.text_bytes))
        error = safely("guard.look", guard.look, reservation, tokens)
        if error is None:
            self._look_next(reservation)
        return error

    # ---- calls that run on at the provider ----------------------------------------------------------------------
    def park(self) -> bool:
        """Keep this call until a poll finds its answer. Returns False for a call that is complete."""
        facts, endpoint, parked = self.facts, self.endpoint, self.engine.parked
        if facts.id is None or not endpoint.pending.intersection(facts.finish):
            return False
        parked[facts.id] = self
        while len(parked) > MAX_PARKED:
            parked.pop(next(iter(parked))).end("ok")
        return True

    def polled(self, payload: Any) -> None:
        """Read what a poll found. Ends the call unless the answer is still pending."""
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
        """End with an exception. Some carry a billed response (a parse that failed on a cut answer)."""
        if isinstance(error, GeneratorExit):
            self.drop("cancelled", error)  # a coroutine that is closed, perhaps by the garbage collector
            return
        billed = getattr(error, "completion", None)
        if billed is not None and not self.facts.complete and dig(billed, self.endpoint.at[0]) is not None:
            self.see(billed)
        # asyncio, trio and Ctrl-C raise what is no Exception: the provider may go on working, and bill.
        failed = isinstance(error, Exception) and interruption(error) is None
        self.end("error" if failed else "cancelled", error)

    def drop(self, outcome: Outcome = "abandoned", error: BaseException | None = None) -> None:
        """End from a finaliser, which may run while this thread holds any lock: the worker does it."""
        if not self.ended and not self.dropped:
            self.engine.worker.submit(partial(self.end, outcome, error, time.perf_counter()))
            self.dropped = True

    def end(self, outcome: Outcome, error: BaseException | None = None, finished: float | None = None) -> None:
        """End the call at `finished` (`perf_counter`; None: now). Only the first end counts.

        A call that was not sent leaves no record. Whatever is raised in between, by a signal handler of the program for
        instance, the worker does the rest.
        """
        ending: Ending | None = None
        try:
            if not self.ended:
                ending = Ending(self, outcome, error, finished or time.perf_counter())
                self.ended = True
                safely("end", ending)
        except BaseException:
            if ending is not None:
                self.ended = ending.resumed = True
                self.engine.worker.submit(ending)
                self.engine.worker.ensure()
            raise

    def __del__(self) -> None:
        """End a call whose response was dropped unread."""
        if not getattr(self, "ended", True) and not sys.is_finalizing():
            self.drop()
