"""`open_store` and its mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_tokens.errors import ConfigError
from otel_tokens.guard.store.base import Store
from otel_tokens.guard.store.memory.store import MemoryStore
from otel_tokens.guard.store.open import open_store
from otel_tokens.guard.store.redis.store import RedisStore
from otel_tokens.guard.store.sqlite.store import SqliteStore


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory", MemoryStore),
        ("memory://", MemoryStore),
        ("redis://localhost", RedisStore),
        ("redis://user:p%40ss@[::1]:6380/3?client_name=me", RedisStore),
        ("rediss://localhost:6380/0?ssl_cert_reqs=none", RedisStore),
        ("valkey://localhost", RedisStore),
        ("valkeys://localhost", RedisStore),
        ("unix:///run/redis.sock?db=1", RedisStore),
        ("redis+sentinel://one:26379,two/master/0", RedisStore),
        ("rediss+sentinel://:secret@[::1]:26379,[fe80::1]/master", RedisStore),
        ("redis://localhost?decode_responses=True&socket_timeout=99&retry_on_timeout=True&protocol=3", RedisStore),
    ],
)
def test_what_opens(url: str, kind: type[Store]) -> None:
    assert isinstance(open_store(url, timeout=1), kind)


def test_nothing_is_made_before_the_first_use(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'deep' / 'down' / 'b.db'}", timeout=1)
    assert isinstance(store, SqliteStore)
    assert list(tmp_path.iterdir()) == []
    store.read([])
    assert (tmp_path / "deep" / "down" / "b.db").is_file()
    store.close()


def test_a_relative_path_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for url, place in (("sqlite:///here.db", "here.db"), ("sqlite:///~/there.db", "home/there.db")):
        store = open_store(url, timeout=1)
        monkeypatch.chdir("/")  # the place was settled when the store was named
        store.read([])
        store.close()
        assert (tmp_path / place).is_file()
        monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memroy",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:/x.db",
        "redis:localhost",
        "redis://",
        "redis+cluster://localhost",
        "postgres://user:secret@localhost/db",
        "redis://:secret@localhost:notaport",
        "redis://:secret/more@localhost",
        "redis://:secret@localhost?no_such_option=1",
        "redis://:secret@localhost?db=x",
        "redis+sentinel://:secret@localhost:26379",
        "redis+sentinel://:secret@localhost:port/master",
    ],
)
def test_what_does_not(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url, timeout=1)
    said = str(caught.value)
    assert "secret" not in said
    assert "sqlite:///" in said or "redis" in said
    assert caught.value.key == "store"


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_timeout_is_above_zero(timeout: float) -> None:
    with pytest.raises(ConfigError, match="seconds above 0"):
        open_store("memory", timeout=timeout)


def test_a_url_does_not_override_the_timeout() -> None:
    store = open_store("redis://localhost?socket_timeout=99&socket_connect_timeout=99&retry_on_timeout=True", timeout=1)
    assert isinstance(store, RedisStore)
    link = store._address.connection(None)
    assert (link.socket_timeout, link.socket_connect_timeout, link.retry.get_retries()) == (1, 1, 0)
