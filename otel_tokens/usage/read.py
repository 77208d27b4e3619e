"""Reading facts and raw counts out of responses and chunks: SDK objects, dicts and parsed JSON alike.

SDKs don't validate responses: any field may be missing, None, or of another type. Nothing here raises for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter
from typing import Any

from otel_tokens.providers.spec import Endpoint
from otel_tokens.safely import report_fault, safely
from otel_tokens.shapes import is_list, is_mapping

Counts = dict[str, Any]
"""Raw numbers by dotted path inside the usage block; lists are kept whole."""

MAX_DEPTH = 5


def get(value: Any, name: str) -> Any:
    """The field `name` of a dict, of a pydantic object (declared or extra), of a list ("0"), or None."""
    if type(value) is dict:
        return value.get(name)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    # Not getattr: a missing field would run pydantic's __getattr__, and properties of foreign objects.
    own: dict[str, Any] | None = getattr(value, "__dict__", None)
    if type(own) is dict:
        found = own.get(name)
        if found is None:
            extra: dict[str, Any] | None = getattr(value, "__pydantic_extra__", None)
            if extra:
                return extra.get(name)
        return found
    if is_list(value):
        index = int(name) if name.isdigit() else -1
        return value[index] if 0 <= index < len(value) else None
    return value.get(name) if is_mapping(value) else None


@lru_cache(maxsize=1024)
def _split(path: str) -> tuple[str, ...]:
    return tuple(path.split("."))


def dig(value: Any, path: str) -> Any:
    """What stands at the dotted `path`, or None."""
    if "." not in path:  # most are: half the price of the loop
        return get(value, path)
    for name in _split(path):
        if value is None:
            return None
        value = get(value, name)
    return value


@lru_cache(maxsize=1024)
def _around_star(path: str) -> tuple[str, bool, str]:
    """What stands before and after the first "*" of a path, and whether there is one."""
    names = path.split(".")
    if "*" not in names:
        return path, False, ""
    at = names.index("*")
    return ".".join(names[:at]), True, ".".join(names[at + 1 :])


def dig_all(value: Any, path: str) -> list[Any]:
    """What stands at `path`, where a "*" stands for every item of a list; None is left out."""
    before, star, after = _around_star(path)
    found = dig(value, before) if before else value
    if not star:
        return [] if found is None else [found]
    if not is_list(found):
        return []
    if "*" in after:
        return [hit for item in found for hit in dig_all(item, after)]
    return [hit for item in found if (hit := dig(item, after) if after else item) is not None]


def first(value: Any, paths: tuple[str, ...]) -> Any:
    """The first of `paths` at which something stands."""
    for path in paths:
        found = dig(value, path)
        if found is not None:
            return found
    return None


def fields_of(block: Any) -> Mapping[str, Any] | None:
    """The fields of a dict or an SDK's object by name, or None for anything else."""
    if type(block) is dict:
        return block  # pyright: ignore[reportUnknownVariableType]
    own: dict[str, Any] | None = getattr(block, "__dict__", None)
    if type(own) is dict:
        extra: dict[str, Any] | None = getattr(block, "__pydantic_extra__", None)
        return {**own, **extra} if extra else own
    return block if is_mapping(block) else None


def flatten(block: Any, into: Counts, prefix: str = "", depth: int = 0) -> bool:
    """Add a usage block's fields to `into` by dotted path; say whether it was a block at all.

    A later report replaces an earlier one, as providers repeat cumulative numbers; but a 0 never replaces a
    positive number, as some send placeholders.
    """
    found = fields_of(block)
    if found is None or depth > MAX_DEPTH:
        return False
    for name, value in found.items():
        if value is None:
            continue
        key = prefix + name if prefix else name
        # Nearly all are plain integers, and asking for the other kinds costs four times as much.
        if type(value) is int or (isinstance(value, (int, float, str, Decimal)) and not isinstance(value, bool)):
            if value or not into.get(key):
                into[key] = value
        elif isinstance(value, bool):
            continue
        elif is_list(value):
            if value:
                into[key] = value
        else:
            flatten(value, into, f"{key}.", depth + 1)
    return True


def utf8_length(text: str) -> int:
    """The bytes of a text: they tell more of its tokens than its characters, of which a Chinese one is a token."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def length(value: Any, depth: int = 0) -> int:
    """The bytes of text in a value (strings in dicts, lists and SDK objects); reads no more.

    Base64 data is not text: the fields known to hold it are left out.
    """
    if isinstance(value, str):
        return utf8_length(value)
    if value is None or isinstance(value, (int, float)) or depth > 12:
        return 0
    if is_list(value):
        return sum(length(item, depth + 1) for item in value)
    found = fields_of(value)
    if found is None:
        return 0
    return sum(length(item, depth + 1) for name, item in found.items() if name not in NOT_TEXT)


NOT_TEXT = frozenset({"data", "image_url", "file_data", "b64_json", "type", "id", "role", "object", "index", "url"})


@lru_cache(maxsize=256)
def places(endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
    """Where this endpoint's usage blocks may stand, each with the prefix its fields get."""
    return tuple((path, prefix) for path, _, prefix in (place.partition("=") for place in endpoint.at))


class Facts:
    """What has been read of one call so far. Mutable: it lives inside one call and is never shared.

    `measured`: whether the length of a whole answer's text (`text_bytes`, UTF-8) is wanted (to calibrate the estimate).
    `complete`: usage is final. `running`: the number of the last chunk that stated the usage of an answer that goes on,
    0 for none. `named`: no further chunk is searched for model, id and tier.
    """

    __slots__ = (
        "chunks",
        "complete",
        "counts",
        "endpoint",
        "finish",
        "geo",
        "id",
        "measured",
        "model",
        "named",
        "running",
        "speed",
        "strange",
        "text_bytes",
        "tier",
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
        self.model: str | None = None
        self.id: str | None = None
        self.tier: str | None = None
        self.speed: str | None = None
        self.geo: str | None = None
        self.finish: tuple[str, ...] = ()

    def read(self, payload: Any) -> bool:
        """Take everything that a whole response, or a chunk that may carry facts, states; say if usage was in it."""
        endpoint = self.endpoint
        found = False
        for path, prefix in places(endpoint):
            if found and not prefix:
                continue  # the usage block has been found: the other places are other hosts'
            block = dig(payload, path)
            if block is None:
                continue
            if flatten(block, self.counts, prefix):
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
        return found

    def read_whole(self, payload: Any) -> None:
        """Take a whole response: its facts, and the length of its text."""
        self.read(payload)
        self.complete = True
        if self.measured:
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


Glance = Callable[[Facts, Any], None]
"""Looks at one stream chunk. A chunk that carries only text costs a fraction of a microsecond."""


@lru_cache(maxsize=256)
def glance(endpoint: Endpoint) -> Glance:
    """The look at each chunk of this endpoint's streams, built once."""
    return _events(endpoint) if endpoint.shape == "events" else _choices(endpoint)


def _choices(endpoint: Endpoint) -> Glance:
    """Chunks without a type: a chunk of text has choices, no finish reason and no usage."""
    text = attrgetter(endpoint.deltas.get("", "delta.content"))

    def look(facts: Facts, chunk: Any) -> None:
        facts.chunks += 1
        try:
            choice = chunk.choices[0]
            if choice.finish_reason is None and chunk.usage is None and facts.named:
                found = text(choice)  # `utf8_length`, inline: this is done for every chunk
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


def _events(endpoint: Endpoint) -> Glance:
    """Chunks with a type: only those of certain types carry facts."""
    texts = {kind: attrgetter(path) for kind, path in endpoint.deltas.items()}
    facts_on, final_on = endpoint.facts_on, endpoint.final_on

    def look(facts: Facts, chunk: Any) -> None:
        facts.chunks += 1
        try:
            kind = chunk.type
            text = texts.get(kind)
            if text is not None:
                found = text(chunk)
                facts.text_bytes += len(found) if found.isascii() else len(found.encode("utf-8", "surrogatepass"))
                return
            if kind not in facts_on:
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

    return look
