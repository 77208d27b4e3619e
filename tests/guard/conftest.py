"""The guard's fixtures: `store` runs a test on every kind of store, `store_kind.open()` opens one more there."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_tokens.guard.store.base import Store
from otel_tokens.guard.store.memory import MemoryStore
from otel_tokens.guard.store.redis import RedisStore


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class RedisServer:
    """A real server on a free loopback port, ended by its own process id; its data survive only if `durable`."""

    def __init__(self, folder: Path, *options: str, durable: bool = False, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
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
        deadline = time.monotonic() + 10
        while not self.answers():
            assert self.process.poll() is None, "the server ended at once"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.01)

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
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
            self.process.wait(10)
            self.process = None


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A server for all tests that do it no harm; each takes a prefix of its own."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server.url
        server.kill()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server for one test, to be killed, paused and started again. It keeps nothing when it dies."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


class StoreKind:
    """How to open a store of one kind. `shared` says whether two stores opened on the same place see each other."""

    shared = False

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.request = request
        self.opened: list[Store] = []

    def open(self) -> Store:
        store = self.make()
        self.opened.append(store)
        return store

    def make(self) -> Store:
        raise NotImplementedError

    def close(self) -> None:
        for store in self.opened:
            store.close()


class MemoryKind(StoreKind):
    def make(self) -> Store:
        return MemoryStore()


class RedisKind(StoreKind):
    shared = True

    def __init__(self, request: pytest.FixtureRequest) -> None:
        super().__init__(request)
        self.url = request.getfixturevalue("redis_url")
        self.prefix = uuid.uuid4().hex

    def make(self) -> Store:
        return RedisStore(self.url, timeout=10, prefix=self.prefix)


KINDS: dict[str, type[StoreKind]] = {"memory": MemoryKind, "redis": RedisKind}


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
