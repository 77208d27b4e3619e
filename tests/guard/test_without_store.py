"""`store_fail: local`: without its store a process enforces what was left, and books what it let through later."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.reservation import renewal
from otel_tokens.guard.store.base import Store, StoreError
from otel_tokens.guard.store.memory.store import MemoryStore

NOW = 1795219200.0


class Cut(MemoryStore):
    """A shared store that a test can cut. `act` says whether requests are carried out all the same."""

    def __init__(self, *clock: Callable[[], int], direct: bool = False) -> None:
        super().__init__(*clock)
        self.down = False
        self.act = False
        self.direct = direct

    def _lost(self) -> None:
        if self.down:
            raise StoreError("no route")

    def admit(self, *args: Any, **more: Any) -> Any:
        answer = None if self.down and not self.act else super().admit(*args, **more)
        self._lost()
        return answer

    def settle(self, *args: Any, **more: Any) -> Any:
        self._lost()
        return super().settle(*args, **more)

    def settle_at_once(self, *args: Any, **more: Any) -> Any:
        return self.settle(*args, **more)

    def read(self, *args: Any) -> Any:
        self._lost()
        return super().read(*args)

    def renew(self, *args: Any) -> None:
        self._lost()
        super().renew(*args)


@pytest.fixture(params=["direct", "network"])
def cut(request: pytest.FixtureRequest, kit: Any) -> Cut:
    return Cut(kit.clock, direct=request.param == "direct")


def admitted(guard: Any, kit: Any, times: int, **more: Any) -> list[Any]:
    """The reservations of those calls of `times` that were admitted."""
    found: list[Any] = []
    for _ in range(times):
        with contextlib.suppress(BudgetExceededError):
            found.append(guard.admit(kit.call(**more), kit.sizes()))
    return found


def end(guard: Any, kit: Any, reservations: list[Any]) -> None:
    for reservation in reservations:
        guard.settle(reservation, kit.record(reservation, 100, 100))


def account(store: Store) -> tuple[int, int]:
    ((used, reserved),) = [(row.used, row.reserved) for row in store.rows()]
    return used, reserved


def reasons(guard: Any) -> dict[tuple[str, str, str], int]:
    return {(budget, what, why): count for budget, what, _, _, why, count in guard.decisions()}


def test_what_was_left_is_all_that_goes_out(kit: Any, cut: Cut) -> None:
    guard = kit.guard(Budget("cap", calls=10), store=cut)
    end(guard, kit, admitted(guard, kit, 3))
    running = admitted(guard, kit, 2)
    assert guard.flush(60)
    cut.down = True
    through = admitted(guard, kit, 20)
    assert len(through) == 5
    end(guard, kit, through + running)
    assert admitted(guard, kit, 5) == []
    assert reasons(guard) == {
        ("cap", "allow", ""): 5,
        ("cap", "allow", "store_local"): 5,
        ("cap", "deny", "store_local"): 20,
    }
    cut.down = False
    assert guard.flush(60)
    assert account(cut) == (10, 0)
    assert admitted(guard, kit, 1) == []


def test_what_was_let_through_and_runs_counts_when_the_store_is_back(kit: Any, cut: Cut) -> None:
    guard = kit.guard(Budget("cap", calls=10), store=cut)
    end(guard, kit, admitted(guard, kit, 4))
    assert guard.flush(60)
    cut.down = True
    through = admitted(guard, kit, 5)
    cut.down = False
    more = admitted(guard, kit, 5)
    assert len(through + more) == 6
    assert guard.flush(60)
    end(guard, kit, through + more)
    assert guard.flush(60)
    assert account(cut) == (10, 0)


def test_settlements_are_retried_when_the_store_answers_anything(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "_RETRY_SECONDS", (3600.0,))
    cut = Cut(kit.clock)
    guard = kit.guard(Budget("cap", calls=10), store=cut)
    end(guard, kit, admitted(guard, kit, 1))
    assert guard.flush(60)
    cut.down = True
    end(guard, kit, admitted(guard, kit, 2))
    while guard._state.renewer._busy:
        threading.Event().wait(0.01)
    cut.down = False
    assert len(admitted(guard, kit, 1)) == 1
    assert guard.flush(60)
    assert account(cut) == (3, 1)


@pytest.mark.parametrize(("share", "calls"), [(0.1, 2), (0.5, 10), (0.0, 0), (1.0, 20), (0.04, 0)])
def test_an_account_never_seen_has_a_share(kit: Any, cut: Cut, share: float, calls: int) -> None:
    guard = kit.guard(Budget("cap", calls=20, per="tenant"), store=cut, offline_share=share)
    cut.down = True
    for tenant in "ab":
        assert len(admitted(guard, kit, 30, tenant=tenant)) == calls


def test_a_calendar_window_that_begins_in_the_outage_has_the_share(kit: Any) -> None:
    kit.now = NOW
    cut = Cut(kit.clock)
    guard = kit.guard(Budget("cap", calls=20, window="hour"), store=cut)
    end(guard, kit, admitted(guard, kit, 12))
    assert guard.flush(60)
    cut.down = True
    assert len(admitted(guard, kit, 30)) == 8
    kit.now += 3600
    assert len(admitted(guard, kit, 30)) == 2
    kit.now += 3600
    assert len(admitted(guard, kit, 30)) == 2


def test_a_rolling_window_keeps_what_was_used_for_a_whole_window(kit: Any) -> None:
    kit.now = NOW
    cut = Cut(kit.clock)
    guard = kit.guard(Budget("cap", calls=20, window="rolling 1h"), store=cut)
    end(guard, kit, admitted(guard, kit, 12))
    assert guard.flush(60)
    cut.down = True
    kit.now += 1800
    end(guard, kit, admitted(guard, kit, 5))
    kit.now += 1790
    through = admitted(guard, kit, 30)
    assert len(through) == 3
    end(guard, kit, through)
    kit.now += 120  # all is forgotten but those 8, and an account not seen for a window has the share
    assert admitted(guard, kit, 30) == []
    kit.now += 3720
    assert len(admitted(guard, kit, 30)) == 2


def test_a_clock_on_the_wall_goes_on(kit: Any) -> None:
    kit.now = NOW
    cut = Cut(kit.clock)
    guard = kit.guard(Budget("cap", seconds=100, per="task"), store=cut)
    end(guard, kit, admitted(guard, kit, 1, task="1"))
    assert guard.flush(60)
    cut.down = True
    kit.now += 99
    assert len(admitted(guard, kit, 1, task="1")) == 1
    kit.now += 2
    assert admitted(guard, kit, 1, task="1") == []
    assert len(admitted(guard, kit, 1, task="new")) == 1
    kit.now += 9
    assert len(admitted(guard, kit, 1, task="new")) == 1
    kit.now += 2
    assert admitted(guard, kit, 1, task="new") == []


def test_all_slots_or_none(kit: Any, cut: Cut) -> None:
    guard = kit.guard(Budget("a", calls=3), Budget("b", calls=10), Budget("c", calls=1, enforce="soft"), store=cut)
    admitted(guard, kit, 1)
    cut.down = True
    assert len(admitted(guard, kit, 9)) == 2
    balances = guard._state.store.read(guard._state.index.plan(kit.call(), "model-1", 0).slots)
    assert [used + reserved for used, reserved, _ in balances][:2] == [3, 3]


def test_soft_budgets_never_refuse(kit: Any, cut: Cut) -> None:
    guard = kit.guard(Budget("soft", calls=1, enforce="soft"), store=cut)
    cut.down = True
    end(guard, kit, admitted(guard, kit, 5))
    cut.down = False
    assert guard.flush(60)
    assert account(cut) == (5, 0)


def test_a_call_is_charged_what_it_used_and_the_rest_is_free_again(kit: Any, cut: Cut) -> None:
    guard = kit.guard(Budget("cap", tokens=1000), store=cut)
    (first,) = admitted(guard, kit, 1)
    cut.down = True
    through = admitted(guard, kit, 10)
    assert len(through) == 4
    for reservation in through:
        guard.settle(reservation, kit.record(reservation, 50, 50))  # 100 of 200
    again = admitted(guard, kit, 10)
    assert len(again) == 2
    guard.release(again[0])
    more = admitted(guard, kit, 10)
    assert len(more) == 1
    guard.settle(first, kit.record(first, 300, 100))  # 200 more than reserved
    end(guard, kit, [again[1], *more])
    assert admitted(guard, kit, 1) == []
    cut.down = False
    assert guard.flush(60)
    assert account(cut) == (1200, 0)


def test_a_stream_that_outgrows_its_reservation(kit: Any) -> None:
    cut = Cut(kit.clock, direct=True)
    guard = kit.guard(Budget("cap", tokens=1000), store=cut)
    reservation = guard.admit(kit.call(), kit.sizes(100, 100))
    cut.down = True
    assert guard.look(reservation, 150) is None
    assert 300 <= reservation.output <= 500
    error = guard.look(reservation, 890)
    assert isinstance(error, BudgetExceededError)
    guard.settle(reservation, kit.record(reservation, 100, 890))
    assert admitted(guard, kit, 1) == []
    cut.down = False
    assert guard.flush(60)
    assert account(cut) == (990, 0)
    assert not guard._state.local.accounts.keys


def test_operations(kit: Any, cut: Cut) -> None:
    guard = kit.guard(Budget("ops", operations=10), store=cut)
    guard.count("shell", 4)
    cut.down = True
    guard.count("shell", 5)
    for _ in range(3):
        with pytest.raises(BudgetExceededError, match="does not answer"):
            guard.count("shell", 2)
    cut.down = False
    assert guard.flush(60)
    assert account(cut) == (9, 0)
    guard.count("shell")
    with pytest.raises(BudgetExceededError):
        guard.count("shell")


def test_answers_are_shortened_to_what_is_left(kit: Any, cut: Cut) -> None:
    guard = kit.guard(Budget("cap", tokens=5000), store=cut)
    guard.admit(kit.call(), kit.sizes(100, 2900))
    cut.down = True
    reservation = guard.admit(kit.call(), kit.sizes(100, None))
    assert reservation.max_output == 1900
    assert admitted(guard, kit, 1) == []


def test_a_ladder_goes_down_by_what_was_let_through(kit: Any, cut: Cut) -> None:
    ladder = ["claude-opus-4-1", "claude-haiku-4-5"]
    guard = kit.guard(Budget("cap", calls=10, ladder=ladder, thresholds={60: "downgrade"}), store=cut)
    kit.spend(guard, model="claude-opus-4-1")
    assert guard.flush(60)
    cut.down = True
    models = [guard.admit(kit.call("claude-opus-4-1"), kit.sizes()).model for _ in range(9)]
    assert models[0] is None
    assert len(models) == 9
    with pytest.raises(BudgetExceededError):
        guard.admit(kit.call("claude-opus-4-1"), kit.sizes())


def test_gas_is_put_back_on_a_refusal(kit: Any, cut: Cut) -> None:
    guard = kit.guard(Budget("cap", calls=20), store=cut)
    cut.down = True
    with guard.gas(10_000) as gas:
        through = admitted(guard, kit, 5)
        assert (len(through), gas.remaining) == (2, 10_000 - 400)
        end(guard, kit, through)
        assert gas.remaining == 10_000 - 400


def test_a_critical_section_has_its_grace_once(kit: Any, cut: Cut) -> None:
    guard = kit.guard(Budget("cap", tokens=500, grace={"tokens": 300}), store=cut)
    kit.spend(guard, 100, 100)
    kit.spend(guard, 100, 100)
    assert guard.flush(60)
    cut.down = True
    assert admitted(guard, kit, 1) == []
    with guard.critical("commit"):
        assert len(admitted(guard, kit, 5)) == 2
    with guard.critical("another"):
        assert admitted(guard, kit, 1) == []


def test_a_wait_ends_when_the_store_is_back(kit: Any) -> None:
    cut = Cut(kit.clock)
    guard = kit.guard(Budget("cap", calls=2, wait="60s"), store=cut)
    running = admitted(guard, kit, 2)
    assert len(running) == 2
    cut.down = True
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(guard.admit(kit.call(), kit.sizes())))
    thread.start()
    while not guard._state.local.lost:
        threading.Event().wait(0.01)
    cut.down = False
    guard.release(running[0])
    thread.join(60)
    assert len(done) == 1


def test_a_finished_budget_stays_finished(kit: Any, cut: Cut) -> None:
    guard = kit.guard(Budget("cap", calls=10), store=cut)
    kit.spend(guard)
    guard.change("finish", "cap")
    assert admitted(guard, kit, 1) == []
    cut.down = True
    assert admitted(guard, kit, 1) == []


def test_a_request_that_was_carried_out_all_the_same_is_charged_once(kit: Any, cut: Cut) -> None:
    guard = kit.guard(Budget("cap", calls=10), store=cut)
    kit.spend(guard)
    assert guard.flush(60)
    cut.down = cut.act = True
    through = admitted(guard, kit, 20)
    assert len(through) == 9
    end(guard, kit, through)
    cut.down = False
    assert guard.flush(60)
    assert account(cut) == (10, 0)


def test_a_full_queue_still_counts_here(kit: Any) -> None:
    cut = Cut(kit.clock)
    guard = kit.guard(Budget("cap", calls=100), store=cut, queue=5)
    kit.spend(guard)
    assert guard.flush(60)
    cut.down = True
    for _ in range(99):
        kit.spend(guard)
    assert admitted(guard, kit, 1) == []
    assert len(guard._state.local.accounts.keys) <= 8
    cut.down = False
    assert guard.flush(60)
    assert account(cut)[0] == 100
    assert not guard._state.local.accounts.keys


def test_tasks_of_an_event_loop(kit: Any) -> None:
    cut = Cut(kit.clock)
    guard = kit.guard(Budget("cap", calls=10), store=cut)

    async def main() -> int:
        await guard.aadmit(kit.call(), kit.sizes())
        cut.down = True
        answers = await asyncio.gather(
            *(guard.aadmit(kit.call(), kit.sizes()) for _ in range(50)), return_exceptions=True
        )
        return sum(not isinstance(answer, BaseException) for answer in answers)

    assert asyncio.run(main()) == 9


def test_threads_never_let_more_through_than_was_left(kit: Any) -> None:
    cut = Cut(kit.clock)
    guard = kit.guard(Budget("cap", calls=200), store=cut)
    barrier = threading.Barrier(8)
    found: list[Any] = []

    def work(number: int) -> None:
        barrier.wait()
        for turn in range(60):
            if number == 0 and turn == 10:
                cut.down = True
            with contextlib.suppress(BudgetExceededError):
                found.append(guard.admit(kit.call(), kit.sizes()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 200


def test_a_forked_child_books_nothing_of_its_parent(kit: Any) -> None:
    cut = Cut(kit.clock)
    guard = kit.guard(Budget("cap", calls=10), store=cut)
    kit.spend(guard)
    assert guard.flush(60)
    cut.down = True
    admitted(guard, kit, 3)
    local = guard._state.local
    local.after_fork(child=True)
    assert not local.accounts.keys
    assert len(admitted(guard, kit, 20)) == 9


def test_memory_is_no_store_that_can_be_lost(kit: Any) -> None:
    guard = kit.guard(Budget("cap", calls=10))
    assert guard._state.store is guard.store
