"""`otel-tokens budget`: budgets are seen and changed from outside while programs run under them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from decimal import Decimal
from typing import Any

import pytest

from otel_tokens.guard.store.sqlite.store import SqliteStore

CONFIG = """
store: sqlite:///{folder}/budgets.db
budgets:
  - {{name: daily, usd: 5, window: day}}
  - {{name: per-agent, tokens: 500, per: agent}}
"""

LOOP = """
from otel_tokens import BudgetExceededError, tags
done = 0
try:
    with tags(agent="a"):
        for _ in range(40):
            chat()
            done += 1
except BudgetExceededError as error:
    print(done, error.budget)
"""


@pytest.fixture
def budgets(workshop: Any) -> Any:
    """A workshop with budgets in a file of their own; `rows()` is `budget list --json` by (name, scope)."""
    workshop.config.write_text(workshop.config.read_text() + CONFIG.format(folder=workshop.folder))

    def rows() -> dict[tuple[str, str], dict[str, Any]]:
        done = workshop.here("budget", "list", "--json")
        assert done.returncode == 0, done.stderr
        return {(row["name"], row["scope"]): row for row in json.loads(done.stdout)}

    workshop.rows = rows
    return workshop


def test_declared_budgets_are_listed_before_their_first_use(budgets: Any) -> None:
    rows = budgets.rows()
    assert rows["daily", ""]["used"] is None
    assert rows["daily", ""]["limit"] == "5"
    assert rows["per-agent", "per agent"]["limit"] == "500"
    assert "not used yet" in budgets.here("budget", "list").stdout
    assert not (budgets.folder / "budgets.db").exists()


def test_a_program_is_stopped_and_goes_on_with_more(budgets: Any) -> None:
    done = budgets.run_program(LOOP)
    calls, name = done.stdout.split()
    assert name == "per-agent"
    row = budgets.rows()["per-agent", "agent=a"]
    assert 0 < int(row["used"]) <= 500
    assert "budget per-agent (agent=a): " in done.stderr
    assert budgets.here("budget", "add", "per-agent", "200 tokens", "--scope", "agent=a").returncode == 0
    assert budgets.rows()["per-agent", "agent=a"]["limit"] == "700"
    more = budgets.run_program(LOOP).stdout.split()
    assert 0 < int(more[0]) <= int(calls)


def test_every_change_shows(budgets: Any) -> None:
    budgets.run_program("chat()")

    def change(*args: str) -> dict[str, Any]:
        done = budgets.here("budget", *args)
        assert done.returncode == 0, done.stderr
        return budgets.rows()["daily", ""]

    assert Decimal(change("add", "daily", "5USD")["limit"]) == 10
    assert Decimal(change("add", "daily", "-1USD")["limit"]) == 9
    assert Decimal(change("set", "daily", "2USD")["limit"]) == 6  # what was added in this window stays
    assert Decimal(change("unset", "daily", "USD")["limit"]) == 9
    assert change("finish", "daily")["finished"] is True
    assert "finished" in budgets.here("budget", "show", "daily").stdout
    row = change("reset", "daily")
    assert (row["finished"], row["used"], row["limit"]) == (False, "0", "5")
    assert change("review", "daily", "--for", "1h")["review_until"] is not None


def test_who_waits_is_said_as_long_as_it_waits(budgets: Any) -> None:
    budgets.run_program("chat()")
    store = SqliteStore(budgets.folder / "budgets.db", timeout=300)

    def says() -> bool:
        return "a call waits" in budgets.here("budget", "list").stdout

    try:
        assert not says()
        until = store.now() + 5000
        store.change("daily", "pause", amount=until)
        assert says()
        while store.now() <= until:
            time.sleep(0.05)
        assert not says()
    finally:
        store.close()


def test_a_finished_budget_refuses_the_next_run(budgets: Any) -> None:
    budgets.run_program("chat()")
    budgets.here("budget", "finish", "daily")
    done = budgets.run_program(LOOP)
    assert done.stdout == "0 daily\n"
    assert "finished" in done.stderr


def test_set_holds_before_the_first_call(budgets: Any) -> None:
    done = budgets.here("budget", "set", "per-agent", "1 tokens")
    assert (done.returncode, done.stdout) == (0, "per-agent: changed, and holds from its first call on\n")
    assert budgets.run_program(LOOP).stdout == "0 per-agent\n"


def test_what_is_not_there_is_said(budgets: Any) -> None:
    done = budgets.here("budget", "show", "dialy")
    assert (done.returncode, done.stdout) == (1, "")
    assert "did you mean 'daily'?" in done.stderr
    done = budgets.here("budget", "finish", "daily")
    assert done.returncode == 1
    assert "has not been used yet" in done.stderr


def test_a_limit_that_a_budget_does_not_have_is_said(budgets: Any) -> None:
    for op in ("add", "set"):
        done = budgets.here("budget", op, "per-agent", "5USD")
        assert (done.returncode, done.stdout) == (1, "")
        assert "budget 'per-agent' has no limit in USD; it has tokens" in done.stderr
    done = budgets.here("budget", "set", "dialy", "5USD")
    assert done.returncode == 0
    assert "no budget 'dialy' is known here; did you mean 'daily'?" in done.stderr


def test_watch_tells_changes_as_lines(budgets: Any) -> None:
    process = budgets.start("budget", "watch", "daily", "--interval", "0.1")
    assert json.loads(process.stdout.readline())["used"] is None
    budgets.run_program("chat()")
    while (row := json.loads(process.stdout.readline()))["used"] in (None, "0"):
        pass
    assert Decimal(row["used"]) > 0
    process.send_signal(2)
    assert process.wait(300) == 0


def test_beside_the_ledger_when_nobody_says(workshop: Any) -> None:
    workshop.config.write_text(workshop.config.read_text() + "budgets:\n  - {name: daily, usd: 1}\n")
    workshop.run_program("chat()")
    done = workshop.here("budget", "list", "--ledger", str(workshop.ledger), "--json")
    assert Decimal(json.loads(done.stdout)[0]["used"]) > 0
    assert workshop.here("report", "--ledger", str(workshop.ledger)).returncode == 0  # a neighbour, not a guest


def test_a_run_with_a_budget_of_its_own(workshop: Any) -> None:
    code = LOOP.replace("range(40)", "range(10)")
    done = workshop("run", "--no-ledger", "--budget", "3 calls", sys.executable, workshop.program(code))
    assert done.stdout == "3 run\n"
    assert "budget run (run=" in done.stderr
    again = workshop("run", "--no-ledger", "-q", "--budget", "3 calls", sys.executable, "app.py")
    assert again.stdout == "3 run\n"  # each run has its own


def test_children_share_the_budget_of_a_run(workshop: Any) -> None:
    workshop.program(LOOP, "child.py")
    code = """
    import subprocess
    children = [subprocess.Popen([sys.executable, "child.py"]) for _ in range(2)]
    for child in children:
        child.wait()
    """
    done = workshop.run_program(code, options=["-q", "--budget", "5 calls"])
    assert sum(int(line.split()[0]) for line in done.stdout.splitlines()) == 5
    assert len(workshop.records) == 5


def test_a_redis_store(budgets: Any, tmp_path: Any, free_port: int) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("apt-get install redis-server")
    pytest.importorskip("redis")
    server = subprocess.Popen(
        ["redis-server", "--port", str(free_port), "--save", "", "--dir", str(tmp_path)], stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                socket.create_connection(("127.0.0.1", free_port), 5).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        url = f"redis://127.0.0.1:{free_port}/0"
        budgets.run_program("chat()", env={"OTEL_TOKENS_STORE": url})
        done = budgets.here("budget", "list", "--store", url, "--json")
        assert Decimal(json.loads(done.stdout)[0]["used"]) > 0
    finally:
        server.terminate()
        server.wait()
    done = budgets.here("budget", "list", "--store", url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr


def test_names_from_anybody_cannot_steer_the_terminal(budgets: Any) -> None:
    store = SqliteStore(str(budgets.folder / "budgets.db"), timeout=5)
    evil = "\x1b]0;pwned\x07\u202egnp\ntotal"
    code = f"""
        from otel_tokens import tags, instrument
        instrument()
        with tags(agent={evil!r}):
            chat()
        """
    store.close()
    budgets.run_program(code)
    (found,) = [scope for name, scope in budgets.rows() if name == "per-agent"]
    assert "\x1b" in found  # JSON has the name as it is, escaped as JSON does
    for args in (["list"], ["show", "per-agent"], ["add", "per-agent", "5 tokens"], ["show", evil]):
        done = budgets.here("budget", *args)
        said = (done.stdout + done.stderr).replace("\x1b[0m", "")
        assert "per-agent" in said
        assert not {"\x1b", "\x07", "\u202e"} & set(said), args
        assert [line for line in said.splitlines() if line.startswith("total")] == []
