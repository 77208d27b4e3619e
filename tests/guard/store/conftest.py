"""Fixtures of the shared stores: `place` is where budgets are kept, in SQLite and in Redis; `run_worker` a process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from otel_tokens.guard.store.base import Store
from otel_tokens.guard.store.memory.store import MemoryStore
from otel_tokens.guard.store.open import open_store
from otel_tokens.guard.store.redis.protocol import Request, Script
from otel_tokens.guard.store.redis.store import RedisStore
from otel_tokens.guard.store.sqlite import store as sqlite
from otel_tokens.guard.store.sqlite.store import SqliteStore

HERE = Path(__file__).parent


class Place:
    """Somewhere that several processes keep budgets."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = uuid.uuid4().hex
        self.opened: list[Store] = []

    def open(self, timeout: float = 60) -> Store:
        self.opened.append(open_store(self.url, timeout=timeout, prefix=self.prefix))
        return self.opened[-1]


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        place = Place(f"sqlite:///{tmp_path / 'budgets.db'}")
    else:
        place = Place(request.getfixturevalue("redis_url"))
    yield place
    for store in place.opened:
        store.close()


@pytest.fixture
def run_worker() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `worker.py` as a process of its own: `run_worker(place, "spend", …)`."""
    started: list[subprocess.Popen[str]] = []

    def run(place: Place, story: str, *words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", str(HERE / "worker.py"), place.url, place.prefix, story]
        root = str(HERE.parents[2])
        process = subprocess.Popen(
            [*command, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate(timeout=300)


FROM = 4_102_444_800_000  # the year 2100: Redis drops keys by its own clock


class Clock:
    """Unix milliseconds; a test puts it forward and back."""

    def __init__(self) -> None:
        self.ms = self.start = FROM

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "redis"])
def fresh(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Callable[[], Store]]:
    """Makes shared stores that live by the test's clock, each on a place of its own."""
    with by_clock(request, clock) as make:
        yield make


@pytest.fixture(params=["memory", "sqlite", "redis"])
def clocked(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Store]:
    """A store of each kind that lives by the test's clock."""
    with by_clock(request, clock) as make:
        yield make()


@contextmanager
def by_clock(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Callable[[], Store]]:
    """What makes stores of the kind in question."""
    tmp_path, monkeypatch = request.getfixturevalue("tmp_path"), request.getfixturevalue("monkeypatch")
    opened: list[Store] = []
    if request.param == "memory":
        yield lambda: MemoryStore(clock)
    elif request.param == "sqlite":
        monkeypatch.setattr(sqlite, "host_ms", clock)

        def make() -> Store:
            opened.append(SqliteStore(tmp_path / f"{len(opened)}.db", timeout=10))
            return opened[-1]

        yield make
    else:
        import redis

        redis_url = request.getfixturevalue("redis_url")
        scripts = {name: turned_script(name) for name in ("admit", "settle", "renew", "read", "rows", "change")}
        monkeypatch.setattr(Script, "named", staticmethod(scripts.__getitem__))
        by_hand = redis.Redis.from_url(redis_url)

        def make() -> Store:
            prefix = uuid.uuid4().hex
            store = RedisStore(redis_url, timeout=10, prefix=prefix)
            ask = store._connections.ask

            def with_clock(request: Request) -> object:
                by_hand.set(f"{{{prefix}}}:clock", clock.ms * 1000)
                return ask(request)

            store._connections.ask = with_clock  # type: ignore[method-assign]
            opened.append(store)
            return store

        yield make
        by_hand.close()
    for store in opened:
        store.close()


def turned_script(name: str) -> Script:
    """The script with its looks at the server's clock turned to a key that the test sets."""
    script = Script(name)
    assert script.text.count("call('TIME')") >= 1
    script.text = script.text.replace("call('TIME')", "{'0', call('GET', root .. ':clock')}")
    digest = hashlib.sha1(script.text.encode()).hexdigest().encode()
    script.by_digest = b"$7\r\nEVALSHA\r\n$40\r\n" + digest + b"\r\n"
    return script
