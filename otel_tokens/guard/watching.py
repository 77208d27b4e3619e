"""A stream under way: whether it has outgrown its lease, what more it may have, and when it must be cut."""

from __future__ import annotations

import time
from collections.abc import Sequence

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.drive import Story, run
from otel_tokens.guard.lease import ActiveLease
from otel_tokens.guard.line import Line
from otel_tokens.guard.refusal import AccountState, cut
from otel_tokens.guard.state import GuardState
from otel_tokens.guard.store.base import Admission, StoreError

_LARGE_STEP = 256
_SMALL_STEP = 32


def look(state: GuardState, lease: ActiveLease, tokens: int) -> BudgetExceededError | None:
    """Whether a stream that has produced about `tokens` output tokens must end now."""
    if lease.done:
        return None
    if isinstance(lease.pending, BudgetExceededError):
        return lease.pending
    if lease.deadline is not None and lease.timed_by is not None and time.monotonic() >= lease.deadline:
        return _out_of_time(state, lease, lease.timed_by, tokens)
    if lease.output <= 0 or tokens <= lease.output:
        return None
    if state.store.direct or not lease.plan.slots:
        return run(more(state, lease, tokens), state.store)
    return _ask_in_background(state, lease, tokens)


def _ask_in_background(state: GuardState, lease: ActiveLease, tokens: int) -> BudgetExceededError | None:
    """The caller may be an event loop: ask on another thread, let the stream run on until the answer is there."""
    if lease.pending is None:
        lease.pending = "asking"

        def ask() -> None:
            answer = None
            try:
                answer = run(more(state, lease, tokens), state.store)
            finally:
                lease.pending = answer

        state.background.add(0.0, "guard stream", ask)
    return None


def more(state: GuardState, lease: ActiveLease, tokens: int) -> Story[BudgetExceededError | None]:
    """Reserve for a stream that outgrew its lease: a good part more, or a little, or the error to end it with."""
    for step in (max(_LARGE_STEP, tokens // 4), _SMALL_STEP):
        target = tokens + step
        values = state.meter.grown(lease.plan, lease, target)
        extra = [max(0, values[m] - lease.values[m]) for m in lease.plan.measures]
        try:
            tokens_more = values["tokens"] - lease.values["tokens"]
            if lease.gas is not None:
                lease.gas.reserve(tokens_more)
        except BudgetExceededError as error:
            return _told(state, lease, error)
        if not lease.plan.slots:
            _grown(lease, values, extra, tokens_more, target)
            return None
        try:
            answer: Admission = yield ("admit", lease.key, lease.plan.slots, extra, state.ttl_ms)
        except StoreError as error:
            refusal = state.without_store(error, lease.call)
            if refusal is not None:
                return refusal
            answer = Admission(True, 0, ())
        if answer.granted or answer.reason == "moved":  # the window it was admitted in is over: no longer its limit
            _grown(lease, values, extra, tokens_more, target)
            return None
        if lease.gas is not None:
            lease.gas.settle(tokens_more, 0)
    line, slot = lease.plan.lines[answer.refused], lease.plan.slots[answer.refused]
    why = "finished by hand" if answer.reason == "finished" else ""
    account = AccountState(line, slot, answer.balances[answer.refused])
    return _cut(state, lease, account, tokens, now=answer.now, why=why)


def _grown(lease: ActiveLease, values: dict[str, int], extra: Sequence[int], tokens_more: int, target: int) -> None:
    lease.values = values
    lease.amounts = [old + new for old, new in zip(lease.amounts, extra, strict=True)]
    if lease.gas is not None:
        lease.gas_tokens += tokens_more
    lease.output = target
    if lease.deadline is None:
        lease.look_at = target


def _out_of_time(state: GuardState, lease: ActiveLease, line: Line, tokens: int) -> BudgetExceededError:
    """The error of a stream whose time is up: its own, or its task's."""
    now = state.store.now()
    plan = lease.plan
    slots = {id(own): slot for own, slot in zip(plan.lines, plan.slots, strict=True)}
    slot = slots.get(id(line)) or line.slot("", "", now)
    account = AccountState(line, slot, (slot.limit, 0, slot.limit))
    return _cut(state, lease, account, tokens, now=now, why="its time is up")


def _cut(
    state: GuardState,
    lease: ActiveLease,
    account: AccountState,
    tokens: int,
    *,
    now: int,
    why: str,
) -> BudgetExceededError:
    line, slot, balance = account
    state.decisions.single(line.name, "deny", lease.call.provider, lease.call.model, "cut")
    state.tell("cut", line, slot, balance, call=lease.call, now=now, detail=why or f"after {tokens} output tokens")
    return _ended(lease, cut(account, tokens, now=now, why=why))


def _told(state: GuardState, lease: ActiveLease, error: BudgetExceededError) -> BudgetExceededError:
    state.decisions.single(error.budget, "deny", lease.call.provider, lease.call.model, "cut")
    return _ended(lease, error)


def _ended(lease: ActiveLease, error: BudgetExceededError) -> BudgetExceededError:
    """From now on every look finds this error."""
    lease.pending, lease.look_at = error, 0
    return error
