"""The story of one call, written once for sync and async: the only module that knows the order of the rooms.

open → (guard.admit) → the SDK runs → see each response or chunk → end: normalise, price, record, sinks, settle.
The capture room drives it; everything with state is injected by the composition root.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from otel_tokens.background import Worker
from otel_tokens.errors import BudgetExceededError
from otel_tokens.providers.spec import Endpoint
from otel_tokens.safely import safely
from otel_tokens.usage.estimate import Estimator
from otel_tokens.usage.normalise import normalise
from otel_tokens.usage.read import Facts, dig, glance, length
from otel_tokens.values import UNPRICED, Call, CallSizes, Cost, Lease, Outcome, Record, Usage

Sink = Callable[[Record], object]
"""Takes each record once it is complete. Sinks run in order, each behind the wall."""


class Price(Protocol):
    """Prices usage; `at` is unix time in seconds."""

    def __call__(
        self,
        provider: str,
        model: str,
        usage: Usage,
        *,
        response_model: str | None = None,
        tier: str | None = None,
        speed: str | None = None,
        geo: str | None = None,
        at: float,
        operation: str = "chat",
    ) -> Cost:
        """The cost of `usage`."""
        ...


class SpanRoom(Protocol):
    """Spans of calls: the telemetry room."""

    def start(self, call: Call) -> Any:
        """A started span."""
        ...

    def finish(self, span: Any, record: Record, *, end: bool = True, error: BaseException | None = None) -> None:
        """Set what the record says, and end the span."""
        ...

    def annotate(self, span: Any, record: Record) -> None:
        """Add our attributes to another instrumentation's span."""
        ...

    def attach(self, span: Any) -> Any:
        """Make the span current; returns a token."""
        ...

    def detach(self, token: Any) -> None:
        """Undo `attach`."""
        ...

    def ids(self, span: Any) -> tuple[str | None, str | None]:
        """Trace id and span id in hex."""
        ...

    def refused(self, error: BudgetExceededError, call: Call) -> None:
        """Note on the current span that a call was refused."""
        ...


class GuardRoom(Protocol):
    """Budgets: admit before, look at chunks, settle after."""

    def admit(self, call: Call, sizes: CallSizes) -> Lease | None:
        """Reserve, or raise BudgetExceededError."""
        ...

    async def aadmit(self, call: Call, sizes: CallSizes) -> Lease | None:
        """The same without blocking the loop."""
        ...

    def look(self, lease: Lease, output_tokens: int) -> BudgetExceededError | None:
        """Whether a stream that has produced so many tokens must be cut."""
        ...

    def settle(self, lease: Lease, record: Record) -> None:
        """Replace the reservation by what the call did cost."""
        ...

    def release(self, lease: Lease) -> None:
        """Give the reservation back: nothing was billed."""
        ...


@dataclass(slots=True)
class Engine:
    """What every call needs, built once by the composition root."""

    price: Price
    spans: SpanRoom
    sinks: tuple[tuple[str, Sink], ...]
    estimator: Estimator = field(default_factory=Estimator)
    worker: Worker = field(default_factory=Worker)
    guard: GuardRoom | None = None
    cut_cleanly: bool = False
    foreign: str = "coexist"
    no_usage_option: set[tuple[str | None, int | None]] = field(default_factory=set[tuple[str | None, int | None]])


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
        self.glance = glance(endpoint)
        self.lease: Lease | None = None
        self.span: Any = None
        self.own_span = True
        self._attached: Any = None
        self.attempts = 1
        self.parsed = False
        self.idle = False
        self.hide_usage = False
        self.first: float | None = None
        self.cut_at: int | None = None
        self.reason: str | None = None
        self._token: Any = None
        self.started = time.perf_counter()

    # ---- before -----------------------------------------------------------------------------------------------
    def sizes(self) -> CallSizes:
        """What the guard may know of the request: lengths and bounds, no content."""
        body, call, estimator = self.body or {}, self.call, self.engine.estimator
        chars = self.input_chars()
        expected = estimator.tokens(call.model, "input", chars)
        thinking = next((v for path in self.endpoint.thinking if isinstance(v := dig(body, path), int)), 0)
        return CallSizes(
            input_tokens_estimate=expected,
            # Before the first report of a model, half as many tokens as characters: dense code and CJK stay below.
            input_upper=round(expected * 1.25) + 16 if estimator.calibrated(call.model) else chars // 2 + 64,
            output_bound=call.max_output,
            thinking=thinking,
            choices=call.choices,
        )

    def input_chars(self) -> int:
        """The characters of text in the request."""
        body = self.body
        return 0 if body is None else sum(length(body.get(key)) for key in self.endpoint.input)

    def admit(self) -> None:
        """Ask the guard; raises BudgetExceededError, and then nothing is sent."""
        guard = self.engine.guard
        if guard is None:
            return
        try:
            self.lease = safely("guard.admit", guard.admit, self.call, self.sizes())
        except BudgetExceededError as error:
            self.refuse(error)
            raise

    async def aadmit(self) -> None:
        """`admit` for async callers."""
        guard = self.engine.guard
        if guard is None:
            return
        try:
            self.lease = await guard.aadmit(self.call, self.sizes())
        except BudgetExceededError as error:
            self.refuse(error)
            raise
        except Exception as error:  # the wall, which has no async form
            safely("guard.admit", _reraise, error)

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
        current.reset(self._token)
        if self._attached is not None:
            safely("spans.detach", self.engine.spans.detach, self._attached)
            self._attached = None

    # ---- while it runs ----------------------------------------------------------------------------------------
    def see(self, payload: Any) -> None:
        """Take a whole response."""
        safely("read", self.facts.read_whole, payload)

    def see_chunk(self, chunk: Any) -> bool:
        """Take a stream chunk; say whether to hide it from the caller, who did not ask for it."""
        facts = self.facts
        if self.first is None:
            self.first = time.perf_counter()
        try:
            self.glance(facts, chunk)
        except Exception as error:  # the wall, inline: this runs for every chunk
            safely("read chunk", _reraise, error)
        return self.hide_usage and facts.complete and not getattr(chunk, "choices", True)

    def over(self) -> BudgetExceededError | None:
        """Whether the guard wants this stream cut now; one comparison while far from the limit."""
        if self.cut_at is None or self.facts.chars < self.cut_at:
            return None
        guard, lease = self.engine.guard, self.lease
        if guard is None or lease is None:
            return None
        tokens = self.engine.estimator.tokens(self.call.model, "output", self.facts.chars)
        return safely("guard.look", guard.look, lease, tokens)

    # ---- the end ----------------------------------------------------------------------------------------------
    def fail(self, error: BaseException) -> None:
        """End with an exception; some carry a billed response (a parse that failed on a cut answer)."""
        for name in ("completion", "response"):
            billed = getattr(error, name, None)
            if billed is not None and dig(billed, self.endpoint.at[0]) is not None:
                self.see(billed)
                break
        self.end("cancelled" if isinstance(error, (asyncio.CancelledError, GeneratorExit)) else "error", error)

    def drop(self) -> None:
        """End from a finaliser: the work is done elsewhere, as this code may run inside anybody's lock."""
        if not self.ended:
            self.ended = True
            self.engine.worker.submit(_Ending(self, "abandoned", None, time.perf_counter()))

    def end(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """End the call; only the first end counts."""
        if not self.ended:
            self.ended = True
            safely("end", _Ending(self, outcome, error, time.perf_counter()))

    def __del__(self) -> None:
        """A call whose response was dropped unread."""
        if not self.ended:
            self.drop()


def _reraise(error: BaseException) -> None:
    raise error


class _Ending:
    """The last part of the story: from facts to record, to the sinks, to settlement."""

    __slots__ = ("active", "error", "finished", "outcome")

    def __init__(self, active: ActiveCall, outcome: Outcome, error: BaseException | None, finished: float) -> None:
        self.active = active
        self.outcome: Outcome = outcome
        self.error = error
        self.finished = finished

    def __call__(self) -> Record | None:
        active = self.active
        engine = active.engine
        if active.span is None:
            # The SDK was to open a span of its own and did not.
            active.span = safely("spans.start", engine.spans.start, active.call)
        record = safely("record", self.record)
        if record is not None:
            for name, sink in engine.sinks:
                safely(name, sink, record)
        if active.span is not None:
            safely("spans.finish", self._finish_span, record)
        if active.lease is not None and engine.guard is not None:
            safely("guard.settle", self._settle, record)
        active.body = None
        return record

    def _finish_span(self, record: Record | None) -> None:
        active = self.active
        spans, span = active.engine.spans, active.span
        try:
            if record is None:
                pass
            elif active.own_span:
                spans.finish(span, record, error=self.error)
            else:
                spans.annotate(span, record)
        finally:
            if active.own_span and record is None:
                span.end()
            elif not active.own_span:
                release = getattr(span, "release", None)
                if release is not None:
                    release()

    def _settle(self, record: Record | None) -> None:
        active = self.active
        guard, lease = active.engine.guard, active.lease
        if guard is None or lease is None:
            return
        if record is None:
            guard.release(lease)  # a fault of ours: the caller's budget must not stay reserved
        elif record.outcome == "error" and record.usage.origin == "missing" and active.first is None:
            guard.release(lease)  # the provider refused or never answered: nothing was billed
        else:
            guard.settle(lease, record)

    def record(self) -> Record:
        """Everything known of the call."""
        active, facts, call = self.active, self.active.facts, self.active.call
        usage, reason = self._usage()
        if reason is not None:
            active.reason = active.reason or reason
        cost = UNPRICED
        priced = safely("price", self._price, usage)
        if priced is not None:
            cost = priced
        span = active.span
        trace_id, span_id = active.engine.spans.ids(span) if span is not None else (None, None)
        outcome = self.outcome
        if outcome == "abandoned" and facts.complete:
            outcome = "ok"  # the caller stopped reading after the last thing that counts
        started = active.started
        return Record(
            call=call,
            usage=usage,
            cost=cost,
            outcome=outcome,
            duration=self.finished - started,
            response_model=facts.model,
            response_id=facts.id,
            finish_reasons=facts.finish,
            service_tier=facts.tier,
            speed=facts.speed,
            geo=facts.geo,
            error_type=_error_type(self.error),
            missing_reason=active.reason if usage.origin != "provider" else None,
            first_chunk=None if active.first is None else active.first - started,
            chunks=facts.chunks,
            attempts=active.attempts,
            trace_id=trace_id,
            span_id=span_id,
            decision=active.lease.decision if active.lease is not None else None,
        )

    def _price(self, usage: Usage) -> Cost:
        active, facts = self.active, self.active.facts
        call = active.call
        return active.engine.price(
            call.provider,
            call.model,
            usage,
            response_model=facts.model,
            tier=facts.tier,
            speed=facts.speed,
            geo=facts.geo,
            at=call.started,
            operation=call.operation,
        )

    def _usage(self) -> tuple[Usage, str | None]:
        """The call's usage, and why it is not the provider's full report (None when it is)."""
        active, facts = self.active, self.active.facts
        usage = normalise(facts.counts, active.endpoint)
        if usage.origin == "provider" and facts.complete:
            self._calibrate(usage)
            return usage, None
        if self.outcome == "error" and not facts.chunks and usage.origin == "missing":
            return usage, "error"
        if not facts.chunks and not facts.chars:
            return usage, self._why_missing()
        return self._estimated(usage), "aborted" if self.outcome != "ok" else "stream_no_usage"

    def _why_missing(self) -> str:
        facts = self.active.facts
        if self.outcome in ("abandoned", "cancelled", "cut"):
            return "aborted"
        if facts.strange or facts.counts:
            return "parse_error"
        background = self.active.endpoint.background
        if background is not None and (self.active.body or {}).get(background):
            return "background"
        return "no_usage"

    def _calibrate(self, usage: Usage) -> None:
        active = self.active
        estimator, model, facts = active.engine.estimator, active.call.model, active.facts
        if facts.chars:
            estimator.learn(model, "output", facts.chars, usage.output - usage.reasoning)
        if active.engine.guard is not None or not estimator.calibrated(model):
            estimator.learn(model, "input", active.input_chars(), usage.input)

    def _estimated(self, usage: Usage) -> Usage:
        """Usage of an answer whose report is missing in part: input as reported, output from what arrived."""
        active = self.active
        estimator, model = active.engine.estimator, active.call.model
        output = max(usage.output, estimator.tokens(model, "output", active.facts.chars))
        if usage.origin == "provider":
            return replace(usage, output=output, origin="partial", total=None, reported=usage.reported - {"output"})
        given = estimator.tokens(model, "input", active.input_chars())
        return replace(usage, input=given, output=output, origin="estimated", total=None)


def _error_type(error: BaseException | None) -> str | None:
    if error is None:
        return None
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"
    )


def names(sinks: Sequence[tuple[str, Sink]]) -> tuple[str, ...]:
    """The names of the sinks, in order: for doctor."""
    return tuple(name for name, _ in sinks)
