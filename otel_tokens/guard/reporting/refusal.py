"""Makes BudgetExceededError with its facts and its message."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets import units
from otel_tokens.guard.budgets.limit import Limit
from otel_tokens.guard.budgets.windows import zone_of
from otel_tokens.guard.store.base import Balance, Slot


class AccountState(NamedTuple):
    """One limit in one scope, with what is used and reserved of it."""

    limit: Limit
    slot: Slot
    balance: Balance


def refused(
    account: AccountState, requested: int, *, now: int, retry_at: int = 0, why: str = ""
) -> BudgetExceededError:
    """The refusal of a call (or operation) by one limit; amounts in smallest units, times in unix ms.

    `retry_at` is when a rolling window frees its next part.
    """
    limit = account.limit
    what = _used(limit, account.balance, reserved=not limit.wall)
    asked = asks(limit, requested)
    parts = [f"{_budget(account)}: {why}{what}" + (f", {asked}" if asked else "")]
    reset = limit.resets_at(now)
    if reset is not None:
        parts.append(f"resets at {_moment(reset, limit)}")
    elif retry_at > now:
        reset = retry_at / 1000
        parts.append(f"some of it is free again at {_moment(reset, limit)}")
    return _error("; ".join(parts), account, requested=requested, resets_at=reset)


def cut(account: AccountState, tokens: int, *, now: int, why: str = "") -> BudgetExceededError:
    """The error of a stream that had to end after `tokens` output tokens; `now` in unix ms."""
    limit = account.limit
    what = why or _used(limit, account.balance, reserved=True)
    message = f"{_budget(account)}: stream cut after about {tokens:,} output tokens; {what}"
    return _error(message, account, requested=0, resets_at=limit.resets_at(now))


def _budget(account: AccountState) -> str:
    scope = account.slot.scope
    return f"budget {account.limit.name!r}" + (f" ({scope})" if scope else "")


def _used(limit: Limit, balance: Balance, *, reserved: bool) -> str:
    used, held, most = (units.show(limit.unit, amount) for amount in balance)
    return f"{used} of {most} {units.name(limit.unit)} used" + (f", {held} reserved" if reserved else "")


def _error(message: str, account: AccountState, *, requested: int, resets_at: float | None) -> BudgetExceededError:
    """`BudgetExceededError` with its facts in whole units."""
    limit, slot, balance = account
    used, reserved, most = (units.from_smallest(limit.unit, amount) for amount in balance)
    return BudgetExceededError(
        message,
        budget=limit.name,
        scope=slot.scope,
        unit=limit.unit,
        limit=most,
        used=used,
        reserved=reserved,
        requested=units.from_smallest(limit.unit, requested),
        resets_at=resets_at,
    )


def asks(limit: Limit, requested: int) -> str:
    """What a call asked for, in words; "" where that says nothing."""
    kind = units.family(limit.unit)
    amount = f"{units.show(limit.unit, requested)} {units.name(limit.unit)}"
    if limit.wall or not requested:
        return ""
    if kind == units.USD:
        return f"this call may cost up to {amount}"
    if kind in {units.CALLS, units.OPERATIONS}:
        return "" if requested == 1 else f"{amount} requested"
    return f"this call may use up to {amount}"


def _moment(seconds: float, limit: Limit) -> str:
    zone = limit.window.zone if limit.window is not None else "UTC"
    moment = datetime.fromtimestamp(seconds, zone_of(zone))
    return f"{moment:%Y-%m-%d %H:%M:%S} {zone}" if moment.second else f"{moment:%Y-%m-%d %H:%M} {zone}"
