"""Prometheus exposition in which every new counter and histogram series begins at 0.

`increase()` and `rate()` cannot see the step from "no series" to the first value, so the first call of a model
would be missing from every panel. Here a series is shown as 0 in the first scrape that has it and with its value
from the next scrape on.

A series counts as shown once a whole response with it has been sent. Consequences: its value is one scrape
interval late; a process that ends before the second scrape never shows it (the ledger and OTLP do); and of
several scrapers only the first one sees the 0, so the others lose the first step of each series.
"""

from __future__ import annotations

import copy
import gzip
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from otel_tokens.safely import logger, report_fault

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

    from prometheus_client import Metric

BORN_AT_ZERO = frozenset({"counter", "histogram"})
SCRAPE_TIMEOUT = 30.0
"""Seconds a client may take to send its request or take its answer."""

Series = tuple[str, frozenset[tuple[str, str]]]


class ZeroFirst:
    """Wraps a collector. `baseline`: what the first scrape finds is old and shown as it is, as after a restart of
    an exporter whose totals outlive it (from 0 to an old total would look like an increase)."""

    def __init__(self, collect: Callable[[], Iterable[Metric]], *, baseline: bool = False) -> None:
        self._collect = collect
        self._baseline = baseline
        self._shown: set[Series] = set()
        # The reader underneath hands each collection to whoever asks first, so scrapes take turns.
        self._lock = threading.Lock()

    def scrape(self) -> tuple[list[Metric], Callable[[], None]]:
        """The families as they are to be shown, and what to call once they have reached the scraper."""
        with self._lock:
            new: set[Series] = set()
            families = [self._family(family, new) for family in _merged(self._collect())]

        def arrived() -> None:
            with self._lock:
                self._shown |= new
                self._baseline = False

        return families, arrived

    def _family(self, family: Metric, new: set[Series]) -> Metric:
        if family.type not in BORN_AT_ZERO:
            return family
        samples: list[Any] = []
        for sample in family.samples:
            # An empty label is no label: adding a label to one series of a family gives it to all, empty.
            series = (sample.name, frozenset(item for item in sample.labels.items() if item[1] != ""))
            if series in self._shown:
                samples.append(sample)
                continue
            new.add(series)
            samples.append(sample if self._baseline else sample._replace(value=0.0, exemplar=None))
        shown = copy.copy(family)
        shown.samples = samples
        return shown


def _merged(families: Iterable[Metric]) -> Iterable[Metric]:
    """One family per name. The exporter makes two of one when descriptions differ, and its older versions when
    labels do; Prometheus refuses such a scrape as a whole."""
    found: dict[tuple[str, str], Metric] = {}
    for family in families:
        known = found.get((family.name, family.type))
        if known is None:
            found[family.name, family.type] = copy.copy(family)
        else:
            known.samples = [*known.samples, *family.samples]
    return found.values()


class _Families:
    """What prometheus_client's encoders want to be given."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


class PrometheusServer:
    """Serves `/metrics` from a daemon thread. `close()` stops it and frees the port."""

    def __init__(self, zero_first: ZeroFirst, listener: socket.socket) -> None:
        self._zero_first = zero_first
        self._listener = listener
        self._lock = threading.Lock()
        self._server: Any = None
        self._closed = False
        self.host, self.port = listener.getsockname()[:2]
        _servers.add(self)
        threading.Thread(target=self._serve, name="otel-tokens-prometheus", daemon=True).start()

    def _serve(self) -> None:
        with self._lock:
            if self._closed:
                return
            # On this thread, as its imports take tens of milliseconds that instrument() need not wait for.
            self._server = _http_server(self._listener, self._zero_first)
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """Stop serving. A second call does nothing."""
        with self._lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        if self._server is not None:
            self._server.shutdown()
        self._listener.close()

    def forget(self) -> None:
        """In a forked child: give back the listening socket, which else would keep the parent's port taken."""
        self._closed = True
        self._listener.close()


_ADVICE = (
    "the application goes on without them. Set another port with OTEL_EXPORTER_PROMETHEUS_PORT or prometheus_port, or "
    "another address with OTEL_EXPORTER_PROMETHEUS_HOST or prometheus_host"
)


def listen(host: str, port: int, advice: str = _ADVICE) -> socket.socket | None:
    """A listening socket, or None after an error message that ends in `advice`. Port 0 takes a free one."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=32)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = str(error.strerror or error if isinstance(error, OSError) else error).partition(" (while ")[0]
        logger.error("cannot serve Prometheus metrics on %s:%s (%s); %s", host, port, reason, advice)
        return None


def _http_server(listener: socket.socket, zero_first: ZeroFirst) -> Any:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer  # slow to import, see PrometheusServer._serve

    class Handler(BaseHTTPRequestHandler):
        """One request of a scraper."""

        timeout = SCRAPE_TIMEOUT
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            """Answer a scrape."""
            _answer(self, zero_first)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the standard library's name)
            """Say nothing: standard error belongs to the application."""

    class Server(ThreadingHTTPServer):
        """A server on a socket that is listening already."""

        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A scraper that goes away is no news."""

    server = Server(listener.getsockname()[:2], Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    return server


def _answer(handler: BaseHTTPRequestHandler, zero_first: ZeroFirst) -> None:
    if handler.path.partition("?")[0] not in ("/", "/metrics"):
        handler.send_error(404, "metrics are at /metrics")
        return
    from prometheus_client.exposition import choose_encoder  # slow to import, and only scrapes need it

    try:
        encode, content_type = choose_encoder(handler.headers.get("Accept", ""))
        families, arrived = zero_first.scrape()
        body = encode(_Families(families))  # pyright: ignore[reportArgumentType]  (only collect() is used)
    except Exception as error:  # a scrape that fails is seen by Prometheus as a target that is down
        try:
            report_fault("prometheus scrape", error)
        finally:
            handler.send_error(503, "metrics cannot be collected")
        return
    handler.send_response(200)
    handler.send_header("Content-Type", content_type)
    if "gzip" in handler.headers.get("Accept-Encoding", ""):
        body = gzip.compress(body, compresslevel=1)
        handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:-1])
    # Before the last byte: a client that has the whole answer may ask again at once.
    arrived()
    handler.wfile.write(body[-1:])


_servers: weakref.WeakSet[PrometheusServer] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for server in list(_servers):
        server.forget()


os.register_at_fork(after_in_child=_after_fork_in_child)
