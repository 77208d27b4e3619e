"""The README's story, told by a user's own processes: run, budget, refusal, report."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import otel_tokens
from otel_tokens.demo.server import ModelServer

ROOT = Path(__file__).parents[2]
APP = """
from openai import OpenAI

with OpenAI(max_retries=0) as client:
    for n in range(100):
        client.chat.completions.create(
            model="gpt-5.4-mini", max_completion_tokens=200, messages=[{"role": "user", "content": f"City {n}?"}]
        )
"""
REFUSAL = re.compile(
    r"budget 'daily': [\d.]+ of [\d.]+ USD used, [\d.]+ reserved, this call may cost up to [\d.]+ USD; "
    r"resets at \d{4}-\d\d-\d\d 00:00 UTC"
)


@pytest.fixture
def shell(tmp_path: Path, model_server: ModelServer) -> Any:
    """A user's shell in a folder with the README's otel-tokens.yaml and a program."""
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = re.search(r"```yaml\n(budgets:.*?)```", readme, re.DOTALL)
    assert shown is not None
    hosts = f"hosts:\n  - {{match: '{model_server.url.removeprefix('http://')}', provider: openai}}\n"
    (tmp_path / "otel-tokens.yaml").write_text(shown[1] + hosts)
    (tmp_path / "agent.py").write_text(APP)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "OPENAI_", "ANTHROPIC_"))} | {
        "PYTHONPATH": str(ROOT),
        "OPENAI_BASE_URL": f"{model_server.url}/v1",
        "OPENAI_API_KEY": "test",
        "OTEL_TOKENS_STRICT": "1",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "COLUMNS": "120",
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "otel_tokens.cli", *words]
        return subprocess.run(line, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=300, check=False)

    return run


def test_a_loop_ends_at_the_budget_and_the_report_says_so(
    shell: Any, model_server: ModelServer, tmp_path: Path
) -> None:
    assert REFUSAL.search((ROOT / "README.md").read_text("utf-8"))
    assert shell("budget", "set", "daily", "0.005USD").returncode == 0
    ended = shell("run", sys.executable, "agent.py")
    assert ended.returncode == 1
    refusal = REFUSAL.search(ended.stderr)
    assert refusal is not None, ended.stderr
    assert "BudgetExceededError" in ended.stderr
    assert "Calls by model" in ended.stderr
    assert 3 < len(model_server.requests) < 100
    (row,) = otel_tokens.report(tmp_path / "state" / "otel-tokens" / "ledger.db").rows
    assert (row.key, row.calls, row.unpriced) == (("gpt-5.4-mini",), len(model_server.requests), 0)
    assert row.cost is not None
    assert row.cost <= Decimal("0.005")


def test_a_budget_on_the_command_line(shell: Any, model_server: ModelServer) -> None:
    ended = shell("run", "--budget", "3calls", sys.executable, "agent.py")
    assert ended.returncode == 1
    assert len(model_server.requests) == 3
