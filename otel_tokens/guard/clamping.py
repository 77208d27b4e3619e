"""How long an answer may be so that the call fits what is left. Pure arithmetic over prices."""

from __future__ import annotations

from collections.abc import Sequence

from otel_tokens.guard import units
from otel_tokens.guard.line import Line
from otel_tokens.guard.meter import Meter
from otel_tokens.guard.plan import Plan
from otel_tokens.values import Call, CallSizes

_ATTEMPTS = 6


def fitting_output(
    meter: Meter, plan: Plan, call: Call, model: str, sizes: CallSizes, *, free: Sequence[tuple[Line, int]]
) -> int | None:
    """The largest bound on output tokens per choice with which the call fits `free` (line, smallest units left).

    None if none does: the input alone is too much, or what is left is no tokens and no money.
    """
    output = meter.output_upper(call, model, sizes, None)
    if output <= 0:
        return None
    rooms = [_room(meter, plan, call, model, sizes, output=output, line=line, left=left) for line, left in free]
    total = min((room for room in rooms if room is not None), default=None)
    if total is None or None in rooms:
        return None
    bound = min(total, output) // max(1, sizes.choices)
    for _ in range(_ATTEMPTS):
        # Prices need not be straight lines (a dearer tier from some size on): try, and shrink until it fits.
        if bound <= sizes.thinking:
            return None
        values = meter.amounts(plan, call, model, sizes, bound=bound)
        if all(values[line.measure] <= left for line, left in free):
            return bound
        bound = bound * 49 // 50
    return None


def _room(
    meter: Meter, plan: Plan, call: Call, model: str, sizes: CallSizes, *, output: int, line: Line, left: int
) -> int | None:
    """The output tokens that `left` of one line pays for; None if no shorter answer helps."""
    if line.unit == units.OUTPUT_TOKENS:
        return left
    if line.unit == units.TOKENS:
        return left - sizes.input_upper
    if line.unit != units.USD:
        return None
    empty = meter.money(plan, call, model, meter.upper(sizes, 0), sizes.cache_write)
    full = meter.money(plan, call, model, meter.upper(sizes, output), sizes.cache_write)
    if empty > left:
        return None
    return output if full <= empty else (left - empty) * output // (full - empty)
