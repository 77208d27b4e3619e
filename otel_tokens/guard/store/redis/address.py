"""Finds the Redis server: URL, Sentinels, cluster. The only module that imports redis-py."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from otel_tokens.errors import ConfigError
from otel_tokens.guard.store.base import EndedError, StoreError
from otel_tokens.guard.store.redis.protocol import command
from otel_tokens.text import shown_url

Place = tuple[str, int]
Connection = Any
"""A connection of redis-py: `connect`, `send_packed_command`, `read_response`, `can_read`, `disconnect`."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an event loop connects to: a path or host and port; the TLS context; the commands that log in."""

    path: str
    host: str
    port: int
    tls: Any
    login: tuple[bytes, ...]


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
            self.target(None)
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
        self._class: Any = self._options.pop("connection_class", module.Connection)
        for name in _OURS:
            self._options.pop(name, None)
        self._options |= {"protocol": 2, "socket_timeout": self._timeout, "socket_connect_timeout": self._timeout}
        self._tls_options: dict[str, Any] | None = dict(aio_module.parse_url(url)) if base == "rediss" else None
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

    def target(self, place: Place | None) -> Target:
        """Where an event loop connects to, and how."""
        options = self._options | self._at(place)
        login: list[bytes] = []
        user, password = options.get("username"), options.get("password")
        if user or password:
            login.append(command("AUTH", *([user] if user else []), password or ""))
        if options.get("client_name"):
            login.append(command("CLIENT", "SETNAME", options["client_name"]))
        if options.get("db"):
            login.append(command("SELECT", options["db"]))
        host, port = options.get("host", "localhost"), int(options.get("port", 6379))
        return Target(options.get("path", ""), host, port, self._tls(), tuple(login))

    def _tls(self) -> Any:
        """The TLS context that redis-py makes from the options of the URL; None without TLS."""
        if self._tls_options is None:
            return None
        options = {name: value for name, value in self._tls_options.items() if name.startswith("ssl_")}
        # redis-py makes it with a connection for event loops, which is never connected.
        return import_module("redis.asyncio.connection").SSLConnection(**options).ssl_context.get()

    @staticmethod
    def _at(place: Place | None) -> dict[str, Any]:
        return {} if place is None else {"host": place[0], "port": place[1]}

    def find(self) -> Place | None:
        """Where to connect to, None for where the URL says. Asks the Sentinels, if there are any."""
        if not self._sentinels:
            return self._place
        manager: Any = import_module("redis.sentinel").Sentinel(self._sentinels, sentinel_kwargs=self._once())
        try:
            return manager.discover_master(self._service)
        finally:
            for client in manager.sentinels:
                client.close()

    async def aio_find(self) -> Place | None:
        """`find` for event loops. Sentinels are asked on a thread, where the system measures the timeouts."""
        return await asyncio.to_thread(self.find) if self._sentinels else self._place

    def names(self) -> list[str]:
        """The host names that have to be looked up before anything can be connected."""
        if self._options.get("path"):
            return []
        places = self._sentinels or [self._place or (self._options.get("host", "localhost"), 0)]
        return [host for host, _ in places if not _is_address(host)]

    def _once(self) -> dict[str, Any]:
        """How Sentinels are asked: once each."""
        never: Any = import_module("redis.retry").Retry(import_module("redis.backoff").NoBackoff(), 0)
        timeouts = {"socket_timeout": self._timeout, "socket_connect_timeout": self._timeout}
        return {**self._sentinel_options, **timeouts, "retry": never}

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

    def failed(self, error: Exception) -> StoreError:
        """What a failure is to the guard."""
        if isinstance(error, (self.errors.ConnectionError, self.errors.TimeoutError, OSError)):
            self._place = None  # a node that a cluster once named may be the one that died
        kind = EndedError if str(error).endswith(" has ended") else StoreError
        return kind(f"Redis at {self.label}: {error or type(error).__name__}")

    def late(self, timeout: float) -> StoreError:
        """No answer in time."""
        self._place = None
        return StoreError(f"Redis at {self.label}: no answer within {timeout:g} s")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
