"""Fixtures of the shared stores: `place` is where budgets are kept, in SQLite and in Redis; `run_worker` a process."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel_tokens.guard.store.base import Store
from otel_tokens.guard.store.open import open_store

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
