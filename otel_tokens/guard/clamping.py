"""How long an answer may be so that the call fits what is left. Pure arithmetic over prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from otel_tokens.guard import units
from otel_tokens.guard.line import Line
from otel_tokens.guard.meter import Meter
from otel_tokens.guard.plan import Plan
from otel_tokens.values import Call, CallSizes

_ATTEMPTS = 6


@dataclass(frozen=True, slots=True)
class Clamping:
    """A call that is to be made shorter."""

    meter: Meter
    plan: Plan
    call: Call
    model: str
    sizes: CallSizes

    def bound(self, free: Sequence[tuple[Line, int]]) -> int | None:
        """The largest bound on output tokens per choice with which the call fits `free` (line, smallest units left).

        None if none does: the input alone is too much, or what is left is no tokens and no money.
        """
        sizes = self.sizes
        output = self.meter.output_upper(self.call, self.model, sizes, None)
        rooms = [self._room(line, left, output) for line, left in free]
        total = min((room for room in rooms if room is not None), default=None)
        if output <= 0 or total is None or None in rooms:
            return None
        bound = min(total, output) // max(1, sizes.choices)
        for _ in range(_ATTEMPTS):
            # Prices need not be straight lines (a dearer tier from some size on): try, and shrink until it fits.
            if bound <= sizes.thinking:
                return None
            values = self.meter.amounts(self.plan, self.call, self.model, sizes, bound=bound)
            if all(values[line.measure] <= left for line, left in free):
                return bound
            bound = bound * 49 // 50
        return None

    def _room(self, line: Line, left: int, output: int) -> int | None:
        """The output tokens that `left` of one line pays for; None if no shorter answer helps."""
        if line.unit == units.OUTPUT_TOKENS:
            return left
        if line.unit == units.TOKENS:
            return left - self.sizes.input_upper
        if line.unit != units.USD:
            return None
        empty, full = self._money(0), self._money(output)
        if empty > left:
            return None
        return output if full <= empty else (left - empty) * output // (full - empty)

    def _money(self, output: int) -> int:
        return self.meter.upper_money(self.plan, self.call, self.model, self.sizes, output)
