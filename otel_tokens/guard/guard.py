"""The guard: what a call may cost is reserved before it is sent, and settled with what it did cost."""

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
from otel_tokens.guard import asking, counting, leasing, manage, units
from otel_tokens.guard.actions import Actions, Scheduler
from otel_tokens.guard.budget import Budget
from otel_tokens.guard.drive import arun, aside, in_asyncio, run
from otel_tokens.guard.events import Decisions, Emit, Event
from otel_tokens.guard.forecast import Forecast, clock_forecast, forecast
from otel_tokens.guard.gas import Critical, Gas
from otel_tokens.guard.index import Index
from otel_tokens.guard.keeper import Keeper
from otel_tokens.guard.learned import Accuracy, Learned
from otel_tokens.guard.lease import ActiveLease
from otel_tokens.guard.line import Line
from otel_tokens.guard.manage import Status
from otel_tokens.guard.meter import Meter
from otel_tokens.guard.options import Estimate, GuardOptions, Price
from otel_tokens.guard.presets import detect
from otel_tokens.guard.state import GuardState
from otel_tokens.guard.store.base import Change, Store
from otel_tokens.guard.threshold import thresholds
from otel_tokens.guard.watching import look
from otel_tokens.guard.wrong import Wrong
from otel_tokens.values import Call, CallSizes, Lease, Record, Usage


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
        learned = Learned()
        self._state = GuardState(
            index=Index(_lines(self.budgets, options)),
            store=store,
            options=options,
            meter=Meter(price, estimate, options, learned),
            learned=learned,
            actions=Actions(emit, options),
            decisions=Decisions(),
            keeper=Keeper(store, options.lease_seconds, options.queue),
            background=Scheduler(),
            ttl_ms=int(options.lease_seconds * 1000),
        )
        at_fork(self)

    # ---- calls --------------------------------------------------------------------------------------------------
    def admit(self, call: Call, sizes: CallSizes) -> ActiveLease | None:
        """Reserve what `call` may use, or raise BudgetExceededError; None when no budget concerns it.

        May wait where a budget says so (slow down, wait, pause), always bounded.
        """
        return asking.admit(self._state, call, sizes)

    def reserve(
        self, provider: str, model: str, *, input_tokens: int, max_output: int | None = None, operation: str = "chat"
    ) -> ActiveLease | None:
        """`admit` for a call that is not patched: its likely input in tokens, its bound on output, current tags.

        End it with `settle(lease, Usage(...))`, or `release(lease)` if it was never billed.
        """
        if input_tokens < 0 or (max_output or 0) < 0:
            raise ValueError("a call uses tokens, not less than 0")
        tags = self._state.options.tags()
        call = Call(uuid.uuid4().hex, provider, f"{provider}.{operation}", operation, model, time.time(), tags=tags)
        return self.admit(call, CallSizes(input_tokens, input_tokens, max_output))

    async def aadmit(self, call: Call, sizes: CallSizes) -> ActiveLease | None:
        """`admit` that never blocks the event loop."""
        if not in_asyncio():
            return await aside(partial(self.admit, call, sizes))
        return await asking.aadmit(self._state, call, sizes)

    def look(self, lease: Lease, output_tokens: int) -> BudgetExceededError | None:
        """The error to end a stream with that has produced about `output_tokens`; one comparison if all is well."""
        at = lease.look_at
        if at is None or output_tokens < at or not isinstance(lease, ActiveLease):
            return None
        return look(self._state, lease, output_tokens)

    def settle(self, lease: Lease | None, record: Record | Usage) -> None:
        """Replace the reservation by what the call did cost. Idempotent; never waits for a network."""
        if not isinstance(lease, ActiveLease):
            return
        leasing.close(self._state, lease, self._record(lease, record) if isinstance(record, Usage) else record)

    def release(self, lease: Lease | None) -> None:
        """Give the reservation back: nothing was billed. Idempotent."""
        if isinstance(lease, ActiveLease):
            leasing.release(self._state, lease)

    def _record(self, lease: ActiveLease, usage: Usage) -> Record:
        call = lease.call
        cost = self._state.meter.cost(call, lease.sent_model, usage)
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
        run(counting.count(self._state, operation, amount, dangerous=dangerous), self.store)

    async def acount(self, operation: str, amount: int = 1, *, dangerous: bool = False) -> None:
        """`count` that never blocks the event loop."""
        if not in_asyncio():
            return await aside(partial(self.count, operation, amount, dangerous=dangerous))
        return await arun(counting.count(self._state, operation, amount, dangerous=dangerous), self.store)

    @staticmethod
    def task_type(description: str) -> str | None:
        """The task type (question, change, bug_fix, feature, architecture) that a task's description suggests."""
        return detect(description)

    # ---- seen from outside --------------------------------------------------------------------------------------
    def status(self, budget: str | None = None, scope: str | None = None, limit: int = 1000) -> list[Status]:
        """The budgets in force, one row per scope and unit; budgets not used yet appear where they have one scope.

        Raises StoreError.
        """
        rows = manage.status(self.store, budget, scope, limit)
        known = {(row.name, row.unit) for row in rows}
        now = self.store.now()
        for line in self._state.index.lines:
            unused = (line.name, line.unit) not in known and not line.scope_keys
            if unused and budget in {None, line.name} and scope in {None, ""} and len(rows) < limit:
                rows.append(_unused(line, now))
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
        walls = {(line.name, line.unit) for line in self._state.index.lines if line.wall}
        for row in rows:
            if (row.name, row.unit) in walls:
                made.append(clock_forecast(row))
                continue
            start = row.start or (now - row.window_seconds if row.window_seconds else 0.0)
            own = [sample for sample in samples.get((row.name, row.unit, row.scope), ()) if sample[0] >= start]
            made.append(forecast(row, own, units.smallest(row.unit), now))
        return made

    def change(self, op: Change, name: str, amount: str | None = None, *, scope: str | None = None) -> int:
        """Change a budget while it runs: `guard.change("add", "daily", "5USD")`; see `manage.change`."""
        return manage.change(self.store, op, name, amount, scope=scope)

    def decisions(self) -> Sequence[tuple[str, str, str, str, str, int]]:
        """(budget, decision, provider, model, reason, count) since the process began; reason is "" or "store"."""
        return self._state.decisions.totals()

    def accuracy(self) -> list[Accuracy]:
        """How far the estimates of each model's calls were from what they used."""
        return self._state.learned.accuracy()

    def state(self, **tags: str) -> dict[str, Any]:
        """The state of a task (`state(task="42")`) or of anything else that budgets are split by, ready for JSON."""
        rows = manage.of_tags(manage.status(self.store, limit=sys.maxsize), tags)
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
        settled = self._state.keeper.flush(timeout)
        return self._state.actions.flush(timeout) and settled

    def close(self, timeout: float = 2.0) -> None:
        """Settle what can be settled in time and let go of the store."""
        self._state.keeper.close(timeout)
        self._state.actions.flush(min(timeout, 1.0))
        self.store.close()

    def before_fork(self) -> None:
        """Nothing to rest: see `after_fork`."""
        return

    def after_fork(self, *, child: bool) -> None:
        """A child has no threads, and the calls in flight are its parent's."""
        if child:
            state = self._state
            for part in (state.keeper, state.actions, state.background, state.decisions):
                part.after_fork()


def _lines(budgets: Sequence[Budget], options: GuardOptions) -> list[Line]:
    """Every limit of every budget. Raises ConfigError for a name given twice."""
    try:
        marks = thresholds(options.thresholds)
    except Wrong as error:
        raise ConfigError(error.message, key="thresholds") from None
    seen: set[str] = set()
    for budget in budgets:
        if budget.name in seen:
            raise ConfigError("two budgets have this name", where="budgets", key=budget.name)
        seen.add(budget.name)
    return [Line(budget, limit, marks, options.estimate) for budget in budgets for limit in budget.limits]


def _unused(line: Line, now: int) -> Status:
    start, end, limit, _ = line.now(now)
    whole = units.from_smallest(line.unit, limit)
    zero = units.from_smallest(line.unit, 0)
    span = line.window.length if line.window is not None and line.window.rolling else None
    return Status(line.name, line.unit, "", zero, zero, whole, whole, start / 1000 or None, end / 1000 or None, span)
