"""Opens the store at a URL."""

from __future__ import annotations

import re

from otel_tokens.errors import ConfigError
from otel_tokens.guard.store.base import Store
from otel_tokens.guard.store.memory.store import MemoryStore
from otel_tokens.guard.store.redis.store import RedisStore
from otel_tokens.guard.store.sqlite.store import SqliteStore
from otel_tokens.text import shown_url

FORMS = (
    "memory",
    "sqlite:///path (from here), sqlite:////path (from the root)",
    "redis://user:password@host:port/db, rediss://… (TLS), unix:///path/of.sock?db=0",
    "redis+sentinel://host:port,host2:port/service/db, rediss+sentinel://…",
)
_REDIS = re.compile(r"(?:(?:redis|valkey)s?(?:\+sentinel)?|unix)://.+")


def open_store(url: str, *, timeout: float, prefix: str = "otel-tokens") -> Store:
    """The store at `url`; `timeout` in seconds; `prefix` keeps applications apart that share a Redis.

    Nothing is connected or made yet: the first operation does so. valkey:// is redis://. Raises ConfigError for any
    other form, a URL that cannot work, and a missing redis package.
    """
    if timeout <= 0:
        raise ConfigError(f"{timeout:g} is no timeout; give seconds above 0", key="store_timeout")
    if any(character < " " or character == "\x7f" for character in url):
        raise ConfigError(f"{shown_url(url)!r} has control characters", key="store")
    if url in {"memory", "memory://"}:
        return MemoryStore()
    path = url.removeprefix("sqlite:///")
    if path != url and path and path != ":memory:":
        return SqliteStore(path, timeout=timeout)
    if _REDIS.fullmatch(url):
        return RedisStore(url, timeout=timeout, prefix=prefix)
    raise ConfigError(f"{shown_url(url)!r} is not a store; use one of: {'; '.join(FORMS)}", key="store")
