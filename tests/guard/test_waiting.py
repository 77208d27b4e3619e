"""Calls that wait: rate limits, slowing down, and pauses that end by added budget, by a finish, or in vain."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.admission import steering
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.store.base import Slot, Store, StoreError
from otel_tokens.guard.store.memory.store import MemoryStore

PAUSE = {"thresholds": {100: {"pause": "60s"}}}


class Started:
    """A call in another thread; what it came to is its `result`."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.result: Any = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._work()
        except BudgetExceededError as error:
            self.result = error

    def outcome(self) -> Any:
        self._thread.join(300)
        assert not self._thread.is_alive()
        return self.result

    @property
    def running(self) -> bool:
        return self._thread.is_alive()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def paused(guard: Any) -> bool:
    return any(row.paused_until for row in guard.status())


def test_a_paused_call_goes_on_when_budget_is_added(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=250, **PAUSE))
    kit.spend(guard, 100, 100)
    call = Started(lambda: guard.admit(kit.call(), kit.sizes(100, 100)))
    until(lambda: paused(guard))
    assert call.running
    guard.change("add", "b", "500 tokens")
    lease = call.outcome()
    assert lease.decision in {"allow", "warn"}
    assert guard.status()[0].reserved == 200
    assert [event.kind for event in kit.kinds("pause", "resume")] == ["pause", "resume"]


def test_a_paused_call_ends_when_the_task_is_finished(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=250, per="task", **PAUSE))
    kit.spend(guard, 100, 100, task="1")
    call = Started(lambda: guard.admit(kit.call(task="1"), kit.sizes(100, 100)))
    until(lambda: paused(guard))
    assert guard.change("finish", "b", scope="task=1") == 1
    error = call.outcome()
    assert isinstance(error, BudgetExceededError)
    assert "finished by hand" in str(error)
    with pytest.raises(BudgetExceededError, match="finished by hand"):
        guard.admit(kit.call(task="1"), kit.sizes(1, 1))


def test_a_pause_ends_in_vain(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=250, thresholds={100: {"pause": "0.1s"}}))
    kit.spend(guard, 100, 100)
    began = time.monotonic()
    with pytest.raises(BudgetExceededError, match=r"waited \d s in vain"):
        guard.admit(kit.call(), kit.sizes(100, 100))
    assert 0.1 <= time.monotonic() - began < 60
    assert guard.status()[0].reserved == 0


def test_a_review_keeps_the_call_waiting(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=250, thresholds={100: {"pause": "1.5s"}}))
    kit.spend(guard, 100, 100)
    call = Started(lambda: guard.admit(kit.call(), kit.sizes(100, 100)))
    until(lambda: paused(guard))
    guard.change("review", "b", "1 h")
    until(lambda: time.time() > (guard.status()[0].updated or 0) + 1.7)
    assert call.running
    guard.change("add", "b", "500 tokens")
    assert call.outcome().grants


def test_the_window_may_end_a_pause(kit: Any) -> None:
    kit.now = 1795219200.0
    guard = kit.guard(Budget("b", calls=1, window="day", **PAUSE))
    kit.spend(guard)
    call = Started(lambda: guard.admit(kit.call(), kit.sizes()))
    until(lambda: paused(guard))
    kit.now += 86400
    assert call.outcome().grants == (("b", "", 1),)


def test_a_callback_in_the_process_may_decide(kit: Any) -> None:
    def decide(event: Any) -> None:
        assert event.kind == "pause"
        guard.change("add", event.budget, "1k tokens")

    guard = kit.guard(Budget("b", tokens=250, **PAUSE), on_pause=decide)
    kit.spend(guard, 100, 100)
    assert guard.admit(kit.call(), kit.sizes(100, 100)) is not None


def test_a_pause_below_the_limit(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=1000, thresholds={20: {"pause": "60s"}}))
    kit.spend(guard, 100, 100)
    call = Started(lambda: guard.admit(kit.call(), kit.sizes(10, 10)))
    until(lambda: paused(guard))
    guard.change("add", "b", "1 tokens")
    assert call.outcome().grants == (("b", "", 20),)


def test_a_soft_budget_pauses_and_then_lets_go(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=100, enforce="soft", thresholds={100: {"pause": "0.1s"}}))
    kit.spend(guard, 100, 100)
    began = time.monotonic()
    assert guard.admit(kit.call(), kit.sizes(10, 10)) is not None
    assert time.monotonic() - began >= 0.1


def test_pausing_does_not_block_the_loop(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=250, **PAUSE))
    kit.spend(guard, 100, 100)

    async def run() -> None:
        waiting = asyncio.create_task(guard.aadmit(kit.call(), kit.sizes(100, 100)))
        ticks = 0
        while not paused(guard) or ticks < 5:
            await asyncio.sleep(0.001)
            ticks += 1
        assert not waiting.done()
        guard.change("add", "b", "500 tokens")
        assert (await asyncio.wait_for(waiting, 60)).grants

    asyncio.run(run())


def test_a_cancelled_pause_leaves_nothing_behind(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=250, **PAUSE))
    kit.spend(guard, 100, 100)

    async def run() -> None:
        with guard.gas(10_000) as gas:
            waiting = asyncio.create_task(guard.aadmit(kit.call(), kit.sizes(100, 100)))
            while not paused(guard):
                await asyncio.sleep(0.001)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert gas.remaining == 10_000

    asyncio.run(run())
    assert guard.status()[0].reserved == 0


# ---- what a waiting call says in the store ---------------------------------------------------------------------------


@pytest.fixture
def short_marks(monkeypatch: pytest.MonkeyPatch) -> float:
    """How long a mark lasts, in seconds."""
    monkeypatch.setattr(steering, "_MARK_MS", 2000)
    return 2.0


def test_the_mark_stays_while_a_call_waits_and_no_longer(kit: Any, store: Store, short_marks: float) -> None:
    guard = kit.guard(Budget("b", tokens=250, **PAUSE), store=store)
    kit.spend(guard, 100, 100)
    calls = [Started(lambda: guard.admit(kit.call(), kit.sizes(100, 100))) for _ in range(2)]

    def stays() -> None:
        until(lambda: paused(guard))
        end = time.monotonic() + 1.25 * short_marks
        while time.monotonic() < end:
            assert paused(guard)
            time.sleep(0.01)

    stays()
    assert guard.change("add", "b", "200 tokens") == 1  # enough for one of them
    until(lambda: not all(call.running for call in calls))
    stays()
    assert sum(call.running for call in calls) == 1
    guard.change("add", "b", "200 tokens")
    until(lambda: not any(call.running for call in calls))
    until(lambda: not paused(guard))
    assert guard.status()[0].reserved == 400


@pytest.mark.parametrize("way", ["finish", "in vain", "cancel"])
def test_the_mark_goes_when_the_waiting_ends_otherwise(kit: Any, short_marks: float, way: str) -> None:
    threshold = {"pause": "1.5s" if way == "in vain" else "60s"}
    guard = kit.guard(Budget("b", tokens=250, thresholds={100: threshold}))
    kit.spend(guard, 100, 100)

    async def cancelled() -> None:
        waiting = asyncio.create_task(guard.aadmit(kit.call(), kit.sizes(100, 100)))
        while not paused(guard):
            await asyncio.sleep(0.001)
        waiting.cancel()

    if way == "cancel":
        asyncio.run(cancelled())
    else:
        call = Started(lambda: guard.admit(kit.call(), kit.sizes(100, 100)))
        until(lambda: paused(guard))
        if way == "finish":
            guard.change("finish", "b")
        assert isinstance(call.outcome(), BudgetExceededError)
    until(lambda: not paused(guard))


def test_the_mark_stays_through_a_review(kit: Any, short_marks: float) -> None:
    guard = kit.guard(Budget("b", tokens=250, thresholds={100: {"pause": "1.5s"}}))
    kit.spend(guard, 100, 100)
    call = Started(lambda: guard.admit(kit.call(), kit.sizes(100, 100)))
    until(lambda: paused(guard))
    guard.change("review", "b", "1 h")
    time.sleep(1.25 * short_marks)
    assert call.running
    assert paused(guard)
    guard.change("add", "b", "500 tokens")
    assert call.outcome().grants


def test_a_mark_that_cannot_be_set_is_missing_and_nothing_else(kit: Any, short_marks: float) -> None:
    class Unmarked(MemoryStore):
        def mark_paused(self, slot: Slot, until: int) -> None:
            tried.append(until)
            raise StoreError("full")

    tried: list[int] = []
    guard = kit.guard(Budget("b", tokens=250, **PAUSE), store=Unmarked())
    kit.spend(guard, 100, 100)
    call = Started(lambda: guard.admit(kit.call(), kit.sizes(100, 100)))
    until(lambda: len(tried) > 1)
    assert call.running
    guard.change("add", "b", "500 tokens")
    assert call.outcome().grants


# ---- rate limits ---------------------------------------------------------------------------------------------------


def test_a_rate_limit_refuses(kit: Any) -> None:
    kit.now = 1795219200.0
    guard = kit.guard(Budget("rpm", calls=3, per="tenant", window="rolling minute"))
    for _ in range(3):
        kit.spend(guard, tenant="a")
    with pytest.raises(BudgetExceededError, match="some of it is free again at 2026-11-21 00:01:01 UTC") as caught:
        guard.admit(kit.call(tenant="a"), kit.sizes())
    assert caught.value.resets_at == kit.now + 61
    kit.spend(guard, tenant="b")
    kit.now += 59
    with pytest.raises(BudgetExceededError):
        guard.admit(kit.call(tenant="a"), kit.sizes())
    kit.now += 3
    kit.spend(guard, tenant="a")


def test_a_rate_limit_waits(kit: Any) -> None:
    guard = kit.guard(Budget("rps", calls=3, window="rolling 1s", wait="60s"))
    began = time.monotonic()
    for _ in range(7):
        kit.spend(guard)
    assert 1.9 <= time.monotonic() - began < 60


def test_waiting_is_bounded(kit: Any) -> None:
    kit.now = 1795219200.0
    guard = kit.guard(Budget("rpm", tokens=100, window="rolling minute", wait="0.1s"))
    kit.spend(guard, 50, 50)
    with pytest.raises(BudgetExceededError, match=r"waited \d s in vain"):
        guard.admit(kit.call(), kit.sizes(50, 50))


def test_the_budget_that_no_shorter_answer_helps_is_named(kit: Any) -> None:
    kit.now = 1795219200.0
    guard = kit.guard(
        Budget("tpm", tokens=5000, window="rolling 1m", wait="30s"),
        Budget("rpm", calls=2, window="rolling 1m"),
        max_output=lambda _provider, _model: 8000,
    )
    for _ in range(2):
        lease = guard.admit(kit.call(), kit.sizes(100, None))
        guard.settle(lease, kit.record(lease, 100, 50))
    began = time.monotonic()
    with pytest.raises(BudgetExceededError, match="budget 'rpm': 2 of 2 calls used") as caught:
        guard.admit(kit.call(), kit.sizes(100, None))
    assert caught.value.resets_at == kit.now + 61
    assert time.monotonic() - began < 20
    assert [(row.name, row.reserved) for row in guard.status()] == [("rpm", 0), ("tpm", 0)]


def test_what_can_never_fit_does_not_wait(kit: Any) -> None:
    guard = kit.guard(Budget("tpm", tokens=1000, window="rolling 1m", wait="30s"))
    began = time.monotonic()
    with pytest.raises(BudgetExceededError, match=r"0 of 1,000 tokens used, .* up to 1,100 tokens"):
        guard.admit(kit.call(), kit.sizes(100, 1000))
    assert time.monotonic() - began < 20


def test_an_answer_of_unknown_length_waits_for_room_that_a_shorter_one_fits(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=1000, wait="60s"), max_output=lambda _provider, _model: 8000)
    other = guard.admit(kit.call(), kit.sizes(100, 850))
    waiting = Started(lambda: guard.admit(kit.call(), kit.sizes(100, None)))
    time.sleep(0.1)
    assert waiting.running
    guard.settle(other, kit.record(other, 50, 50))
    assert waiting.outcome().max_output == 800


def test_an_answer_is_no_shorter_than_it_must_be_after_a_wait(kit: Any) -> None:
    guard = kit.guard(
        Budget("b", tokens=2000), Budget("rpm", calls=1, window="rolling 3s", wait="60s"),
        max_output=lambda _provider, _model: 8000,
    )  # fmt: skip
    other = guard.admit(kit.call(), kit.sizes(100, 1400))
    waiting = Started(lambda: guard.admit(kit.call(), kit.sizes(100, None)))
    time.sleep(0.1)
    assert waiting.running
    guard.settle(other, kit.record(other, 50, 50))
    assert waiting.outcome().max_output == 1800


def test_waiting_calls_take_what_others_give_back(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=200, wait="60s"))
    first = guard.admit(kit.call(), kit.sizes(100, 100))
    second = Started(lambda: guard.admit(kit.call(), kit.sizes(100, 50)))
    time.sleep(0.05)
    assert second.running
    guard.settle(first, kit.record(first, 25, 25))
    assert second.outcome().grants == (("b", "", 150),)


def test_slowing_down(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=1000, thresholds={10: {"slow": "0.1s"}, 50: {"slow": "0.2s"}}))
    waits = []
    for _ in range(4):
        began = time.monotonic()
        kit.spend(guard, 100, 100)
        waits.append(time.monotonic() - began)
    assert all(wait >= least for wait, least in zip(waits, (0.0, 0.1, 0.1, 0.2), strict=True))
    assert [event.detail for event in kit.kinds("slow")] == ["0.1 s", "0.1 s", "0.2 s"]
