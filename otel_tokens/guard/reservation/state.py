"""The state that all parts of the guard share."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets.limit import Limit
from otel_tokens.guard.budgets.thresholds import STEERING, Threshold
from otel_tokens.guard.estimate.estimator import Estimator
from otel_tokens.guard.estimate.history import History
from otel_tokens.guard.estimate.matching import Index, Plan
from otel_tokens.guard.options import GuardOptions
from otel_tokens.guard.reporting.actions import Actions, Scheduler
from otel_tokens.guard.reporting.events import Decision, Decisions, Event, Kind, about
from otel_tokens.guard.reporting.refusal import AccountState, asks, refused
from otel_tokens.guard.reservation.renewal import Renewer
from otel_tokens.guard.store.base import Admission, Balance, Booking, Slot, Store, StoreError
from otel_tokens.guard.store.local.store import LocalStore
from otel_tokens.safely import logger
from otel_tokens.values import Call

_MAX_REPORTED = 10_000
_SAY_LOST_EVERY = 60.0
BURN_SAMPLES = 1024
_LOST: dict[str, str] = {
    "local": "each process goes on by what it last knew of each account",
    "open": "calls go on without being held to their budgets",
    "closed": "calls under hard budgets are refused",
}
"""What happens without the store, by `GuardOptions.fail`."""
Burn = tuple[float, Sequence[Slot], Sequence[Booking]]
"""(unix seconds, slots, bookings) of one settlement: what a forecast is made of."""


@dataclass(slots=True)
class GuardState:
    """Built once per guard, mutable. `local` is `store` where that goes on without the store behind it.

    `seen` has (window start, used, limit, when) of accounts that steer calls.
    """

    index: Index
    store: Store
    options: GuardOptions
    estimator: Estimator
    history: History
    actions: Actions
    decisions: Decisions
    renewer: Renewer
    ttl_ms: int
    background: Scheduler
    local: LocalStore | None = None
    burn: deque[Burn] = field(default_factory=lambda: deque[Burn](maxlen=BURN_SAMPLES))
    running_low: bool = False
    seen: dict[str, tuple[int, int, int, int]] = field(default_factory=dict[str, tuple[int, int, int, int]])
    _say_lost_at: float = 0.0
    _reported: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])

    # ---- what is known of accounts --------------------------------------------------------------------------------
    def note(self, slots: Sequence[Slot], limits: Sequence[Limit], balances: Sequence[Balance], now: int) -> None:
        """Remember the balances of accounts whose use steers calls."""
        for slot, limit, (used, _, most) in zip(slots, limits, balances, strict=True):
            if limit.steers:
                if len(self.seen) >= _MAX_REPORTED:
                    self.seen.clear()
                self.seen[slot.key] = (slot.start, used, most, now)

    def share(self, slot: Slot) -> int:
        """How much of an account is used, in permille, as far as this process knows."""
        entry = self.seen.get(slot.key)
        if entry is None or entry[0] != slot.start:
            return 0
        return permille(entry[1], entry[2])

    def warned(self, plan: Plan, balances: Sequence[Balance]) -> set[str]:
        """The budgets of the plan that have passed their first threshold."""
        rows = zip(plan.limits, balances, plan.first_thresholds, strict=True)
        return {limit.name for limit, (used, _, most), (_, _, share) in rows if used * 1000 >= most * share}

    # ---- telling ----------------------------------------------------------------------------------------------------
    def report(
        self, kind: Kind, limit: Limit, slot: Slot, balance: Balance, *, call: Call | None, now: int, **more: Any
    ) -> Event:
        """Emit an event about one account."""
        event = about(kind, limit, slot, balance, call=call, now=now, **more)
        self.actions.report(event)
        return event

    def crossed(
        self,
        limits: Sequence[Limit],
        slots: Sequence[Slot],
        bookings: Sequence[Booking],
        *,
        call: Call | None,
        now: int,
    ) -> None:
        """Do what the thresholds ask for that these bookings crossed. Each crossing is seen by one booking only."""
        for limit, slot, (before, after, reserved, most) in zip(limits, slots, bookings, strict=True):
            for threshold in limit.thresholds:
                if before * 1000 < threshold.permille * most <= after * 1000 and before < after:
                    self.fire(threshold, limit, slot, (after, reserved, most), call=call, now=now)

    def fire(
        self, threshold: Threshold, limit: Limit, slot: Slot, balance: Balance, *, call: Call | None, now: int
    ) -> None:
        """Do one threshold's telling actions."""
        event = about("threshold", limit, slot, balance, call=call, now=now, threshold=threshold.percent)
        for action in threshold.actions:
            if action.kind not in STEERING:
                self.actions.do(action, event)

    def refuse(
        self, account: AccountState, requested: int, *, call: Call | None, now: int, retry_at: int = 0, why: str = ""
    ) -> BudgetExceededError:
        """Count and report a refusal, and make its error. The 100 % actions run once per account and window."""
        self._count(account.limit.name, "deny", call, "")
        return self._refusal(account, requested, call=call, now=now, retry_at=retry_at, why=why)

    def refuse_locally(
        self, account: AccountState, requested: int, *, call: Call | None, answer: Admission
    ) -> BudgetExceededError:
        """`refuse` for an answer that was given without the store."""
        self._report_lost(answer.lost, call)
        self._count(account.limit.name, "deny", call, "store_local")
        why = "the budget store does not answer, and by what this process last knew: "
        return self._refusal(account, requested, call=call, now=answer.now, why=why)

    def _refusal(
        self, account: AccountState, requested: int, *, call: Call | None, now: int, retry_at: int = 0, why: str = ""
    ) -> BudgetExceededError:
        limit, slot, balance = account
        detail = why.rstrip(": ") or asks(limit, requested)
        event = self.report("exceeded", limit, slot, balance, call=call, now=now, detail=detail)
        if (slot.key, slot.start) not in self._reported:
            if len(self._reported) >= _MAX_REPORTED:
                self._reported.clear()
            self._reported.add((slot.key, slot.start))
            for threshold in limit.thresholds:
                if threshold.permille >= 1000 and balance[0] * 1000 < threshold.permille * balance[2]:
                    for action in threshold.actions:
                        if action.kind not in STEERING and action.kind != "event":
                            self.actions.do(action, event)
        return refused(account, requested, now=now, retry_at=retry_at, why=why)

    def _count(self, budget: str, decision: Decision, call: Call | None, reason: str) -> None:
        provider, model = ("", "") if call is None else (call.provider, call.model)
        self.decisions.single(budget, decision, provider, model, reason)

    # ---- without the store -------------------------------------------------------------------------------------------
    def allowed_locally(
        self, limits: Sequence[Limit], warned: Collection[str], *, call: Call | None, lost: str
    ) -> None:
        """Count and report a call that was let through by what this process last knew."""
        self._report_lost(lost, call)
        for name in dict.fromkeys(limit.name for limit in limits):
            self._count(name, "warn" if name in warned else "allow", call, "store_local")

    def without_store(self, error: Exception, call: Call | None, limits: Sequence[Limit]) -> BudgetExceededError | None:
        """Decide by the fail mode alone, for a call under `limits`; the error to raise, or None to let it through.

        Also for a fault of ours, and where the amounts of the call are not known: then `local` is `closed`.
        """
        reason = f"store_{self.options.fail}"
        refusing = [] if self.options.fail == "open" else [limit for limit in limits if limit.hard]
        self._report_lost(str(error) or type(error).__name__, call)
        for name in dict.fromkeys(limit.name for limit in refusing or limits) or [""]:
            self._count(name, "deny" if refusing else "allow", call, reason)
        if not refusing:
            return None
        fault = "" if isinstance(error, StoreError) else f"{type(error).__name__}: "
        return BudgetExceededError(
            f"budget {refusing[0].name!r}: the budget store does not answer, and the guard refuses (store_fail: "
            f"{self.options.fail}): {fault}{error}",
            budget=refusing[0].name,
            unit=refusing[0].unit,
        )

    def _report_lost(self, error: str, call: Call | None) -> None:
        """Report a decision that the store had no part in, and log it once a minute.

        A mistake in the store's address must not look like budgets that hold.
        """
        provider, model = ("", "") if call is None else (call.provider, call.model)
        self.actions.report(Event("store", provider=provider, model=model, detail=error))
        now = time.monotonic()
        if now < self._say_lost_at:
            return
        self._say_lost_at = now + _SAY_LOST_EVERY
        fail = self.options.fail
        logger.warning("the budget store does not answer: %s (store_fail: %s): %s", _LOST[fail], fail, error)

    # ---- reservations ----------------------------------------------------------------------------------------------
    def release_key(self, key: str) -> None:
        """Release a reservation, now if the store is near, else soon; also one that may not exist."""
        if self.local is not None:
            self.local.settled(key, (), (), ())
        if self.store.direct:
            try:
                self.store.settle_at_once(key, (), ())
                return
            except StoreError:
                pass  # busy: the renewer tries again
        self.renewer.settle(key, (), ())


def permille(used: int, most: int) -> int:
    """The share used, in permille; a limit of nothing is used up."""
    return used * 1000 // most if most > 0 else 1000


def operation_key() -> str:
    """A fresh key for something that is spent at once."""
    return f"op-{uuid.uuid4().hex}"
