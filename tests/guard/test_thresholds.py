"""Thresholds: each crossing acted on once, by log, event, callback, hook and webhook, none of which hold up a call."""

from __future__ import annotations

import asyncio
import http.server
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.options import GuardOptions
from otel_tokens.guard.reporting import actions
from otel_tokens.guard.reporting.events import Event
from otel_tokens.guard.store.base import Store


def crossings(kit: Any) -> list[tuple[str, str, str]]:
    return [(e.budget, e.scope, e.threshold) for e in kit.kinds("threshold")]


def test_each_threshold_is_told_once(kit: Any, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    guard = kit.guard(Budget("b", tokens=1000, per="task"), store=store)
    with caplog.at_level(logging.WARNING, "otel_tokens"):
        for _ in range(10):
            kit.spend(guard, 50, 50, task="1")
        assert guard.flush(60)
    assert crossings(kit) == [("b", "task=1", "70 %"), ("b", "task=1", "90 %"), ("b", "task=1", "100 %")]
    event = kit.kinds("threshold")[0]
    assert (event.used, event.limit, event.unit, event.ratio, event.model) == (700, 1000, "tokens", 0.7, "model-1")
    assert dict(event.tags) == {"task": "1"}
    assert "budget 'b' (task=1): 70 % used: 700 of 1000 tokens" in caplog.text


def test_one_large_call_crosses_all(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=1000, enforce="soft"))
    kit.spend(guard, 1000, 1000)
    assert [threshold for *_, threshold in crossings(kit)] == ["70 %", "90 %", "100 %"]


def test_threads_do_not_tell_it_twice(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=10_000))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: kit.spend(guard, 50, 50), range(100)))
    assert len(crossings(kit)) == 3


def test_a_raised_limit_is_crossed_again(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=1000, thresholds=[70]))
    for _ in range(8):
        kit.spend(guard, 50, 50)
    guard.change("add", "b", "1k tokens")
    for _ in range(8):
        kit.spend(guard, 50, 50)
    assert len(crossings(kit)) == 2
    guard.change("set", "b", "1700 tokens")
    kit.spend(guard, 50, 50)
    assert len(crossings(kit)) == 2


def test_a_lowered_limit_is_crossed_too(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=100_000, thresholds=[70]))
    kit.spend(guard, 50, 50)
    guard.change("set", "b", "200 tokens")
    kit.spend(guard, 50, 50)
    assert len(crossings(kit)) == 1


def test_the_guards_own_thresholds_and_none(kit: Any) -> None:
    guard = kit.guard(Budget("b", tokens=100), Budget("quiet", tokens=100, thresholds=[]), thresholds=[{"at": "50%"}])
    kit.spend(guard, 25, 25)
    assert crossings(kit) == [("b", "", "50 %")]
    with pytest.raises(ValueError, match="unknown hooks"):
        GuardOptions(hooks={"nap": print})


def test_time_crosses_thresholds_too(kit: Any) -> None:
    kit.now = 1_795_219_200.0
    guard = kit.guard(Budget("b", seconds=100, per="task"))
    for _ in range(9):
        kit.spend(guard, task="1")
        kit.now += 11
    assert [threshold for *_, threshold in crossings(kit)] == ["70 %"]
    kit.spend(guard, task="1")
    assert [threshold for *_, threshold in crossings(kit)] == ["70 %", "90 %"]


def test_a_refusal_runs_the_actions_of_100_percent_once(kit: Any) -> None:
    seen: list[Event] = []
    guard = kit.guard(Budget("b", tokens=1000, thresholds={100: [{"callback": seen.append}]}))
    kit.spend(guard, 450, 450)
    for _ in range(3):
        with pytest.raises(BudgetExceededError):
            guard.admit(kit.call(), kit.sizes(100, 100))
    assert guard.flush(5)
    assert [event.kind for event in seen] == ["exceeded"]
    assert len(kit.kinds("exceeded")) == 3


# ---- callbacks and hooks -------------------------------------------------------------------------------------


def test_callbacks_run_elsewhere_and_may_fail(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    threads: list[str] = []
    done = threading.Event()

    def slow(event: Event) -> None:
        threads.append(threading.current_thread().name)
        done.wait(300)
        raise RuntimeError("the application's own mistake")

    async def coroutine(event: Event) -> None:
        await asyncio.sleep(0)
        threads.append(event.threshold)

    guard = kit.guard(Budget("b", tokens=100, enforce="soft", thresholds={50: [slow, {"callback": coroutine}]}))
    began = time.monotonic()
    kit.spend(guard, 50, 50)
    assert time.monotonic() - began < 200
    done.set()
    assert guard.flush(60)
    assert threads == ["otel-tokens-actions", "50 %"]
    assert "the application's own mistake" in caplog.text


def test_hooks_by_name_and_by_registration(kit: Any) -> None:
    seen: list[Event] = []
    guard = kit.guard(
        Budget(
            "b", tokens=100, enforce="soft", thresholds={50: ["checkpoint", "compact", {"callback": "json:dumps.nope"}]}
        ),
        hooks={"checkpoint": seen.append},
    )
    kit.spend(guard, 50, 50)
    assert guard.flush(5)
    assert [event.threshold for event in seen] == ["50 %"]


# ---- webhooks ------------------------------------------------------------------------------------------------


class Receiver(http.server.ThreadingHTTPServer):
    """Takes webhooks; fails the first `failures` of them."""

    def __init__(self, failures: int = 0) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.failures = failures
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook/path-secret?token=secret"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.bodies.append({"type": self.headers["Content-Type"], **json.loads(body)})
        self.send_response(500 if len(server.bodies) <= server.failures else 204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        return


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(actions, "_BACKOFF", 0.01)
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_gets_the_facts(kit: Any, receiver: Receiver) -> None:
    guard = kit.guard(
        Budget("b", usd="0.001", per="tenant", window="day", thresholds={70: {"webhook": receiver.url}}, enforce="soft")
    )
    kit.spend(guard, 500, 150, tenant="acme")
    assert guard.flush(60)
    (body,) = receiver.bodies
    assert body["type"] == "application/json"
    assert (body["kind"], body["budget"], body["scope"], body["threshold"]) == ("threshold", "b", "tenant=acme", "70 %")
    assert (body["used"], body["limit"], body["ratio"], body["unit"]) == ("0.0008", "0.001", 0.8, "usd")
    assert body["tags"] == {"tenant": "acme"}
    assert body["resets_at"] > time.time()


def test_a_webhook_is_tried_again(kit: Any, receiver: Receiver) -> None:
    receiver.failures = 2
    guard = kit.guard(Budget("b", tokens=100, enforce="soft", thresholds={70: {"webhook": receiver.url}}))
    kit.spend(guard, 50, 50)
    assert guard.flush(60)
    assert len(receiver.bodies) == 3


def test_a_webhook_gives_up_and_says_so_without_secrets(
    kit: Any, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.failures = 100
    guard = kit.guard(Budget("b", tokens=100, enforce="soft", thresholds={70: {"webhook": receiver.url}}))
    kit.spend(guard, 50, 50)
    assert guard.flush(60)
    assert len(receiver.bodies) == actions.WEBHOOK_TRIES
    assert "failed 4 times" in caplog.text
    assert "secret" not in caplog.text
    assert [e.kind for e in kit.kinds("failed_action")] == ["failed_action"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/path secret", "http://127.0.0.1:x/path-secret"])
def test_a_webhook_that_cannot_be_posted_to_says_so_without_its_path(kit: Any, url: str) -> None:
    problem = actions.post(url, Event("threshold", "b", "", "usd"))
    assert problem
    assert "secret" not in problem


def test_a_dead_webhook_does_not_hold_up_calls(kit: Any, receiver: Receiver) -> None:
    guard = kit.guard(
        Budget("b", tokens=100, enforce="soft", thresholds={70: {"webhook": "http://127.0.0.1:9/nobody"}})
    )
    began = time.monotonic()
    for _ in range(50):
        kit.spend(guard, 50, 50)
    assert time.monotonic() - began < 20


def test_waiting_actions_are_bounded(
    kit: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(actions, "CAPACITY", 3)
    gate = threading.Event()
    ran: list[Event] = []

    def block(event: Event) -> None:
        gate.wait(300)
        ran.append(event)

    guard = kit.guard(Budget("b", tokens=100, per="task", enforce="soft", thresholds={70: block}))
    for n in range(10):
        kit.spend(guard, 50, 50, task=str(n))
    gate.set()
    assert guard.flush(60)
    assert len(ran) in {3, 4}
    assert "too many actions are waiting" in caplog.text
