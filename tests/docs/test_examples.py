"""What the documentation shows is run: Python against the loopback model server, YAML by the settings, commands."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import otel_tokens
from otel_tokens import Budget
from otel_tokens.cli.group import cli
from otel_tokens.cli.launch.declared import check
from otel_tokens.demo.server import ModelServer
from otel_tokens.settings import load_settings


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_server: ModelServer) -> Iterator[Path]:
    """A folder of somebody who tries the examples, whose provider is the loopback server."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)
    host = model_server.url.removeprefix("http://")
    (tmp_path / "otel-tokens.yaml").write_text(f"hosts:\n  - {{match: '{host}', path: /v1, provider: openai}}\n")
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "OPENAI_BASE_URL": f"{model_server.url}/v1",
        "OPENAI_API_KEY": "test",
        "OTEL_TOKENS_STRICT": "1",
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }.items():
        monkeypatch.setenv(name, value)
    yield tmp_path
    otel_tokens.uninstrument()


def prepared() -> dict[str, Any]:
    """What a block marked `run with guard` finds: a guard over two budgets, and `ask(text)`."""
    import openai

    otel_tokens.instrument(
        budgets=[Budget("daily", usd=5, window="day"), Budget("task", tokens=100_000, per="task", grace=True)]
    )
    client = openai.OpenAI()

    def ask(text: str) -> None:
        client.chat.completions.create(model="gpt-5.4-mini", messages=[{"role": "user", "content": text}])

    return {"otel_tokens": otel_tokens, "guard": otel_tokens.guard(), "ask": ask, "client": client}


def test_python(python_block: Any, reader: Path) -> None:
    code = compile(python_block.text, python_block.id, "exec")
    assert python_block.words[:1] == ("run",), "every block of Python is run"
    names: dict[str, Any] = {"__name__": "__main__"}
    if python_block.words == ("run", "with", "guard"):
        names |= prepared()
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            exec(code, names)
    finally:
        for value in names.values():
            if type(value).__name__ == "OpenAI":
                value.close()
    if python_block.output is not None:
        assert shown.getvalue() == python_block.output


def test_yaml(yaml_block: Any, reader: Path) -> None:
    file = reader / "shown.yaml"
    file.write_text(yaml_block.text)
    settings = load_settings(file, env={})
    check(settings)
    # All the rest of it is checked when the rooms are built; nothing is served, sent or connected for that.
    quiet: dict[str, Any] = {"prometheus": False, "ledger": False, "store": "memory"}
    if settings.otlp_endpoint is None:
        otel_tokens.instrument(config=str(file), **quiet)
        assert bool(settings.budgets) == _has_guard()


def _has_guard() -> bool:
    try:
        otel_tokens.guard()
    except otel_tokens.OtelTokensError:
        return False
    return True


def test_command(command: list[str]) -> None:
    found: click.Command = cli
    ctx = click.Context(cli, info_name="otel-tokens")
    rest = command
    while isinstance(found, click.Group) and rest and not rest[0].startswith("-"):
        name, *rest = rest
        inner = found.get_command(ctx, name)
        assert inner is not None, f"there is no command {name}"
        found, ctx = inner, click.Context(inner, info_name=name, parent=ctx)
    if isinstance(found, click.Group) and set(rest) <= {"--help", "--version"}:
        return
    rest = [word for word in rest if word != "--help"]
    values = {opt for p in found.params if isinstance(p, click.Option) and not p.is_flag for opt in p.opts}
    if rest and rest[-1] in values:  # `otel-tokens run --tag` is a name, too
        rest.pop()
    if rest or not any(isinstance(p, click.Argument) for p in found.params):  # `otel-tokens budget add` alone is a name
        found.make_context("otel-tokens", list(rest))
