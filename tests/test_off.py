"""`uninstrument()` puts back what `instrument()` has put in place, however often."""

from __future__ import annotations

import gc
import multiprocessing.process
import os
import sys
from pathlib import Path
from typing import Any

import anthropic  # noqa: F401
import openai  # noqa: F401
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

import otel_tokens


def parts() -> tuple[Any, ...]:
    return os._exit, multiprocessing.process.BaseProcess._bootstrap, tuple(sys.meta_path)


def test_functions_and_the_import_hook_are_put_back():
    before = parts()
    for _ in range(2):
        otel_tokens.instrument(config="off", ledger=False)
        assert os._exit is not before[0]
        assert parts()[1] is not before[1]
        assert len(sys.meta_path) == len(before[2]) + 1
        otel_tokens.uninstrument()
        assert parts() == before


def test_a_wrapper_put_around_ours_stays(monkeypatch: pytest.MonkeyPatch):
    otel_tokens.instrument(config="off", ledger=False)
    ours = os._exit
    monkeypatch.setattr(os, "_exit", lambda status: ours(status))
    theirs = os._exit
    otel_tokens.uninstrument()
    assert os._exit is theirs


@pytest.mark.parametrize("given", [True, False], ids=["given providers", "the API's proxies"])
def test_cycles_leave_nothing_behind(given: bool):
    providers: dict[str, Any] = {}
    assert {"openai", "anthropic"} <= sys.modules.keys()  # there is something to patch
    if given:
        providers["meter_provider"] = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
        providers["tracer_provider"] = TracerProvider(shutdown_on_exit=False)

    def cycles(count: int) -> int:
        for _ in range(count):
            otel_tokens.instrument(config="off", ledger=False, **providers)
            otel_tokens.uninstrument()
        gc.collect()
        return len(gc.get_objects())

    cycles(3)
    before = cycles(3)
    assert cycles(40) - before < 40


@pytest.mark.parametrize("word", ["off", "OFF", "none"])
def test_config_off_reads_no_file(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "otel-tokens.yaml").write_text("no: setting\n")
    otel_tokens.instrument(config=word, ledger=False)
    otel_tokens.uninstrument()
