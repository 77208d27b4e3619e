"""Reports: exact totals, in order, honest about what is unknown, in all forms."""

from __future__ import annotations

import csv
import decimal
import io
import json
import os
import subprocess
import sys
import time
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import otel_tokens.values
from otel_tokens.errors import ConfigError, LedgerError
from otel_tokens.ledger.ledger import Ledger
from otel_tokens.reports.report import Report, report
from otel_tokens.reports.text import COUNTED
from otel_tokens.values import Component, Usage

COSTS = st.none() | st.decimals(0, 1000, places=10) | st.decimals(0, 1, allow_nan=False)


@settings(max_examples=30)
@given(costs=st.lists(st.tuples(st.sampled_from("abc"), COSTS, st.integers(0, 10**12)), max_size=20))
def test_the_total_is_the_sum_of_the_rows_in_every_form(tmp_path_factory, make_record, costs) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("exact") / "ledger.db")
    for at, (model, cost, tokens) in enumerate(costs):
        ledger.write(make_record(at, model, None if cost is None else str(cost), input=tokens))
    ledger.close()
    found = report(ledger.path)
    with decimal.localcontext(decimal.Context(prec=500)):
        true = sum((cost for _, cost, _ in costs if cost is not None), Decimal(0))
        body = json.loads(found.json())
        assert sum(Decimal(row["cost"] or 0) for row in body["rows"]) == Decimal(body["total"]["cost"] or 0) == true
        lines = list(csv.DictReader(io.StringIO(found.csv())))
        assert sum(Decimal(line["cost"] or 0) for line in lines) == true
        assert sum((row.cost or Decimal(0) for row in found.rows), Decimal(0)) == (found.total.cost or 0) == true
        for row in body["rows"]:
            parts = row["cost_parts"]
            assert parts is None or sum(map(Decimal, parts.values())) == Decimal(row["cost"])
    for name in COUNTED:
        assert sum(row[name] for row in body["rows"]) == body["total"][name]
        assert sum(int(line[name]) for line in lines) == body["total"][name]
    assert body["total"]["input"] == sum(tokens for _, _, tokens in costs)
    assert body["total"]["cost"] is None or any(cost is not None for _, cost, _ in costs)


def test_which_agent_costs_most(fill) -> None:
    path = fill(
        {"tags": {"agent": "planner"}, "cost": "0.25"},
        {"tags": {"agent": "coder"}, "cost": "1"},
        {"tags": {"agent": "coder"}, "cost": "0.5"},
        {"tags": {}, "cost": "0.25"},
    )
    found = report(path, by="agent")
    assert [(row.key, row.cost, row.share) for row in found.rows] == [
        (("coder",), Decimal("1.5"), Decimal("0.75")),
        ((None,), Decimal("0.25"), Decimal("0.125")),
        (("planner",), Decimal("0.25"), Decimal("0.125")),
    ]
    assert "75.0%" in found.table()
    assert "(none)" in found.table()


def test_by_several_dimensions_and_tags_of_ones_own(fill) -> None:
    path = fill(
        {"tags": {"team": "a"}}, {"tags": {"team": "b"}, "model": "o3"}, {"tags": {"team": "a"}, "outcome": "error"}
    )
    assert [row.key for row in report(path, by=["team", "model"]).rows] == [("a", "gpt-4o"), ("b", "o3")]
    assert [row.key for row in report(path, by="team, model").rows] == [("a", "gpt-4o"), ("b", "o3")]
    assert [(row.key, row.errors) for row in report(path, by="outcome").rows] == [(("ok",), 0), (("error",), 1)]
    assert report(path, by="teem").notes == ('no call has a tag "teem"',)
    assert report(path, where={"team": "b"}).total.calls == 1


def test_days_come_in_their_order(fill) -> None:
    now = time.time()
    path = fill(*({"started": now - days * 86400, "cost": str(days)} for days in (0, 5, 2)))
    days = [row.key[0] for row in report(path, by="day").rows]
    assert days == sorted(days)
    assert len(days) == 3
    assert [row.cost for row in report(path, by="day", since="3d").rows] == [2, 0]
    assert report(path, since="1h").total.calls == 1
    assert report(path, until="1h").total.calls == 2


def test_what_is_unknown_is_said(fill) -> None:
    path = fill(
        {"model": "gpt-4o"},
        {"model": "new-1", "cost": None},
        {"model": "new-1", "cost": None},
        {"model": "new-2", "cost": None},
        {"origin": "partial"},
        {"origin": "missing", "missing_reason": "stream_no_usage", "cost": None, "input": 0},
        {"origin": "missing", "missing_reason": "error", "outcome": "error", "cost": None, "input": 0},
    )
    found = report(path)
    assert found.notes == (
        "3 calls of 2 models are unpriced, the cost is unknown: new-1, new-2",
        "1 call is without usage: the provider did not report any",
        "1 call is (partly) estimated",
    )
    assert found.unpriced_models == {"new-1": 2, "new-2": 1}
    rows = {row.key[0]: row for row in found.rows}
    assert rows["new-1"].cost is None  # never 0
    assert json.loads(found.json())["rows"][1]["cost"] is None
    table = found.table(120)
    assert "unpriced*" in table
    assert "* 3 calls of 2 models are unpriced" in table
    assert "$1.00*" in table  # the total is only what is known


def test_a_sound_report_has_no_notes(fill) -> None:
    found = report(fill({}))
    assert found.notes == ()
    assert "*" not in found.table()


def test_parts_that_are_billed_apart(fill) -> None:
    compaction = Component("compaction", None, Usage(input=180_000, output=3_500))
    found = report(fill({"components": (compaction,)}))
    assert (found.total.input, found.total.component_input, found.total.component_output) == (100, 180_000, 3_500)
    assert "180,000 input and 3,500 output tokens more" in found.notes[0]


def test_currencies_are_not_added(fill) -> None:
    path = fill({"cost": "1"}, {"cost": "7", "currency": "CNY"}, {"cost": "2", "model": "o3"}, {"cost": None})
    found = report(path)
    assert [(row.key, row.currency, row.cost, row.calls) for row in found.rows] == [
        (("gpt-4o",), "CNY", 7, 2),
        (("o3",), "USD", 2, 1),
        (("gpt-4o",), "USD", 1, 1),
    ]
    assert found.total.cost is None
    assert found.total.calls == 4
    assert [(total.currency, total.cost) for total in found.totals] == [("CNY", 7), ("USD", 3)]
    assert "not added up: CN¥7.00 and $3.00" in found.notes[-1]
    assert json.loads(found.json())["currency"] is None


def test_nothing_to_report(fill) -> None:
    found = report(fill())
    assert found.rows == ()
    assert found.total.calls == 0
    assert found.total.cost is None
    assert "No calls." in found.table()
    assert json.loads(found.json())["rows"] == []
    assert found.csv().startswith("model,calls,")


def test_json_has_its_schema(fill) -> None:
    body = json.loads(report(fill({"tags": {"agent": "a"}}), by=["agent", "model"], since="1d").json())
    assert list(body) == [
        *("schema", "ledger", "generated", "since", "until", "by", "currency"),
        *("rows", "total", "totals", "unpriced_models", "notes"),
    ]
    assert body["schema"] == 1
    row = body["rows"][0]
    assert list(row) == ["key", *COUNTED, "cost", "currency", "cost_parts", "share"]
    assert row["key"] == {"agent": "a", "model": "gpt-4o"}
    assert (row["cost"], row["share"], row["total_tokens"], body["until"]) == ("0.5", "1", 110, None)
    assert body["since"].endswith("+00:00")


def test_csv_does_not_run_in_a_spreadsheet(fill) -> None:
    found = report(fill({"tags": {"agent": '=HYPERLINK("http://x")'}}, {"tags": {"agent": 'a,"b"\nc'}}), by="agent")
    assert [line["agent"] for line in csv.DictReader(io.StringIO(found.csv()))] == [
        '\'=HYPERLINK("http://x")',
        'a,"b"\nc',
    ]


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\uff1d"])
@pytest.mark.parametrize(
    "before", ["", "\n", "\r\n", "\t", " ", "\xa0", "\u2003", "\x00", "\x1b", "\ufeff", "\u200b", "\u2028"]
)
def test_nothing_hides_a_formula(fill, before: str, sign: str) -> None:
    value = f"{before}{sign}1+1"
    text = report(fill({"tags": {"agent": value}}), by="agent").csv()
    assert [line["agent"] for line in csv.DictReader(io.StringIO(text, newline=""))] == [f"'{value}"]


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\x07", "\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eexe", "\\u202eexe"),
        ("\u2066", "\\u2066"),
        ("a\u2028b", "a\\u2028b"),
        ("a\u2029b", "a\\u2029b"),
        ("a\nb\rc", "a\\nb\\rc"),
        ("a\x85b", "a\\x85b"),
    ],
)
def test_hostile_names_do_not_reach_the_terminal(fill, hostile: str, shown: str) -> None:
    found = report(fill({"model": hostile, "cost": None, "tags": {"agent": hostile}}), by=["model", "agent", hostile])
    for text in (found.table(200), *found.notes):
        assert hostile not in text
        assert set(text) & set("\x1b\x07\x9b\x85\u202e\u2066\u2028\u2029\r") == set()
    assert found.table(200).count(shown) >= 4  # model, agent, and a note on each of model and tag
    assert any(shown in note for note in found.notes)


def test_one_call_is_unpriced(fill) -> None:
    assert report(fill({"model": "new", "cost": None})).notes == (
        "1 call of 1 model is unpriced, the cost is unknown: new",
    )


def test_weeks_begin_on_monday_and_belong_to_the_year_of_their_thursday(fill) -> None:
    days = ["2026-11-29", "2026-11-30", "2026-12-06", "2026-12-28", "2027-01-03", "2027-01-04", "2024-12-30"]
    noon = [datetime.fromisoformat(f"{day}T12:00:00").timestamp() for day in days]
    found = report(fill(*({"started": moment} for moment in noon)), by="week")
    weeks = ["2025-W01", "2026-W48", "2026-W49", "2026-W53", "2027-W01"]
    assert [(row.key[0], row.calls) for row in found.rows] == list(zip(weeks, [1, 1, 2, 2, 1], strict=True))
    monday = datetime.fromisoformat("2026-11-30").isocalendar()
    assert f"{monday.year}-W{monday.week:02}" == "2026-W49"
    months = report(found.ledger, by=["month", "week"], where={"week": "2026-W53"})
    assert [row.key for row in months.rows] == [("2026-12", "2026-W53"), ("2027-01", "2026-W53")]


def test_values_of_any_kind_come_back(fill) -> None:
    values = ["a\rb", "a\r\nb", "a\nb", "a,b", 'a"b', " a", "東京", "a\tb"]
    found = report(fill(*({"tags": {"agent": value}} for value in values)), by="agent")
    assert "a\rb" not in found.csv().replace('"a\rb"', "")  # quoted, whatever the writer's Python is
    assert {line["agent"] for line in csv.DictReader(io.StringIO(found.csv(), newline=""))} == set(values)
    assert found.json().isascii()
    assert {row["key"]["agent"] for row in json.loads(found.json())["rows"]} == set(values)


def test_what_the_application_does_with_decimals_does_not_matter(fill) -> None:
    path = fill({"cost": "0.123456789"}, {"cost": "100"}, {"cost": "0.000000001", "model": "o3"})
    expected = report(path)
    with decimal.localcontext(decimal.Context(prec=2, traps=[decimal.Inexact, decimal.Rounded])):
        found = report(path)
        assert found.total == expected.total
        assert found.table(80) == expected.table(80)
        assert json.loads(found.json())["total"] == json.loads(expected.json())["total"]


def test_errors_say_what_and_where(tmp_path: Path, fill) -> None:
    with pytest.raises(LedgerError, match=r"nowhere\.db: there is no ledger here"):
        report(tmp_path / "nowhere.db")
    with pytest.raises(ConfigError, match="since: 'yesteryear' is not a time; use"):
        report(fill({}), since="yesteryear")
    with pytest.raises(ConfigError, match="until"):
        report(fill({}), until="yesteryear")
    for by in ("", "model,", ["agent", " "]):
        with pytest.raises(ConfigError, match=r"by: .* leaves a name empty"):
            report(fill({}), by=by)


def test_printing_a_report_shows_its_table(fill) -> None:
    found = report(fill({"model": "gpt-4o"}))
    assert str(found) == found.table()


# ---- the table ---------------------------------------------------------------------------------------------------
@pytest.fixture
def wide(fill) -> Report:
    """Long names and large numbers."""
    path = fill(
        {
            "model": "anthropic.claude-sonnet-4-5-20250929-v1:0",
            "input": 1_234_567_890,
            "cache_read": 7,
            "cost": "1234.5",
        },
        {"model": "text-embedding-3-small", "cost": "0.00000002", "outcome": "error"},
        {"model": "[bold]not markup[/bold]", "cost": None, "reasoning": 5},
    )
    return report(path)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120, 200])
def test_a_table_fits_and_cuts_no_number(wide: Report, width: int) -> None:
    lines = wide.table(width).splitlines()
    assert max(map(len, lines)) <= max(width, 40)
    text = "\n".join(lines)
    assert "…" not in text
    assert "\x1b" not in text
    assert "$1,234.50" in text
    assert "$0.00000002" in text
    for words in ("Calls by model", "Total", "unpriced*"):
        assert words in text
    if width >= 60:
        assert ("1,234,567,890" if width >= 120 else "1.23G") in text


def test_a_wide_table_writes_everything_out(wide: Report) -> None:
    table = wide.table(120)
    for words in ("1,234,567,890", "text-embedding-3-small", "[bold]not markup[/bold]", "Reasoning", "Share"):
        assert words in table


def test_a_table_in_colour_only_when_asked(wide: Report) -> None:
    assert "\x1b[" in wide.table(80, color=True)
    assert "\x1b[" not in wide.table(80)  # pytest's stdout is no terminal


def test_a_tag_cannot_steer_the_terminal(fill) -> None:
    table = report(fill({"tags": {"agent": "\x1b[2J\r\n\tbad"}}), by="agent").table()
    assert "\x1b" not in table
    assert "bad" in table


def test_ascii_where_the_terminal_knows_no_more(fill) -> None:
    path = fill({})
    script = f"from otel_tokens.reports.report import report; print(report({path!r}).table(80))"
    root = Path(otel_tokens.values.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=True)
    assert b"gpt-4o" in done.stdout
    assert done.stdout.isascii()


def test_rich_is_only_imported_for_a_table(fill) -> None:
    path = fill({})
    script = (
        "import sys\nfrom otel_tokens.reports.report import report\n"
        f"found = report({path!r}); found.json(); found.csv()\n"
        "assert 'rich' not in sys.modules\nfound.table()\nassert 'rich' in sys.modules"
    )
    root = Path(otel_tokens.values.__file__).parent.parent
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(root)}, check=True)
