"""Accounts and reservations of the memory store."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from otel_tokens.guard.store.account import Account, ReservedAmount
from otel_tokens.guard.store.base import Balance, Change, Slot


class Accounts:
    """All accounts of a store, and the limits set budget-wide. No lock: the store holds it."""

    def __init__(self) -> None:
        self.known: dict[str, Account] = {}
        self._queue: deque[str] = deque()
        self._wide: dict[tuple[str, str], int] = {}

    def open(self, slot: Slot, now: int) -> Account:
        """The account of `slot`, turned to the slot's window; made if it isn't there."""
        wide = self._wide.get((slot.budget, slot.unit)) if self._wide else None
        account = self.known.get(slot.key)
        if account is None:
            self._forget_some(now)
            self._queue.append(slot.key)
            account = self.known[slot.key] = Account(slot, now, wide)
        elif account.slot is not slot or now >= account.until:
            account.turn(slot, now, wide)
        return account

    def _forget_some(self, now: int) -> None:
        """Look at two accounts, oldest first: each new account pays for two looks, so none are kept in vain."""
        for _ in range(min(2, len(self._queue))):
            key = self._queue.popleft()
            if self.known[key].forgotten(now):
                del self.known[key]
            else:
                self._queue.append(key)

    def balance(self, slot: Slot, now: int) -> Balance:
        """The balance of `slot`, without making an account."""
        account = self.known.get(slot.key)
        if account is None or account.start < slot.start:
            return (0, 0, self._wide.get((slot.budget, slot.unit), slot.limit))
        account.age(now)
        return account.balance(now)

    def change(self, budget: str, op: Change, unit: str | None, scope: str | None, *, amount: int, now: int) -> int:
        """Change what runs, and for `set` and `unset` without scope what is to come. Returns how many."""
        wide = int(scope is None and op in {"set", "unset"})
        if wide and unit is not None:
            if op == "set":
                self._wide[budget, unit] = amount
            else:
                self._wide.pop((budget, unit), None)
        accounts = running(self.known.values(), now, budget, unit, scope)
        for account in accounts:
            account.apply(op, amount, now, own=scope is not None)
            account.relimit(self._wide.get((budget, account.slot.unit)))
        return wide + len(accounts)


def running(
    accounts: Iterable[Account], now: int, budget: str | None, unit: str | None, scope: str | None
) -> list[Account]:
    """The accounts whose window isn't over, narrowed by what is not None."""
    return [
        account
        for account in accounts
        if account.until > now
        and (budget is None or account.slot.budget == budget)
        and (unit is None or account.slot.unit == unit)
        and (scope is None or account.slot.scope == scope)
    ]


class MemoryReservation:
    """A reservation of the memory store: what it reserves on which accounts, and when their windows began then.

    `began` is empty for the usual reservation, all of whose accounts were in the windows of their slots.
    """

    __slots__ = ("amounts", "began", "expires", "slots")

    def __init__(self, expires: int, slots: Sequence[Slot], amounts: Sequence[int], began: Sequence[int]) -> None:
        self.expires = expires
        self.slots = slots
        self.amounts = amounts
        self.began = began

    def grow(self, more: MemoryReservation) -> None:
        """Take more on the same key (a stream that asked for more)."""
        self.expires = max(self.expires, more.expires)
        mine, theirs = self.starts(), more.starts()
        if more.slots is self.slots and theirs == mine:
            self.amounts = [old + new for old, new in zip(self.amounts, more.amounts, strict=True)]
            return
        self.slots = (*self.slots, *more.slots)
        self.amounts = [*self.amounts, *more.amounts]
        self.began = [*mine, *theirs]

    def starts(self) -> Sequence[int]:
        """When the window of each account began at the admission."""
        return self.began or [slot.start for slot in self.slots]

    def parts(self) -> list[ReservedAmount]:
        """What is reserved, account by account."""
        rows = zip(self.amounts, self.slots, self.starts(), strict=True)
        return [ReservedAmount(amount, slot.start, began, slot.key) for amount, slot, began in rows]
