"""Seen and changed from outside: status, changes, forecast, state, decisions; presets at work."""

from __future__ import annotations

import contextlib
import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets.budget import Budget, budgets_from
from otel_tokens.guard.reporting import administration as manage
from otel_tokens.guard.reporting.administration import Status
from otel_tokens.guard.reporting.forecast import forecast
from otel_tokens.guard.store.base import Store, StoreError
from otel_tokens.guard.store.memory.store import MemoryStore

NOW = 1_795_469_587.0


def test_status_shows_budgets_before_their_first_call(kit: Any) -> None:
    kit.now = NOW
    guard = kit.guard(
        Budget("day", usd=5, window="day"), Budget("t", tokens=5, per="task"), Budget("r", calls=5, window="rolling 1h")
    )
    rows = guard.status()
    assert [(r.name, r.used, r.limit, r.start) for r in rows] == [("day", 0, 5, 1_795_392_000.0), ("r", 0, 5, None)]
    assert rows[1].window_seconds == 3600
    kit.spend(guard, 2, 2, task="1")
    assert [(r.name, r.scope) for r in guard.status()] == [("day", ""), ("r", ""), ("t", "task=1")]
    assert [r.name for r in guard.status("t")] == ["t"]
    assert [r.name for r in guard.status(scope="task=1")] == ["t"]
    assert rows[0].remaining == 5
    assert json.dumps(rows[0].to_dict())


def test_changes_by_name_and_amount(kit: Any, store: Store) -> None:
    guard = kit.guard(Budget("b", usd="0.001", tokens=1000, per="task"), store=store)
    kit.spend(guard, 100, 100, task="1")
    kit.spend(guard, 100, 100, task="2")
    assert guard.flush(5)
    assert guard.change("add", "b", "$0.01", scope="task=1") == 1
    assert guard.change("set", "b", "5k tokens") == 3
    limits = {(r.scope, r.unit): r.limit for r in guard.status()}
    assert limits == {
        ("task=1", "usd"): Decimal("0.011"),
        ("task=2", "usd"): Decimal("0.001"),
        ("task=1", "tokens"): 5000,
        ("task=2", "tokens"): 5000,
    }
    assert guard.change("unset", "b", "tokens") == 3
    assert guard.change("reset", "b", scope="task=2") == 2
    assert {r.used for r in guard.status(scope="task=2")} == {0}
    assert guard.change("finish", "nobody") == 0


@pytest.mark.parametrize(
    ("op", "amount", "message"),
    [
        ("add", None, "needs an amount"),
        ("set", "-5USD", "below 0"),
        ("add", "5", "does not say of what"),
        ("unset", "x", "does not say of what"),
        ("ad", "5USD", "no change; allowed: add, set"),
    ],
)
def test_changes_that_make_no_sense(kit: Any, op: Any, amount: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kit.guard(Budget("b", usd=1)).change(op, "b", amount)


@pytest.mark.parametrize("store_kind", ["sqlite", "redis"], indirect=True)
def test_another_terminal_releases_a_refused_task(kit: Any, store_kind: Any) -> None:
    guard = kit.guard(Budget("b", calls=1, per="task"), store=store_kind.open())
    terminal = store_kind.open()
    kit.spend(guard, task="1")
    assert guard.flush(5)
    with pytest.raises(BudgetExceededError):
        guard.admit(kit.call(task="1"), kit.sizes())
    assert manage.change(terminal, "add", "b", "1 call", scope="task=1") == 1
    kit.spend(guard, task="1")
    assert guard.flush(5)
    (row,) = manage.status(terminal, "b")
    assert (row.used, row.limit, row.declared) == (2, 2, 1)


# ---- forecast --------------------------------------------------------------------------------------------------


def status(**more: Any) -> Status:
    fields: dict[str, Any] = {"used": Decimal(4), "reserved": Decimal(0), "limit": Decimal(10), "declared": Decimal(10)}
    return Status("b", "usd", "", **{**fields, **more})


def test_a_steady_burn() -> None:
    nano = 10**9
    samples = [(NOW + 60 * n, nano * n // 10, nano * (n + 1) // 10) for n in range(40)]
    made = forecast(status(), samples, nano, NOW + 60 * 39)
    assert made.left == 6
    assert made.calls_left == 60
    assert made.per_call == Decimal("0.1")
    assert made.per_hour == 6
    assert made.seconds_left is not None
    assert made.seconds_low is not None
    assert made.seconds_high is not None
    assert abs(made.seconds_left - 3600) < 5
    assert 2400 < made.seconds_low < made.seconds_left < made.seconds_high < 5000
    assert made.lasts is None
    assert forecast(status(end=NOW + 3000), samples, nano, NOW + 60 * 39).lasts is True
    assert forecast(status(end=NOW + 90_000), samples, nano, NOW + 60 * 39).lasts is False


def test_what_others_spend_counts_in_the_pace() -> None:
    nano = 10**9
    samples = [(NOW + 60 * n, nano * n, nano * n + nano // 10) for n in range(5)]
    made = forecast(status(), samples, nano, NOW + 240)
    assert made.calls_left == 60
    assert made.per_hour == pytest.approx(60, rel=0.01)


def test_too_little_to_tell() -> None:
    made = forecast(status(), [(NOW, 0, 5)], 10**9, NOW)
    assert (made.calls_left, made.seconds_left, made.per_hour) == (None, None, None)
    assert made.left == 6


def test_a_wide_spread_has_no_upper_end() -> None:
    samples = [(NOW, 0, 1), (NOW + 1, 1, 2), (NOW + 2, 2, 10**9)]
    made = forecast(status(), samples, 10**9, NOW + 3)
    assert made.seconds_low is not None
    assert made.seconds_high is None


def test_the_guards_forecast(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=10_000, per="task"), Budget("idle", usd=1, match={"model": "x"}))
    for _ in range(5):
        kit.spend(guard, 50, 50, task="1")
    made = {row.name: row for row in guard.forecast()}
    assert made["b"].calls_left == 95
    assert made["b"].scope == "task=1"
    assert made["b"].seconds_left is not None
    assert made["idle"].samples == 0
    assert json.dumps(made["b"].to_dict())


def test_wall_time_passes_by_itself(kit: Any) -> None:
    kit.now = NOW
    guard = kit.guard(Budget("b", seconds=100))
    kit.spend(guard)
    kit.now += 30
    (made,) = guard.forecast()
    assert (made.left, made.seconds_left, made.calls_left) == (70, 70.0, None)


def test_the_state_of_a_task_as_json(kit: Any, tmp_path: Path) -> None:
    guard = kit.guard(Budget("b", tokens=1000, usd=1, per=["tenant", "task"]), Budget("all", calls=9))
    kit.spend(guard, 50, 50, tenant="acme", task="1")
    kit.spend(guard, 50, 50, tenant="acme", task="2")
    file = tmp_path / "task.json"
    guard.save_state(file, task="1")
    state = json.loads(file.read_text())
    assert state["tags"] == {"task": "1"}
    assert {(row["name"], row["unit"], row["scope"]) for row in state["budgets"]} == {
        ("b", "tokens", "tenant=acme,task=1"),
        ("b", "usd", "tenant=acme,task=1"),
    }
    assert {row["used"] for row in state["budgets"]} == {"100", "0.00015"}
    assert len(state["forecast"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["task.json"]
    with pytest.raises(OSError, match="No such"):
        guard.save_state(tmp_path / "none" / "x.json", task="1")
    kit.spend(guard, 50, 50, tenant="acme", task="a=b, c")
    assert {row["scope"] for row in guard.state(task="a=b, c")["budgets"]} == {"tenant=acme,task=a%3Db%2C c"}


def test_a_task_is_found_among_thousands(kit: Any, store: Store) -> None:
    guard = kit.guard(Budget("b", calls=5, per=["task", "user"]), store=store)
    for number in range(1200):
        guard.settle(lease := guard.admit(kit.call(task=f"{number}", user="u"), kit.sizes()), kit.record(lease))
    guard.flush(10)
    state = guard.state(task="999")
    assert [(row["scope"], row["used"]) for row in state["budgets"]] == [("task=999,user=u", "1")]
    assert [row["scope"] for row in state["forecast"]] == ["task=999,user=u"]


def test_a_forecast_of_many_budgets_takes_one_look_at_each_call(kit: Any) -> None:
    guard = kit.guard(*(Budget(f"b{n}", calls=10_000, thresholds=[]) for n in range(300)))
    for _ in range(200):
        kit.spend(guard)
    began = time.process_time()
    assert {row.calls_left for row in guard.forecast()} == {9800}
    assert time.process_time() - began < 2


def test_a_refusal_is_told_with_what_was_asked(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    guard = kit.guard(Budget("b", tokens=100))
    with pytest.raises(BudgetExceededError):
        guard.admit(kit.call(), kit.sizes(100, 100))
    assert caplog.messages == ["budget 'b': exceeded: 0 of 100 tokens used: this call may use up to 200 tokens"]


def test_long_values_that_begin_alike_are_scopes_of_their_own(kit: Any) -> None:
    guard = kit.guard(Budget("b", calls=1, per="tenant"))
    for end in "ab":
        kit.spend(guard, tenant="x" * 255 + end)
    assert [row.used for row in guard.status()] == [1, 1]


@pytest.mark.parametrize("fail", ["open", "closed"])
def test_a_lost_store_is_said_once_a_minute(kit: Any, caplog: pytest.LogCaptureFixture, fail: Any) -> None:
    class Lost(MemoryStore):
        def admit(self, *_: Any, **__: Any) -> Any:
            raise StoreError("nobody is there")

    guard = kit.guard(Budget("b", calls=1), store=Lost(kit.clock), fail=fail)
    for _ in range(3):
        with contextlib.suppress(BudgetExceededError):
            guard.admit(kit.call(), kit.sizes())
    what = {
        "open": "calls go on without being held to their budgets",
        "closed": "calls under hard budgets are refused",
    }[fail]
    assert caplog.messages == [f"the budget store does not answer: {what} (store_fail: {fail}): nobody is there"]


def test_numbers_as_tags_find_their_task(kit: Any) -> None:
    guard = kit.guard(Budget("b", calls=5, per="task"))
    kit.spend(guard, task="5")
    assert [row["scope"] for row in guard.state(task=5)["budgets"]] == ["task=5"]


@pytest.mark.parametrize("amounts", [{"input_tokens": -1}, {"input_tokens": 5, "max_output": -1}])
def test_nothing_below_zero_is_reserved(kit: Any, amounts: Any) -> None:
    guard = kit.guard(Budget("b", tokens=50))
    with pytest.raises(ValueError, match="not less than 0"):
        guard.reserve("openai", "gpt-4o", **amounts)


def test_task_types_by_tag(kit: Any) -> None:
    guard = kit.guard(*budgets_from({"preset": "task_types"}))
    assert guard.task_type("Why does this fail?") == "question"
    with pytest.raises(BudgetExceededError, match="task_type:question"):
        guard.admit(kit.call(task="1", task_type="question"), kit.sizes(9000, 2000))
    assert guard.admit(kit.call(task="2", task_type="feature"), kit.sizes(9000, 2000)) is not None
    assert guard.admit(kit.call(task="3"), kit.sizes(9000, 2000)) is None


def test_decisions_add_up(kit: Any) -> None:
    guard = kit.guard(Budget("a", calls=3), Budget("b", calls=10, thresholds=[10]))
    for _ in range(5):
        try:
            kit.spend(guard)
        except BudgetExceededError:
            continue
    totals = {(budget, decision): count for budget, decision, *_, count in guard.decisions()}
    assert totals == {("a", "allow"): 3, ("b", "allow"): 1, ("b", "warn"): 2, ("a", "deny"): 2}
