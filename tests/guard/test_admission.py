"""Admission: what is reserved, what is refused and how it is said, how calls are changed to fit."""

from __future__ import annotations

import asyncio
import decimal
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import trio

from otel_tokens.errors import BudgetExceededError, ConfigError
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.store.base import StoreError
from otel_tokens.guard.store.memory.store import MemoryStore
from otel_tokens.values import UNPRICED, Cost, Usage


def rows(guard: Any) -> dict[tuple[str, str, str], tuple[Any, Any, Any]]:
    return {(r.name, r.unit, r.scope): (r.used, r.reserved, r.limit) for r in guard.status()}


# ---- the plain story -----------------------------------------------------------------------------------------


def test_no_budget_no_lease(kit: Any) -> None:
    assert kit.guard().admit(kit.call(), kit.sizes()) is None
    guard = kit.guard(Budget("other", usd=1, match={"model": "*opus*"}))
    assert guard.admit(kit.call("model-1"), kit.sizes()) is None


def test_reserve_then_settle(kit: Any) -> None:
    guard = kit.guard(Budget("all", usd=1, tokens=1000, calls=5))
    lease = guard.admit(kit.call(), kit.sizes(100, 200))
    assert rows(guard) == {
        ("all", "usd", ""): (0, Decimal("0.0005"), 1),
        ("all", "tokens", ""): (0, 300, 1000),
        ("all", "calls", ""): (0, 1, 5),
    }
    assert sorted(lease.grants) == [("all", "", 1), ("all", "", 300), ("all", "", 500_000)]
    assert lease.decision == "allow"
    assert (lease.model, lease.max_output, lease.timeout) == (None, None, None)
    guard.settle(lease, kit.record(lease, 100, 50))
    guard.settle(lease, kit.record(lease, 100, 50))
    guard.release(lease)
    assert rows(guard)[("all", "usd", "")] == (Decimal("0.0002"), 0, 1)
    assert rows(guard)[("all", "tokens", "")] == (150, 0, 1000)
    assert rows(guard)[("all", "calls", "")] == (1, 0, 5)


@pytest.mark.parametrize("traps", [[], [decimal.Inexact, decimal.Rounded]])
def test_the_applications_decimal_context_changes_no_amount(kit: Any, traps: list[Any]) -> None:
    def story() -> Any:
        guard = kit.guard(Budget("all", usd="12.3456789"))
        lease = guard.admit(kit.call(), kit.sizes(1234, 5678))
        reserved = rows(guard)
        guard.settle(lease, kit.record(lease, 1234, 4567))
        with pytest.raises(BudgetExceededError) as refused:
            guard.admit(kit.call(), kit.sizes(12_345_678, 12))
        error = refused.value
        return reserved, rows(guard), (error.limit, error.used, error.requested), str(error), guard.forecast()[0].left

    told = story()
    with decimal.localcontext(decimal.Context(prec=2, traps=traps)):
        assert story() == told


def test_release_books_nothing(kit: Any) -> None:
    guard = kit.guard(Budget("all", calls=5))
    lease = guard.admit(kit.call(), kit.sizes())
    guard.release(lease)
    guard.settle(lease, kit.record(lease))
    assert rows(guard) == {("all", "calls", ""): (0, 0, 5)}


def test_all_budgets_or_none(kit: Any) -> None:
    guard = kit.guard(
        Budget("tenant", tokens=1000, per="tenant"),
        Budget("user", tokens=150, per=["tenant", "user"]),
        Budget("day", usd=5, window="day"),
    )
    with pytest.raises(BudgetExceededError) as caught:
        guard.admit(kit.call(tenant="acme", user="bob"), kit.sizes(100, 100))
    assert caught.value.budget == "user"
    assert caught.value.scope == "tenant=acme,user=bob"
    assert {reserved for _, reserved, _ in rows(guard).values()} == {0}
    assert guard.admit(kit.call(tenant="acme", user="eve"), kit.sizes(50, 50)) is not None


def test_the_refusal_says_everything(kit: Any) -> None:
    kit.now = 1795469587.0  # 2026-11-23 21:33 UTC
    guard = kit.guard(Budget("daily", usd=5, window="1d", timezone="Europe/Berlin", per="tenant"))
    kit.spend(guard, 970_000, 2_000_000, tenant="acme")
    guard.admit(kit.call(tenant="acme"), kit.sizes(20_000, 0))
    with pytest.raises(BudgetExceededError) as caught:
        guard.admit(kit.call(tenant="acme"), kit.sizes(10_000, 60_000))
    error = caught.value
    assert str(error) == (
        "budget 'daily' (tenant=acme): 4.97 of 5.00 USD used, 0.02 reserved, this call may cost up to 0.13 USD; "
        "resets at 2026-11-24 00:00 Europe/Berlin"
    )
    assert (error.budget, error.scope, error.unit) == ("daily", "tenant=acme", "usd")
    facts = (error.limit, error.used, error.reserved, error.requested)
    assert facts == (5, Decimal("4.97"), Decimal("0.02"), Decimal("0.13"))
    assert error.resets_at == 1795474800.0
    assert [(e.kind, e.budget) for e in kit.events][-1] == ("exceeded", "daily")
    assert ("daily", "deny", "openai", "model-1", "", 1) in guard.decisions()


@pytest.mark.parametrize(
    ("limits", "sizes", "message"),
    [
        ({"tokens": 100}, (150, 50), "0 of 100 tokens used, 0 reserved, this call may use up to 200 tokens"),
        ({"calls": 0}, (1, 1), "0 of 0 calls used, 0 reserved"),
        (
            {"input_tokens": 10},
            (20, 1),
            "0 of 10 input tokens used, 0 reserved, this call may use up to 20 input tokens",
        ),
        ({"output_tokens": 10}, (2, 11), "this call may use up to 11 output tokens"),
    ],
)
def test_refusals_in_every_unit(kit: Any, limits: Any, sizes: Any, message: str) -> None:
    guard = kit.guard(Budget("b", **limits))
    with pytest.raises(BudgetExceededError, match=message):
        guard.admit(kit.call(), kit.sizes(*sizes))


def test_spending_to_the_last_cent(kit: Any) -> None:
    guard = kit.guard(Budget("task", usd="0.0030"))
    for _ in range(10):
        kit.spend(guard, 100, 100)
    with pytest.raises(BudgetExceededError, match=r"0\.003 of 0\.003 USD used|0.003"):
        guard.admit(kit.call(), kit.sizes(1, 0))
    assert rows(guard)[("task", "usd", "")] == (Decimal("0.003"), 0, Decimal("0.003"))


def by_hand(function: Callable[[], Any]) -> None:
    """No loop at all: an awaited function that does not wait."""
    with pytest.raises(StopIteration):
        function().send(None)


@pytest.mark.parametrize("loop", [asyncio.run, trio.run, by_hand], ids=["asyncio", "trio", "none"])
def test_async_tells_the_same_story(kit: Any, store: Any, loop: Callable[..., Any]) -> None:
    guard = kit.guard(Budget("b", calls=2), Budget("edits", operations={"file_edits": 1}), store=store)

    async def story() -> None:
        for _ in range(2):
            lease = await guard.aadmit(kit.call(), kit.sizes())
            guard.settle(lease, kit.record(lease))
        with pytest.raises(BudgetExceededError):
            await guard.aadmit(kit.call(), kit.sizes())
        await guard.acount("file_edits")
        with pytest.raises(BudgetExceededError):
            await guard.acount("file_edits")

    loop(story() if loop is asyncio.run else story)


def test_two_budgets_of_one_name_are_refused() -> None:
    from otel_tokens.guard.guard import Guard

    with pytest.raises(ConfigError, match="two budgets"):
        Guard([Budget("a", usd=1), Budget("a", calls=1)], MemoryStore(), price=lambda *_, **__: UNPRICED)


# ---- how hard ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enforce", ["soft", "observe"])
def test_soft_budgets_warn_and_never_refuse(kit: Any, enforce: Any) -> None:
    guard = kit.guard(Budget("b", tokens=100, enforce=enforce))
    assert kit.spend(guard, 100, 100).decision == "allow"
    assert kit.spend(guard, 100, 100).decision == "warn"
    assert rows(guard)[("b", "tokens", "")] == (400, 0, 100)
    totals = {(budget, decision): count for budget, decision, *_, count in guard.decisions()}
    assert totals == {("b", "allow"): 1, ("b", "warn"): 1}


def test_untagged_calls_share_one_scope(kit: Any) -> None:
    guard = kit.guard(Budget("b", calls=1, per="session"))
    kit.spend(guard)
    with pytest.raises(BudgetExceededError, match="session="):
        guard.admit(kit.call(), kit.sizes())
    kit.spend(guard, session="s1")


def test_match_and_scope_by_model_and_provider(kit: Any) -> None:
    guard = kit.guard(
        Budget("opus", calls=1, match={"model": "*Opus*"}),
        Budget("each", calls=2, per="model", match={"provider": ["openai", "anthropic"]}),
    )
    kit.spend(guard, model="claude-opus-4-1")
    with pytest.raises(BudgetExceededError, match="opus"):
        guard.admit(kit.call("claude-opus-4-1"), kit.sizes())
    kit.spend(guard, model="gpt-4o")
    kit.spend(guard, model="gpt-4o")
    with pytest.raises(BudgetExceededError, match="model=gpt-4o"):
        guard.admit(kit.call("gpt-4o"), kit.sizes())
    kit.spend(guard, model="gpt-4o-mini")


def test_windows_begin_anew_and_weekends_differ(kit: Any) -> None:
    kit.now = 1795219200.0  # Saturday 2026-11-21 00:00 UTC
    guard = kit.guard(Budget("day", calls=3, window="day", weekend={"calls": 1}))
    kit.spend(guard)
    with pytest.raises(BudgetExceededError, match="1 of 1 calls"):
        guard.admit(kit.call(), kit.sizes())
    kit.now += 2 * 86400
    for _ in range(3):
        kit.spend(guard)
    with pytest.raises(BudgetExceededError, match="3 of 3 calls"):
        guard.admit(kit.call(), kit.sizes())


# ---- estimates -----------------------------------------------------------------------------------------------


def test_unbounded_calls_reserve_the_models_maximum(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens="1m"), max_output=lambda provider, model: 4000)
    guard.admit(kit.call(), kit.sizes(100, None))
    assert rows(guard)[("b", "tokens", "")][1] == 4100


def test_choices_and_thinking_count(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens="1m"))
    guard.admit(kit.call(), kit.sizes(100, 50, choices=3))
    guard.admit(kit.call(), kit.sizes(0, 50, thinking=2000))
    assert rows(guard)[("b", "tokens", "")][1] == 100 + 150 + 2000


def test_learned_outputs_bound_models_without_a_maximum(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens="10m"))
    for _ in range(30):
        lease = guard.admit(kit.call(), kit.sizes(10, None))
        guard.settle(lease, kit.record(lease, 10, 200))
    guard.admit(kit.call(), kit.sizes(10, None))
    assert rows(guard)[("b", "tokens", "")][1] == 10 + 300


def test_expected_reserves_what_is_likely(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens="1m", usd=1, estimate="expected"))
    lease = guard.admit(kit.call(), kit.sizes(200, 5000, expected=100))
    guard.settle(lease, kit.record(lease, 100, 60))
    lease = guard.admit(kit.call(), kit.sizes(200, 5000, expected=100))
    assert rows(guard)[("b", "tokens", "")] == (160, 160, 10**6)
    assert rows(guard)[("b", "usd", "")][1] == Decimal("0.00022")
    guard.settle(lease, kit.record(lease, 100, 5000))
    assert rows(guard)[("b", "tokens", "")] == (5260, 0, 10**6)


def test_an_injected_estimate_is_used(kit: Any) -> None:
    guard = kit.guard(
        Budget("b", tokens=1000, estimate="expected"), estimate=lambda call, sizes: Usage(input=7, output=70)
    )
    guard.admit(kit.call(), kit.sizes(200, 50))
    assert rows(guard)[("b", "tokens", "")][1] == 57


def test_caching_requests_reserve_the_dearer_write(kit: Any) -> None:
    guard = kit.guard(Budget("b", usd=1))
    guard.admit(kit.call(), kit.sizes(1000, 0, cache_write="cache_write_1h"))
    assert rows(guard)[("b", "usd", "")][1] == Decimal("0.002")


def test_accuracy_is_kept_and_large_errors_are_told_once(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    guard = kit.guard(Budget("b", tokens="1m"))
    with caplog.at_level("INFO", "otel_tokens"):
        for output in (100, 100, 500, 500):
            lease = guard.admit(kit.call(), kit.sizes(100, 1000))
            guard.settle(lease, kit.record(lease, 100, output))
    (accuracy,) = guard.accuracy()
    assert (accuracy.calls, accuracy.off) == (3, 2)
    assert len(kit.kinds("estimate")) == 1
    assert len([r for r in caplog.records if "were expected" in r.message]) == 1


# ---- what nobody knows ---------------------------------------------------------------------------------------


def test_an_unpriced_model_is_blocked_under_a_money_budget(kit: Any) -> None:
    guard = kit.guard(Budget("b", usd=1))
    with pytest.raises(BudgetExceededError, match="no price is known for model 'mystery-1'"):
        guard.admit(kit.call("mystery-1"), kit.sizes())
    assert kit.guard(Budget("b", tokens=1000)).admit(kit.call("mystery-1"), kit.sizes()) is not None
    assert kit.guard(Budget("b", usd=1, enforce="soft")).admit(kit.call("mystery-1"), kit.sizes()) is not None


def test_tokens_only_lets_it_through(kit: Any) -> None:
    guard = kit.guard(Budget("b", usd=1, tokens=1000), unpriced="tokens")
    lease = guard.admit(kit.call("mystery-1"), kit.sizes())
    guard.settle(lease, kit.record(lease, cost=UNPRICED))
    assert rows(guard) == {("b", "usd", ""): (0, 0, 1), ("b", "tokens", ""): (150, 0, 1000)}


def test_the_dearest_sibling_stands_in(kit: Any) -> None:
    def dearest(provider: str, usage: Usage, at: float) -> Cost:
        return Cost(total=Decimal(usage.input + usage.output) / 1000, status="estimated")

    guard = kit.guard(Budget("b", usd=1), unpriced="sibling", dearest=dearest)
    lease = guard.admit(kit.call("mystery-1"), kit.sizes(100, 100))
    assert rows(guard)[("b", "usd", "")][1] == Decimal("0.2")
    guard.settle(lease, kit.record(lease, 100, 50, cost=UNPRICED))
    assert rows(guard)[("b", "usd", "")] == (Decimal("0.15"), 0, 1)


def test_what_nobody_reported_is_charged_as_reserved(kit: Any) -> None:
    guard = kit.guard(Budget("b", usd=1, tokens=1000))
    lease = guard.admit(kit.call(), kit.sizes(100, 100))
    guard.settle(lease, kit.record(lease, usage=Usage(origin="missing"), cost=UNPRICED))
    assert rows(guard) == {("b", "usd", ""): (Decimal("0.0003"), 0, 1), ("b", "tokens", ""): (200, 0, 1000)}


def test_a_record_without_cost_is_priced_by_the_guard(kit: Any) -> None:
    guard = kit.guard(Budget("b", usd=1))
    lease = guard.admit(kit.call(), kit.sizes(100, 100))
    guard.settle(lease, kit.record(lease, 100, 50, cost=UNPRICED))
    assert rows(guard)[("b", "usd", "")][0] == Decimal("0.0002")


def test_settling_with_usage_alone(kit: Any) -> None:
    guard = kit.guard(Budget("b", usd=1))
    lease = guard.admit(kit.call(), kit.sizes(100, 100))
    guard.settle(lease, Usage(input=10, output=10, origin="provider"))
    assert rows(guard)[("b", "usd", "")][0] == Decimal("0.00003")


def test_calls_that_are_not_patched(kit: Any) -> None:
    guard = kit.guard(Budget("b", usd=1, per="task"), tags=lambda: {"task": "1"})
    lease = guard.reserve("openai", "model-1", input_tokens=100, max_output=100)
    guard.settle(lease, Usage(input=100, output=10, origin="provider"))
    assert rows(guard) == {("b", "usd", "task=1"): (Decimal("0.00012"), 0, 1)}
    assert kit.guard().reserve("openai", "model-1", input_tokens=5) is None
    guard.settle(None, Usage())


def test_calls_of_a_free_host_cost_nothing(kit: Any) -> None:
    from dataclasses import replace

    guard = kit.guard(Budget("b", usd=0))
    assert guard.admit(replace(kit.call("mystery-1"), free=True), kit.sizes()) is not None


# ---- calls made to fit ---------------------------------------------------------------------------------------


def test_an_unbounded_call_is_bounded_by_what_is_left(kit: Any) -> None:
    guard = kit.guard(Budget("b", usd="0.01"), max_output=lambda *_: 64_000)
    lease = guard.admit(kit.call(), kit.sizes(1000, None))
    assert lease.max_output == 4500
    assert [(e.kind, e.budget, e.detail) for e in kit.events] == [("clamp", "b", "at most 4500 output tokens")]
    assert rows(guard)[("b", "usd", "")][1] == Decimal("0.01")


def test_a_bound_of_the_callers_own_is_not_touched(kit: Any) -> None:
    guard = kit.guard(Budget("b", usd="0.01"))
    with pytest.raises(BudgetExceededError):
        guard.admit(kit.call(), kit.sizes(1000, 64_000))


def test_clamping_can_be_switched_off_and_has_a_least(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=1000), clamp_unbounded=False)
    with pytest.raises(BudgetExceededError):
        guard.admit(kit.call(), kit.sizes(100, None))
    guard = kit.guard(Budget("b", tokens=1000), min_output=950)
    with pytest.raises(BudgetExceededError):
        guard.admit(kit.call(), kit.sizes(100, None))
    guard = kit.guard(Budget("b", tokens=1000))
    with pytest.raises(BudgetExceededError):
        guard.admit(kit.call(), kit.sizes(100, None, thinking=950))
    lease = guard.admit(kit.call(), kit.sizes(100, None, choices=3))
    assert lease.max_output == 300


def test_clamp_at_a_threshold(kit: Any) -> None:
    budget = Budget("b", tokens=1000, thresholds={50: "clamp"})
    guard = kit.guard(budget)
    with pytest.raises(BudgetExceededError):
        guard.admit(kit.call(), kit.sizes(100, 2000))
    kit.spend(guard, 300, 300)
    lease = guard.admit(kit.call(), kit.sizes(100, 2000))
    assert lease.max_output == 300


def test_a_clamp_holds_every_budget(kit: Any) -> None:
    guard = kit.guard(
        Budget("money", usd="0.01"),
        Budget("tokens", tokens=2000),
        Budget("out", output_tokens=600),
        Budget("n", calls=9),
    )
    lease = guard.admit(kit.call(), kit.sizes(500, None))
    assert lease.max_output == 600
    assert rows(guard)[("tokens", "tokens", "")][1] == 1100


def test_nothing_to_clamp_in_embeddings(kit: Any) -> None:
    from dataclasses import replace

    guard = kit.guard(Budget("b", tokens=1000))
    call = replace(kit.call(), operation="embeddings")
    lease = guard.admit(call, kit.sizes(900, None))
    assert rows(guard)[("b", "tokens", "")][1] == 900
    assert lease.max_output is None
    with pytest.raises(BudgetExceededError):
        guard.admit(replace(kit.call(), operation="embeddings"), kit.sizes(900, None))


def test_limits_of_single_calls(kit: Any) -> None:
    guard = kit.guard(Budget("one", per="call", usd="0.001", tokens=800, seconds="5 min"))
    lease = guard.admit(kit.call(), kit.sizes(100, 100))
    assert lease.timeout == 300
    for _ in range(3):
        kit.spend(guard, 100, 100)
    with pytest.raises(BudgetExceededError, match="one"):
        guard.admit(kit.call(), kit.sizes(100, 1000))
    assert guard.admit(kit.call(), kit.sizes(100, None)).max_output == 450


# ---- ladders -------------------------------------------------------------------------------------------------

LADDER = ["claude-opus-4-1", "claude-sonnet-4-5", "claude-haiku-4-5"]


def test_a_ladder_goes_down_at_its_thresholds(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=1000, ladder=LADDER, thresholds={50: "downgrade", 80: "downgrade"}))
    sent = [kit.spend(guard, 100, 50, "claude-opus-4-1-20250805").model for _ in range(6)]
    assert sent == [None, None, None, None, "claude-sonnet-4-5", "claude-sonnet-4-5"]
    assert guard.status()[0].used == 900
    assert kit.spend(guard, 10, 10, "claude-opus-4-1").model == "claude-haiku-4-5"
    assert kit.spend(guard, 10, 10, "gpt-4o").model is None
    event = kit.kinds("downgrade")[0]
    assert (event.budget, event.model, event.detail) == ("b", "claude-opus-4-1-20250805", "sent to claude-sonnet-4-5")


def test_a_call_that_does_not_fit_takes_a_cheaper_model(kit: Any) -> None:
    guard = kit.guard(Budget("b", usd="0.001", ladder=LADDER, thresholds={70: "downgrade"}))
    lease = guard.admit(kit.call("claude-opus-4-1"), kit.sizes(100, 100))
    assert lease.model == "claude-sonnet-4-5"
    assert rows(guard)[("b", "usd", "")][1] == Decimal("0.0009")
    with pytest.raises(BudgetExceededError):
        guard.admit(kit.call("claude-opus-4-1"), kit.sizes(100, 100))


def test_a_budget_of_the_dear_model_sends_to_one_it_does_not_cover(kit: Any) -> None:
    guard = kit.guard(
        Budget("opus", tokens=300, match={"model": "*opus*"}, ladder=LADDER, thresholds={70: "downgrade"}),
        Budget("all", tokens="1m"),
    )
    models = [kit.spend(guard, 50, 50, "claude-opus-4-1").model for _ in range(6)]
    assert models == [None, None, None, *["claude-sonnet-4-5"] * 3]
    assert rows(guard)[("opus", "tokens", "")][0] == 300
    assert rows(guard)[("all", "tokens", "")][0] == 600


def test_words_on_a_ladder_stand_for_the_same_model_of_that_word(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=100, ladder=["opus", "sonnet", "haiku"], thresholds={1: "downgrade"}))
    kit.spend(guard, 10, 10, "claude-opus-4-1-20250805")
    assert kit.spend(guard, 10, 10, "claude-opus-4-1-20250805").model == "claude-sonnet-4-1-20250805"


def test_a_new_window_goes_back_up(kit: Any) -> None:
    kit.now = 1795219200.0
    guard = kit.guard(Budget("b", tokens=100, window="day", ladder=LADDER, thresholds={50: "downgrade"}))
    kit.spend(guard, 50, 20, "claude-opus-4-1")
    assert kit.spend(guard, 10, 10, "claude-opus-4-1").model == "claude-sonnet-4-5"
    kit.now += 86400
    assert kit.spend(guard, 10, 10, "claude-opus-4-1").model is None


def test_observing_budgets_do_not_steer(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=10, enforce="observe", ladder=LADDER, thresholds={1: "downgrade"}))
    kit.spend(guard, 50, 20, "claude-opus-4-1")
    assert kit.spend(guard, 10, 10, "claude-opus-4-1").model is None


# ---- without the store ---------------------------------------------------------------------------------------


class Broken(MemoryStore):
    """A store that can be switched off."""

    down = False

    def admit(self, *args: Any, **more: Any) -> Any:
        if self.down:
            raise StoreError("no answer within 0.5 s")
        return super().admit(*args, **more)

    def settle(self, *args: Any, **more: Any) -> Any:
        if self.down:
            raise StoreError("no answer within 0.5 s")
        return super().settle(*args, **more)


def test_fail_open_lets_calls_through_counts_them_and_charges_later(kit: Any) -> None:
    store = Broken()
    guard = kit.guard(Budget("b", tokens=1000), store=store, fail="open")
    store.down = True
    lease = guard.admit(kit.call(), kit.sizes())
    guard.settle(lease, kit.record(lease, 100, 50))
    assert ("b", "allow", "openai", "model-1", "store_open", 1) in guard.decisions()
    assert [e.kind for e in kit.events] == ["store"]
    store.down = False
    assert guard.flush(60)
    assert rows(guard) == {("b", "tokens", ""): (150, 0, 1000)}


def test_fail_closed_refuses(kit: Any) -> None:
    store = Broken()
    guard = kit.guard(Budget("b", tokens=1000), store=store, fail="closed")
    store.down = True
    with pytest.raises(BudgetExceededError, match="does not answer"):
        guard.admit(kit.call(), kit.sizes())
    assert ("b", "deny", "openai", "model-1", "store_closed", 1) in guard.decisions()
    store.down = False
    assert guard.flush(60)
    assert guard.admit(kit.call(), kit.sizes()) is not None


def test_a_cancelled_admission_leaves_nothing_behind(kit: Any) -> None:
    class Slow(MemoryStore):
        direct = False

        async def aadmit(self, *args: Any, **more: Any) -> Any:
            answer = self.admit(*args, **more)
            await asyncio.sleep(30)
            return answer

    guard = kit.guard(Budget("b", tokens=1000), store=Slow())

    async def run() -> None:
        task = asyncio.create_task(guard.aadmit(kit.call(), kit.sizes()))
        while rows(guard)[("b", "tokens", "")][1] == 0:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert guard.flush(60)
    assert rows(guard) == {("b", "tokens", ""): (0, 0, 1000)}


@pytest.mark.parametrize("window", ["minute", "day", "month"])
def test_a_clock_that_is_put_back_lets_nothing_through(kit: Any, window: Any) -> None:
    kit.now = 1795219200.0
    guard = kit.guard(Budget("b", calls=2, window=window))
    for _ in range(2):
        kit.spend(guard)
    kit.now -= 40 * 86400
    for _ in range(3):
        with pytest.raises(BudgetExceededError, match="2 of 2 calls used"):
            kit.spend(guard)
    kit.now += 80 * 86400
    kit.spend(guard)
    assert not [decision for decision in guard.decisions() if decision[4] == "store"]
