"""Which exceptions are faults of this library, and which the program's own signal handlers raised."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from otel_tokens import safely as room
from otel_tokens.safely import interruption, report_fault, safely


class DeadlineError(Exception):
    """What the program's handler raises."""


def plain(number: int, frame: FrameType | None) -> None:
    raise DeadlineError


def forgetful(number: int, frame: FrameType | None) -> None:
    """Another handler is installed and the arguments are gone by the time it raises."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    raise DeadlineError


def tidy(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise DeadlineError


def deep(number: int, frame: FrameType | None) -> None:
    def inner() -> None:
        tidy(number, frame)

    inner()


def loose(*args: Any) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    raise DeadlineError


class Handler:
    def __call__(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        raise DeadlineError

    def method(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        raise DeadlineError


HANDLERS = (
    plain,
    forgetful,
    tidy,
    deep,
    loose,
    Handler(),
    Handler().method,
    functools.partial(lambda _, number, frame: tidy(number, frame), "x"),
)


@pytest.fixture(params=HANDLERS, ids=lambda handler: getattr(handler, "__name__", type(handler).__name__))
def raised(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Raises the signal while a handler of each kind is installed."""
    before = signal.signal(signal.SIGUSR1, request.param)
    yield lambda: signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(params=["strict", "contained"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OTEL_TOKENS_STRICT", "1" if request.param == "strict" else "0")
    monkeypatch.setattr(room, "_logged", set())
    return request.param


def test_what_a_handler_raises_is_not_swallowed(raised: Callable[[], None], mode: str) -> None:
    faults: list[str] = []
    room.on_fault(faults.append)
    try:
        with pytest.raises(DeadlineError):
            safely("here", raised)
    finally:
        room.on_fault(None)
    assert faults == []


def test_what_a_library_makes_of_it_is_raised_as_it_was(raised: Callable[[], None], mode: str) -> None:
    def library() -> None:
        try:
            raised()
        except DeadlineError as error:
            raise ConnectionError("no answer") from error

    with pytest.raises(DeadlineError):
        safely("here", library)


def test_a_fault_while_the_program_handles_its_deadline_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The older exception is in the chain of ours, and has been handled."""
    monkeypatch.setenv("OTEL_TOKENS_STRICT", "0")

    def fault() -> None:
        raise ValueError("ours")

    before = signal.signal(signal.SIGUSR1, plain)
    try:
        try:
            signal.raise_signal(signal.SIGUSR1)
        except DeadlineError:
            assert safely("here", fault) is None
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_same_error_from_a_callback_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TOKENS_STRICT", "0")

    def callback() -> None:
        raise TimeoutError

    assert safely("here", callback) is None


def test_an_error_without_a_traceback_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TOKENS_STRICT", "0")
    error = ValueError()
    error.__context__ = other = KeyError()
    other.__context__ = error
    assert interruption(error) is None
    report_fault("here", error)
