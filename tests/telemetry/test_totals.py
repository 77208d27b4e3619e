"""The totals: exact, bounded, and right under threads."""

from __future__ import annotations

import decimal
import sys
import threading
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_tokens import conventions as names
from otel_tokens.telemetry.totals import Totals
from otel_tokens.values import COST_PARTS, UNPRICED, Component, Cost, Usage

D = Decimal


def sums(points):
    return sum(value for _, value in points)


def test_a_small_precision_of_the_application_rounds_nothing(make_record):
    totals = Totals()
    big, small = D("123456789.123456789"), D("0.000000000001")
    with decimal.localcontext(decimal.Context(prec=3)):
        for amount in (big, small):
            zero = D(0)
            totals.add(make_record(cost=Cost(amount, amount, zero, zero, zero, zero, status="priced")))
        costs = totals.costs()
    assert {labels[names.TOKEN_TYPE]: value for labels, value in costs}["input"] == D("123456789.123456789001")


money = st.decimals(0, 1000, places=12)


@given(st.lists(st.tuples(money, money, money, money, money), max_size=20))
def test_the_parts_of_a_cost_add_up(rows):
    totals = Totals()
    for row in rows:
        totals.add(MAKE(cost=Cost(sum(row), *row, status="priced")))
    found = {labels[names.TOKEN_TYPE]: value for labels, value in totals.costs()}
    for index, part in enumerate(COST_PARTS):
        assert found.get(part, 0) == sum(row[index] for row in rows)


@given(st.lists(st.tuples(*[st.integers(0, 10**9)] * 5), min_size=1, max_size=20))
def test_modalities_add_up_to_the_total_and_never_go_down(rows):
    totals, before = Totals(), {}
    for total, text, audio, image, cached in rows:
        usage = Usage(
            input=total,
            input_text=text,
            input_audio=audio,
            input_image=image,
            cache_read=min(cached, total),
            cache_read_audio=audio,
            origin="provider",
        )
        totals.add(MAKE(usage=usage))
        for field in ("input", "cache_read", "output"):
            for labels, value in totals.tokens(field):
                key = (field, labels[names.TOKEN_MODALITY])
                assert value >= before.get(key, 0)
                before[key] = value
    assert sums(totals.tokens("input")) == sum(row[0] for row in rows)
    assert sums(totals.tokens("cache_read")) == sum(min(row[4], row[0]) for row in rows)


def test_a_total_without_parts_goes_to_other(make_record):
    totals = Totals()
    totals.add(make_record(cost=Cost(total=D("0.5"), status="priced", source="provider")))
    totals.add(make_record(cost=Cost(total=D("0.5"), input=D("0.1"), status="priced", source="provider")))
    # Parts that do not belong to the total: the total is what counts.
    totals.add(make_record(cost=Cost(total=D("0.5"), input=D("0.9"), status="priced", source="provider")))
    found = {labels[names.TOKEN_TYPE]: value for labels, value in totals.costs()}
    assert found == {"input": D("0.1"), "cache_read": 0, "cache_write": 0, "output": 0, "other": D("1.4")}


def test_estimates_are_counted_apart(estimated, partial):
    totals = Totals()
    totals.add(estimated)
    assert sums(totals.tokens("input")) == sums(totals.tokens("output")) == 0
    totals.add(partial)
    assert sums(totals.tokens("input")) == 1000
    assert sums(totals.tokens("cache_read")) == 800
    assert sums(totals.tokens("output")) == 0
    by_type = {}
    for labels, value in totals.counts("estimated"):
        by_type[labels[names.TOKEN_TYPE]] = by_type.get(labels[names.TOKEN_TYPE], 0) + value
    assert by_type == {"input": 30, "output": 16}
    reasons = {labels[names.REASON]: value for labels, value in totals.counts("missing")}
    assert reasons == {"stream_no_usage": 1, "aborted": 1}


def test_a_failed_call_is_no_gap_and_no_unpriced_call(failed):
    totals = Totals()
    totals.add(failed)
    assert totals.counts("missing") == totals.counts("misses") == []
    assert [value for _, value in totals.tokens("input")] == [0]
    ((labels, value),) = totals.counts("calls")
    assert (labels[names.OUTCOME], value) == ("error", 1)


def test_an_unpriced_call_is_a_miss_and_no_money(make_record):
    totals = Totals()
    for _ in range(3):
        totals.add(make_record(cost=UNPRICED))
    # Money in a currency that the metric does not have is not added to dollars.
    totals.add(make_record(cost=Cost(total=D(1), other=D(1), currency="EUR", status="priced")))
    assert totals.costs() == []
    assert sums(totals.counts("misses")) == 4


def test_components_are_counted_under_the_model_that_used_them(make_record):
    own = Component("compaction", None, Usage(input=180_000, output=3500, origin="provider"))
    other = Component("advisor_message", "big-model", Usage(input=10, output=1, origin="provider"))
    totals = Totals()
    totals.add(make_record(usage=Usage(input=1100, output=50, origin="provider", components=(own, other))))
    by_model = {labels[names.REQUEST_MODEL]: value for labels, value in totals.tokens("input")}
    assert by_model == {"gpt-4o": 181_100, "big-model": 10}
    assert sums(totals.counts("calls")) == 1


def test_embeddings_have_input_only(make_record):
    totals = Totals()
    totals.add(make_record(operation="embeddings", usage=Usage(input=8, origin="provider")))
    assert sums(totals.tokens("input")) == 8
    assert totals.tokens("output") == totals.tokens("reasoning") == []


def test_only_allowed_tags_become_labels(make_record):
    totals = Totals(metric_attributes=("tenant",))
    totals.add(make_record(tags={"tenant": "a", "user": "u1"}))
    totals.add(make_record(tags={"user": "u2"}))
    labels = [labels for labels, _ in totals.counts("calls")]
    assert [row.get("otel_tokens.tenant") for row in labels] == ["a", None]
    assert not [row for row in labels if "otel_tokens.user" in row]
    # The provider's names carry no labels of the application.
    assert not [row for row, _ in totals.tokens("input") if "otel_tokens.tenant" in row]


def test_values_beyond_the_limit_are_added_up(make_record):
    totals = Totals(label_limit=10)
    for number in range(50):
        totals.add(make_record(model=f"m{number}", response_model=None))
    found = {labels[names.REQUEST_MODEL]: value for labels, value in totals.counts("calls")}
    assert len(found) == 11
    assert found["__other__"] == 40
    assert sums(totals.tokens("input")) == 50_000
    assert sums(totals.costs()) == D("0.00105") * 50


def test_label_sets_beyond_the_limit_are_added_up(make_record):
    totals = Totals(series_limit=100, metric_attributes=("tenant",))
    for number in range(300):
        totals.add(make_record(model=f"m{number % 30}", tags={"tenant": f"t{number // 10}"}, response_model=None))
    assert len(totals.costs()) <= 104
    assert sums(totals.costs()) == D("0.00105") * 300
    assert len(totals.counts("calls")) <= 101
    assert sums(totals.counts("calls")) == 300
    kinds = {labels[names.OUTCOME] for labels, _ in totals.counts("calls")}
    assert kinds == {"ok"}  # labels with a closed list are never folded


def test_memory_is_bounded_when_models_never_end(make_record):
    totals = Totals(label_limit=50)
    for number in range(25_000):
        totals.add(make_record(model=f"m{number}"))
    assert sums(totals.counts("calls")) == 25_000
    assert len(totals._rows) <= 20_000
    assert len(totals.counts("calls")) == 51


def test_threads_lose_nothing(make_record):
    totals = Totals()
    records = [make_record(model=f"m{number}") for number in range(4)]
    start = threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(500):
            for record in records:
                totals.add(record)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sums(totals.counts("calls")) == 8 * 500 * 4
    assert sums(totals.tokens("input")) == 8 * 500 * 4 * 1000
    assert sums(totals.costs()) == D("0.00105") * 16_000


def test_a_call_from_within_a_call_does_not_lock_up(make_record):
    totals = Totals()
    with totals._lock:  # as in a signal handler that interrupts an addition
        totals.add(make_record())
    assert sums(totals.counts("calls")) == 1


def test_reset_and_configure(make_record):
    totals = Totals()
    totals.add(make_record(tags={"tenant": "a"}))
    totals.configure(metric_attributes=("tenant",), label_limit=5, series_limit=100)
    totals.add(make_record(tags={"tenant": "a"}))
    assert [row.get("otel_tokens.tenant") for row, _ in totals.counts("calls")] == [None, "a"]
    assert sums(totals.counts("calls")) == 2
    totals.reset()
    assert totals.counts("calls") == totals.costs() == totals.tokens("input") == []


def test_a_guard_that_begins_anew_is_counted_from_its_zero():
    totals = Totals()
    for count, expected in ((5, 5), (6, 6), (2, 8), (3, 9)):
        totals.take_decisions([("daily", "deny", "openai", "gpt-4o", "", count)])
        assert sums(totals.counts("decisions")) == expected
    totals.reset()
    totals.take_decisions([("daily", "deny", "openai", "gpt-4o", "", 4)])
    assert sums(totals.counts("decisions")) == 4


def test_counters_of_the_other_rooms():
    totals = Totals()
    totals.decided("daily", "deny", "openai", "gpt-4o")
    totals.decided("daily", "deny", "openai", "gpt-4o")
    totals.fault("guard")
    totals.ledger_error(3)
    assert totals.counts("decisions") == [
        (
            {
                "otel_tokens.budget.name": "daily",
                "otel_tokens.budget.decision": "deny",
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": "gpt-4o",
            },
            2,
        )
    ]
    assert totals.counts("faults") == [({"otel_tokens.reason": "guard"}, 1)]
    assert totals.counts("ledger_errors") == [({}, 3)]


@pytest.fixture(autouse=True)
def _factory(make_record):
    # Hypothesis wants no function-scoped fixtures; the factory has no state.
    global MAKE
    MAKE = make_record
