"""The guard's fixtures: `store` runs a test on every kind of store, `store_kind.open()` opens one more there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otel_tokens.guard.store.base import Store
from otel_tokens.guard.store.memory import MemoryStore


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


KINDS: dict[str, type[StoreKind]] = {"memory": MemoryKind}


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
