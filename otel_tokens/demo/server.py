"""A loopback HTTP/1.1 server for model traffic. Replies can be plain, streamed, held, slow or cut. Requests are kept.

Used by `otel-tokens demo` and by the tests, which call it with the real SDKs. Standard library only.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import socket
import threading
import zlib
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Self, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from otel_tokens.demo.model import Model
from otel_tokens.demo.wire import Event, Reply, Request, encode, sse

__all__ = ["Event", "ModelServer", "Reply", "Request", "Respond", "in_turn"]

Respond: TypeAlias = Callable[[Request], Reply]
_HOLD_STEP = 0.01  # seconds between two checks whether a waiting client has left
_JOIN = 5.0  # seconds that `close` waits for the thread of a connection


def in_turn(*replies: Reply) -> Respond:
    """Answers each request with the next reply. The last reply is repeated."""
    rest, lock = itertools.chain(replies[:-1], itertools.repeat(replies[-1])), threading.Lock()

    def respond(_: Request) -> Reply:
        with lock:
            return next(rest)

    return respond


class ModelServer:
    """A context manager; `url` is its base (`http://127.0.0.1:PORT`), without a trailing slash.

    `respond` is a function, one reply, or replies for one request after the other; without it a believable `Model`
    answers. `requests` has what came in, in order; `disconnects` how many events had been sent each time a client
    hung up before the end of a reply; `errors` what `respond` raised (the client then got a 500).
    """

    def __init__(self, respond: Respond | Reply | Sequence[Reply] | None = None) -> None:
        if respond is None:
            respond = Model().respond
        elif not callable(respond):
            respond = in_turn(respond) if isinstance(respond, Reply) else in_turn(*respond)
        self.respond: Respond = respond
        self.requests: list[Request] = []
        self.disconnects: list[int] = []
        self.errors: list[BaseException] = []
        self.closing = threading.Event()
        self._changed = threading.Condition()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._acceptor = threading.Thread(target=self._accept, name="model-server", daemon=True)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops listening, closes all connections, and waits for the threads. Can be called again."""
        if self.closing.is_set():
            return
        self.closing.set()
        if self._acceptor.is_alive():
            # Closing the socket does not wake a thread in accept(); a last connection does.
            with contextlib.suppress(OSError):
                socket.create_connection(self._listener.getsockname()).close()
            self._acceptor.join(_JOIN)
        self._listener.close()
        with self._changed:
            connections = list(self._connections.items())
        for _, connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread, _ in connections:
            thread.join(_JOIN)

    def wait_for(self, condition: Callable[[ModelServer], bool], timeout: float = 60.0) -> bool:
        """Waits until `condition(server)` holds. It is checked after each request and each disconnect."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), timeout)

    def answer(self, request: Request) -> Reply:
        """Keeps the request and calls `respond`."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        try:
            return self.respond(request)
        except Exception as error:
            self.errors.append(error)
            return Reply(500, {"error": {"type": "server_error", "message": f"the test server failed: {error!r}"}})

    def hung_up(self, events_sent: int) -> None:
        """Counts a client that left before the end of its reply."""
        if self.closing.is_set():
            return
        with self._changed:
            self.disconnects.append(events_sent)
            self._changed.notify_all()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self.closing.is_set():
                connection.close()
                return
            thread = threading.Thread(target=self._serve, args=(connection,), name="model-server-client", daemon=True)
            with self._changed:
                self._connections[thread] = connection
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            # http.server's handlers serve their connection in the constructor.
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _Handler(connection, ("127.0.0.1", 0), self)  # pyright: ignore[reportArgumentType]
        except OSError:
            pass  # the client left between two requests: no error
        finally:
            with self._changed:
                self._connections.pop(threading.current_thread(), None)


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client: reads requests, writes replies, and notices when the client leaves."""

    protocol_version = "HTTP/1.1"
    owner: ModelServer
    _sent = 0

    def __init__(self, connection: socket.socket, address: tuple[str, int], owner: ModelServer) -> None:
        self.owner = owner
        super().__init__(connection, address, owner)  # pyright: ignore[reportArgumentType]

    def _handle(self) -> None:
        request = self._read()
        reply = self.owner.answer(request)
        self._sent = 0
        try:
            if reply.hold is not None and reply.hold_at is None:
                self._hold(reply.hold)
            if reply.events is not None:
                self._stream(reply, reply.events, len(self.owner.requests))
            elif reply.abort_after is not None:
                self._hang_up()
            else:
                self._whole(reply, len(self.owner.requests))
        except OSError:
            self.owner.hung_up(self._sent)
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815 - the names http.server looks for

    def _read(self) -> Request:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        url = urlsplit(self.path)
        try:
            content: Any = json.loads(body) if body else None
        except ValueError:
            content = None
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.command, url.path, dict(parse_qsl(url.query)), headers, content, body)

    def _whole(self, reply: Reply, number: int) -> None:
        kind = "text/plain; charset=utf-8" if isinstance(reply.body, str) else "application/json"
        body = encode(reply.body)
        if reply.gzip:
            body = gzip.compress(body)
        self._start(reply, number, {"content-type": kind})
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, reply: Reply, events: Sequence[Event], number: int) -> None:
        squeeze = zlib.compressobj(wbits=31) if reply.gzip else None
        self._start(reply, number, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for index, event in enumerate(events):
            if reply.abort_after == index:
                return self._hang_up()
            if reply.hold is not None and reply.hold_at == index:
                self._hold(reply.hold)
            self._look(reply.delay)
            data = sse(event)
            if squeeze is not None:
                data = squeeze.compress(data) + squeeze.flush(zlib.Z_SYNC_FLUSH)
            self._chunk(data)
            self._sent += 1
        if reply.hold is not None and reply.hold_at == len(events):
            self._hold(reply.hold)
        if reply.abort_after is not None:
            return self._hang_up()
        if squeeze is not None:
            self._chunk(squeeze.flush())
        return self._chunk(b"")

    def _start(self, reply: Reply, number: int, headers: dict[str, str]) -> None:
        self.send_response(reply.status)
        # OpenAI and Anthropic use different names for this header. Both are sent.
        headers |= {"x-request-id": f"req_{number:08}", "request-id": f"req_{number:08}"}
        if reply.gzip:
            headers["content-encoding"] = "gzip"
        headers |= {name.lower(): value for name, value in reply.headers.items()}
        for name, value in headers.items():
            self.send_header(name, value)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _hold(self, event: threading.Event) -> None:
        while not event.wait(_HOLD_STEP):
            self._look()

    def _look(self, seconds: float = 0.0) -> None:
        """Waits. Raises ConnectionError as soon as the client has left."""
        self.connection.settimeout(seconds)
        try:
            gone = not self.connection.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, TimeoutError):
            gone = False
        finally:
            self.connection.settimeout(None)
        if gone:
            raise ConnectionAbortedError("the client hung up")

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Logs nothing; tests read `requests`."""
