"""The one error the guard raises, with its facts and a message that a person understands."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard import units
from otel_tokens.guard.line import Line
from otel_tokens.guard.store.base import Balance, Slot
from otel_tokens.guard.window import zone_of


class Spot(NamedTuple):
    """Where a budget stands: one line in one scope, with what is used and reserved of it."""

    line: Line
    slot: Slot
    balance: Balance


def refused(spot: Spot, requested: int, *, now: int, retry_at: int = 0, why: str = "") -> BudgetExceededError:
    """The refusal of a call (or operation) by one line; amounts in smallest units, times in unix ms.

    `retry_at` is when a rolling window frees its next part.
    """
    line, slot, balance = spot
    used, reserved, limit = balance
    head = f"budget {line.name!r}" + (f" ({slot.scope})" if slot.scope else "")
    what = f"{units.show(line.unit, used)} of {units.show(line.unit, limit)} {units.name(line.unit)} used"
    if not line.wall:
        what += f", {units.show(line.unit, reserved)} reserved"
    asked = asks(line, requested)
    parts = [f"{head}: {why}{what}" + (f", {asked}" if asked else "")]
    reset = line.resets_at(now)
    if reset is not None:
        parts.append(f"resets at {_moment(reset, line)}")
    elif retry_at > now:
        reset = retry_at / 1000
        parts.append(f"some of it is free again at {_moment(reset, line)}")
    return error("; ".join(parts), line, slot, balance, requested=requested, resets_at=reset)


def cut(line: Line, slot: Slot, balance: Balance, tokens: int, *, now: int, why: str = "") -> BudgetExceededError:
    """The error of a stream that had to end after `tokens` output tokens."""
    head = f"budget {line.name!r}" + (f" ({slot.scope})" if slot.scope else "")
    used, reserved, limit = balance
    what = f"{units.show(line.unit, used)} of {units.show(line.unit, limit)} {units.name(line.unit)} used"
    what = why or f"{what}, {units.show(line.unit, reserved)} reserved"
    message = f"{head}: stream cut after about {tokens:,} output tokens; {what}"
    return error(message, line, slot, balance, requested=0, resets_at=line.resets_at(now))


def error(
    message: str, line: Line, slot: Slot, balance: Balance, *, requested: int, resets_at: float | None
) -> BudgetExceededError:
    """`BudgetExceededError` with its facts in whole units."""
    used, reserved, limit = (units.from_smallest(line.unit, amount) for amount in balance)
    return BudgetExceededError(
        message,
        budget=line.name,
        scope=slot.scope,
        unit=line.unit,
        limit=limit,
        used=used,
        reserved=reserved,
        requested=units.from_smallest(line.unit, requested),
        resets_at=resets_at,
    )


def asks(line: Line, requested: int) -> str:
    """What a call asked for, in words; "" where that says nothing."""
    kind = units.family(line.unit)
    amount = f"{units.show(line.unit, requested)} {units.name(line.unit)}"
    if line.wall or not requested:
        return ""
    if kind == units.USD:
        return f"this call may cost up to {amount}"
    if kind in {units.CALLS, units.OPERATIONS}:
        return "" if requested == 1 else f"{amount} requested"
    return f"this call may use up to {amount}"


def _moment(seconds: float, line: Line) -> str:
    zone = line.window.zone if line.window is not None else "UTC"
    moment = datetime.fromtimestamp(seconds, zone_of(zone))
    return f"{moment:%Y-%m-%d %H:%M:%S} {zone}" if moment.second else f"{moment:%Y-%m-%d %H:%M} {zone}"
