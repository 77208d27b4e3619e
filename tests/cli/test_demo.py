"""`otel-tokens demo`: shows what it promises, and nothing of it leaves this machine."""

from __future__ import annotations

import json
import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_tokens.demo import workload
from otel_tokens.ledger.query import rows


def test_the_demo_shows_every_kind_of_call(workshop: Any, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    pytest.importorskip("anthropic")
    elsewhere = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OPENAI_BASE_URL": "http://127.0.0.1:9",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "OTEL_TOKENS_LEDGER": "other.db",
        "COLUMNS": "80",
        "TMPDIR": str(tmp_path / "tmp"),
    }
    (tmp_path / "tmp").mkdir()
    done = workshop("demo", "--ledger", "demo.db", env=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    records = list(rows(workshop.folder / "demo.db"))
    steps = [step.task for step in workload.STEPS]
    assert len(steps) + 2 <= len(records)  # one step makes three calls
    assert {record.call.provider for record in records} == {"openai", "anthropic", "moonshot_ai"}
    assert {record.outcome for record in records} == {"ok", "abandoned", "error"}
    assert [r.call.model for r in records if r.cost.status == "unpriced" and r.usage.origin != "missing"] == [
        "acme-travel-1"
    ]
    assert sum(record.usage.cache_read for record in records) > 1000
    assert {record.tags["session"] for record in records} == {"demo"}
    assert {record.tags["agent"] for record in records} == {"planner", "researcher", "writer", "reviewer", "shopper"}
    assert not (workshop.folder / "other.db").exists()
    assert list((tmp_path / "tmp").iterdir()) == []
    _check_budget(done.stdout, [record for record in records if record.tags["task"] == workload.BUDGET_TASK])
    _check_output(done.stdout, len(records))
    report = json.loads(workshop.here("report", "--ledger", "demo.db", "--by", "agent", "--json").stdout)
    total = sum((record.cost.total for record in records if record.cost.total is not None), Decimal(0))
    assert Decimal(report["total"]["cost"]) == total


def _check_budget(out: str, records: list[Any]) -> None:
    spent = sum((record.cost.total for record in records), Decimal(0))
    assert spent <= Decimal(workload.BUDGET_USD)
    assert records[0].call.model == "claude-opus-4-8"
    assert records[-1].call.model == "claude-haiku-4-5"
    assert records[-1].call.asked_model == "claude-opus-4-8"
    where = [out.index(words) for words in ("70 %: a warning", "90 %: from here on a cheaper", "100 %: refused")]
    assert where == sorted(where)


def _check_output(out: str, calls: int) -> None:
    assert len(re.findall(rf"^ Total +{calls} ", out, re.MULTILINE)) == 2  # by model and by agent
    assert re.search(r"^curl http://127\.0\.0\.1:\d+/metrics", out, re.MULTILINE)
    assert re.search(r'otel_tokens_cost_USD_total\n  \{gen_ai_request_model="', out)
    assert "otel-tokens run python your_app.py" in out
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("gone", "words"), [(["anthropic"], "anthropic is missing"), (["openai", "anthropic"], "openai and anthropic are")]
)
def test_the_demo_names_what_is_missing(workshop: Any, gone: list[str], words: str) -> None:
    code = f"""
    import sys
    sys.modules.update(dict.fromkeys({gone}))
    sys.argv = ["otel-tokens", "demo"]
    from otel_tokens.cli import main
    main()
    """
    workshop.program(code, "without.py", "")
    done = workshop("run", "-q", "--no-ledger", sys.executable, "without.py")
    assert done.returncode == 2
    assert done.stdout == ""
    assert 'pip install "otel-tokens[demo]"' in done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
