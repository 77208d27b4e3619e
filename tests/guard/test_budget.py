"""Declarations: the same words in YAML and Python, and a mistake of every kind named by place, key and cure."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_tokens.errors import ConfigError
from otel_tokens.guard.budgets import presets, units
from otel_tokens.guard.budgets.budget import KEYS, Budget, budgets_from
from otel_tokens.guard.budgets.ladder import ladder, step_down
from otel_tokens.guard.budgets.thresholds import Action, Threshold


def limits(budget: Budget) -> dict[str, int]:
    return {limit.unit: limit.amount for limit in budget.limits}


def test_the_same_words_in_python_and_yaml() -> None:
    entry = {
        "name": "daily",
        "usd": Decimal("5.00"),
        "per": ["tenant", "user"],
        "match": {"model": ["*opus*", "*Sonnet*"]},
        "window": "day",
        "timezone": "Europe/Berlin",
        "reset_hour": "06:30",
        "weekend": {"usd": 2},
        "on": {"fri": {"usd": 3}, "mon,tue": {"usd": 4}},
        "thresholds": [{"at": "70%", "actions": ["log", {"slow": "2s"}]}, 90],
        "grace": {"usd": "0.10"},
        "wait": "30s",
    }
    (budget,) = budgets_from(entry)
    assert budget == Budget(**entry)
    (limit,) = budget.limits
    assert (limit.unit, limit.amount, limit.grace) == ("usd", 5 * 10**9, 10**8)
    assert limit.by_weekday == tuple(n * 10**9 for n in (4, 4, 5, 5, 3, 2, 2))
    assert budget.span is not None
    assert budget.span.reset == 6 * 3600 + 1800
    assert budget.conditions[0].patterns == ("*opus*", "*sonnet*")
    assert budget.marks == (
        Threshold(700, (Action("log"), Action("slow", seconds=2.0))),
        Threshold(900),
    )
    assert budget.wait_seconds == 30


@pytest.mark.parametrize(
    ("unit", "value", "smallest"),
    [
        ("usd", 5, 5 * 10**9),
        ("usd", "0.10", 10**8),
        ("usd", "5 USD", 5 * 10**9),
        ("usd", "$5", 5 * 10**9),
        ("tokens", "50k tokens", 50_000),
        ("usd", 0.1 + 0.2, 3 * 10**8),
        ("usd", Decimal("0.000000001"), 1),
        ("tokens", "50k", 50_000),
        ("tokens", "1.5m", 1_500_000),
        ("tokens", "100_000", 100_000),
        ("tokens", "100 tokens", 100),
        ("calls", 0, 0),
        ("seconds", 90, 90_000),
        ("seconds", "2 min", 120_000),
        ("seconds", "1.5h", 5_400_000),
        ("operations", 5, 5),
    ],
)
def test_amounts(unit: str, value: Any, smallest: int) -> None:
    assert list(limits(Budget("b", **{unit: value})).values()) == [smallest]


def test_several_limits_under_one_name() -> None:
    budget = Budget("task", usd=1, tokens=100_000, seconds="30 min", operations={"edit": 50, "dangerous": 10})
    assert limits(budget) == {
        "usd": 10**9,
        "tokens": 100_000,
        "seconds": 1_800_000,
        "operations:edit": 50,
        "operations:dangerous": 10,
    }


BAD: list[tuple[Any, str, str]] = [
    (5, "", "a budget is a mapping"),
    ({"usd": 5}, "", "needs a name"),
    ({"name": "b"}, "", "needs a limit; allowed: usd, tokens"),
    ({"name": "", "usd": 1}, "name", "a name is a text"),
    ({"name": "a|b", "usd": 1}, "name", "plain name"),
    ({"name": "b", "usdd": 5}, "usdd", "did you mean usd?"),
    ({"name": "b", "usd": -1}, "usd", "is negative"),
    ({"name": "b", "usd": True}, "usd", "is not a number"),
    ({"name": "b", "usd": "five"}, "usd", "is not a number"),
    ({"name": "b", "usd": "5 EUR"}, "usd", "is not an amount of usd"),
    ({"name": "b", "usd": "nan"}, "usd", "is not a"),
    ({"name": "b", "usd": float("inf")}, "usd", "is not a"),
    ({"name": "b", "usd": "1e999"}, "usd", ""),
    ({"name": "b", "usd": "0.0000000001"}, "usd", "finer than"),
    ({"name": "b", "calls": 1.5}, "calls", "not a whole number"),
    ({"name": "b", "tokens": 10**30}, "tokens", "too large"),
    ({"name": "b", "seconds": "5 parsecs"}, "seconds", "is not a time"),
    ({"name": "b", "operations": {"a b": 1}}, "operations.a b", "cannot name an operation"),
    ({"name": "b", "operations": {"edit": "x"}}, "operations.edit", "is not a number"),
    ({"name": "b", "operations": 5, "match": {"model": "x"}}, "operations", "no model or provider"),
    ({"name": "b", "usd": 1, "per": "Tenant!"}, "per", "cannot be a tag's name"),
    ({"name": "b", "usd": 1, "per": ["a", 5]}, "per[1]", "cannot be a tag's name"),
    ({"name": "b", "usd": 1, "per": ["a", "a"]}, "per", "given twice"),
    ({"name": "b", "usd": 1, "per": ["call", "a"]}, "per", "stands alone"),
    ({"name": "b", "usd": 1, "per": "call", "window": "day"}, "per", "without a window"),
    ({"name": "b", "calls": 1, "per": "call"}, "per", "cannot be limited in calls"),
    ({"name": "b", "usd": 1, "match": "opus"}, "match", "a mapping"),
    ({"name": "b", "usd": 1, "match": {"model": 5}}, "match.model", "a pattern"),
    ({"name": "b", "usd": 1, "match": {"model": []}}, "match.model", "a pattern"),
    ({"name": "b", "usd": 1, "match": {"model": ["a", 5]}}, "match.model", "a pattern is a text"),
    ({"name": "b", "usd": 1, "match": {"tenant": 42}}, "match.tenant", 'a pattern is a text: write "42"'),
    ({"name": "b", "usd": 1, "window": "fortnight"}, "window", "allowed: none, minute"),
    ({"name": "b", "usd": 1, "window": "1000y"}, "window", "too long; at most 100y"),
    ({"name": "b", "usd": 1, "window": 7}, "window", "allowed: none, minute"),
    ({"name": "b", "usd": 1, "rolling": True}, "rolling", "needs a window"),
    ({"name": "b", "usd": 1, "rolling": "yes", "window": "day"}, "rolling", "true, false"),
    ({"name": "b", "usd": 1, "window": "day", "timezone": "Berlin"}, "timezone", "Europe/Berlin"),
    ({"name": "b", "usd": 1, "window": "day", "timezone": 5}, "timezone", "Europe/Berlin"),
    ({"name": "b", "usd": 1, "window": "day", "timezone": "../etc/passwd"}, "timezone", "is not a time zone"),
    ({"name": "b", "usd": 1, "window": "day", "reset_hour": 24}, "reset_hour", "is not a time of day"),
    ({"name": "b", "usd": 1, "window": "week", "week_start": "Mittwoch"}, "week_start", "allowed: monday"),
    ({"name": "b", "usd": 1, "window": "week", "weekend": {"usd": 2}}, "weekend", "windows of a day or less"),
    ({"name": "b", "usd": 1, "weekend": {"usd": 2}}, "weekend", "windows of a day or less"),
    ({"name": "b", "usd": 1, "window": "day", "weekend": {"tokens": 2}}, "weekend.tokens", "allowed: usd"),
    ({"name": "b", "usd": 1, "window": "day", "weekend": 2}, "weekend", "limits such as"),
    ({"name": "b", "usd": 1, "window": "day", "on": {"someday": {"usd": 2}}}, "on.someday", "weekday"),
    ({"name": "b", "usd": 1, "window": "day", "on": {"sat-sun": {"usd": 2}}}, "on.sat-sun", "not a known weekday"),
    ({"name": "b", "usd": 1, "window": "day", "on": {"mon fri": {"usd": 2}}}, "on.mon fri", "not a known weekday"),
    ({"name": "b", "usd": 1, "window": "day", "on": {"fri": {"usd": "x"}}}, "on.fri.usd", "is not a number"),
    ({"name": "b", "usd": 1, "enforce": "hart"}, "enforce", "did you mean hard?"),
    ({"name": "b", "usd": 1, "thresholds": 70}, "thresholds", "a list such as [70, 90, 100]"),
    ({"name": "b", "usd": 1, "thresholds": [0]}, "thresholds[0]", "must lie in"),
    ({"name": "b", "usd": 1, "thresholds": ["many"]}, "thresholds[0]", "is not a share"),
    ({"name": "b", "usd": 1, "thresholds": [70, "70%"]}, "thresholds[1]", "given twice"),
    ({"name": "b", "usd": 1, "thresholds": [{"actions": "log"}]}, "thresholds[0]", "needs `at`"),
    ({"name": "b", "usd": 1, "thresholds": [{"at": 70, "act": "log"}]}, "thresholds[0]", "allowed: at, actions"),
    (
        {"name": "b", "usd": 1, "thresholds": [{"at": 70, "actions": ["log", "lgo"]}]},
        "thresholds[0].actions[1]",
        "did you mean log?",
    ),
    ({"name": "b", "usd": 1, "thresholds": {70: {"webhook": "ftp://x"}}}, "thresholds[70]", "needs a URL"),
    ({"name": "b", "usd": 1, "thresholds": {70: "webhook"}}, "thresholds[70]", "needs a URL"),
    ({"name": "b", "usd": 1, "thresholds": {70: {"callback": "nocolon"}}}, "thresholds[70]", "package.module:function"),
    ({"name": "b", "usd": 1, "thresholds": {70: "callback"}}, "thresholds[70]", "needs a function"),
    ({"name": "b", "usd": 1, "thresholds": {70: {"pause": "long"}}}, "thresholds[70]", "is not a number"),
    ({"name": "b", "usd": 1, "thresholds": {70: {"slow": -1}}}, "thresholds[70]", "is negative"),
    ({"name": "b", "usd": 1, "thresholds": {70: {"log": 5}}}, "thresholds[70]", "takes no value"),
    ({"name": "b", "usd": 1, "thresholds": {70: "downgrade"}}, "thresholds", "downgrade needs a ladder"),
    ({"name": "b", "usd": 1, "ladder": "opus"}, "ladder", "a list of models"),
    ({"name": "b", "usd": 1, "ladder": ["one"]}, "ladder", "two models or more"),
    ({"name": "b", "usd": 1, "ladder": ["*opus*", "x"]}, "ladder[0]", "is a pattern"),
    ({"name": "b", "usd": 1, "ladder": ["x", {"match": "y"}]}, "ladder[1]", "{match: pattern, use: model}"),
    ({"name": "b", "usd": 1, "ladder": ["x", 5]}, "ladder[1]", "is not a model"),
    ({"name": "b", "usd": 1, "grace": {"tokens": 5}}, "grace.tokens", "allowed: usd"),
    ({"name": "b", "usd": 1, "grace": 5}, "grace", "amounts such as"),
    ({"name": "b", "usd": 1, "wait": "a while"}, "wait", "is not a number"),
    ({"name": "b", "usd": 1, "clock": "sun"}, "clock", "allowed: wall, calls"),
    ({"name": "b", "seconds": 1, "clock": "wall", "window": "day"}, "clock", "without a window"),
    ({"name": "b", "usd": 1, "forget": "x"}, "forget", "is not a number"),
    ({"name": "b", "usd": 1, "estimate": "guess"}, "estimate", "allowed: upper, expected"),
    ({"preset": "questoin"}, "preset", "did you mean question?"),
    ({"preset": "task_types", "name": "x"}, "preset", "keep their names"),
    ({"preset": "day", "usd": "lots"}, "usd", "is not a number"),
]


@pytest.mark.parametrize(
    ("entry", "key", "message"), BAD, ids=[f"{key or 'entry'}-{n}" for n, (_, key, _) in enumerate(BAD)]
)
def test_mistakes_are_named_by_key(entry: Any, key: str, message: str) -> None:
    def fail(text: str, *steps: str | int) -> ConfigError:
        return ConfigError(
            text,
            where="otel-tokens.yaml:12",
            key="".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps).lstrip("."),
        )

    with pytest.raises(ConfigError) as caught:
        budgets_from(entry, fail)
    assert caught.value.key == key
    assert caught.value.where == "otel-tokens.yaml:12"
    assert message in caught.value.reason


def test_mistakes_in_python_name_the_budget() -> None:
    with pytest.raises(ConfigError, match=r"Budget\('daily'\): window: 'fortnight' is not a window"):
        Budget("daily", usd=5, window="fortnight")
    with pytest.raises(ConfigError, match="budgets: usd"):
        budgets_from({"name": "b", "usd": "x"})


def test_every_key_is_documented() -> None:
    text = Budget.__doc__ or ""
    assert [key for key in KEYS if f"`{key}`" not in text and key not in text] == []


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.decimals() | st.text(max_size=8) | st.just("day"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*KEYS, "preset"]), JUNK, max_size=6))
def test_junk_is_a_config_error_or_a_budget(entry: dict[str, Any]) -> None:
    for given_entry in (entry, {"name": "b", "usd": 1, "window": "day", **entry}):
        try:
            made = budgets_from(given_entry)
        except ConfigError:
            continue
        assert all(isinstance(budget, Budget) for budget in made)


# ---- presets ---------------------------------------------------------------------------------------------------


def preset(name: str) -> dict[str, dict[str, int]]:
    return {budget.name: limits(budget) for budget in budgets_from({"preset": name})}


def test_the_numbers_of_the_presets() -> None:
    usd, minute = 10**9, 60_000
    assert preset("task") == {"task": {"usd": usd, "tokens": 100_000, "seconds": 30 * minute}}
    assert preset("session") == {"session": {"tokens": 500_000}}
    assert preset("call") == {"call": {"seconds": 5 * minute}}
    assert preset("day") == {"day": {"usd": 20 * usd}}
    (day,) = budgets_from({"preset": "day"})
    assert day.limits[0].by_weekday == (*[20 * usd] * 5, 5 * usd, 5 * usd)
    assert preset("session_tiers") == {
        "session:opus": {"tokens": 50_000},
        "session:sonnet": {"tokens": 200_000},
        "session:haiku": {"tokens": 500_000},
    }
    assert preset("operations")["operations"] == {
        "operations:file_edit": 50,
        "operations:shell": 100,
        "operations:dangerous": 10,
    }
    assert {name: tuple(rows.values()) for name, rows in preset("task_types").items()} == {
        "task_type:question": (usd // 10, 10_000, 2 * minute),
        "task_type:change": (usd // 2, 50_000, 15 * minute),
        "task_type:bug_fix": (usd * 8 // 10, 80_000, 30 * minute),
        "task_type:feature": (usd * 15 // 10, 150_000, 60 * minute),
        "task_type:architecture": (usd, 100_000, 30 * minute),
    }
    assert {name: rows["tokens"] for name, rows in preset("complexity").items()} == {
        "complexity:simple": 20_000,
        "complexity:moderate": 50_000,
        "complexity:complex": 150_000,
    }


def test_presets_can_be_changed() -> None:
    (budget,) = budgets_from({"preset": "question", "usd": "0.20", "name": "ask"})
    assert budget.name == "ask"
    assert limits(budget) == {"usd": 2 * 10**8, "tokens": 10_000, "seconds": 120_000}
    (types,) = {b.enforce for b in budgets_from({"preset": "task_types", "enforce": "soft"})}
    assert types == "soft"


def test_the_overdraft_of_the_presets() -> None:
    (budget,) = budgets_from({"preset": "task"})
    assert {limit.unit: limit.grace for limit in budget.limits} == {"usd": 10**8, "tokens": 5000, "seconds": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How does the auth middleware work?", "question"),
        ("why is the test failing?", "question"),
        ("Explain the parser", "question"),
        ("Fix the crash when the list is empty", "bug_fix"),
        ("Implement a new endpoint for invoices", "feature"),
        ("rename foo to bar in utils", "change"),
        ("Refactor the architecture of the payment service", "architecture"),
        ("lorem ipsum", None),
        ("", None),
    ],
)
def test_the_detector(text: str, expected: str | None) -> None:
    assert presets.detect(text) == expected


@pytest.mark.parametrize("days", ["sat", "Saturday", "satur", "sat, SATURDAY"])
def test_weekdays_by_any_beginning_of_their_name(days: str) -> None:
    budget = Budget("b", usd=5, window="day", on={days: {"usd": 1}})
    assert [amount // 10**9 for amount in budget.limits[0].by_weekday] == [5, 5, 5, 5, 5, 1, 5]


# ---- what people type ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5USD", ("usd", 5 * 10**9)),
        ("$5", ("usd", 5 * 10**9)),
        ("-0.5 usd", ("usd", -5 * 10**8)),
        ("-$0.5", ("usd", -5 * 10**8)),
        ("50k tokens", ("tokens", 50_000)),
        ("50ktokens", ("tokens", 50_000)),
        ("10 calls", ("calls", 10)),
        ("15min", ("seconds", 900_000)),
        ("3 operations:file_edit", ("operations:file_edit", 3)),
    ],
)
def test_amounts_as_typed(text: str, expected: tuple[str, int]) -> None:
    assert units.parse_amount(text) == expected


@pytest.mark.parametrize("text", ["5", "USD", "5 EUR", "", "five USD"])
def test_amounts_that_say_too_little(text: str) -> None:
    with pytest.raises(ValueError, match=r"does not say of what|is not a number"):
        units.parse_amount(text)


@pytest.mark.parametrize(("model", "steps", "target"), [
    ("claude-opus-4-6", 1, "claude-sonnet-4-6"), ("claude-opus-4-8", 1, "claude-sonnet-4-6"),
    ("claude-opus-4-8-20260801", 2, "claude-haiku-4-5"), ("claude-opus-4-4", 2, None), ("gpt-5.4", 1, None),
])  # fmt: skip
def test_a_word_stands_for_the_newest_of_its_family_that_is_no_newer(
    model: str, steps: int, target: str | None
) -> None:
    known = {"claude-opus-4-8", "claude-sonnet-4-6", "claude-haiku-4-5"}
    assert step_down(ladder(["opus", "sonnet", "haiku"]), model, steps, known.__contains__) == target
