"""Requests, replies and the framing of streams of the model server."""

from __future__ import annotations

import base64
import json
import struct
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

Event: TypeAlias = "tuple[str | None, Any] | Sequence[Any]"
"""One event of a stream: (name or None, data). A str is sent unchanged, bytes without framing, anything else as JSON.
A name that begins with a colon is a comment; servers send comments to keep a connection open."""


Json: TypeAlias = dict[str, Any]


def mapping(value: Any) -> Json:
    """A JSON object, or an empty one for anything else."""
    return cast("Json", value) if isinstance(value, dict) else {}


def array(value: Any) -> list[Any]:
    """A JSON array, or an empty one for anything else."""
    return cast("list[Any]", value) if isinstance(value, list) else []


@dataclass(frozen=True, slots=True)
class Request:
    """A request: `path` without the query, header names in lower case, `json` None if the body is not JSON."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    json: Any = None
    body: bytes = b""

    def __getitem__(self, key: str) -> Any:
        """A member of the JSON body, or None."""
        return mapping(self.json).get(key)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply: a `body` (bytes and str unchanged, anything else as JSON) or a stream of `events`.

    `delay` is in seconds before each event. `hold` keeps the reply back until it is set: before the status line,
    or before event `hold_at` of a stream (0 is the first;
    their number: before the end). `abort_after` drops the connection after so many events;
    a reply with a body is then never sent. `gzip` compresses either kind.
    """

    status: int = 200
    body: Any = None
    events: Sequence[Event] | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    delay: float = 0.0
    hold: threading.Event | None = None
    hold_at: int | None = None
    abort_after: int | None = None
    gzip: bool = False


def encode(data: Any) -> bytes:
    """Data as bytes of a body: bytes and text unchanged, anything else as JSON."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        return data.encode()
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()


def sse(event: Event) -> bytes:
    """One server-sent event, with its closing blank line."""
    name, data = event
    if isinstance(data, bytes):
        return data
    if name is not None and name.startswith(":"):
        return name.encode() + b"\n\n"
    lines = [b"data: " + line for line in encode(data).split(b"\n")]
    if name is not None:
        lines.insert(0, b"event: " + name.encode())
    return b"\n".join(lines) + b"\n\n"


_STRING = 7  # the header type of AWS event streams for a string


def aws_frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One message of an AWS event stream (`application/vnd.amazon.eventstream`).

    Lengths and CRC-32 of the prelude, typed headers, payload, CRC-32 of all before it; all numbers big-endian.
    """
    texts = [(name.encode(), value.encode()) for name, value in headers.items()]
    head = b"".join(
        struct.pack("!B", len(name)) + name + struct.pack("!BH", _STRING, len(value)) + value for name, value in texts
    )
    prelude = struct.pack("!II", len(head) + len(payload) + 16, len(head))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack("!I", zlib.crc32(message))


def bedrock_frames(events: Iterable[Event]) -> list[Event]:
    """The events of a stream as Bedrock's InvokeModelWithResponseStream sends them: each in a `chunk` frame."""
    headers = {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}
    return [
        (None, aws_frame(headers, encode({"bytes": base64.b64encode(encode(data)).decode(), "p": "abcdef"})))
        for _, data in events
    ]


def bedrock_exception(kind: str, message: str) -> Event:
    """A frame with which Bedrock ends a stream that failed, such as "throttlingException"."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return (None, aws_frame(headers, encode({"message": message})))
