"""Finds the Redis server: URL, Sentinels, cluster. The only module that imports redis-py."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from otel_tokens.errors import ConfigError
from otel_tokens.guard.store.base import StoreError
from otel_tokens.text import shown_url

Place = tuple[str, int]
Connection = Any
"""A connection of redis-py: `connect`, `send_packed_command`, `read_response`, `can_read`, `disconnect`."""

# What a URL may not decide: time is the store's, answers are bytes, and nothing is tried twice behind its back.
_OURS = (
    "decode_responses", "encoding", "encoding_errors", "health_check_interval", "max_connections", "protocol", "retry",
    "retry_on_error", "retry_on_timeout", "socket_connect_timeout", "socket_timeout", "timeout", "parser_class",
)  # fmt: skip
_ALIASES = {"valkey": "redis", "valkeys": "rediss"}


class Address:
    """A Redis by URL: redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://; valkey(s) for redis(s).

    `errors` is redis-py's module of exceptions. Raises ConfigError for a URL that cannot work and for a missing
    redis-py.
    """

    def __init__(self, url: str, timeout: float) -> None:
        if find_spec("redis") is None:
            raise ConfigError("a Redis store needs the redis package: pip install 'otel-tokens[redis]'", key="store")
        # Modules of redis-py are imported once a Redis store is configured: it takes a tenth of a second.
        self.errors: Any = import_module("redis.exceptions")
        self._timeout = timeout
        self._place: Place | None = None
        self._sentinels: list[Place] = []
        self._service = ""
        self._sentinel_options: dict[str, Any] = {}
        try:
            self._read(url)
            self.connection(None)
            self.aio_connection(None)
        except (ValueError, TypeError, self.errors.RedisError) as error:
            reason = str(error)
            if "ort " in reason or "literal" in reason:  # it quotes what was taken for the port: a password, perhaps
                reason = "its port is no number; in a password write / ? # @ as %2F %3F %23 %40"
            raise ConfigError(f"{shown_url(url)} is not a Redis URL: {reason}", key="store") from None

    def _read(self, url: str) -> None:
        module: Any = import_module("redis.connection")
        aio_module: Any = import_module("redis.asyncio.connection")
        scheme, _, rest = url.partition("://")
        base, _, kind = scheme.partition("+")
        base = _ALIASES.get(base, base)
        url = f"{base}://{rest}"
        if kind == "sentinel":
            url = self._read_sentinels(base, rest)
        elif kind:
            raise ValueError(f"{scheme} is not known")
        self._options: dict[str, Any] = dict(module.parse_url(url))
        self._aio_options: dict[str, Any] = dict(aio_module.parse_url(url))
        self._class: Any = self._options.pop("connection_class", module.Connection)
        self._aio_class: Any = self._aio_options.pop("connection_class", aio_module.Connection)
        for options in (self._options, self._aio_options):
            for name in _OURS:
                options.pop(name, None)
            options["protocol"] = 2
        self._options |= {"socket_timeout": self._timeout, "socket_connect_timeout": self._timeout}
        # Event loops bound the whole of a request; a clock of each step's own would only cost.
        self._aio_options |= {"socket_timeout": None, "socket_connect_timeout": None}
        self.label = self._service or self._options.get("path") or self._host_and_port()

    def _host_and_port(self) -> str:
        return f"{self._options.get('host', 'localhost')}:{self._options.get('port', 6379)}"

    def _read_sentinels(self, base: str, rest: str) -> str:
        """redis+sentinel://user:password@host:26379,host2/service/db?sentinel_password=… Returns the plain URL."""
        rest, _, query = rest.partition("?")
        netloc, _, path = rest.partition("/")
        user, at, hosts = netloc.rpartition("@")
        service, _, db = path.partition("/")
        if not service:
            raise ValueError("redis+sentinel://host:26379,host2:26379/SERVICE names the service last")
        self._service = unquote(service)
        for host in hosts.split(","):
            name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
            self._sentinels.append((name.strip("[]"), int(port)) if colon else (host.strip("[]"), 26379))
        words = dict(parse_qsl(query))
        for name in list(words):
            if name.startswith("sentinel_"):
                self._sentinel_options[name.removeprefix("sentinel_")] = words.pop(name)
        return f"{base}://{user}{at}localhost/{db}" + (f"?{urlencode(words)}" if words else "")

    def connection(self, place: Place | None) -> Connection:
        """A connection for threads, not yet connected."""
        return self._class(**self._options | self._at(place))

    def aio_connection(self, place: Place | None) -> Connection:
        """A connection for the running event loop, not yet connected."""
        return self._aio_class(**self._aio_options | self._at(place))

    @staticmethod
    def _at(place: Place | None) -> dict[str, Any]:
        return {} if place is None else {"host": place[0], "port": place[1]}

    def find(self) -> Place | None:
        """Where to connect to, None for where the URL says. Asks the Sentinels, if there are any."""
        if not self._sentinels:
            return self._place
        manager: Any = import_module("redis.sentinel").Sentinel(
            self._sentinels, sentinel_kwargs=self._asking(self._timeout)
        )
        try:
            return manager.discover_master(self._service)
        finally:
            for client in manager.sentinels:
                client.close()

    async def aio_find(self) -> Place | None:
        """`find` for event loops."""
        if not self._sentinels:
            return self._place
        manager: Any = import_module("redis.asyncio.sentinel").Sentinel(
            self._sentinels, sentinel_kwargs=self._asking(None)
        )
        try:
            return await manager.discover_master(self._service)
        finally:
            for client in manager.sentinels:
                with suppress(self.errors.RedisError, OSError):
                    await client.aclose()

    def _asking(self, timeout: float | None) -> dict[str, Any]:
        never: Any = import_module("redis.retry").Retry(import_module("redis.backoff").NoBackoff(), 0)
        patience = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        return {**self._sentinel_options, **patience, "retry": never}

    def follow(self, error: Any) -> None:
        """Another node of the cluster has our slot (all keys share one)."""
        if isinstance(error, self.errors.MovedError):
            self._place = (error.host or self._options.get("host", "localhost"), error.port)

    def still_good(self, error: Exception) -> bool:
        """Whether a connection on which the server answered with this error is of use."""
        errors = self.errors
        if isinstance(error, (errors.ReadOnlyError, errors.ClusterDownError)):  # it is no longer the master
            self._place = None
            return False
        return True

    async def can_read(self, connection: Connection) -> bool:
        """Whether there is something to read on an idle connection; the name changed in redis-py 8."""
        probe = connection.can_read if hasattr(connection, "can_read") else connection.can_read_destructive
        return await probe()

    def failed(self, error: Exception) -> StoreError:
        """What a failure is to the guard."""
        if isinstance(error, (self.errors.ConnectionError, self.errors.TimeoutError, OSError)):
            self._place = None  # a node that a cluster once named may be the one that died
        return StoreError(f"Redis at {self.label}: {error or type(error).__name__}")

    def late(self, timeout: float) -> StoreError:
        """No answer in time."""
        self._place = None
        return StoreError(f"Redis at {self.label}: no answer within {timeout:g} s")
