"""Records as metrics, read back from the real SDK."""

from __future__ import annotations

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_tokens import conventions as names
from otel_tokens.telemetry.budgets import BudgetRow
from otel_tokens.telemetry.metrics import Metrics
from otel_tokens.telemetry.spans import Spans
from otel_tokens.values import UNPRICED, Usage

COMMON = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.model": "gpt-4o-2024-08-06",
    "server.address": "api.openai.com",
    "server.port": 443,
}


def only(points):
    (point,) = points
    return point


def test_a_call(memory, make_record):
    metrics = memory.metrics()
    metrics(make_record(service_tier="default"))
    metrics(make_record(service_tier="default"))
    found = memory.read()
    tokens = {**COMMON, "openai.response.service_tier": "default", "gen_ai.token.modality": "unknown"}
    expected = {
        "input_tokens": 2000,
        "output_tokens": 100,
        "cache_read.input_tokens": 1600,
        "cache_write.input_tokens": 0,
        "reasoning.output_tokens": 40,
    }
    for name, value in expected.items():
        point = only(found[f"gen_ai.client.inference.usage.{name}"])
        assert point.value == value
        assert dict(point.attributes) == tokens
    duration = only(found["gen_ai.client.inference.duration"])
    assert (duration.count, duration.sum) == (2, 1.0)
    assert tuple(duration.explicit_bounds) == names.SECONDS_BUCKETS
    assert dict(duration.attributes) == {**COMMON, "openai.response.service_tier": "default"}
    costs = {point.attributes["otel_tokens.token.type"]: point for point in found["otel_tokens.cost"]}
    assert {kind: point.value for kind, point in costs.items()} == {
        "input": 0.0004,
        "cache_read": 0.0008,
        "cache_write": 0.0,
        "output": 0.0009,
    }
    assert dict(costs["input"].attributes) == {
        **{name: COMMON[name] for name in list(COMMON)[:4]},
        "otel_tokens.token.type": "input",
        "otel_tokens.cost.source": "local",
    }
    calls = only(found["otel_tokens.calls"])
    assert (calls.value, calls.attributes["otel_tokens.outcome"]) == (2, "ok")
    assert dict(only(found["otel_tokens.build_info"]).attributes) == {"otel_tokens.version": "1.2.3"}
    assert set(found) == {
        *(f"gen_ai.client.inference.usage.{name}" for name in expected),
        "gen_ai.client.inference.duration",
        "otel_tokens.cost",
        "otel_tokens.calls",
        "otel_tokens.build_info",
    }


def test_an_unsampled_call_counts_all_the_same(memory, make_record):
    metrics = memory.metrics()
    spans = Spans(TracerProvider(ALWAYS_OFF, shutdown_on_exit=False).get_tracer("otel_tokens"))
    record = make_record()
    span = spans.start(record.call)
    assert not span.is_recording()
    metrics(record)
    spans.finish(span, record)
    assert memory.sum("gen_ai.client.inference.usage.input_tokens") == 1000
    assert memory.sum("gen_ai.client.inference.duration") == 1
    assert memory.sum("otel_tokens.cost") == pytest.approx(0.00105)


def test_a_failed_call(memory, failed):
    memory.metrics()(failed)
    found = memory.read()
    duration = only(found["gen_ai.client.inference.duration"])
    assert duration.attributes["error.type"] == "openai.RateLimitError"
    point = only(found["gen_ai.client.inference.usage.input_tokens"])
    assert (point.value, point.attributes["gen_ai.token.modality"]) == (0, "unknown")
    assert "error.type" not in point.attributes
    assert "otel_tokens.cost" not in found
    assert "otel_tokens.usage.missing" not in found


def test_modalities(memory, make_record):
    usage = Usage(input=100, input_audio=30, input_text=50, output=9, output_audio=9, origin="provider")
    memory.metrics()(make_record(usage=usage))
    found = memory.read()
    for name, expected in {
        "input_tokens": {"audio": 30, "text": 50, "unknown": 20},
        "output_tokens": {"audio": 9, "unknown": 0},
    }.items():
        points = found[f"gen_ai.client.inference.usage.{name}"]
        assert {point.attributes["gen_ai.token.modality"]: point.value for point in points} == expected


def test_gaps_and_estimates(memory, make_record, estimated, partial):
    metrics = memory.metrics()
    metrics(estimated)
    metrics(partial)
    metrics(make_record(cost=UNPRICED))
    assert memory.sum("otel_tokens.usage.missing", otel_tokens__reason="stream_no_usage") == 1
    assert memory.sum("otel_tokens.usage.missing", otel_tokens__reason="aborted") == 1
    assert memory.sum("otel_tokens.pricing.misses") == 1
    assert memory.sum("otel_tokens.usage.estimated_tokens", otel_tokens__token__type="input") == 30
    assert memory.sum("otel_tokens.usage.estimated_tokens", otel_tokens__token__type="output") == 16
    assert memory.sum("gen_ai.client.inference.usage.output_tokens") == 50
    # Money that rests on an estimate is counted and marked.
    assert memory.sum("otel_tokens.cost", otel_tokens__pricing__status="estimated") == pytest.approx(0.00105)


def test_embeddings(memory, make_record):
    memory.metrics()(make_record(operation="embeddings", usage=Usage(input=8, origin="provider")))
    found = memory.read()
    point = only(found["gen_ai.client.inference.usage.input_tokens"])
    assert (point.value, point.attributes["gen_ai.operation.name"]) == (8, "embeddings")
    assert only(found["gen_ai.client.operation.duration"]).count == 1
    assert "gen_ai.client.inference.duration" not in found
    assert "gen_ai.client.inference.usage.output_tokens" not in found


def test_streams(memory, make_record):
    metrics = memory.metrics(chunk_histogram=True)
    metrics(make_record(stream=True, first_chunk=0.1, chunks=5))
    found = memory.read()
    assert only(found["gen_ai.client.inference.time_to_first_chunk"]).sum == 0.1
    assert only(found["gen_ai.client.inference.time_per_output_chunk"]).sum == pytest.approx(0.1)


def test_opt_in_histograms(memory, make_record, failed, estimated):
    metrics = memory.metrics(token_histograms=True, cost_histogram=True)
    for record in (make_record(), failed, estimated):
        metrics(record)
    found = memory.read()
    points = found["gen_ai.client.inference.operation.input_tokens"]
    assert {(point.attributes.get("error.type"), point.sum) for point in points} == {
        (None, 1000),
        ("openai.RateLimitError", 0),
    }
    assert tuple(points[0].explicit_bounds) == names.TOKEN_BUCKETS
    cost = only(found["otel_tokens.operation.cost"])
    assert cost.count == 2
    assert tuple(cost.explicit_bounds) == names.COST_BUCKETS
    assert set(cost.attributes) == {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"}


NEW = {"gen_ai.client.inference.usage.input_tokens", "gen_ai.client.inference.duration"}
NEW_STREAM = "gen_ai.client.inference.time_to_first_chunk"
OLD = {"gen_ai.client.token.usage", "gen_ai.client.operation.duration", "gen_ai.client.operation.time_to_first_chunk"}


@pytest.mark.parametrize(
    ("mode", "there", "absent"),
    [("latest", NEW | {NEW_STREAM}, OLD), ("1.41", OLD, NEW | {NEW_STREAM}), ("both", NEW | OLD | {NEW_STREAM}, set())],
)
def test_semconv_modes(memory, make_record, mode, there, absent):
    memory.metrics(semconv=mode)(make_record(stream=True, first_chunk=0.1, chunks=2))
    found = memory.read()
    assert there <= set(found)
    assert not absent & set(found)
    assert "otel_tokens.cost" in found
    if mode != "latest":
        points = found["gen_ai.client.token.usage"]
        assert {point.attributes["gen_ai.token.type"]: point.sum for point in points} == {"input": 1000, "output": 50}


def test_beside_another_instrumentation_its_names_are_left_to_it(memory, make_record):
    metrics = memory.metrics(semconv="both")
    metrics.beside_foreign(True)
    metrics(make_record(stream=True, first_chunk=0.1, chunks=2))
    metrics(make_record(operation="embeddings"))
    found = set(memory.read())
    assert not OLD & found
    assert found >= NEW


def test_budgets(memory, make_record):
    metrics = memory.metrics(metric_attributes=("tenant",))
    rows = [
        BudgetRow("daily", {"tenant": "a"}, "USD", 10, 4),
        BudgetRow("daily", {"tenant": "b"}, "USD", 10, 12),
        BudgetRow("gas", {"session": "s1"}, "token", 1000, 100),
        BudgetRow("gas", {"session": "s2"}, "token", 500, 450),
        BudgetRow("calls", {"model": "gpt-4o"}, "call", 0, 0),
    ]
    metrics.observe_budgets(lambda: rows)
    found = memory.read()

    def values(name):
        return {tuple(value for key, value in sorted(point.attributes.items())): point.value for point in found[name]}

    assert values("otel_tokens.budget.cost.limit") == {("daily", "a"): 10, ("daily", "b"): 10}
    assert values("otel_tokens.budget.cost.used") == {("daily", "a"): 4, ("daily", "b"): 12}
    # Sessions are no label: the fullest stands for all.
    assert values("otel_tokens.budget.token.used") == {("gas",): 450}
    assert values("otel_tokens.budget.token.limit") == {("gas",): 500}
    assert values("otel_tokens.budget.usage_ratio") == {
        ("daily", "a"): 0.4,
        ("daily", "b"): 1.2,
        ("gas",): 0.9,
        ("gpt-4o", "calls"): 1.0,
    }
    metrics.observe_budgets(None)
    assert "otel_tokens.budget.usage_ratio" not in memory.read()


def test_budgets_are_asked_once_per_collection(memory):
    asked = []
    metrics = memory.metrics()
    metrics.observe_budgets(lambda: asked.append(1) or [BudgetRow("b", {}, "USD", 1, 1)])
    memory.read()
    assert len(asked) == 1


def test_decisions_faults_and_ledger_errors(memory):
    metrics = memory.metrics()
    metrics.totals.decided("daily", "deny", "openai", "gpt-4o")
    metrics.fault("ledger")
    metrics.ledger_error()
    assert memory.sum("otel_tokens.budget.decisions", otel_tokens__budget__decision="deny") == 1
    assert memory.sum("otel_tokens.faults") == 1
    assert memory.sum("otel_tokens.ledger.errors") == 1


def test_the_guards_own_totals_are_taken_over(memory):
    """Rows that differ in what is no label are added up; nothing is counted again at the next collection."""
    metrics = memory.metrics()
    rows = [("daily", "deny", "openai", "gpt-4o", "", 5), ("daily", "deny", "openai", "gpt-4o", "", 2)]
    metrics.observe_decisions(lambda: rows)
    assert [memory.sum("otel_tokens.budget.decisions") for _ in range(3)] == [7, 7, 7]
    rows.append(("daily", "allow", "openai", "gpt-4o", "", 1))
    assert memory.sum("otel_tokens.budget.decisions") == 8
    metrics.observe_decisions(lambda: [("daily", "deny", "openai", "gpt-4o", "", 9)])  # another guard
    assert memory.sum("otel_tokens.budget.decisions") == 17
    metrics.totals.reset()  # as in a forked child, where the guard begins at 0 as well
    metrics.observe_decisions(lambda: [("daily", "deny", "openai", "gpt-4o", "", 3)])
    assert [memory.sum("otel_tokens.budget.decisions") for _ in range(2)] == [3, 3]


def test_decisions_without_the_store_are_told_apart(memory):
    metrics = memory.metrics()
    metrics.observe_decisions(lambda: [("daily", "allow", "o", "m", r, 1) for r in ("", "store_local", "store_open")])
    assert memory.sum("otel_tokens.budget.decisions", otel_tokens__reason="store_local") == 1
    assert memory.sum("otel_tokens.budget.decisions") == 3


def test_a_faulty_budget_callback_spoils_nothing_else(memory, make_record, monkeypatch):
    monkeypatch.delenv("OTEL_TOKENS_STRICT")
    metrics = memory.metrics()
    metrics.observe_budgets(lambda: 1 / 0)
    metrics(make_record())
    assert memory.sum("otel_tokens.calls") == 1


# ---- switched off and on again ----------------------------------------------------------------------------------


def test_after_shutdown_nothing_is_shown_and_again_is_exact(memory, make_record):
    first = memory.metrics()
    for _ in range(10):
        first(make_record())
    assert memory.sum("otel_tokens.calls") == 10
    first.shutdown()
    assert "otel_tokens.calls" not in memory.read()
    assert "gen_ai.client.inference.usage.input_tokens" not in memory.read()

    second = memory.metrics(metric_attributes=("tenant",))
    for _ in range(5):
        second(make_record(tags={"tenant": "a"}))
    assert memory.sum("otel_tokens.calls") == 15
    assert memory.sum("gen_ai.client.inference.usage.input_tokens") == 15_000
    assert memory.sum("otel_tokens.cost") == pytest.approx(0.00105 * 15)
    assert memory.sum("gen_ai.client.inference.duration") == 15
    first.shutdown()  # late, and not its own any more
    assert memory.sum("otel_tokens.calls") == 15


def test_another_mode_the_second_time(memory, make_record):
    memory.metrics().shutdown()
    memory.metrics(semconv="1.41")(make_record())
    found = set(memory.read())
    assert "gen_ai.client.token.usage" in found
    assert "gen_ai.client.inference.usage.input_tokens" not in found


def test_delta_temporality_across_a_second_time(make_memory, make_record):
    memory = make_memory(preferred_temporality={ObservableCounter: AggregationTemporality.DELTA})
    first = memory.metrics()
    first(make_record())
    assert memory.sum("otel_tokens.calls") == 1
    first.shutdown()
    memory.read()
    second = memory.metrics()
    second(make_record())
    second(make_record())
    assert memory.sum("otel_tokens.calls") == 2
    memory.provider.shutdown()


def test_two_providers_are_apart(make_memory, make_record):
    one, two = make_memory(), make_memory()
    first, second = one.metrics(), two.metrics()
    first(make_record())
    second(make_record())
    second(make_record())
    assert (one.sum("otel_tokens.calls"), two.sum("otel_tokens.calls")) == (1, 2)
    for memory in (one, two):
        memory.provider.shutdown()


def test_a_provider_set_after_instrumenting(run_python):
    """Proxy meters: nothing lost, nothing doubled, also when switched on again after the provider was set."""
    out = run_python(
        """
        from opentelemetry import metrics as api
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from otel_tokens.telemetry.metrics import Metrics

        def total():
            data = reader.get_metrics_data()
            return sum(
                p.value for m in data.resource_metrics[0].scope_metrics[0].metrics
                if m.name == "otel_tokens.calls" for p in m.data.data_points
            )

        first = Metrics(api.get_meter("otel_tokens"), version="1")
        first(record)
        first.shutdown()
        second = Metrics(api.get_meter("otel_tokens"), version="1")
        second(record)
        reader = InMemoryMetricReader()
        api.set_meter_provider(MeterProvider([reader]))
        second(record)
        print(total())
        second.shutdown()
        del first, second
        import gc; gc.collect()
        third = Metrics(api.get_meter("otel_tokens"), version="1")
        third(record)
        print(total())
        """
    )
    assert out.split() == ["3", "4"]


def test_without_an_sdk(make_record):
    metrics = Metrics(NoOpMeterProvider().get_meter("otel_tokens"))
    metrics(make_record())
    assert len(metrics.totals.counts("calls")) == 1


def test_a_dropped_provider_is_freed(make_record):
    import gc
    import weakref

    provider = MeterProvider(shutdown_on_exit=False)
    metrics = Metrics(provider.get_meter("otel_tokens"), version="1")
    metrics(make_record())
    metrics.shutdown()
    gone = weakref.ref(provider.get_meter("otel_tokens"))
    provider.shutdown()
    del provider, metrics
    gc.collect()
    assert gone() is None


def test_the_version_is_found_without_being_told(make_memory):
    memory = make_memory()
    memory.metrics(version="")
    assert only(memory.read()["otel_tokens.build_info"]).attributes["otel_tokens.version"]
    memory.provider.shutdown()
