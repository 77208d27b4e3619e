"""What a call needs (prices, spans, budgets, sinks) and the engine that holds it: injected by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakSet

from otel_tokens.background import Worker
from otel_tokens.errors import BudgetExceededError
from otel_tokens.usage.estimate import Estimator
from otel_tokens.values import Call, CallSizes, Cost, Record, Reservation, Usage

Sink = Callable[[Record], object]
"""Takes each record once it is complete. Sinks run in order; a fault of one does not stop the next."""


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
        address: str | None = None,
        at: float,
    ) -> Cost:
        """The cost of `usage`."""
        ...


class SpanWriter(Protocol):
    """Spans of calls (`telemetry.spans`)."""

    def start(self, call: Call) -> Any:
        """A started span."""
        ...

    def late(self, call: Call, beside: Any = None) -> Any:
        """A span from the start of a call that ends now; child of others' span `beside`, which has ended."""
        ...

    def finish(
        self, span: Any, record: Record, *, error: BaseException | None = None, lease: Reservation | None = None
    ) -> None:
        """Write the record and the reservation on the span, and end it."""
        ...

    def annotate(self, span: Any, record: Record, *, lease: Reservation | None = None) -> None:
        """Add our attributes to another instrumentation's span."""
        ...

    def context(self) -> Any:
        """The current context."""
        ...

    def attach(self, span: Any) -> None:
        """Make the span current."""
        ...

    def restore(self, context: Any) -> None:
        """Make a context current that was current before."""
        ...

    def ids(self, span: Any) -> tuple[str | None, str | None]:
        """Trace id and span id in hex."""
        ...

    def refused(self, error: BudgetExceededError, call: Call) -> None:
        """Note on the current span that a call was refused."""
        ...


class BudgetGuard(Protocol):
    """Budgets (`guard.guard`): admit before, look at chunks, settle after."""

    def admit(self, call: Call, sizes: CallSizes) -> Reservation | None:
        """Reserve, or raise BudgetExceededError."""
        ...

    async def aadmit(self, call: Call, sizes: CallSizes) -> Reservation | None:
        """The same without blocking the loop."""
        ...

    def look(self, reservation: Reservation, output_tokens: int) -> BudgetExceededError | None:
        """Whether a stream that has produced so many tokens must be cut."""
        ...

    def fault(self, call: Call, error: Exception) -> None:
        """Our own fault came before `admit`. Raises BudgetExceededError where a budget may refuse."""
        ...

    def settle(self, reservation: Reservation, record: Record | None) -> None:
        """Replace the reservation by what the call did cost."""
        ...

    def release(self, reservation: Reservation) -> None:
        """Give the reservation back: nothing was billed."""
        ...


Server = tuple[str | None, int | None]
"""Address and port."""
Parked = dict[str, Any]
"""Calls that run on at the provider (`background`), by response id, oldest first."""
MAX_PARKED = 10_000
MAX_REMEMBERED = 10_000


@dataclass(slots=True, eq=False, repr=False)
class Engine:
    """What every call needs, built once by the composition root.

    `no_usage_option` are the servers that refuse to be asked for usage in a stream, or send it unasked; `usage_option`
    those that have sent it when asked.
    """

    price: Price
    spans: SpanWriter
    sinks: tuple[tuple[str, Sink], ...]
    estimator: Estimator = field(default_factory=Estimator)
    worker: Worker = field(default_factory=Worker)
    guard: BudgetGuard | None = None
    cut_cleanly: bool = False
    foreign: str = "coexist"
    parked: Parked = field(default_factory=dict[str, Any])
    remembered: dict[str, int] = field(default_factory=dict[str, int])
    streams: WeakSet[Any] = field(default_factory=WeakSet[Any])
    no_usage_option: set[Server] = field(default_factory=set[Server])
    usage_option: set[Server] = field(default_factory=set[Server])

    def remember(self, key: str, tokens: int) -> None:
        """Keep how long a conversation is that the provider remembers; the oldest are forgotten."""
        self.remembered.pop(key, None)
        self.remembered[key] = tokens
        while len(self.remembered) > MAX_REMEMBERED:
            self.remembered.pop(next(iter(self.remembered)), None)

    def end_open(self) -> None:
        """End all open calls, before the process or the metering ends."""
        while self.parked:
            self.parked.pop(next(iter(self.parked))).end("ok")
        for active in list(self.streams):
            if not active.dropped:
                active.end("abandoned")

    def forget_open(self) -> None:
        """In a forked child: the calls that are under way are the parent's to record."""
        for active in [*self.parked.values(), *self.streams]:
            active.ended = True
        self.parked.clear()
        self.streams.clear()
        self.estimator.after_fork()
