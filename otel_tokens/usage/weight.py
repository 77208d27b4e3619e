"""How many tokens a request may be, before it is sent: from the bytes of its texts, or counted where a tokenizer is
at hand. Nothing of the texts is kept.

A token of any current tokenizer is at least one byte of UTF-8. Measured on two of OpenAI's, natural text of any
script has at most one token in two bytes, signs and digits at most one in one; random strings and rare scripts come
up to 1.5 times the bound made of that. What passes its bound is learned (`estimate.Estimator.upper`).
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any, NamedTuple

from otel_tokens.shapes import is_list, is_mapping
from otel_tokens.usage.read import NOT_TEXT, fields_of, get

Count = Callable[[str], int]

BLOCK_TOKENS = 8
"""Tokens that frame a message, a part of one or a tool: role, separators, type."""
BASE_TOKENS = 16
MEDIA_TOKENS = {"image": 5000, "image_url": 5000, "input_image": 5000}
"""An image at the size to which providers scale it. Those that charge more for some models are learned."""
FILE_TOKENS = 5000
FILES = frozenset({"document", "file", "input_file", "input_audio", "audio", "video", "video_url"})
"""Parts whose tokens depend on what is inside: pages, minutes."""

_LETTERS = string.ascii_letters.encode()
_ASCII = bytes(range(128))


class Weight(NamedTuple):
    """`tokens` a request should not pass; `counted` by a tokenizer, or bounded by its bytes."""

    tokens: int
    counted: bool = False


def weigh(parts: list[Any], count: Count | None = None) -> Weight:
    """The weight of the parts of a request that become input (messages, tools …). `count` counts a text's tokens."""
    return Weight(round(BASE_TOKENS + _weight(parts, count or text_bound, 0)), count is not None)


def text_bound(text: str) -> float:
    """Tokens that a text should not pass, by the kinds of its bytes."""
    data = text.encode("utf-8", "surrogatepass")
    signs = len(data.translate(None, _LETTERS))  # all that is no letter of ASCII
    high = 0 if text.isascii() else len(data.translate(None, _ASCII))
    return (len(data) - signs) * 0.5 + (signs - high) + high * 2 / 3


def _weight(value: Any, count: Callable[[str], float], depth: int) -> float:
    if isinstance(value, str):
        return count(value)
    if value is None or isinstance(value, (int, float)) or depth > 12:
        return 0
    if is_list(value):
        return sum([_weight(item, count, depth + 1) for item in value])
    found = fields_of(value)
    if found is None:
        return 0
    kind = get(found, "type")
    framed = BLOCK_TOKENS + (media_tokens(kind) if isinstance(kind, str) else 0)
    return framed + sum([_weight(item, count, depth + 1) for name, item in found.items() if name not in NOT_TEXT])


def media_tokens(kind: str) -> int:
    """The tokens to reckon with for a part of this type beside its text."""
    return FILE_TOKENS if kind in FILES else MEDIA_TOKENS.get(kind, 0)


def cache_lifetime(value: Any, depth: int = 0) -> str | None:
    """The `Usage` field that this request's input may be written to a cache as: the dearest it asks for, or None."""
    if depth > 8:
        return None
    if is_mapping(value):
        control = value.get("cache_control")
        if is_mapping(control):
            return "cache_write_1h" if control.get("ttl") == "1h" else "cache_write_5m"
        value = tuple(value.values())
    if not is_list(value):
        return None
    found = {cache_lifetime(item, depth + 1) for item in value}
    return "cache_write_1h" if "cache_write_1h" in found else "cache_write_5m" if "cache_write_5m" in found else None
