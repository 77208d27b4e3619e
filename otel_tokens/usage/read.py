"""Reading facts and raw counts out of responses and chunks: SDK objects, dicts and parsed JSON alike.

SDKs don't validate responses: any field may be missing, None, or of another type. Nothing here raises for that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from typing import Any

from otel_tokens.providers.spec import Endpoint
from otel_tokens.safely import report_fault, safely
from otel_tokens.shapes import is_list
from otel_tokens.usage.counts import Counts, flatten, impossible, merge
from otel_tokens.usage.paths import dig, dig_all, first, get, length
from otel_tokens.usage.tools import count_tools


@lru_cache(maxsize=256)
def places(endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
    """The places of this endpoint's usage blocks, each with the prefix for the names of its fields."""
    return tuple((path, prefix) for path, _, prefix in (place.partition("=") for place in endpoint.at))


class Facts:
    """What has been read of one call so far. Mutable. It belongs to one call and is never shared.

    `measured`: whether the length of a whole answer's text (`text_bytes`, UTF-8) is wanted (to calibrate the estimate).
    `complete`: usage is final. `running`: the number of the last chunk that stated the usage of an answer that goes on,
    0 for none. `named`: no further chunk is searched for model, id and tier. `hosted`: whether the answer may show
    calls of hosted tools; `tools` counts them by kind. `refusal` is the category of a refusal: "" if it has none, None
    if the model did not refuse.
    """

    __slots__ = (
        "chunks",
        "complete",
        "counts",
        "endpoint",
        "finish",
        "geo",
        "hosted",
        "id",
        "measured",
        "model",
        "named",
        "refusal",
        "running",
        "speed",
        "strange",
        "text_bytes",
        "tier",
        "tools",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.counts: Counts = {}
        self.text_bytes = 0
        self.chunks = 0
        self.complete = False
        self.named = False
        self.running = 0
        self.measured = True
        self.strange = False
        self.hosted = True
        self.tools: dict[str, int] = {}
        self.refusal: str | None = None
        self.model: str | None = None
        self.id: str | None = None
        self.tier: str | None = None
        self.speed: str | None = None
        self.geo: str | None = None
        self.finish: tuple[str, ...] = ()

    def read(self, payload: Any) -> bool:
        """Read all facts of a whole response, or of a chunk that may carry facts. Return whether it had usage."""
        endpoint = self.endpoint
        found = False
        for path, prefix in places(endpoint):
            if found and not prefix:
                continue  # the usage block has been found: the other places belong to other hosts
            block = dig(payload, path)
            if block is None:
                continue
            if self._take(block, prefix):
                found = True
            else:
                self.strange = True
        self.model = _text(first(payload, endpoint.model)) or self.model
        self.id = _text(first(payload, endpoint.id)) or self.id
        self.tier = _text(first(payload, endpoint.tier)) or self.tier
        if endpoint.speed:
            self.speed = _text(first(payload, endpoint.speed)) or self.speed
        if endpoint.geo:
            self.geo = _text(first(payload, endpoint.geo)) or self.geo
        for path in endpoint.finish:
            reasons = tuple(str(reason) for reason in dig_all(payload, path))
            if reasons:
                self.finish = reasons
        if self.hosted and endpoint.tools:
            count_tools(endpoint, payload, self.tools)
        if endpoint.served and found:
            self.model = _served(self.counts.get(endpoint.served)) or self.model
        if endpoint.refused and self.finish == ("refusal",):
            self.refusal = _text(first(payload, endpoint.refused)) or ""
        return found

    def _take(self, block: Any, prefix: str) -> bool:
        """Add a usage block to the counts; return whether it was one."""
        if not self.counts:
            return flatten(block, self.counts, prefix)
        fresh: Counts = {}
        if not flatten(block, fresh, prefix):
            return False
        merge(fresh, self.counts)
        return True

    def read_whole(self, payload: Any) -> None:
        """Take a whole response: its facts, and the length of its text where it is needed."""
        self.read(payload)
        self.complete = True
        if self.measured or self.refusal is not None or impossible(self.counts):
            self.text_bytes += output_length(self.endpoint, payload)


def output_length(endpoint: Endpoint, payload: Any) -> int:
    """The bytes of output text in a response or chunk: the first place that has any."""
    for path in endpoint.output:
        found = sum(length(item) for item in dig_all(payload, path))
        if found:
            return found
    return 0


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _served(passes: Any) -> str | None:
    """The model of the fallback pass that served, or None (Anthropic's `iterations`; a stream begins with the model
    that was asked)."""
    served = (
        [get(item, "model") for item in passes if get(item, "type") == "fallback_message"] if is_list(passes) else ()
    )
    return _text(served[-1]) if served else None


ReadChunk = Callable[[Facts, Any], None]
"""Reads one stream chunk. A chunk of text alone takes a fraction of a microsecond."""


@lru_cache(maxsize=256)
def chunk_reader(endpoint: Endpoint) -> ReadChunk:
    """The function that reads each chunk of this endpoint's streams, built once."""
    return _events(endpoint) if endpoint.shape == "events" else _choices(endpoint)


def _choices(endpoint: Endpoint) -> ReadChunk:
    """A reader of chunks without a type: a chunk of text has choices, no finish reason and no usage."""
    text = attrgetter(endpoint.deltas.get("", "delta.content"))

    def look(facts: Facts, chunk: Any) -> None:
        facts.chunks += 1
        try:
            choice = chunk.choices[0]
            if choice.finish_reason is None and chunk.usage is None and facts.named:
                found = text(choice)  # `utf8_length`, inline: this runs for every chunk
                facts.text_bytes += len(found) if found.isascii() else len(found.encode("utf-8", "surrogatepass"))
                return
        except (AttributeError, IndexError, TypeError):
            pass  # a first, last or odd chunk
        except Exception as error:
            report_fault("read chunk", error)
        safely("read chunk", read, facts, chunk)

    def read(facts: Facts, chunk: Any) -> None:
        facts.text_bytes += output_length(endpoint, chunk)
        if facts.read(chunk):
            facts.running = facts.chunks if _goes_on(chunk) else 0
            facts.complete = not facts.running
        # Each chunk names model, id and tier. The first of some hosts has them empty.
        facts.named = facts.model is not None or facts.chunks >= UNNAMED

    return look


UNNAMED = 5
"""So many chunks of a stream are searched for the name of the model."""


def _goes_on(chunk: Any) -> bool:
    """Whether a chunk with usage is one of an answer that goes on: some hosts state usage so far in each chunk."""
    choices = get(chunk, "choices")
    return is_list(choices) and bool(choices) and all(get(choice, "finish_reason") is None for choice in choices)


def _events(endpoint: Endpoint) -> ReadChunk:
    """A reader of chunks with a type: only some types carry facts."""
    texts = {kind: attrgetter(path) for kind, path in endpoint.deltas.items()}
    facts_on, final_on, tools_on = endpoint.facts_on, endpoint.final_on, endpoint.tools_on
    read_on = facts_on | tools_on

    def look(facts: Facts, chunk: Any) -> None:
        facts.chunks += 1
        try:
            kind = chunk.type
            text = texts.get(kind)
            if text is not None:
                found = text(chunk)
                facts.text_bytes += len(found) if found.isascii() else len(found.encode("utf-8", "surrogatepass"))
                return
            if kind not in read_on:
                return
        except (AttributeError, TypeError):
            pass  # an odd chunk
        except Exception as error:
            report_fault("read chunk", error)
        safely("read chunk", read, facts, chunk)

    def read(facts: Facts, chunk: Any) -> None:
        kind = get(chunk, "type")
        if kind in texts:
            facts.text_bytes += output_length(endpoint, chunk)
        elif kind in facts_on and facts.read(chunk) and kind in final_on:
            facts.complete = True
        elif kind in tools_on and facts.hosted:
            count_tools(endpoint, chunk, facts.tools)

    return look
