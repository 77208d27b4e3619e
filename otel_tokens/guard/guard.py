"""The public face of the guard: admit, settle and release calls; show, forecast and change budgets."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from otel_tokens.errors import BudgetExceededError, ConfigError
from otel_tokens.forks import at_fork
from otel_tokens.guard.admission import admit, operations
from otel_tokens.guard.budgets import units
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.budgets.limit import Limit
from otel_tokens.guard.budgets.mistakes import Mistake
from otel_tokens.guard.budgets.presets import detect
from otel_tokens.guard.budgets.thresholds import thresholds
from otel_tokens.guard.estimate.estimator import Estimator
from otel_tokens.guard.estimate.history import Accuracy, History
from otel_tokens.guard.estimate.matching import Index
from otel_tokens.guard.options import Estimate, GuardOptions, Price
from otel_tokens.guard.reporting import administration
from otel_tokens.guard.reporting.actions import Actions, Scheduler
from otel_tokens.guard.reporting.administration import Status
from otel_tokens.guard.reporting.events import Decisions, Emit, Event
from otel_tokens.guard.reporting.forecast import Forecast, clock_forecast, forecast
from otel_tokens.guard.reservation import settle
from otel_tokens.guard.reservation.amounts import counted
from otel_tokens.guard.reservation.gas import Critical, Gas
from otel_tokens.guard.reservation.renewal import Renewer
from otel_tokens.guard.reservation.reservation import ActiveReservation
from otel_tokens.guard.reservation.state import GuardState
from otel_tokens.guard.reservation.streams import look
from otel_tokens.guard.store.base import Change, Store
from otel_tokens.guard.store.drivers import arun, aside, in_asyncio, run
from otel_tokens.guard.store.local.store import LocalStore
from otel_tokens.guard.store.memory.store import MemoryStore
from otel_tokens.values import Call, CallSizes, Record, Reservation, Usage


def _silent(_: Event) -> None:
    return


class Guard:
    """Holds budgets over calls. One per process; safe for threads, tasks and forks.

    `price` prices usage, `estimate` gives the likely usage of a call (None: from what its model did before),
    `emit` takes each `Event`. Raises ConfigError for budgets that do not go together.
    """

    def __init__(
        self,
        budgets: Sequence[Budget],
        store: Store,
        *,
        price: Price,
        estimate: Estimate | None = None,
        options: GuardOptions | None = None,
        emit: Emit = _silent,
    ) -> None:
        options = options or GuardOptions()
        self.budgets = tuple(budgets)
        self.store = store
        history = History()
        kept = _with_fallback(store, options)
        local = kept if isinstance(kept, LocalStore) else None
        self._state = GuardState(
            index=Index(_limits(self.budgets, options)),
            store=kept,
            local=local,
            options=options,
            estimator=Estimator(price, estimate, options, history),
            history=history,
            actions=Actions(emit, options),
            decisions=Decisions(),
            renewer=Renewer(kept, options.lease_seconds, options.queue),
            background=Scheduler(),
            ttl_ms=int(options.lease_seconds * 1000),
        )
        if local is not None:
            local.answered = self._state.renewer.retry
            local.give_back = self._state.release_key
        at_fork(self)

    # ---- calls --------------------------------------------------------------------------------------------------
    def admit(self, call: Call, sizes: CallSizes) -> ActiveReservation | None:
        """Reserve what `call` may use, or raise BudgetExceededError; None when no budget concerns it.

        May wait where a budget says so (slow down, wait, pause), always bounded.
        """
        return admit.admit(self._state, call, sizes)

    def reserve(
        self, provider: str, model: str, *, input_tokens: int, max_output: int | None = None, operation: str = "chat"
    ) -> ActiveReservation | None:
        """`admit` for a call that is not patched: its likely input in tokens, its bound on output, current tags.

        End it with `settle(reservation, Usage(...))`, or `release(reservation)` if it was never billed.
        """
        input_tokens = counted(input_tokens, "tokens")
        max_output = None if max_output is None else counted(max_output, "tokens")
        tags = self._state.options.tags()
        call = Call(uuid.uuid4().hex, provider, f"{provider}.{operation}", operation, model, time.time(), tags=tags)
        return self.admit(call, CallSizes(input_tokens, input_tokens, max_output))

    async def aadmit(self, call: Call, sizes: CallSizes) -> ActiveReservation | None:
        """`admit` that never blocks the event loop."""
        if not in_asyncio():
            return await aside(partial(self.admit, call, sizes))
        return await admit.aadmit(self._state, call, sizes)

    def fault(self, call: Call, error: Exception) -> None:
        """A fault of ours came before `admit`: raises BudgetExceededError where any budget may refuse, by `fail`."""
        admit.unmeasured(self._state, call, error)

    def look(self, reservation: Reservation, output_tokens: int) -> BudgetExceededError | None:
        """The error to end a stream with that has produced about `output_tokens`; one comparison if all is well."""
        at = reservation.look_at
        if at is None or output_tokens < at or not isinstance(reservation, ActiveReservation):
            return None
        return look(self._state, reservation, output_tokens)

    def settle(self, reservation: Reservation | None, record: Record | Usage | None) -> None:
        """Replace the reservation by what the call did cost; None: by what was reserved. Never waits for a network.

        The first end of a reservation counts, others do nothing.
        """
        if not isinstance(reservation, ActiveReservation):
            return
        settle.settle(
            self._state, reservation, self._record(reservation, record) if isinstance(record, Usage) else record
        )

    def release(self, reservation: Reservation | None) -> None:
        """Give the reservation back: nothing was billed. Idempotent."""
        if isinstance(reservation, ActiveReservation):
            settle.release(self._state, reservation)

    def _record(self, reservation: ActiveReservation, usage: Usage) -> Record:
        call = reservation.call
        cost = self._state.estimator.cost(call, reservation.sent_model, usage)
        return Record(call, usage, cost, "ok", max(0.0, time.time() - call.started))

    # ---- sections and operations --------------------------------------------------------------------------------
    def critical(self, name: str) -> Critical:
        """A section that must not stop half-way: inside, budgets with a `grace` may be overdrawn, once."""
        return Critical(name)

    def gas(self, tokens: int, name: str = "gas") -> Gas:
        """An allowance for one instruction of an agent: `with guard.gas(50_000) as gas: … gas.remaining`."""
        return Gas(tokens, name)

    def count(self, operation: str, amount: int = 1, *, dangerous: bool = False) -> None:
        """Count an operation of the application before it happens, under the current tags.

        A dangerous one counts as "dangerous" as well. Raises BudgetExceededError, and then nothing was counted.
        """
        run(operations.count(self._state, operation, amount, dangerous=dangerous), self._state.store)

    async def acount(self, operation: str, amount: int = 1, *, dangerous: bool = False) -> None:
        """`count` that never blocks the event loop."""
        if not in_asyncio():
            return await aside(partial(self.count, operation, amount, dangerous=dangerous))
        return await arun(operations.count(self._state, operation, amount, dangerous=dangerous), self._state.store)

    @staticmethod
    def task_type(description: str) -> str | None:
        """The task type (question, change, bug_fix, feature, architecture) that a task's description suggests."""
        return detect(description)

    # ---- seen from outside --------------------------------------------------------------------------------------
    def status(self, budget: str | None = None, scope: str | None = None, limit: int = 1000) -> list[Status]:
        """The budgets in force, one row per scope and unit; budgets not used yet appear where they have one scope.

        Without the store, for `fail: local`, the rows that this process knows; else raises StoreError.
        """
        rows = administration.status(self._state.store, budget, scope, limit)
        known = {(row.name, row.unit) for row in rows}
        now = self.store.now()
        for own in self._state.index.limits:
            unused = (own.name, own.unit) not in known and not own.scope_keys
            if unused and budget in {None, own.name} and scope in {None, ""} and len(rows) < limit:
                rows.append(_unused(own, now))
        return sorted(rows, key=lambda row: (row.name, row.scope, row.unit))

    def forecast(self, budget: str | None = None, scope: str | None = None) -> list[Forecast]:
        """What is left and how long it lasts, per row of `status`, from the calls this process settled lately."""
        return self._forecasts(self.status(budget, scope))

    def _forecasts(self, rows: Sequence[Status]) -> list[Forecast]:
        now = time.time()
        wanted = {(row.name, row.unit, row.scope) for row in rows}
        samples: dict[tuple[str, str, str], list[tuple[float, int, int]]] = {}
        for at, slots, bookings in list(self._state.burn):
            for slot, booking in zip(slots, bookings, strict=True):
                whose = (slot.budget, slot.unit, slot.scope)
                if whose in wanted:
                    samples.setdefault(whose, []).append((at, booking[0], booking[1]))
        made: list[Forecast] = []
        wall_clocks = {(limit.name, limit.unit) for limit in self._state.index.limits if limit.wall}
        for row in rows:
            if (row.name, row.unit) in wall_clocks:
                made.append(clock_forecast(row))
                continue
            start = row.start or (now - row.window_seconds if row.window_seconds else 0.0)
            own = [sample for sample in samples.get((row.name, row.unit, row.scope), ()) if sample[0] >= start]
            made.append(forecast(row, own, units.smallest(row.unit), now))
        return made

    def change(self, op: Change, name: str, amount: str | None = None, *, scope: str | None = None) -> int:
        """Change a budget while it runs: `guard.change("add", "daily", "5USD")`; see `manage.change`."""
        return administration.change(self.store, op, name, amount, scope=scope)

    def decisions(self) -> Sequence[tuple[str, str, str, str, str, int]]:
        """(budget, decision, provider, model, reason, count) since the process began; reason is "" or "store"."""
        return self._state.decisions.totals()

    def accuracy(self) -> list[Accuracy]:
        """How far the estimates of each model's calls were from what they used."""
        return self._state.history.accuracy()

    def state(self, **tags: str) -> dict[str, Any]:
        """The state of a task (`state(task="42")`) or of anything else that budgets are split by, ready for JSON."""
        rows = administration.of_tags(administration.status(self._state.store, limit=sys.maxsize), tags)
        return {
            "tags": dict(tags),
            "at": time.time(),
            "budgets": [row.to_dict() for row in rows],
            "forecast": [row.to_dict() for row in self._forecasts(rows)],
        }

    def save_state(self, path: str | Path, **tags: str) -> None:
        """Write `state` to a file; a reader never sees half of it. Raises OSError."""
        target = Path(path)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self.state(**tags), file, indent=2)
            Path(name).replace(target)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise

    # ---- the end ------------------------------------------------------------------------------------------------
    def flush(self, timeout: float = 2.0) -> bool:
        """Settle and do what is waiting, at most `timeout` seconds each; says whether nothing is left."""
        settled = self._state.renewer.flush(timeout)
        return self._state.actions.flush(timeout) and settled

    def close(self, timeout: float = 2.0) -> None:
        """Settle what can be settled in time and let go of the store."""
        self._state.renewer.close(timeout)
        self._state.actions.flush(min(timeout, 1.0))
        self.store.close()

    def before_fork(self) -> None:
        """Nothing to rest: see `after_fork`."""
        return

    def after_fork(self, *, child: bool) -> None:
        """A child has no threads, and the calls in flight are its parent's."""
        if child:
            state = self._state
            for part in (state.renewer, state.actions, state.background, state.decisions):
                part.after_fork()


def _with_fallback(store: Store, options: GuardOptions) -> Store:
    """The store, for `fail: local` with this process's own knowledge around it. Memory cannot be lost."""
    if options.fail != "local" or type(store) is MemoryStore:
        return store
    return LocalStore(store, options.offline_share)


def _limits(budgets: Sequence[Budget], options: GuardOptions) -> list[Limit]:
    """Every limit of every budget. Raises ConfigError for a name given twice."""
    try:
        marks = thresholds(options.thresholds)
    except Mistake as error:
        raise ConfigError(error.message, key="thresholds") from None
    seen: set[str] = set()
    for budget in budgets:
        if budget.name in seen:
            raise ConfigError("two budgets have this name", where="budgets", key=budget.name)
        seen.add(budget.name)
    return [Limit(budget, declared, marks, options.estimate) for budget in budgets for declared in budget.limits]


def _unused(limit: Limit, now: int) -> Status:
    start, end, most, _ = limit.now(now)
    whole = units.from_smallest(limit.unit, most)
    zero = units.from_smallest(limit.unit, 0)
    span = limit.window.length if limit.window is not None and limit.window.rolling else None
    return Status(limit.name, limit.unit, "", zero, zero, whole, whole, start / 1000 or None, end / 1000 or None, span)
