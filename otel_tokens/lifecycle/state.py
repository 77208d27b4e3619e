"""The data of one call that is under way."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from otel_tokens.lifecycle.engine import Engine
from otel_tokens.providers.spec import Endpoint
from otel_tokens.usage.read import Facts, chunk_reader, length
from otel_tokens.usage.size import Size
from otel_tokens.usage.tools import may_run
from otel_tokens.values import Call, Reservation


class CallState:
    """The data of one call that is under way: what was asked, what has arrived, what was reserved.

    `sent`: the request went out; without it there is no record. `unbilled`: it failed in a way that no provider bills.
    `risky`: an earlier attempt failed in a way that a provider may bill.
    `asked`: we asked for usage in the stream; `hide_usage`: the caller does not get the chunk with it.
    `idle`: a stream waits for its consumer, so that a close comes from the consumer.
    `cut_at`, `cut_chunks`: how much may arrive before the guard looks.
    """

    __slots__ = (
        "__weakref__",
        "_outer_call",
        "_outer_context",
        "asked",
        "attempts",
        "body",
        "call",
        "cut_at",
        "cut_chunks",
        "dropped",
        "ended",
        "endpoint",
        "engine",
        "facts",
        "first",
        "hide_usage",
        "idle",
        "own_span",
        "parsed",
        "read_chunk",
        "reason",
        "reservation",
        "risky",
        "sent",
        "size",
        "span",
        "started",
        "unbilled",
    )

    def __init__(self, engine: Engine, call: Call, endpoint: Endpoint, body: Mapping[str, Any]) -> None:
        self.ended = True  # until all is here: half a call has nothing to end
        self.dropped = self.sent = self.unbilled = self.risky = self.asked = False
        self.engine = engine
        self.call = call
        self.endpoint = endpoint
        self.body: Mapping[str, Any] | None = body
        self.facts = Facts(endpoint)
        self.facts.measured = engine.estimator.wants(call.model)
        self.facts.hosted = may_run(endpoint, call, body)
        self.read_chunk = chunk_reader(endpoint)
        self.reservation: Reservation | None = None
        self.span: Any = None
        self.own_span = True
        self.attempts = 1
        self.parsed = False
        self.size: Size | None = None
        self.idle = False
        self.hide_usage = False
        self.first: float | None = None
        self.cut_at: int | None = None
        self.cut_chunks = 0
        self.reason: str | None = None
        self._outer_call: Any = None
        self._outer_context: Any = None
        self.started = time.perf_counter()
        self.ended = False

    def input_bytes(self) -> int:
        """The bytes of text in the request."""
        body = self.body
        return 0 if body is None else sum(length(body.get(key)) for key in self.endpoint.input)
