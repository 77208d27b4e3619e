"""Reading by dotted path out of SDK objects, dicts and parsed JSON alike, and the length of their text.

SDKs do not validate responses: any field may be missing, None, or of another type. Nothing here raises for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from otel_tokens.shapes import is_list, is_mapping


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
    """The value at the dotted `path`, or None."""
    if "." not in path:  # most paths: takes half the time of the loop
        return get(value, path)
    for name in _split(path):
        if value is None:
            return None
        value = get(value, name)
    return value


@lru_cache(maxsize=1024)
def _around_star(path: str) -> tuple[str, bool, str]:
    """The parts of a path before and after its first "*", and whether it has one."""
    names = path.split(".")
    if "*" not in names:
        return path, False, ""
    at = names.index("*")
    return ".".join(names[:at]), True, ".".join(names[at + 1 :])


def dig_all(value: Any, path: str) -> list[Any]:
    """The values at `path`, in which "*" stands for every item of a list. Values of None are left out."""
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
    """The value at the first of `paths` that has one, or None."""
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


def utf8_length(text: str) -> int:
    """The bytes of a text in UTF-8. They predict its tokens better than its characters do."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def length(value: Any, depth: int = 0) -> int:
    """The bytes of text in a value: of strings in dicts, lists and SDK objects. It keeps no text.

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
