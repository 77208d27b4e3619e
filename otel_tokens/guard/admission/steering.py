"""Changes a call whose budget runs low before it is sent: another model, a delay, a pause, a bounded wait."""

from __future__ import annotations

import contextlib
import time

from otel_tokens.guard.budgets.ladder import step_down
from otel_tokens.guard.budgets.limit import Limit
from otel_tokens.guard.estimate.matching import Plan
from otel_tokens.guard.reporting.refusal import AccountState
from otel_tokens.guard.reservation.state import GuardState
from otel_tokens.guard.store.base import Balance, Slot, StoreError
from otel_tokens.guard.store.drivers import SLEEP, Steps
from otel_tokens.safely import logger
from otel_tokens.values import Call

_SHORTEST = 0.001
_LONGEST = 0.5
_FRESH_MS = 1000
"""How long a balance seen in passing may steer calls before it is read again (stores on the network)."""
_MARK_MS = 3000
"""How long the store shows that a call waits. Renewed while it does, the mark goes by itself: when the last of several
waiting calls goes on or gives up, and with a process that is killed."""
_reported: set[tuple[str, str]] = set()


class Steering:
    """The steering of one call, by the shares used of the budgets that the call *as written* falls under."""

    def __init__(self, state: GuardState, call: Call) -> None:
        self._state = state
        self._call = call
        self._rows: list[tuple[Limit, Slot]] = []
        self._steps = 0
        self._forced = 0
        self._slowed = False
        self._paused_out = False
        self._cause: tuple[Limit, Slot] | None = None

    def model(self, home: Plan, now: int) -> Steps[str]:
        """The model to send the call to, from balances that are fresh enough."""
        if not home.steered:
            return self._stepped()
        self._rows = [(limit, slot) for limit, slot in zip(home.limits, home.slots, strict=True) if limit.steers]
        old = [row for row in self._rows if self._needs_reading(*row, now)]
        if old:
            slots = [slot for _, slot in old]
            try:
                balances: list[Balance] = yield ("read", slots)
            except StoreError:
                pass  # the admission will find out, and say so
            else:
                self._state.note(slots, [limit for limit, _ in old], balances, now)
        self._steps = self._wanted()
        return self._stepped()

    def _needs_reading(self, limit: Limit, slot: Slot, now: int) -> bool:
        if self._state.store.direct:
            return True
        seen = self._state.seen.get(slot.key)
        if seen is None or now - seen[3] < _FRESH_MS:
            return False  # never seen: the answer to the admission will tell
        share = self._state.share(slot)
        return share >= min((*limit.downgrade_at, *(at for at, _ in limit.slow), limit.pause_at))

    def _wanted(self) -> int:
        steps = 0
        for limit, slot in self._rows:
            share = self._state.share(slot)
            passed = sum(share >= at for at in limit.downgrade_at)
            if passed > steps:
                steps, self._cause = passed, (limit, slot)
        return steps

    def _stepped(self) -> str:
        steps = self._steps + self._forced
        if not steps or self._cause is None:
            return self._call.model
        call, state = self._call, self._state
        rungs = self._cause[0].ladder
        target = step_down(rungs, call.model, steps, lambda model: state.estimator.known(call, model))
        if target is None and any(rung.holds(call.model) for rung in rungs[:-1]):
            self._complain(self._cause[0])
        return target or call.model

    def _complain(self, limit: Limit) -> None:
        if (limit.name, self._call.model) not in _reported:
            _reported.add((limit.name, self._call.model))
            logger.warning(
                "budget %r: no model of its ladder below %s is known; write full names, or {match: …, use: …}",
                limit.name,
                self._call.model,
            )

    def further(self, limit: Limit, model: str) -> bool:
        """Go one rung further down, if the refusing limit has a ladder to save the call by."""
        if not limit.downgrade_at:
            return False
        self._cause = self._cause or (limit, self._slot_of(limit))
        self._forced += 1
        if self._stepped() == model:
            self._forced -= 1
            return False
        return True

    def _slot_of(self, limit: Limit) -> Slot:
        return next((slot for own, slot in self._rows if own is limit), limit.slot("", "", self._state.store.now()))

    def off_course(self) -> bool:
        """Whether the balances now known ask for another model, or a pause, than was assumed."""
        return bool(self._rows) and (self._wanted() != self._steps or self.pausing() is not None)

    def pausing(self) -> AccountState | None:
        """The account at whose threshold this call has to pause, or None."""
        for limit, slot in self._rows:
            if self._state.share(slot) >= limit.pause_at and (limit.hard or not self._paused_out):
                _, used, most, _ = self._state.seen[slot.key]
                return AccountState(limit, slot, (used, 0, most))
        return None

    def give_up_pausing(self) -> None:
        """The pause of a soft budget ran out: it never refuses, so the call goes on."""
        self._paused_out = True

    def slow_down(self) -> Steps[None]:
        """Wait once, as long as the thresholds passed ask for."""
        if self._slowed:
            return
        self._slowed = True
        rows = [(s, limit, slot) for limit, slot in self._rows for at, s in limit.slow if self._state.share(slot) >= at]
        if not rows:
            return
        seconds, limit, slot = max(rows, key=lambda row: row[0])
        _, used, most, now = self._state.seen[slot.key]
        self._state.report("slow", limit, slot, (used, 0, most), call=self._call, now=now, detail=f"{seconds:g} s")
        yield (SLEEP, seconds)

    def report_downgrade(self, model: str, now: int) -> None:
        """Say that the call goes to a cheaper model."""
        if self._cause is None:
            return
        limit, slot = self._cause
        entry = self._state.seen.get(slot.key, (0, 0, slot.limit, now))
        self._state.report(
            "downgrade", limit, slot, (entry[1], 0, entry[2]), call=self._call, now=now, detail=f"sent to {model}"
        )


class Waiting:
    """The waits of one call; they share one deadline, set when the first begins."""

    def __init__(self, state: GuardState, call: Call, steering: Steering) -> None:
        self._state = state
        self._call = call
        self._steering = steering
        self._deadline: float | None = None
        self._started = 0.0
        self._paused: AccountState | None = None
        self._marked = ("", 0.0)
        self.why = ""

    @property
    def began(self) -> bool:
        """Whether the call has waited at all."""
        return self._deadline is not None

    def before(self, account: AccountState | None) -> Steps[bool]:
        """Pause at a threshold below 100 %. True when the call may go on; raises when the pause ran out."""
        if account is None:
            return True
        now = self._state.store.now()
        if (yield from self.more(account, 0, now)):
            return False
        if not account.limit.hard:
            self._steering.give_up_pausing()
            return True
        raise self._state.refuse(account, 0, call=self._call, now=now, why=self.why)

    def more(self, account: AccountState, retry_at: int, now: int) -> Steps[bool]:
        """Wait a little for a budget; False if it does not wait, or has waited long enough. Times are unix ms."""
        limit, slot, _ = account
        pauses = limit.pause_at <= 1000
        seconds = limit.pause_seconds if pauses else limit.wait_seconds
        if seconds <= 0:
            return False
        clock = time.monotonic()
        if self._deadline is None:
            self._started, self._deadline = clock, clock + seconds
            if pauses:
                self._pause(account, now, seconds)
        if clock >= self._deadline:
            review = yield from self._review_until(slot)
            if review <= now:
                self.why = f"waited {clock - self._started:.0f} s in vain: "
                return False
            self._deadline = clock + (review - now) / 1000
        nap = min(self._state.store.poll_seconds, self._deadline - clock)
        if retry_at > now and not pauses:
            # Others may give back before the window does, so not the whole way in one go.
            nap = min(max(nap, min((retry_at - now) / 1000, _LONGEST)), self._deadline - clock)
        if pauses:
            yield from self._mark(slot, now, clock)
        yield (SLEEP, max(_SHORTEST, nap))
        return True

    def _mark(self, slot: Slot, now: int, clock: float) -> Steps[None]:
        """Tell in the store that a call waits, a few times while a mark lasts."""
        key, until = self._marked
        if key == slot.key and clock < until:
            return
        self._marked = slot.key, clock + _MARK_MS / 1000 / 3
        with contextlib.suppress(StoreError):  # nobody elsewhere sees the pause, that is all
            yield ("mark_paused", slot, now + _MARK_MS)

    def _pause(self, account: AccountState, now: int, seconds: float) -> None:
        """Tell telemetry and the application that the call waits for a person."""
        state = self._state
        self._paused = account
        event = state.report(
            "pause", *account, call=self._call, now=now, detail=f"waiting up to {seconds:g} s for budget"
        )
        if state.options.on_pause is not None:
            state.actions.call(state.options.on_pause, event)

    def _review_until(self, slot: Slot) -> Steps[int]:
        try:
            rows = yield ("rows", slot.budget, slot.scope)
        except StoreError:
            return 0
        return max((row.review_until for row in rows), default=0)

    def over(self, now: int) -> None:
        """Say that a paused call goes on."""
        if self._paused is not None:
            waited = f"after {time.monotonic() - self._started:.1f} s"
            self._state.report("resume", *self._paused, call=self._call, now=now, detail=waited)
