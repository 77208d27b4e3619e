"""The end of a call: from facts to usage, cost and record, to the sinks, to settlement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from otel_tokens.errors import BudgetExceededError
from otel_tokens.lifecycle.sizes import remember
from otel_tokens.lifecycle.state import CallState
from otel_tokens.safely import interrupted_us, report_fault, safely
from otel_tokens.shapes import is_mapping
from otel_tokens.usage.normalise import impossible_sides, normalise
from otel_tokens.usage.tools import with_tools
from otel_tokens.values import FREE, UNPRICED, Cost, Outcome, Record, Usage, make

Step = tuple[str, Callable[[Any], object]]


class Ending:
    """Ends one call: makes its record, gives it to the sinks, finishes the span, settles the budget.

    After an exception, call it again: it goes on with the first step that is not done. `resumed` is True then.
    """

    __slots__ = ("_done", "active", "error", "finished", "outcome", "resumed")

    def __init__(self, active: CallState, outcome: Outcome, error: BaseException | None, finished: float) -> None:
        self.active = active
        self.outcome: Outcome = outcome
        self.error = error
        self.finished = finished
        self.resumed = False
        self._done: list[Any] = []  # the record (None after a fault of ours), then what each step returned

    def __call__(self) -> None:
        """Do what is left to do."""
        active = self.active
        if not active.sent:
            self._release()
            return
        done = self._done
        if not done:
            done.append(safely("record", self._begin))
        record: Record | None = done[0]
        for name, step in self._steps(record)[len(done) - 1 :]:
            try:
                # The step and the mark that it is done: no signal handler of the program can run between them.
                done.extend(map(step, (record,)))
            except BaseException as error:
                if not interrupted_us(error):
                    done.append(None)
                if isinstance(error, BudgetExceededError) or not isinstance(error, Exception):
                    raise
                report_fault(name, error)
        active.body = None

    def _steps(self, record: Record | None) -> tuple[Step, ...]:
        active = self.active
        last: tuple[Step, ...] = ()
        if active.span is not None:
            last = (("spans.finish", self._finish_span),)
        if active.reservation is not None and active.engine.guard is not None:
            last = (*last, ("guard.settle", self._settle))
        return last if record is None else (*active.engine.sinks, *last)

    def _begin(self) -> Record:
        active = self.active
        if active.span is None or not (active.own_span or active.span.is_recording()):
            # The SDK did not start the span it was to start, or others have ended theirs before a stream's end.
            late = active.engine.spans.late
            active.span, active.own_span = safely("spans.late", late, active.call, active.span), True
        return self.record()

    def _release(self) -> None:
        guard, reservation = self.active.engine.guard, self.active.reservation
        if guard is not None and reservation is not None:
            safely("guard.release", guard.release, reservation)

    def _finish_span(self, record: Record | None) -> None:
        active = self.active
        spans, span = active.engine.spans, active.span
        if self.resumed and active.own_span and not span.is_recording():
            return  # it has ended
        try:
            if record is None:
                pass
            elif active.own_span:
                spans.finish(span, record, error=self.error, lease=active.reservation)
            else:
                spans.annotate(span, record, lease=active.reservation)
        finally:
            if active.own_span and record is None:
                span.end()
            elif not active.own_span:
                release = getattr(span, "release", None)
                if release is not None:
                    release()

    def _settle(self, record: Record | None) -> None:
        active = self.active
        guard, reservation = active.engine.guard, active.reservation
        if guard is None or reservation is None:
            return
        if active.unbilled and (record is None or record.usage.origin == "missing"):
            guard.release(reservation)
        else:
            guard.settle(reservation, record)  # without a record, after a fault of ours, as it was reserved

    def record(self) -> Record:
        """Everything known of the call."""
        active, facts, call = self.active, self.active.facts, self.active.call
        usage, reason = safely("usage", self._usage) or (Usage(), "parse_error")
        if reason is not None:
            active.reason = active.reason or reason
        cost = safely("price", self._price, usage) or UNPRICED
        span = active.span
        ids = safely("spans.ids", active.engine.spans.ids, span) if span is not None else None
        trace_id, span_id = ids or (None, None)
        outcome = self.outcome
        if outcome == "abandoned" and facts.complete:
            outcome = "ok"  # the caller stopped reading after the last thing that counts
        started = active.started
        values: dict[str, Any] = {
            "call": call,
            "usage": usage,
            "cost": cost,
            "outcome": outcome,
            "duration": self.finished - started,
            "response_model": facts.model,
            "response_id": facts.id,
            "finish_reasons": facts.finish,
            "service_tier": facts.tier,
            "speed": facts.speed,
            "geo": facts.geo,
            "error_type": _error_type(self.error),
            "missing_reason": active.reason if usage.origin != "provider" else None,
            "first_chunk": None if active.first is None else active.first - started,
            "chunks": facts.chunks,
            "attempts": active.attempts,
            "trace_id": trace_id,
            "span_id": span_id,
            "decision": active.reservation.decision if active.reservation is not None else None,
        }
        return make(Record, values)

    def _price(self, usage: Usage) -> Cost:
        active, facts = self.active, self.active.facts
        call = active.call
        if call.free:
            return FREE
        return active.engine.price(
            call.provider,
            call.model,
            usage,
            response_model=facts.model,
            tier=facts.tier,
            speed=facts.speed,
            geo=facts.geo,
            address=call.server_address,
            at=call.started,
        )

    def _usage(self) -> tuple[Usage, str | None]:
        """The call's usage, and why it is not the provider's full report (None when it is)."""
        active, facts = self.active, self.active.facts
        usage = normalise(facts.counts, active.endpoint, active.call.provider)
        if facts.hosted:
            usage = with_tools(usage, facts.tools, active.body or {})
        if facts.refusal is not None and not facts.text_bytes:
            usage = replace(usage, flags=(*usage.flags, f"refused:{facts.refusal}".rstrip(":")))
        if usage.origin == "provider" and impossible_sides(usage):
            return self._estimated(usage), "parse_error"
        if facts.running and self.outcome == "ok" and facts.chunks - facts.running <= 1:
            facts.complete = True  # a stream that was read to its end: the usage so far is the usage
        if usage.origin == "provider" and facts.complete:
            safely("estimate", self._calibrate, usage)
            if active.call.stream and active.endpoint.asks_usage and not active.asked:
                self._note_unasked()
            return usage, None
        if self.outcome == "error" and not facts.chunks and usage.origin == "missing":
            return usage, "error"
        if not facts.chunks:
            return usage, self._why_missing()
        return self._estimated(usage), "aborted" if self.outcome != "ok" else "stream_no_usage"

    def _note_unasked(self) -> None:
        """Remember a server that has sent usage in a stream without being asked. It is not asked in future."""
        active = self.active
        options = (active.body or {}).get("stream_options")
        if not (is_mapping(options) and options.get("include_usage")):
            active.engine.no_usage_option.add((active.call.server_address, active.call.server_port))

    def _why_missing(self) -> str:
        facts = self.active.facts
        if self.outcome in ("abandoned", "cancelled", "cut"):
            return "aborted"
        endpoint = self.active.endpoint
        if endpoint.background is not None and endpoint.pending.intersection(facts.finish):
            return "background"
        if facts.strange or any(facts.counts.values()):
            return "parse_error"
        background = endpoint.background
        if background is not None and (self.active.body or {}).get(background):
            return "background"
        return "no_usage"

    def _calibrate(self, usage: Usage) -> None:
        active = self.active
        estimator, model, facts = active.engine.estimator, active.call.model, active.facts
        if active.size is not None:
            estimator.learn_request(active.size, usage.input)
        remember(active, usage.input + usage.output)
        if not facts.measured:
            return
        if facts.text_bytes:
            estimator.learn(model, "output", facts.text_bytes, usage.output - usage.reasoning)
        if usage.input:
            estimator.learn(model, "input", active.input_bytes(), usage.input)

    def _estimated(self, usage: Usage) -> Usage:
        """Usage of an answer whose report is missing in part: the rest is estimated from the texts.

        A stream that ended early states its input; an impossible report may state either side.
        """
        active = self.active
        estimator, model = active.engine.estimator, active.call.model
        wrong = impossible_sides(usage)
        sides = wrong or {"input", "output"}
        given, output = usage.input, usage.output
        if "output" in sides:
            output = max(output, estimator.tokens(model, "output", active.facts.text_bytes))
        if usage.origin == "provider" and not wrong:
            return replace(usage, output=output, origin="partial", total=None, reported=usage.reported - {"output"})
        if "input" in sides:
            given = max(given, estimator.tokens(model, "input", active.input_bytes()))
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
