"""Raw counts of one call: taken from its usage blocks, and merged when a stream reports several times."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from otel_tokens.shapes import is_list
from otel_tokens.usage.paths import fields_of

Counts = dict[str, Any]
"""Raw numbers by dotted path inside the usage block; lists are kept whole."""

MAX_DEPTH = 5

OWN_KEY = "is_byok"
"""The one true/false field of a usage block that changes the price: the caller's own key at the provider behind."""

_INPUT_SIDE = ("input", "prompt", "cache", "num_cached")
_OUTPUT_SIDE = ("output", "completion")
_SPLIT_OF = {"cache_creation_input_tokens": "cache_creation."}
"""A total and the start of the keys that split it, where the split does not stand below the total."""


def flatten(block: Any, into: Counts, prefix: str = "", depth: int = 0) -> bool:
    """Add a usage block's fields to `into` by dotted path; return whether it was a block at all."""
    found = fields_of(block)
    if found is None or depth > MAX_DEPTH:
        return False
    for name, value in found.items():
        if value is None:
            continue
        key = prefix + name if prefix else name
        # Nearly all are plain integers. The other checks take four times as long.
        if type(value) is int or (isinstance(value, (int, float, str, Decimal)) and not isinstance(value, bool)):
            into[key] = value
        elif isinstance(value, bool):
            if value and name == OWN_KEY:
                into[key] = 1
        elif is_list(value):
            if value:
                into[key] = value
        else:
            flatten(value, into, f"{key}.", depth + 1)
    return True


def merge(fresh: Counts, into: Counts) -> None:
    """Add a later report of the same call to `into`.

    Providers repeat cumulative numbers, so a later number replaces an earlier one. A 0 replaces a positive number only
    in a real report: one that states some input. A report of output alone states the zeros of its output; its zeros of
    the input are a placeholder, and so is a block of zeros throughout.
    """
    given = any(key.startswith(_INPUT_SIDE) and _positive(value) for key, value in fresh.items())
    made = any(key.startswith(_OUTPUT_SIDE) and _positive(value) for key, value in fresh.items())
    stated = (*(_INPUT_SIDE if given else ()), *(_OUTPUT_SIDE if given or made else ()))
    for total, split in _SPLIT_OF.items():
        if given and total in fresh and fresh[total] != into.get(total):
            for key in [key for key in into if key.startswith(split) and key not in fresh]:
                del into[key]  # it split the earlier total
    for key, value in fresh.items():
        if value or not into.get(key) or key.startswith(stated):
            into[key] = value


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and value > 0


def impossible(counts: Counts) -> bool:
    """Whether some count is negative."""
    return any(type(value) is int and value < 0 for value in counts.values())
