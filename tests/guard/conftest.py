"""The guard's fixtures: `store` runs a test on every kind of store, `store_kind.open()` opens one more there."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.guard.guard import Guard
from otel_tokens.guard.options import GuardOptions
from otel_tokens.guard.reporting.events import Event
from otel_tokens.guard.store.base import Store
from otel_tokens.guard.store.memory.store import MemoryStore
from otel_tokens.guard.store.redis.store import RedisStore
from otel_tokens.guard.store.sqlite.store import SqliteStore
from otel_tokens.values import UNPRICED, Call, CallSizes, Cost, Record, Usage


class RedisServer:
    """A real server on a free loopback port, ended by its own process id; its data survive only if `durable`."""

    def __init__(self, folder: Path, port: int, *options: str, durable: bool = False) -> None:
        self.folder = folder
        self.port = port
        self.options = [*options, "--appendonly", "yes" if durable else "no", "--appendfsync", "always"]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            reason = "needs a Redis server: apt-get install redis-server"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        with (self.folder / f"{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen([program, *where, *self.options], stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while not self.answers():
            assert self.process.poll() is None, "the server ended at once"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.01)

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as link:
                link.sendall(b"PING\r\n")
                return link.recv(64)[:5] in {b"+PONG", b"-NOAU"}
        except OSError:
            return False

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(300)
            self.process = None


@pytest.fixture(scope="session")
def redis_url(new_port: Callable[[], int]) -> Iterator[str]:
    """A server for all tests that do it no harm; each takes a prefix of its own."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder), new_port())
        server.start()
        yield server.url
        server.kill()


@pytest.fixture
def make_redis(tmp_path: Path, new_port: Callable[[], int]) -> Iterator[Callable[..., RedisServer]]:
    """A factory of servers for one test, to be killed, paused and started again: `make_redis(*options, durable=…)`."""
    servers: list[RedisServer] = []

    def make(*options: str, durable: bool = False) -> RedisServer:
        folder = tmp_path / f"redis{len(servers)}"
        folder.mkdir()
        servers.append(RedisServer(folder, new_port(), *options, durable=durable))
        servers[-1].start()
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def redis_server(make_redis: Callable[..., RedisServer]) -> RedisServer:
    """A server for one test. It keeps nothing when it dies."""
    return make_redis()


class StoreKind:
    """How to open a store of one kind. `shared` says whether two stores opened on the same place see each other."""

    shared = False

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.request = request
        self.opened: list[Store] = []

    def open(self) -> Store:
        store = self.make()
        self.opened.append(store)
        store.read([])  # connected, or a slow machine would lose the first of its short windows
        return store

    def make(self) -> Store:
        raise NotImplementedError

    def close(self) -> None:
        for store in self.opened:
            store.close()


class MemoryKind(StoreKind):
    def make(self) -> Store:
        return MemoryStore()


class SqliteKind(StoreKind):
    shared = True

    def make(self) -> Store:
        return SqliteStore(self.request.getfixturevalue("tmp_path") / "budgets.db", timeout=300)


class RedisKind(StoreKind):
    shared = True

    def __init__(self, request: pytest.FixtureRequest) -> None:
        super().__init__(request)
        self.url = request.getfixturevalue("redis_url")
        self.prefix = uuid.uuid4().hex

    def make(self) -> Store:
        return RedisStore(self.url, timeout=300, prefix=self.prefix)


KINDS: dict[str, type[StoreKind]] = {"memory": MemoryKind, "sqlite": SqliteKind, "redis": RedisKind}


@pytest.fixture(params=list(KINDS))
def store_kind(request: pytest.FixtureRequest) -> Iterator[StoreKind]:
    """The kind of store under test, on a fresh place of its own."""
    kind = KINDS[request.param](request)
    yield kind
    kind.close()


@pytest.fixture
def store(store_kind: StoreKind) -> Store:
    """A fresh store of each kind."""
    return store_kind.open()


UNKNOWN_MODEL = "mystery"
EXPENSIVE = {"opus": 5, "sonnet": 3, "haiku": 1}


def straight_price(provider: str, model: str, usage: Usage, *, at: float, **terms: str | None) -> Cost:
    """1 USD per million input tokens, 2 per million output; times 5, 3, 1 for opus, sonnet, haiku models."""
    if UNKNOWN_MODEL in model or model.isalpha():
        return UNPRICED
    factor = next((f for word, f in EXPENSIVE.items() if word in model), 1)
    total = Decimal(f"{(usage.input + 2 * usage.output + usage.cache_write) * factor}e-6")
    return Cost(total=total, status="priced")


class Kit:
    """Makes guards, calls and records; keeps every event. `now` (unix seconds) is the memory store's clock if set."""

    def __init__(self) -> None:
        self.now: float | None = None
        self.events: list[Event] = []
        self.guards: list[Guard] = []
        self._ids = itertools.count()

    def clock(self) -> int:
        return int((time.time() if self.now is None else self.now) * 1000)

    def guard(self, *budgets: Budget, store: Store | None = None, estimate: Any = None, **options: Any) -> Guard:
        store = MemoryStore(self.clock) if store is None else store
        guard = Guard(
            budgets,
            store,
            price=straight_price,
            estimate=estimate,
            options=GuardOptions(**options),
            emit=self.events.append,
        )
        self.guards.append(guard)
        return guard

    def call(self, model: str = "model-1", **tags: str) -> Call:
        started = self.clock() / 1000
        return Call(f"call-{next(self._ids)}", "openai", "openai.chat", "chat", model, started, tags=tags)

    def sizes(self, given: int = 100, output: int | None = 100, **more: Any) -> CallSizes:
        return CallSizes(more.pop("expected", given), given, output, **more)

    def record(self, lease: Any, given: int = 100, output: int = 50, **more: Any) -> Record:
        usage = more.pop("usage", None) or Usage(input=given, output=output, origin="provider")
        cost = more.pop("cost", None) or straight_price("openai", lease.model or lease.call.model, usage, at=0.0)
        return Record(lease.call, usage, cost, more.pop("outcome", "ok"), more.pop("duration", 0.5), **more)

    def spend(self, guard: Guard, given: int = 100, output: int = 100, model: str = "model-1", **tags: str) -> Any:
        """One call that uses exactly what it reserved."""
        lease = guard.admit(self.call(model, **tags), self.sizes(given, output))
        assert lease is not None
        guard.settle(lease, self.record(lease, given, output))
        return lease

    def kinds(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event.kind in kinds]


@pytest.fixture
def kit() -> Iterator[Kit]:
    """Everything a test of the guard needs, closed at its end."""
    made = Kit()
    yield made
    for guard in made.guards:
        guard.close(0.5)
