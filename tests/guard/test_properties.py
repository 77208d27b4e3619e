"""Random interleavings on the memory store with a clock of our own: what must hold holds after every step."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.guard import Guard
from otel_tokens.guard.options import GuardOptions
from otel_tokens.guard.store.memory.store import MemoryStore
from otel_tokens.values import UNPRICED, Call, CallSizes, Cost, Record, Usage

LIMIT, GRACE = 1000, 200
START = 1_795_219_200_000


class Budgets(RuleBasedStateMachine):
    """A guard with one budget of each kind, a clock that moves, and a model that adds up what was settled when."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.store = MemoryStore(lambda: self.now)
        self.leases: list[tuple[Any, int, int]] = []
        self.spent: list[tuple[int, int, int]] = []
        self.n = 0
        self.guard: Guard

    @initialize(window=st.sampled_from([None, "hour", "rolling 1h", "day"]), grace=st.booleans())
    def begin(self, window: str | None, grace: bool) -> None:
        self.window = window
        self.grace = GRACE if grace else 0
        self.guard = Guard(
            [
                Budget("a", tokens=LIMIT, window=window, grace={"tokens": GRACE} if grace else None),
                Budget("b", tokens=LIMIT * 2, per="tenant"),
                Budget("soft", tokens=1, enforce="soft", window="minute"),
            ],
            self.store,
            price=lambda *_, **__: UNPRICED,
            options=GuardOptions(lease_seconds=600, thresholds=[]),
        )
        self.store.admit("probe", (), (), 1)

    @rule(
        given=st.integers(0, 300),
        bound=st.integers(0, 300),
        tenant=st.sampled_from("xy"),
        key=st.sampled_from(["", "p", "q"]),
    )
    def admit(self, given: int, bound: int, tenant: str, key: str) -> None:
        self.n += 1
        call = Call(f"c{self.n}", "p", "e", "chat", "m", self.now / 1000, tags={"tenant": tenant})
        section = self.guard.critical(key) if key else None
        if section is not None:
            section.key = key
            section.__enter__()
        try:
            lease = self.guard.admit(call, CallSizes(given, given, bound))
        except BudgetExceededError:
            return
        finally:
            if section is not None:
                section.__exit__(None, None, None)
        self.leases.append((lease, given, bound))

    @rule(data=st.data())
    def settle(self, data: Any) -> None:
        if not self.leases:
            return
        lease, given, bound = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        used = Usage(input=given, output=data.draw(st.integers(0, bound)), origin="provider")
        start = lease.plan.slots[0].start
        for _ in range(data.draw(st.integers(1, 2))):
            self.guard.settle(lease, Record(lease.call, used, Cost(), "ok", 1.0))
        self.spent.append((self.now, start, used.input + used.output))

    @rule(data=st.data())
    def release(self, data: Any) -> None:
        if self.leases:
            lease, *_ = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
            self.guard.release(lease)

    @rule(minutes=st.sampled_from([0, 1, 7, 31, 60, 24 * 60]))
    def wait(self, minutes: int) -> None:
        # Leases of calls in flight are renewed meanwhile, as the guard's thread does.
        for _ in range(max(1, minutes // 9)):
            self.now += minutes * 60_000 // max(1, minutes // 9)
            self.store.renew([lease.key for lease, *_ in self.leases], 600_000)

    @rule()
    def look_at_rows(self) -> None:
        self.store.rows()

    @invariant()
    def the_cap_holds(self) -> None:
        for row in self.store.rows():
            assert row.used >= 0
            assert row.reserved >= 0
            if row.budget == "a":
                assert row.used + row.reserved <= LIMIT + self.grace
            if row.budget == "b":
                assert row.used + row.reserved <= LIMIT * 2

    @invariant()
    def what_was_spent_is_counted(self) -> None:
        rows = {(row.budget, row.start): row for row in self.store.rows("a")}
        if self.window == "rolling 1h":
            truth = sum(amount for at, _, amount in self.spent if at > self.now - 3_600_000)
            used = rows[("a", 0)].used if rows else 0
            assert used >= truth
        elif not self.grace:
            for (_, start), row in rows.items():
                assert row.used == sum(amount for _, began, amount in self.spent if began == start)

    @invariant()
    def what_is_in_flight_is_reserved(self) -> None:
        rows = {row.start: row.reserved for row in self.store.rows("a")}
        for start, reserved in rows.items():
            held = sum(g + b for lease, g, b in self.leases if lease.plan.slots[0].start == start)
            assert reserved == held


TestBudgets = Budgets.TestCase
TestBudgets.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
