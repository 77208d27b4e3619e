"""Frozen values that the packages exchange: call, usage, cost, reservation, record. Standard library only.

Token convention (`usage/normalise.py` converts every report to it): `input` and `output` are inclusive totals;
`cache_read` and `cache_write` are parts of `input`; `reasoning` is a part of `output`; modalities are an
orthogonal split of the same totals. Only pricing subtracts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Context, Decimal
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

Origin = Literal["provider", "partial", "estimated", "missing"]
"""Where token numbers come from. provider: its report. partial: a stream that ended early; input is reported, output is
estimated. estimated: our own estimate. missing: nobody reported any."""

Outcome = Literal["ok", "error", "cancelled", "abandoned", "cut"]
"""How a call ended. abandoned: the caller stopped reading a stream. cut: the guard ended a stream."""

CostStatus = Literal["priced", "estimated", "unpriced"]
CostSource = Literal["provider", "local"]

T = TypeVar("T")

EXACT = Context(prec=200, traps=[])
"""The context of all money arithmetic: exact, without traps, independent of the application's decimal context."""


def make(kind: type[T], values: dict[str, Any]) -> T:
    """Make a frozen value from its fields, in a quarter of the time that its constructor takes.

    Fields left out are their class's defaults; those with a default factory must be given.
    """
    made = object.__new__(kind)
    made.__dict__.update(values)
    return made


EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)  # no slots: `make`
class Usage:
    """The normalised tokens of one call, in the convention above. All counts are non-negative integers.

    `reported` names the fields that the provider stated. A 0 that is not in it was not stated.
    `total` is the provider's own total, or None. `reported_cost` is the provider's own price of the call in
    USD. `flags` names inconsistencies ("negative:input" …). `components` are billed parts that the totals do not
    contain (`Component`).
    """

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_5m: int = 0
    cache_write_30m: int = 0
    cache_write_1h: int = 0
    cache_write_12h: int = 0
    reasoning: int = 0
    input_text: int = 0
    input_audio: int = 0
    input_image: int = 0
    input_video: int = 0
    cache_read_text: int = 0
    cache_read_audio: int = 0
    cache_read_image: int = 0
    cache_read_video: int = 0
    output_text: int = 0
    output_audio: int = 0
    output_image: int = 0
    output_video: int = 0
    web_searches: int = 0
    web_fetches: int = 0
    total: int | None = None
    reported_cost: Decimal | None = None
    origin: Origin = "missing"
    reported: frozenset[str] = frozenset()
    flags: tuple[str, ...] = ()
    components: tuple[Component, ...] = ()

    def to_openai(self) -> dict[str, int]:
        """The OpenAI `usage` block: input incl. cache as `prompt_tokens`; `total_tokens` as given, else the sum."""
        return {
            "prompt_tokens": self.input,
            "completion_tokens": self.output,
            "total_tokens": self.input + self.output if self.total is None else self.total,
        }


@dataclass(frozen=True, slots=True)
class Component:
    """A billed part of a call outside its totals: a compaction pass, an advisor model, a hosted tool that ran `calls`
    times. `model` None is the call's model."""

    kind: str
    model: str | None
    usage: Usage
    calls: int = 0


TOKEN_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(Usage) if f.type == "int")
"""The names of all integer fields of `Usage`, in order: the ledger's token columns."""


@dataclass(frozen=True)  # no slots: `make`
class Cost:
    """The money of one call. Components add up to `total`; all are None when the price is unknown (never 0).

    `provider_total` is the cost that the provider reported. Then it is the total (`source = "provider"`), and
    `local_total` is the cost by our catalogue. `version` is that of the catalogue, `rule` names the rate.
    """

    total: Decimal | None = None
    input: Decimal | None = None
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    output: Decimal | None = None
    other: Decimal | None = None
    currency: str = "USD"
    status: CostStatus = "unpriced"
    source: CostSource = "local"
    version: str = ""
    rule: str = ""
    local_total: Decimal | None = None
    provider_total: Decimal | None = None


class PriceLine(NamedTuple):
    """Cost as a linear function, in whole pico-USD (10^-12), rounded up: `fixed` for a call, plus a rate for each input
    token, output token and web search. It holds for calls with at most `most_input` input tokens that
    start in [`valid_from`, `valid_until`), unix seconds.
    """

    input: int
    output: int
    search: int
    fixed: int
    most_input: float
    valid_from: float
    valid_until: float


UNPRICED = Cost()
_NOTHING = Decimal(0)
FREE = Cost(
    _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, status="priced", rule="free host (setting hosts)"
)
COST_PARTS: tuple[str, ...] = ("input", "cache_read", "cache_write", "output", "other")


@dataclass(frozen=True)  # no slots: `make`
class Call:
    """The facts of a call before it is sent.

    `provider` bills the call; `endpoint` is the billable operation ("openai.chat"); `operation` the convention's name
    ("chat", "text_completion", "embeddings"). `max_output` is the request's own bound on output tokens per
    choice, `choices` how many it asks for; `service_tier`, `speed` and `geo` are the terms it asks for. `started` is
    unix time in seconds. `free`: by the settings, calls to this host cost nothing. `asked_model`: the model
    that the application asked for, if the guard replaced it by `model`.
    """

    id: str
    provider: str
    endpoint: str
    operation: str
    model: str
    started: float
    sdk: str = ""
    stream: bool = False
    server_address: str | None = None
    server_port: int | None = None
    max_output: int | None = None
    choices: int = 1
    service_tier: str | None = None
    speed: str | None = None
    geo: str | None = None
    free: bool = False
    asked_model: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    tags: Mapping[str, str] = field(default_factory=lambda: EMPTY)


class Reservation(Protocol):
    """Budget that is set aside for one call, as packages other than the guard see it."""

    @property
    def key(self) -> str:
        """Unique among all reservations."""
        ...

    @property
    def grants(self) -> tuple[tuple[str, str, int], ...]:
        """What is reserved, as (budget, scope, amount in smallest units)."""
        ...

    @property
    def expires(self) -> float:
        """When the reservation expires unless it is renewed, in unix seconds."""
        ...

    @property
    def decision(self) -> str:
        """ "allow", or "warn" where a budget has passed its first threshold."""
        ...

    @property
    def model(self) -> str | None:
        """The model to send the request to. None: no change."""
        ...

    @property
    def max_output(self) -> int | None:
        """The limit of output tokens per choice to put into the request. None: no change."""
        ...

    @property
    def timeout(self) -> float | None:
        """The time limit of the call in seconds. None: no limit."""
        ...

    @property
    def look_at(self) -> int | None:
        """The number of output tokens from which on a stream must be checked. None: never."""
        ...

    def fullest(self) -> tuple[str, float] | None:
        """The fullest budget of the call at its admission, and its used share (1.0: used up)."""
        ...


@dataclass(frozen=True)  # no slots: `make`
class Record:
    """Everything known about a call that has ended. There is one record for each billed call.

    `started` is unix time in seconds, `duration` and `first_chunk` are seconds. `service_tier`, `speed` and `geo`
    come from the response and change the price. `missing_reason` says why `usage` is not a full report of the provider.
    """

    call: Call
    usage: Usage
    cost: Cost
    outcome: Outcome
    duration: float
    response_model: str | None = None
    response_id: str | None = None
    finish_reasons: tuple[str, ...] = ()
    service_tier: str | None = None
    speed: str | None = None
    geo: str | None = None
    error_type: str | None = None
    missing_reason: str | None = None
    first_chunk: float | None = None
    chunks: int = 0
    attempts: int = 1
    trace_id: str | None = None
    span_id: str | None = None
    decision: str | None = None

    @property
    def id(self) -> str:
        """The unique id of the call. A record that is written twice is stored once by this id."""
        return self.call.id

    @property
    def tags(self) -> Mapping[str, str]:
        """The call's tags (session, task, tenant …) as they were when it started."""
        return self.call.tags

    @property
    def started(self) -> float:
        """When the call was made, in unix seconds."""
        return self.call.started


@dataclass(frozen=True)  # no slots: `make`
class CallSizes:
    """How large a call may become, by its lengths and its own limits. The guard reserves by it. All in tokens.

    `input_tokens_estimate` is the likely input, `input_upper` an upper bound of it; `output_bound` the request's
    own limit per choice (None: unlimited), `thinking` a thinking budget, `choices` how many answers it asks for.
    `cache_write` is the field of `Usage` that its input may be written to a cache as ("cache_write_1h"), None if the
    request asks for no caching: such input costs more. `web_searches`: how many the provider may run. `audio`: input
    and output may be sound, which costs more. `again` measures for another model, which may count tokens differently.
    """

    input_tokens_estimate: int
    input_upper: int
    output_bound: int | None = None
    thinking: int = 0
    choices: int = 1
    cache_write: str | None = None
    web_searches: int = 0
    audio: bool = False
    again: Callable[[str], CallSizes] | None = field(default=None, repr=False, compare=False)

    def for_model(self, model: str) -> CallSizes:
        """The sizes of the same request sent to `model`."""
        return self if self.again is None else self.again(model)
