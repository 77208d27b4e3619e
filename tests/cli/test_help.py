"""The command line explains itself, and a user's mistake is one line, without a traceback."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from otel_tokens.cli.group import COMMANDS, cli
from otel_tokens.ledger.ledger import Ledger

WIDTH = 80


def paths() -> list[list[str]]:
    budget = importlib.import_module("otel_tokens.cli.budget").command
    return [[], *([name] for name in COMMANDS), *(["budget", name] for name in budget.commands)]


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args), prog_name="otel-tokens")


@pytest.mark.parametrize("path", paths(), ids=" ".join)
def test_help_teaches(path: list[str]) -> None:
    done = invoke(*path, "--help")
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"Usage: {' '.join(['otel-tokens', *path])} ")
    assert max(map(len, done.output.splitlines())) <= WIDTH
    if len(path) < 2:
        assert "otel-tokens" in done.output.split("Options:")[1], "no example"


@pytest.mark.parametrize("path", paths(), ids=" ".join)
def test_every_option_says_what_it_does(path: list[str]) -> None:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_the_package_is_a_command_of_this_python() -> None:
    done = subprocess.run([sys.executable, "-m", "otel_tokens", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("otel-tokens ")
    assert done.returncode == 0


def test_without_a_command_it_helps() -> None:
    done = invoke()
    assert done.exit_code == 0
    assert "otel-tokens run python app.py" in done.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["reprot"], "did you mean 'report'?"),
        (["xyzzy"], "there are run, demo"),
        (["report", "--bye", "model"], "--by"),
        (["report", "--since", "whenever"], "not a time"),
        (["report", "--where", "tenant"], "has no '='"),
        (["report", "--ledger", "/nowhere/at/all"], "there is no ledger here"),
        (["report", "--config", "/nowhere.yaml"], "there is no such file"),
        (["prices"], "missing argument"),
        (["exporter", "--port", "x"], "--port"),
        (["budget", "add", "daily", "5"], "5USD"),
        (["budget", "list", "--store", "memory"], "is memory"),
        (["budget", "list", "--store", "carrier-pigeon"], "is not a store"),
    ],
)
def test_mistakes_are_one_line(args: list[str], words: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    done = invoke(*args)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert done.stderr.startswith("otel-tokens")
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("command", ["--help", "run --help", "--version", "prices gpt-5.4", "report", "budget list"])
@pytest.mark.parametrize(
    ("where", "code", "words"),
    [("| true", "0", ""), (">&-", "0", ""), (">/dev/full", "2", "otel-tokens: cannot write the output: No space left")],
)
def test_where_the_output_goes(workshop: Any, command: str, where: str, code: str, words: str) -> None:
    Ledger(workshop.ledger).close()
    workshop.config.write_text("budgets: [{name: daily, usd: 5}]")
    env = workshop.env | {"OTEL_TOKENS_LEDGER": str(workshop.ledger)}
    script = f'{sys.executable} -m otel_tokens {command} {where}; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=workshop.folder, env=env)
    assert done.stdout.strip() == code
    assert done.stderr.startswith(words)
    assert done.stderr.count("\n") == (1 if words else 0)


def test_a_sign_that_the_output_cannot_show(workshop: Any) -> None:
    done = workshop("run", "--help", env={"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0
    assert r"agent, day \u2026" in done.stdout


def test_a_fault_of_ours_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.delenv("OTEL_TOKENS_STRICT", raising=False)
    monkeypatch.setattr("otel_tokens.pricing.explain.explain", broken)
    done = invoke("prices", "gpt-5.4", "--config", "off")
    assert done.exit_code == 70
    assert "a fault of otel-tokens: ZeroDivisionError: oops" in done.stderr
    assert "Traceback" not in done.stderr
