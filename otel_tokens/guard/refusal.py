"""The one error the guard raises, with its facts and a message that a person understands."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard import units
from otel_tokens.guard.line import Line
from otel_tokens.guard.store.base import Balance, Slot
from otel_tokens.guard.window import zone_of


class AccountState(NamedTuple):
    """One line in one scope, with what is used and reserved of it."""

    line: Line
    slot: Slot
    balance: Balance


def refused(
    account: AccountState, requested: int, *, now: int, retry_at: int = 0, why: str = ""
) -> BudgetExceededError:
    """The refusal of a call (or operation) by one line; amounts in smallest units, times in unix ms.

    `retry_at` is when a rolling window frees its next part.
    """
    line = account.line
    what = _used(line, account.balance, reserved=not line.wall)
    asked = asks(line, requested)
    parts = [f"{_budget(account)}: {why}{what}" + (f", {asked}" if asked else "")]
    reset = line.resets_at(now)
    if reset is not None:
        parts.append(f"resets at {_moment(reset, line)}")
    elif retry_at > now:
        reset = retry_at / 1000
        parts.append(f"some of it is free again at {_moment(reset, line)}")
    return _error("; ".join(parts), account, requested=requested, resets_at=reset)


def cut(account: AccountState, tokens: int, *, now: int, why: str = "") -> BudgetExceededError:
    """The error of a stream that had to end after `tokens` output tokens; `now` in unix ms."""
    line = account.line
    what = why or _used(line, account.balance, reserved=True)
    message = f"{_budget(account)}: stream cut after about {tokens:,} output tokens; {what}"
    return _error(message, account, requested=0, resets_at=line.resets_at(now))


def _budget(account: AccountState) -> str:
    scope = account.slot.scope
    return f"budget {account.line.name!r}" + (f" ({scope})" if scope else "")


def _used(line: Line, balance: Balance, *, reserved: bool) -> str:
    used, held, limit = (units.show(line.unit, amount) for amount in balance)
    return f"{used} of {limit} {units.name(line.unit)} used" + (f", {held} reserved" if reserved else "")


def _error(message: str, account: AccountState, *, requested: int, resets_at: float | None) -> BudgetExceededError:
    """`BudgetExceededError` with its facts in whole units."""
    line, slot, balance = account
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
