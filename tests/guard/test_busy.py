"""Caps on a machine that is kept busy: other processes use the processor, the event loop is blocked, threads compute.

Stores have their default timeout. Exactly as many calls are admitted as the budget has room for, and no call is refused
or let through because "the store did not answer": it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.guard import Guard
from otel_tokens.guard.store.base import Slot, Store, StoreError
from otel_tokens.guard.store.memory.store import MemoryStore
from otel_tokens.guard.store.open import open_store as open_by_url
from otel_tokens.guard.store.redis.store import RedisStore
from otel_tokens.guard.store.sqlite.store import SqliteStore

HOGS = 4
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def hogs() -> Iterator[None]:
    """Processes that use all the processor time they get."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(HOGS)]
    yield
    for process in processes:
        process.kill()
        process.wait(300)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Opens stores on one fresh place, with the default timeout. Nothing is connected yet."""
    prefix, opened = uuid.uuid4().hex, list[Store]()

    def make() -> Store:
        if request.param == "memory":
            opened.append(MemoryStore())
        elif request.param == "sqlite":
            opened.append(SqliteStore(tmp_path / "budgets.db"))
        else:
            opened.append(RedisStore(request.getfixturevalue("redis_url"), prefix=prefix))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def burn(seconds: float) -> None:
    """Use that much processor time in this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def heard_from_the_store(guard: Guard) -> bool:
    """Whether every decision came from the store."""
    return all(reason != "store" for *_, reason, _ in guard.decisions())


class Tasks:
    """Admits calls from tasks, and counts what became of them."""

    def __init__(self, kit: Any, guard: Guard) -> None:
        self.kit, self.guard = kit, guard
        self.sent = self.refused = 0

    async def call(self) -> None:
        try:
            reservation = await self.guard.aadmit(self.kit.call(), self.kit.sizes(1, 1))
        except BudgetExceededError:
            self.refused += 1
            return
        self.sent += 1
        await asyncio.sleep(0)
        self.guard.settle(reservation, self.kit.record(reservation, 1, 1))


def test_a_blocked_loop(kit: Any, open_store: Callable[[], Store]) -> None:
    """Something blocks the loop for longer than the store's timeout, again and again: from the first connection on."""
    guard = kit.guard(Budget("cap", calls=3), store=open_store())
    tasks = Tasks(kit, guard)

    async def block() -> None:
        while True:
            await asyncio.sleep(0)
            time.sleep(0.6)

    async def run() -> None:
        blocking = asyncio.ensure_future(block())
        await asyncio.gather(*(tasks.call() for _ in range(20)))
        blocking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await blocking
        await guard.store.aclose()

    asyncio.run(run())
    assert (tasks.sent, tasks.refused) == (3, 17)
    assert heard_from_the_store(guard)


def test_1000_tasks(kit: Any, open_store: Callable[[], Store]) -> None:
    guard = kit.guard(Budget("cap", calls=10), store=open_store())
    tasks = Tasks(kit, guard)

    async def run() -> None:
        await asyncio.gather(*(tasks.call() for _ in range(1000)))
        await guard.store.aclose()

    asyncio.run(run())
    assert (tasks.sent, tasks.refused) == (10, 990)
    assert heard_from_the_store(guard)


def test_64_threads_that_compute(kit: Any, open_store: Callable[[], Store]) -> None:
    guard = kit.guard(Budget("cap", calls=20), store=open_store())

    def call(_: int) -> int:
        burn(0.02)
        try:
            reservation = guard.admit(kit.call(), kit.sizes(1, 1))
        except BudgetExceededError:
            return 0
        guard.settle(reservation, kit.record(reservation, 1, 1))
        return 1

    with ThreadPoolExecutor(64) as pool:
        assert sum(pool.map(call, range(96))) == 20
    assert heard_from_the_store(guard)
    assert guard.flush(60)
    assert [(row.used, row.reserved) for row in guard.status()] == [(20, 0)]


PROGRAM = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
import httpx, openai
from otel_tokens import BudgetExceededError

answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-4o", "choices": [
    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}
client = openai.OpenAI(api_key="k", max_retries=0, http_client=httpx.Client(
    transport=httpx.MockTransport(lambda request: httpx.Response(200, json=answer))))

def call(_):
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    try:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "?"}], max_tokens=5)
    except BudgetExceededError:
        return 0
    return 1

with ThreadPoolExecutor(64) as pool:
    print(sum(pool.map(call, range(96))))
"""


def test_the_command_with_64_threads_that_compute(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "otel_tokens", "run", "--budget", "20 calls", "--ledger", str(tmp_path / "l.db")]
    done = subprocess.run(
        [*command, "--", sys.executable, "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OTEL_SDK_DISABLED": "false"},
    )
    assert done.stdout.splitlines()[:1] == ["20"], done.stderr


SPENDER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from otel_tokens.guard.store.base import Slot, StoreError
from otel_tokens.guard.store.open import open_store
url, prefix, name, limit = sys.argv[1:]
slots = (Slot("cap|t|", "cap", "calls", "", int(limit)),)
store = open_store(url, timeout=0.5, prefix=prefix)

def spend(worker):
    spent = failed = n = 0
    while True:
        n += 1
        key = f"{name}-{worker}-{n}"
        try:
            if not store.admit(key, slots, [1], 60_000).granted:
                return spent, failed
            store.settle(key, slots, [1])
        except StoreError as error:
            print(error, file=sys.stderr)
            failed += 1
            continue
        spent += 1

store.read(slots)
print("ready", flush=True)
with ThreadPoolExecutor(8) as pool:
    results = list(pool.map(spend, range(8)))
print(*map(sum, zip(*results)), flush=True)
"""


class Shared:
    """A place that several processes share, and what is spent there."""

    def __init__(self, url: str) -> None:
        self.url, self.prefix = url, uuid.uuid4().hex
        self.processes: list[subprocess.Popen[str]] = []

    def open(self) -> Store:
        return open_by_url(self.url, timeout=0.5, prefix=self.prefix)

    def spender(self, limit: int) -> subprocess.Popen[str]:
        """A process with eight threads that spends one by one until it is refused. It is connected."""
        words = [self.url, self.prefix, f"p{len(self.processes)}", str(limit)]
        process = subprocess.Popen(
            [sys.executable, "-c", SPENDER, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
        return process


@pytest.fixture(params=["sqlite", "redis"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shared]:
    """A fresh place for several processes."""
    sqlite = request.param == "sqlite"
    place = Shared(f"sqlite:///{tmp_path / 'budgets.db'}" if sqlite else request.getfixturevalue("redis_url"))
    yield place
    for process in place.processes:
        process.kill()
        process.communicate(timeout=300)


def spent_by(process: subprocess.Popen[str]) -> int:
    """What a spender spent. The store has not failed it."""
    out, errors = process.communicate(timeout=300)
    assert errors == ""
    spent, failed = map(int, out.split())
    assert failed == 0
    return spent


def test_processes(shared: Shared) -> None:
    processes = [shared.spender(100) for _ in range(2)]
    assert sum(map(spent_by, processes)) == 100


def test_a_process_that_is_stopped(shared: Shared) -> None:
    """It stands still for longer than the timeout, wherever it happens to be: to itself, the store has not failed."""
    process = shared.spender(150)
    for _ in range(3):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.8)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    assert spent_by(process) == 150
    assert shared.open().read([Slot("cap|t|", "cap", "calls", "", 150)]) == [(150, 0, 150)]


HOLDER = """
import os, signal, sys
from otel_tokens.guard.store.base import Slot
from otel_tokens.guard.store.sqlite import store as module
store = module.SqliteStore(sys.argv[1])
slots = (Slot("cap|t|", "cap", "calls", "", 2),)
store.read(slots)
clean = store._forget_some

def stop(*words):
    clean(*words)
    os.kill(os.getpid(), signal.SIGSTOP)

store._forget_some = stop
print(store.admit("held", slots, [1], 60_000).granted, flush=True)
"""


def test_a_process_that_is_stopped_while_it_holds_the_file(tmp_path: Path) -> None:
    """That is an outage for others. Nothing is reserved twice or lost by it."""
    path, slots = tmp_path / "budgets.db", (Slot("cap|t|", "cap", "calls", "", 2),)
    store = SqliteStore(path)
    command = [sys.executable, "-c", HOLDER, str(path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        for n in range(2):
            with pytest.raises(StoreError, match="locked by others"):
                store.admit(f"other-{n}", slots, [1], 60_000)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=300)[0] == "True\n"
        assert store.admit("after", slots, [1], 60_000).granted
        assert not store.admit("too many", slots, [1], 60_000).granted
        assert store.read(slots) == [(0, 2, 2)]
    finally:
        process.kill()
        process.wait(300)
        store.close()
