"""What one kind of call is admitted against: its lines, their slots, and what follows from them for every call."""

from __future__ import annotations

from collections.abc import Sequence

from otel_tokens.guard.line import NEVER, Line
from otel_tokens.guard.store.base import Slot
from otel_tokens.guard.units import INPUT_TOKENS, OUTPUT_TOKENS, SECONDS, TOKENS, USD

_BY_TOKENS = frozenset({USD, TOKENS, INPUT_TOKENS, OUTPUT_TOKENS})


class Shape:
    """What follows from a set of lines alone; shared by the plans of all scopes."""

    __slots__ = (
        "caps",
        "expected",
        "first_shares",
        "hard_money",
        "lines",
        "measures",
        "money",
        "names",
        "needed",
        "priced",
        "steered",
        "timed",
        "units",
        "watched",
    )

    def __init__(self, lines: tuple[Line, ...], caps: tuple[Line, ...]) -> None:
        every = (*lines, *caps)
        self.lines = lines
        self.caps = caps
        self.measures = tuple(line.measure for line in lines)
        self.first_shares = tuple(line.thresholds[0].permille if line.thresholds else NEVER for line in lines)
        self.units = tuple(measure.removeprefix("~") for measure in self.measures)
        self.needed = frozenset(line.measure for line in every)
        self.money = USD in self.units
        self.priced = USD in self.needed
        self.expected = any(measure.startswith("~") for measure in self.needed)
        self.hard_money = any(line.hard and line.unit == USD for line in every)
        self.steered = any(line.steers for line in lines)
        self.timed = any(line.hard and line.unit == SECONDS for line in every)
        self.names = "\n".join(dict.fromkeys(line.name for line in lines))
        # What a stream is watched by: the output tokens that were reserved for hard budgets of money or tokens.
        bounded = [line.measure for line in every if line.hard and line.unit in _BY_TOKENS]
        self.watched: str | None = None
        if bounded:
            self.watched = "~output_tokens" if any(m.startswith("~") for m in bounded) else "output_tokens"


class Plan:
    """The lines and slots of one kind of call (model and tags), until the first of their windows ends.

    `tally` is text, because its hash is kept: one look-up counts the decision of all lines. `first_shares` are the
    lowest thresholds in permille: below them a settlement looks no further.
    """

    __slots__ = (
        "caps",
        "expected",
        "first_shares",
        "graceful",
        "lines",
        "measures",
        "model",
        "money",
        "priced",
        "provider",
        "shape",
        "slots",
        "steered",
        "tally",
        "timed",
        "units",
        "until",
        "watched",
    )

    def __init__(
        self,
        kind: tuple[str, str],
        shape: Shape,
        slots: tuple[Slot, ...],
        until: int,
    ) -> None:
        self.model, self.provider = kind
        self.shape = shape
        self.slots = slots
        self.until = until
        self.graceful = any([slot.grace for slot in slots])  # noqa: C419 (a list is faster, and this is per call kind)
        self.tally = f"{self.model}\n{self.provider}\n{shape.names}"
        # Copied, for a call asks for them again and again.
        self.lines = shape.lines
        self.first_shares = shape.first_shares
        self.caps = shape.caps
        self.measures = shape.measures
        self.units = shape.units
        self.money = shape.money
        self.priced = shape.priced
        self.expected = shape.expected
        self.steered = shape.steered
        self.timed = shape.timed
        self.watched = shape.watched

    @property
    def needed(self) -> frozenset[str]:
        """Every measure that a line or a cap takes."""
        return self.shape.needed

    @property
    def hard_money(self) -> bool:
        """Whether a call without a known price cannot be admitted."""
        return self.shape.hard_money


def shape_of(shapes: dict[tuple[Line, ...], Shape], lines: Sequence[Line]) -> Shape:
    """The shape of these lines (single-call caps among them), made once."""
    key = tuple(lines)
    shape = shapes.get(key)
    if shape is None:
        caps = tuple(line for line in key if line.scope_keys == ("call",))
        shape = shapes[key] = Shape(tuple(line for line in key if line.scope_keys != ("call",)), caps)
    return shape
