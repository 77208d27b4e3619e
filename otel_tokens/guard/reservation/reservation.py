"""A reservation while its call runs: what was reserved, and what the request has to be changed to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from otel_tokens.guard.budgets.limit import Limit
from otel_tokens.guard.estimate.matching import Plan
from otel_tokens.guard.reservation.amounts import within_store
from otel_tokens.guard.reservation.gas import Gas
from otel_tokens.guard.store.base import Balance
from otel_tokens.values import Call, CallSizes


class ActiveReservation:
    """A `values.Lease`, with what the guard remembers of the call. Its fields change under the guard's own hands."""

    # Defaults live in the class: most reservations never change them.
    expires: float = 0.0
    decision: str = "allow"
    model: str | None = None
    max_output: int | None = None
    timeout: float | None = None
    output: int = 0
    look_at: int | None = None
    deadline: float | None = None
    timed_by: Limit | None = None
    gas: Gas | None = None
    gas_tokens: int = 0
    pending: Any = None
    done: bool = False
    balances: Sequence[Balance] = ()

    def __init__(self, key: str, call: Call, sizes: CallSizes, plan: Plan, values: dict[str, int]) -> None:
        self.key = key
        self.call = call
        self.sizes = sizes
        self.plan = plan
        self.values = values
        self.amounts: Sequence[int] = within_store(plan.take(values))

    def end_gas(self, tokens: int) -> None:
        """Replace what is reserved of the allowance of gas by `tokens`, once."""
        gas = self.gas
        try:
            self.gas = None
            if gas is not None:
                gas.settle(self.gas_tokens, tokens)
        except BaseException:
            self.gas = gas
            raise

    @property
    def sent_model(self) -> str:
        """The model the call goes to."""
        return self.plan.model

    @property
    def grants(self) -> tuple[tuple[str, str, int], ...]:
        """(budget, scope, amount in smallest units) of what is reserved."""
        slots = self.plan.slots
        return tuple((slot.budget, slot.scope, amount) for slot, amount in zip(slots, self.amounts, strict=True))

    def fullest(self) -> tuple[str, float] | None:
        """The budget used up most at the admission, and its used share; None without an answer of the store."""
        name, highest = None, -1.0
        for limit, (used, _, most) in zip(self.plan.limits, self.balances):  # noqa: B905 (no balances, no budget)
            share = used / most if most > 0 else 1.0
            if share > highest:
                name, highest = limit.name, share
        return None if name is None else (name, highest)

    def limit_time(self, seconds: float, limit: Limit) -> None:
        """The call, or its stream, must end within `seconds`, because of `limit`."""
        if self.timeout is None or seconds < self.timeout:
            self.timeout = seconds
            self.timed_by = limit
            self.deadline = time.monotonic() + seconds
            self.look_at = 0
