"""Gas, critical sections and counted operations."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets.budget import Budget

# ---- gas -----------------------------------------------------------------------------------------------------


def test_gas_is_used_up_and_readable(kit: Any) -> None:
    guard = kit.guard()
    with guard.gas(500) as gas:
        lease = guard.admit(kit.call(), kit.sizes(100, 200))
        assert gas.remaining == 200
        guard.settle(lease, kit.record(lease, 100, 50))
        assert (gas.remaining, gas.used) == (350, 150)
        with pytest.raises(BudgetExceededError, match="gas: 150 of 500 tokens used") as caught:
            guard.admit(kit.call(), kit.sizes(100, 300))
        assert (caught.value.budget, caught.value.unit, caught.value.requested) == ("gas", "tokens", 400)
        released = guard.admit(kit.call(), kit.sizes(100, 100))
        guard.release(released)
        assert gas.remaining == 350
    assert guard.admit(kit.call(), kit.sizes(10**6, 10**6)) is None


def test_gas_nests(kit: Any) -> None:
    guard = kit.guard()
    with guard.gas(500, "plan") as outer:
        with guard.gas(1000, "step") as inner:
            assert inner.remaining == 500
            kit.spend(guard, 100, 100)
            assert (inner.remaining, outer.remaining) == (300, 300)
            with pytest.raises(BudgetExceededError, match="plan:"):
                guard.admit(kit.call(), kit.sizes(300, 100))
        with guard.gas(50, "small"), pytest.raises(BudgetExceededError, match="small:"):
            guard.admit(kit.call(), kit.sizes(50, 10))
        assert outer.remaining == 300


def test_a_loop_ends_when_its_gas_does(kit: Any) -> None:
    guard = kit.guard(Budget("b", usd=1))
    turns = 0
    with guard.gas(1000), pytest.raises(BudgetExceededError):
        while True:
            kit.spend(guard, 50, 50)
            turns += 1
    assert turns == 10
    assert guard.status()[0].reserved == 0


def test_a_refusal_by_a_budget_puts_the_gas_back(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=100))
    with guard.gas(1000) as gas:
        with pytest.raises(BudgetExceededError, match="budget 'b'"):
            guard.admit(kit.call(), kit.sizes(100, 100))
        assert gas.remaining == 1000


def test_gas_bounds_calls_without_a_bound(kit: Any) -> None:
    guard = kit.guard(max_output=lambda *_: 64_000)
    with guard.gas(1000) as gas:
        lease = guard.admit(kit.call(), kit.sizes(100, None))
        assert lease.max_output == 900
        assert gas.remaining == 0


def test_tasks_share_gas_and_threads_need_the_context(kit: Any) -> None:
    guard = kit.guard()

    async def run() -> int:
        with guard.gas(1000) as gas:
            await asyncio.gather(*(one() for _ in range(4)))
            return gas.remaining

    async def one() -> None:
        lease = await guard.aadmit(kit.call(), kit.sizes(50, 50))
        await asyncio.sleep(0)
        guard.settle(lease, kit.record(lease, 50, 50))

    assert asyncio.run(run()) == 600
    with guard.gas(1000) as gas, ThreadPoolExecutor(1) as pool:
        assert pool.submit(guard.admit, kit.call(), kit.sizes()).result() is None
        lease = pool.submit(copy_context().run, guard.admit, kit.call(), kit.sizes(100, 100)).result()
        assert gas.remaining == 800
        guard.settle(lease, kit.record(lease, 100, 100))


def test_many_threads_on_one_gas(kit: Any) -> None:
    guard = kit.guard()
    with guard.gas(1000) as gas:
        context = copy_context()

        def work(_: int) -> int:
            try:
                lease = context.copy().run(guard.admit, kit.call(), kit.sizes(5, 5))
            except BudgetExceededError:
                return 0
            guard.settle(lease, kit.record(lease, 5, 5))
            return 10

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(work, range(300))) == 1000
        assert gas.used == 1000


def test_an_allowance_is_for_one_block(kit: Any) -> None:
    gas = kit.guard().gas(5)
    with gas, pytest.raises(RuntimeError, match="one per block"):
        gas.__enter__()
    with pytest.raises(ValueError, match="not less than 0"):
        kit.guard().gas(-1)


def test_a_block_left_in_another_context(kit: Any) -> None:
    guard = kit.guard()

    async def steps() -> Any:
        with guard.gas(100), guard.critical("x"):
            yield 1
            yield 2

    async def run() -> None:
        generator = steps()
        await asyncio.create_task(generator.__anext__())
        await asyncio.create_task(generator.aclose())

    asyncio.run(run())


# ---- overdraft -----------------------------------------------------------------------------------------------


def test_overdraft_only_in_a_critical_section_once(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=1000, grace={"tokens": 300}))
    kit.spend(guard, 500, 450)
    with pytest.raises(BudgetExceededError):
        guard.admit(kit.call(), kit.sizes(100, 100))
    with guard.critical("git commit"):
        kit.spend(guard, 100, 100)
        kit.spend(guard, 50, 50)
        with pytest.raises(BudgetExceededError):
            guard.admit(kit.call(), kit.sizes(50, 50))
    with guard.critical("git push"), pytest.raises(BudgetExceededError):
        guard.admit(kit.call(), kit.sizes(10, 10))
    (row,) = guard.status()
    assert (row.used, row.overdraft) == (1250, 250)
    assert {event.kind for event in kit.kinds("overdraft")} == {"overdraft"}


def test_an_overdraft_is_repaid_from_the_next_window(kit: Any) -> None:
    kit.now = 1795219200.0
    guard = kit.guard(Budget("b", tokens=1000, window="day", grace={"tokens": 300}))
    kit.spend(guard, 500, 450)
    with guard.critical("commit"):
        kit.spend(guard, 100, 100)
    kit.now += 86400
    with pytest.raises(BudgetExceededError, match="150 of 1,000 tokens used"):
        guard.admit(kit.call(), kit.sizes(500, 351))
    kit.spend(guard, 400, 400)
    with guard.critical("commit"):
        kit.spend(guard, 100, 100)
    assert guard.status()[0].used == 1150


def test_without_grace_a_critical_section_changes_nothing(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=100))
    with guard.critical("commit"), pytest.raises(BudgetExceededError):
        guard.admit(kit.call(), kit.sizes(100, 100))


# ---- operations ----------------------------------------------------------------------------------------------


def test_operations_have_caps_of_their_own(kit: Any) -> None:
    tags = {"task": "1"}
    guard = kit.guard(
        Budget("ops", per="task", operations={"file_edit": 3, "shell": 5, "dangerous": 1}), tags=lambda: tags
    )
    for _ in range(3):
        guard.count("file_edit")
    with pytest.raises(BudgetExceededError, match=r"budget 'ops' \(task=1\): 3 of 3 file_edit operations used"):
        guard.count("file_edit")
    guard.count("shell", dangerous=True)
    with pytest.raises(BudgetExceededError, match="1 of 1 dangerous operations"):
        guard.count("shell", dangerous=True)
    guard.count("shell", 4)
    used = {row.unit: row.used for row in guard.status()}
    assert used == {"operations:file_edit": 3, "operations:shell": 5, "operations:dangerous": 1}
    guard.count("unlimited")
    tags["task"] = "2"
    guard.count("file_edit")


def test_all_operations_together(kit: Any) -> None:
    guard = kit.guard(Budget("any", operations=2, thresholds=[50]))
    guard.count("a")
    guard.count("b")
    assert [event.threshold for event in kit.kinds("threshold")] == ["50 %"]
    with pytest.raises(BudgetExceededError):
        asyncio.run(guard.acount("c"))
    with pytest.raises(ValueError, match="not less than 0"):
        guard.count("a", -1)


def test_operations_are_no_calls_and_calls_no_operations(kit: Any) -> None:
    guard = kit.guard(Budget("b", calls=1, operations=1))
    kit.spend(guard)
    guard.count("x")
    assert {row.unit: row.used for row in guard.status()} == {"calls": 1, "operations": 1}


def test_counting_is_a_race_too(kit: Any) -> None:
    guard = kit.guard(Budget("b", operations=100))
    counted = []
    lock = threading.Lock()

    def work(_: int) -> None:
        try:
            guard.count("x")
        except BudgetExceededError:
            return
        with lock:
            counted.append(1)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(300)))
    assert len(counted) == 100
