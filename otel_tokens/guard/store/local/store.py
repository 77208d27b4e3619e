"""The store that goes on without the store behind it: `store_fail: local`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from otel_tokens.forks import at_fork
from otel_tokens.guard.store.base import (
    Admission,
    AdmitRequest,
    Balance,
    Booking,
    Change,
    EndedError,
    Row,
    Slot,
    Store,
    StoreError,
)
from otel_tokens.guard.store.local.accounts import LocalAccounts, balances_after
from otel_tokens.safely import interruption, report_fault


def _nothing(*_: object) -> None:
    return


class LocalStore(Store):
    """A shared store, and what this process knows of it. While `store` fails, admissions are decided by that.

    Such an `Admission` has `lost` set. What was let through has to be settled as usual: `settle` raises StoreError
    until the store is back, and until then `settled` says what a call did use. `answered` is called when the store
    answers again, `give_back(key)` for a reservation that the store made and that is not wanted.
    """

    def __init__(self, store: Store, share: float) -> None:
        self.behind = store
        self.direct = store.direct
        self.poll_seconds = store.poll_seconds
        self.lost = False
        self.accounts = LocalAccounts(share)
        self.answered: Callable[[], object] = _nothing
        self.give_back: Callable[[str], object] = _nothing
        at_fork(self)

    def before_fork(self) -> None:
        """Rest while the process is copied."""
        self.accounts.before_fork()

    def after_fork(self, *, child: bool) -> None:
        """What the parent let through is the parent's to book."""
        self.accounts.after_fork(child=child)

    def now(self) -> int:
        """Unix milliseconds by the store's clock."""
        return self.behind.now()

    # ---- admissions ------------------------------------------------------------------------------------------------
    def admit(
        self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int, critical: str = ""
    ) -> Admission:
        """The store's answer, or this process's own without it."""
        asked = time.monotonic()
        try:
            answer = self.behind.admit(key, slots, amounts, ttl_ms, critical)
        except EndedError:
            raise
        except Exception as error:
            return self._without(AdmitRequest(key, slots, amounts, ttl_ms, critical), error)
        return self._noted(AdmitRequest(key, slots, amounts, ttl_ms, critical), answer, asked)

    async def aadmit(
        self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int, critical: str = ""
    ) -> Admission:
        """`admit` without blocking the event loop."""
        asked = time.monotonic()
        try:
            answer = await self.behind.aadmit(key, slots, amounts, ttl_ms, critical)
        except EndedError:
            raise
        except Exception as error:
            return self._without(AdmitRequest(key, slots, amounts, ttl_ms, critical), error)
        return self._noted(AdmitRequest(key, slots, amounts, ttl_ms, critical), answer, asked)

    def _without(self, request: AdmitRequest, error: Exception) -> Admission:
        self._fails(error)
        return self.accounts.admit(request, self.now(), str(error) or type(error).__name__)

    def _fails(self, error: Exception) -> None:
        """The store is lost, by its own fault or by one of ours. Raises what a signal handler of the program raised."""
        if not isinstance(error, StoreError):
            report_fault("guard.store", error)
        else:
            raised = interruption(error)
            if raised is not None:
                raise raised
        self.lost = True

    def _noted(self, request: AdmitRequest, answer: Admission, asked: float) -> Admission:
        if self.lost:
            self._is_back()
        if not answer.balances:
            return answer
        finished = answer.refused if answer.reason == "finished" else -1
        self.accounts.note(request.slots, answer.balances, answer.now, asked, finished=finished)
        if not answer.granted or not self.accounts.keys:
            return answer
        refusal = self.accounts.beyond(request, answer) if request.ttl_ms else None
        if refusal is not None:
            self.give_back(request.key)
        return refusal or answer

    def _is_back(self) -> None:
        self.lost = False
        self.answered()

    # ---- settlements -----------------------------------------------------------------------------------------------
    def settle(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking]:
        """Settle in the store. Raises StoreError."""
        asked = time.monotonic()
        try:
            bookings = self.behind.settle(key, slots, amounts)
        except StoreError as error:
            self._fails(error)
            raise
        return self._booked(key, slots, bookings, asked)

    def settle_at_once(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking]:
        """Settle in the store without waiting for others. Raises StoreError; the store may be busy, and not lost."""
        asked = time.monotonic()
        return self._booked(key, slots, self.behind.settle_at_once(key, slots, amounts), asked)

    async def asettle(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking]:
        """`settle` without blocking the event loop."""
        asked = time.monotonic()
        try:
            bookings = await self.behind.asettle(key, slots, amounts)
        except StoreError as error:
            self._fails(error)
            raise
        return self._booked(key, slots, bookings, asked)

    def _booked(self, key: str, slots: Sequence[Slot], bookings: Sequence[Booking], asked: float) -> Sequence[Booking]:
        if self.accounts.keys:
            self.accounts.forget(key)
        if bookings:
            self.accounts.note(slots, balances_after(bookings), self.now(), asked)
        if self.lost:
            self._is_back()
        return bookings

    def settled(self, key: str, slots: Sequence[Slot], amounts: Sequence[int], reserved: Sequence[int]) -> None:
        """A call has ended and its settlement waits for the store: `amounts` of `reserved` were used."""
        if self.lost or key in self.accounts.keys:
            self.accounts.settled(key, slots, amounts, reserved, now=self.now())

    def merge(self, key: str, into: str) -> None:
        """The settlement of `key` waits under the key `into`, with others."""
        if key in self.accounts.keys:
            self.accounts.merge(key, into, self.now())

    # ---- all else --------------------------------------------------------------------------------------------------
    def read(self, slots: Sequence[Slot]) -> Sequence[Balance]:
        """The balances of `slots`, without the store as this process knows them."""
        try:
            return self.behind.read(slots)
        except StoreError as error:
            self._fails(error)
            return self.accounts.read(slots, self.now())

    async def aread(self, slots: Sequence[Slot]) -> Sequence[Balance]:
        """`read` without blocking the event loop."""
        try:
            return await self.behind.aread(slots)
        except StoreError as error:
            self._fails(error)
            return self.accounts.read(slots, self.now())

    def renew(self, keys: Sequence[str], ttl_ms: int) -> None:
        """Renew in the store. Raises StoreError."""
        self.behind.renew(keys, ttl_ms)
        if keys and self.lost:
            self._is_back()

    def rows(self, budget: str | None = None, scope: str | None = None, limit: int = 1000) -> list[Row]:
        """The store's rows, without the store those that this process knows."""
        try:
            return self.behind.rows(budget, scope, limit)
        except StoreError as error:
            self._fails(error)
            return self.accounts.rows(budget, scope, limit, self.now())

    async def arows(self, budget: str | None = None, scope: str | None = None, limit: int = 1000) -> list[Row]:
        """`rows` without blocking the event loop."""
        try:
            return await self.behind.arows(budget, scope, limit)
        except StoreError as error:
            self._fails(error)
            return self.accounts.rows(budget, scope, limit, self.now())

    def change(
        self, budget: str, op: Change, *, unit: str | None = None, scope: str | None = None, amount: int = 0
    ) -> int:
        """Change running accounts in the store. Raises StoreError."""
        return self.behind.change(budget, op, unit=unit, scope=scope, amount=amount)

    async def achange(
        self, budget: str, op: Change, *, unit: str | None = None, scope: str | None = None, amount: int = 0
    ) -> int:
        """`change` without blocking the event loop."""
        return await self.behind.achange(budget, op, unit=unit, scope=scope, amount=amount)

    def mark_paused(self, slot: Slot, until: int) -> None:
        """Note a waiting call in the store. Raises StoreError."""
        self.behind.mark_paused(slot, until)

    async def amark_paused(self, slot: Slot, until: int) -> None:
        """`mark_paused` without blocking the event loop."""
        await self.behind.amark_paused(slot, until)

    def close(self) -> None:
        """Close the store."""
        self.behind.close()

    async def aclose(self) -> None:
        """`close` without blocking the event loop."""
        await self.behind.aclose()
