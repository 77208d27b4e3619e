"""Reads usage from response bodies that the caller reads as bytes. The bodies are not kept.

An event stream is read event by event, or frame by frame. A JSON body is kept only in outline (long texts are cut),
so memory stays bounded however long the answer is.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, cast

from otel_tokens.lifecycle.active import ActiveCall
from otel_tokens.safely import safely

EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n")
MAX_EVENT = 4 * 1024 * 1024
MAX_OUTLINE = 1024 * 1024
MAX_TEXT = 200


class Body(Protocol):
    """Takes a body's bytes as they pass; `feed` and `finish` return what the caller shall get."""

    def feed(self, data: bytes) -> bytes:
        """Look at some bytes."""
        ...

    def finish(self) -> bytes:
        """The body has ended."""
        ...


def body_for(headers: Any, active: ActiveCall, decoders: Any) -> Body:
    """The reader for a response with these headers. `decoders` is the HTTP client's module of content decoders."""
    encoding = str(headers.get("content-encoding", "")).strip().lower()
    kind = str(headers.get("content-type", ""))
    plain = not encoding or encoding == "identity"
    frames = "amazon.eventstream" in kind
    # Servers that name no kind, or text, stream events all the same: the SDKs do not look at it either.
    events = "event-stream" in kind or (active.call.stream and "json" not in kind and not frames)
    anew = events and active.hide_usage and encoding in _WINDOW
    inner: Body
    if frames:
        inner = FrameBody(active)
    elif events:
        inner = EventBody(active, hide=plain or anew)
    else:
        inner = JsonBody(active)
    if plain:
        return inner
    return Decoded(inner, encoding, decoders, anew=anew)


_WINDOW = {"gzip": 31, "deflate": 15}
"""How zlib writes these encodings; a body in another one cannot be written anew."""


class Decoded:
    """A compressed body: looked at through the HTTP client's own decoder, and passed on as it came.

    `anew`: it is compressed again on its way, so that something can be left out.
    """

    def __init__(self, inner: Body, encoding: str, decoders: Any, *, anew: bool = False) -> None:
        self._inner = inner
        made = getattr(decoders, "SUPPORTED_DECODERS", {}).get(encoding)
        self._decoder: Any = safely("content decoder", made) if made is not None else None
        self._squeeze = zlib.compressobj(wbits=_WINDOW[encoding]) if anew and self._decoder is not None else None

    def feed(self, data: bytes) -> bytes:
        """Look at compressed bytes."""
        if self._decoder is None:
            return data
        kept = [self._again(self._inner.feed(piece)) for piece in self._plain(data)]
        if self._squeeze is None:
            return data
        return b"".join(kept) if self._decoder is not None else b"".join((*kept, data))

    def _plain(self, data: bytes) -> Iterator[bytes]:
        try:
            # A decoder returns the bytes, or (httpx2 >= 2.16) yields them in pieces of bounded size.
            plain: bytes | Iterable[bytes] = self._decoder.decode(data)
            yield from (plain,) if isinstance(plain, bytes) else plain
        except Exception:  # damaged: the HTTP client raises its own error
            self._decoder = None

    def _again(self, kept: bytes) -> bytes:
        if self._squeeze is None or not kept:
            return b""
        return self._squeeze.compress(kept) + self._squeeze.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        """The body has ended."""
        rest = self._again(self._inner.finish())
        if self._squeeze is None or self._decoder is None:
            return b""
        return rest + self._squeeze.flush()


class EventBody:
    """Server-sent events: each event is parsed for its facts. The usage chunk that only we asked for is left out."""

    def __init__(self, active: ActiveCall, *, hide: bool = True) -> None:
        self._active = active
        self._held = bytearray()
        # Only hiding needs whole events; otherwise bytes pass as they come.
        self._hold = hide and active.hide_usage

    def feed(self, data: bytes) -> bytes:
        """Look at the events that end in `data`."""
        held = self._held
        start = max(len(held) - 3, 0)
        held += data
        out = bytearray()
        begin = 0
        for match in EVENT_END.finditer(held, start):
            event = bytes(held[begin : match.end()])
            begin = match.end()
            kept = self._event(event)
            if self._hold:
                out += kept
        del held[:begin]
        if len(held) > MAX_EVENT:
            out += held
            held.clear()
        return bytes(out) if self._hold else data

    def finish(self) -> bytes:
        """Whatever stands after the last event."""
        rest = self._event(bytes(self._held))
        self._held.clear()
        return rest if self._hold else b""

    def _event(self, event: bytes) -> bytes:
        """Take one event; returns what of it the caller would have got had we not asked for usage."""
        data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
        if not data.startswith(b"{"):
            return event
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            return event
        if self._active.see_chunk(_Chunk(chunk)):
            return b""
        if self._hold and chunk.get("usage", ...) is None:
            # OpenAI puts this into every chunk of a stream that is asked for usage, and into no other.
            return _NO_USAGE.sub(b"", event, count=1)
        return event


# Quotes inside a JSON text are escaped, so this is no part of one.
_NO_USAGE = re.compile(rb',\s*"usage"\s*:\s*null(?=\s*[,}])')


class FrameBody:
    """AWS's event stream, in which Bedrock answers: binary frames, each with one event in base64.

    A frame: its length and that of its headers, a checksum (4 bytes each); the headers; the payload; a checksum (4).
    """

    def __init__(self, active: ActiveCall) -> None:
        self._active = active
        self._held = bytearray()
        self._lost = False

    def feed(self, data: bytes) -> bytes:
        """Look at the frames that end in `data`."""
        held = self._held
        if not self._lost:
            held += data
        while len(held) >= 8:
            size, headers = struct.unpack_from(">II", held)
            if not 16 + headers <= size <= MAX_EVENT:  # no frame: where the next begins cannot be known
                self._lost = self._active.facts.strange = True
                held.clear()
            if len(held) < size:
                break
            self._frame(bytes(held[12 + headers : size - 4]))
            del held[:size]
        return data

    def _frame(self, payload: bytes) -> None:
        try:
            chunk = json.loads(base64.b64decode(json.loads(payload)["bytes"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            return  # the frame of an error has no event
        if isinstance(chunk, dict):
            self._active.see_chunk(_Chunk(cast("dict[str, Any]", chunk)))

    def finish(self) -> bytes:
        """Nothing is held back."""
        return b""


class _Chunk:
    """A parsed event with the attributes that the look at a chunk wants; all else is read as a mapping."""

    __slots__ = ("__dict__",)

    def __init__(self, data: dict[str, Any]) -> None:
        self.__dict__ = data


_PLAIN = re.compile(rb'[^"]+')
# Possessive: a search that can step back remembers every step, eight megabytes for a text of 64 KiB.
_TEXT = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
# From a comma to another with only numbers between them: what is left of them is still a list of numbers.
_NUMBERS = re.compile(rb",[-+.\deE,\s]{200,},")


def _size(text: bytes) -> int:
    """About how many bytes this is as text: an escape stands for one, or for the two to three of its character."""
    return len(text) - text.count(b"\\") - 2 * text.count(b"\\u")


class JsonBody:
    """One JSON document: kept in outline, its long texts cut and counted, its long rows of numbers shortened."""

    def __init__(self, active: ActiveCall) -> None:
        self._active = active
        self._outline = bytearray()
        self._tail = b""
        self._in_text = False
        self._room = 0
        self._cut = 0

    def feed(self, data: bytes) -> bytes:
        """Add bytes to the outline."""
        rest = self._tail + data
        self._tail = b""
        at = 0
        while at < len(rest):
            if not self._in_text:
                match = _PLAIN.match(rest, at)
                if match is not None:
                    plain = match.group()
                    self._keep(plain if len(plain) < MAX_TEXT else _NUMBERS.sub(b",", plain))
                    at = match.end()
                if at < len(rest):
                    self._keep(b'"')
                    self._in_text, self._room = True, MAX_TEXT
                    at += 1
                continue
            match = _TEXT.match(rest, at)
            text = match.group() if match is not None else b""
            at += len(text)
            self._text(text)
            if at >= len(rest):
                break
            if rest[at : at + 1] == b'"':
                self._keep(b'"')
                self._in_text = False
                at += 1
            else:  # a backslash whose character is still to come
                self._tail = rest[at:]
                break
        return data

    def _keep(self, data: bytes) -> None:
        if len(self._outline) < MAX_OUTLINE:
            self._outline += data

    def _text(self, text: bytes) -> None:
        kept = text[: self._room]
        # A text cut inside an escape would not parse.
        while kept and len(kept) < len(text) and kept.endswith(b"\\"):
            kept = kept[:-1]
        if b"\\" in kept and len(kept) < len(text):
            kept = kept[: kept.index(b"\\")]
        self._room = self._room - len(kept) if len(kept) == len(text) else 0
        self._cut += _size(text[len(kept) :])
        self._keep(kept)

    def finish(self) -> bytes:
        """Read the outline."""
        try:
            # A text may have been cut inside a character.
            payload = json.loads(self._outline.decode(errors="replace"))
        except (ValueError, RecursionError):
            self._active.facts.strange = True
            return b""
        self._active.see(payload)
        self._active.facts.text_bytes += self._cut
        return b""
