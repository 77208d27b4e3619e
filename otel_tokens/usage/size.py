"""How large a request is: the bytes of its text, and the most tokens that a provider can make of it.

A tokenizer works on bytes, so a text never has more tokens than bytes. How many bytes it joins is learned
(`usage.estimate`). Images, files and sounds count as the largest that the providers charge for.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from otel_tokens.providers.spec import Endpoint
from otel_tokens.shapes import is_list, is_mapping
from otel_tokens.usage.paths import NOT_TEXT, dig, fields_of, utf8_length

IMAGE_TOKENS: tuple[tuple[str, int], ...] = (
    # The largest image, by the vendors' pages on vision as of 2026-11. The first pattern that fits wins.
    ("*gpt-4o-mini*", 48_200),  # 2,833 and 5,667 for each of 8 tiles
    ("*", 5_000),  # 4,784 (newest Claude models), 2,500 patches (OpenAI's high detail)
)
ORIGINAL_IMAGE = 12_000
"""OpenAI's detail "original": 10,000 patches, and what they are multiplied by."""
FILE_TOKENS = 5_000
"""A file given by id or address has no size here; one given whole counts a token for each 4 characters beside."""
SOUND_TOKENS = 100
"""The least for a sound. 10 tokens a second: even at 8 kbit/s more than 100 characters of base64 for each."""
TOOLS_TOKENS, BUILT_IN_TOKENS = 600, 1_000
"""Tokens that a provider adds for tools at all (Claude 3 Opus: 530), and for each tool that it defines itself
(Anthropic's computer use: 735)."""
SEARCHES = 5
"""Searches of a request that sets no limit on them."""
SEARCHING = ("web_search", "x_search", "file_search", "collections_search")
"""Tools that cost a fee for each search; of all of them the web's is the dearest."""

_IMAGES = frozenset({"image", "image_url", "input_image", "computer_screenshot"})
_FILES = frozenset({"document", "file", "input_file", "container_upload"})
_LOWER = string.ascii_lowercase.encode()
_DEPTH = 60
_ENTRY, _ITEM = 3, 2
"""Tokens around an entry of a mapping and an item of a list: quotes, colon, comma; the frame of a message."""


@dataclass(slots=True, eq=False, repr=False)
class Size:
    """What was found in a request. `structure` and `extra` (images, files, sounds, what the provider remembers) are
    tokens; `hosted`: the provider adds input that the request does not show, such as results of its tools, a stored
    conversation, the pages of a file.
    `cache` is the field of `Usage` that the dearest marked cache write goes to. `texts` are counted as `text_bytes`,
    `names` (keys, types, roles) are not. Nothing is copied.
    """

    model: str = ""
    text_bytes: int = 0
    structure: int = 0
    extra: int = 0
    searches: int = 0
    hosted: bool = False
    audio: bool = False
    cache: str | None = None
    texts: list[str] = field(default_factory=list[str])
    names: list[str] = field(default_factory=list[str])
    _weight: tuple[int, int] | None = None

    def weigh(self) -> tuple[int, int]:
        """(bytes that may be a token each, bytes that are joined: lower-case letters in words) of all text."""
        if self._weight is None:
            data = "".join(self.texts + self.names).encode("utf-8", "surrogatepass")
            letters = len(data) - len(data.translate(None, _LOWER))
            # A space belongs to the word behind it, but between digits it stands alone.
            light = letters + min(data.count(b" "), letters // 2)
            self._weight = len(data) - light, light
        return self._weight


def measure(endpoint: Endpoint, body: Mapping[str, Any], model: str) -> Size:
    """The size of a request. Reads lengths and kinds; keeps references to its texts, and no more."""
    size = Size(model)
    ids = endpoint.operation != "chat"
    for key in endpoint.input:
        value = body.get(key)
        if value is not None:
            _walk(value, size, 0, ids=ids)
    _mark(body.get("cache_control"), size)
    if "tools" in body:
        _tools(body, size)
    if is_mapping(body.get("prompt")):
        size.hosted = True  # a prompt that is stored there; only its variables can be seen
    if body.get("web_search_options") is not None:
        size.hosted, size.searches = True, size.searches + 1
    audio = body.get("modalities")
    size.audio = size.audio or (is_list(audio) and "audio" in audio)
    return size


def _tools(body: Mapping[str, Any], size: Size) -> None:
    tools = body["tools"]
    for number, tool in enumerate(tools if is_list(tools) else ()):
        kind = dig(tool, "type")
        size.structure += TOOLS_TOKENS if number == 0 else 0
        if isinstance(kind, str) and kind not in ("function", "custom"):
            size.hosted = True
            size.structure += BUILT_IN_TOKENS
            if kind.startswith(SEARCHING):
                size.searches += _count(dig(tool, "max_uses")) or _count(body.get("max_tool_calls")) or SEARCHES


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _walk(value: Any, size: Size, depth: int, *, text: bool = True, ids: bool = False) -> None:
    if isinstance(value, str):
        (size.texts if text else size.names).append(value)
        size.text_bytes += utf8_length(value) if text else 0
    elif type(value) is dict:
        if "type" not in value or not _media(value, size):  # pyright: ignore[reportUnknownArgumentType]
            _walk_fields(value, size, depth, text=text)  # pyright: ignore[reportUnknownArgumentType]
    elif value is None or isinstance(value, bool):
        size.structure += 1
    elif isinstance(value, (int, float)):
        size.structure += len(str(value)) // 2 + 1
    elif depth > _DEPTH:
        return
    elif is_list(value):
        if ids and value and type(value[0]) is int:
            size.structure += len(value)  # token ids: OpenAI's embeddings and completions take them for text
            return
        size.structure += _ITEM * len(value)
        for item in value:
            _walk(item, size, depth + 1, text=text, ids=ids)
    else:
        found = fields_of(value)
        if found is not None:
            _walk(dict(found), size, depth + 1, text=text, ids=ids)


def _walk_fields(found: Mapping[str, Any], size: Size, depth: int, *, text: bool) -> None:
    if depth > _DEPTH:
        return
    size.structure += _ENTRY * len(found)
    texts, names = size.texts, size.names
    for name, item in found.items():
        if name == "cache_control":
            _mark(item, size)
            continue
        names.append(str(name))
        plain = text and name not in NOT_TEXT
        if type(item) is not str:
            _walk(item, size, depth + 1, text=plain)
        elif plain:  # as in `_walk`, inline: most fields are texts
            texts.append(item)
            size.text_bytes += utf8_length(item)
        else:
            names.append(item)


def _media(found: Mapping[str, Any], size: Size) -> bool:
    """Count an image, a sound or a file by its kind; False for anything else."""
    kind = found.get("type")
    if not isinstance(kind, str):
        return False
    if kind in _IMAGES:
        detail = found.get("detail") or dig(found, "image_url.detail")
        most = next(most for pattern, most in IMAGE_TOKENS if fnmatchcase(size.model, pattern))
        size.extra += max(most, ORIGINAL_IMAGE) if detail == "original" else most
    elif kind == "input_audio":
        size.audio = True
        size.extra += SOUND_TOKENS + len(str(dig(found, "input_audio.data") or "")) // 100
    elif kind in _FILES:
        _file(found, size)
    else:
        return False
    _mark(found.get("cache_control"), size)
    return True


def _file(found: Mapping[str, Any], size: Size) -> None:
    source = found.get("source")
    if dig(source, "type") in ("text", "content"):
        _walk(dig(source, "data"), size, 0)
        _walk(dig(source, "content"), size, 0)
        _walk([found.get("title"), found.get("context")], size, 0)
        return
    size.hosted = True  # the number of its pages is known only from the report
    data = dig(source, "data") or found.get("file_data") or dig(found, "file.file_data")
    size.extra += FILE_TOKENS + (len(data) // 4 if isinstance(data, str) else 0)


def _mark(control: Any, size: Size) -> None:
    if is_mapping(control):
        hour = control.get("ttl") == "1h" or size.cache == "cache_write_1h"
        size.cache = "cache_write_1h" if hour else "cache_write_5m"
