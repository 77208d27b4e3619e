"""Where text leaves this library: errors and log lines are one line each, whatever names are in them."""

from __future__ import annotations

import logging

import pytest

from otel_tokens.errors import BudgetExceededError, ConfigError, LedgerError
from otel_tokens.safely import logger, report_fault

EVIL = "acme\x1b]0;pwned\x07\u202egnp\nroot: all budgets reset"
SHOWN = r"acme\x1b]0;pwned\x07\u202egnp\nroot: all budgets reset"


def test_errors_say_names_on_one_line_and_keep_them_as_they_are():
    error = BudgetExceededError(f"budget 'b' (tenant={EVIL}): 3 of 3 calls used", scope=f"tenant={EVIL}")
    assert str(error) == f"budget 'b' (tenant={SHOWN}): 3 of 3 calls used"
    assert error.scope == f"tenant={EVIL}"
    assert str(LedgerError("is unreadable", path=EVIL)) == f"{SHOWN}: is unreadable"


def test_several_mistakes_are_a_line_each():
    problems = [ConfigError(f"{EVIL} is unknown", key="a"), ConfigError("is wrong", key="b")]
    assert str(ConfigError.combined(problems)) == (
        f"2 problems in the configuration:\n  a: {SHOWN} is unknown\n  b: is wrong"
    )


def test_a_log_message_is_one_line(caplog: pytest.LogCaptureFixture):
    logger.warning("budget of %s: %d calls, 100%%", EVIL, 3)
    logger.warning("plain %s", "text")
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"budget of {SHOWN}: 3 calls, 100%", "plain text"]
    assert caplog.records[1].args == ("text",)  # what is harmless stays as it was logged


def test_a_traceback_shows_an_exception_on_one_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OTEL_TOKENS_STRICT", raising=False)
    try:
        try:
            raise KeyError(1)
        except KeyError as first:
            raise ValueError(EVIL) from first
    except ValueError as error:
        report_fault(f"a place of {caplog.handler}", error)
    lines = logging.Formatter().format(caplog.records[0]).splitlines()
    assert lines[-1] == f"ValueError: {SHOWN}"
    assert lines.count("Traceback (most recent call last):") == 2
    assert [line for line in lines if line.startswith("root:")] == []


def test_a_message_that_cannot_be_made_is_no_fault_of_the_caller(caplog: pytest.LogCaptureFixture):
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    raising, logging.raiseExceptions = logging.raiseExceptions, False
    quiet = logging.Logger("quiet")
    for found in logger.filters:
        quiet.addFilter(found)
    quiet.addHandler(logging.NullHandler())
    try:
        quiet.warning("%s", Odd())
    finally:
        logging.raiseExceptions = raising
