"""Accounts and reservations of the memory store."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from otel_tokens.guard.store.account import Account, ReservedAmount
from otel_tokens.guard.store.base import NEVER, Balance, Change, Slot

MAX_GROUPS = 8192


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
                self.known.pop(key).plain = False  # a group may still have it
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


@dataclass(slots=True)
class Group:
    """Slots that are admitted together, with their accounts, and when the window of each account began then."""

    slots: Sequence[Slot]
    accounts: Sequence[Account]
    began: Sequence[int]
    until: int = 0


Held = tuple[int, Group, Sequence[int]]
"""A reservation: when it expires (unix ms), the accounts, and what is reserved on each."""


class Groups:
    """The groups of the slots that calls are admitted with again and again, so that accounts are not looked up."""

    def __init__(self) -> None:
        self.by_id: dict[int, Group] = {}
        """By the id of the tuple of slots. The group holds the tuple, so no other object can have its id."""

    def keep(self, group: Group) -> None:
        """Keep a group whose accounts are plain. It may be used before the first of their windows ends."""
        slots = group.slots
        if not isinstance(slots, tuple):
            return  # others may change it
        for account, slot in zip(group.accounts, slots, strict=True):
            if not account.plain or account.slot is not slot:
                return
        if len(self.by_id) >= MAX_GROUPS:
            self.by_id.clear()
        group.until = min((account.until for account in group.accounts), default=NEVER)
        self.by_id[id(slots)] = group


def parts_of(held: Held) -> list[ReservedAmount]:
    """What is reserved, account by account."""
    return [part_of(held, index) for index in range(len(held[2]))]


def part_of(held: Held, index: int) -> ReservedAmount:
    """What is reserved on one account."""
    _, group, amounts = held
    slot = group.slots[index]
    return ReservedAmount(amounts[index], slot.start, group.began[index], slot.key)


def added(held: Held, more: Held) -> Held:
    """Both reservations under one key (a stream that asked for more)."""
    (expires, group, amounts), (later, other, further) = held, more
    expires = max(expires, later)
    if other.slots is group.slots and list(other.began) == list(group.began):
        return expires, group, [old + new for old, new in zip(amounts, further, strict=True)]
    both = Group((*group.slots, *other.slots), (*group.accounts, *other.accounts), (*group.began, *other.began))
    return expires, both, (*amounts, *further)
