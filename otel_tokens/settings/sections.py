"""Converters of the sections of a file: hosts, and those that other rooms read (prices, budgets, guard)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from otel_tokens.settings.entry import Entry, Path
from otel_tokens.settings.given import Given, Wrong, each, nearest, shown
from otel_tokens.settings.scalars import to_bool, to_text
from otel_tokens.settings.schema import HostRow, Setting

_HOST = re.compile(r"(\*\.)?([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_PROVIDER = re.compile(r"[a-z0-9][a-z0-9._-]*")


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(key): item for key, item in cast("Mapping[Any, Any]", value).items()}
    raise Wrong(f"{shown(value)} is not {what}")


def to_hosts(setting: Setting, given: Given) -> tuple[HostRow, ...]:
    """The rows of `hosts:`."""

    def host(item: Any) -> HostRow:
        if isinstance(item, HostRow):
            return item
        values = _mapping(item, "a mapping such as {match: llm.example.com, provider: openai}")
        parts: dict[str, Any] = {}
        wrong: list[tuple[Path, str]] = []
        for key, value in values.items():
            try:
                if key not in _HOST_KEYS:
                    raise Wrong(
                        f"is not known; allowed: {', '.join(_HOST_KEYS)}{nearest(key.lower(), tuple(_HOST_KEYS))}"
                    )
                if value is not None:
                    parts[key] = _HOST_KEYS[key](setting, Given(Entry(value, "")))
            except Wrong as error:
                wrong.append(((key,), error.items[0][1]))
        if "match" not in values:
            wrong.append(((), "`match` is missing: the host, as in {match: llm.example.com, provider: openai}"))
        elif not wrong and not {"provider", "free", "include_usage"} & values.keys():
            wrong.append(((), "says nothing about the host; add provider, free or include_usage"))
        if wrong:
            raise Wrong(items=tuple(wrong))
        return HostRow(**parts)

    rows: Any = given.value
    if not isinstance(rows, (list, tuple)):
        raise Wrong("is not a list; begin each host with '- match: …'")
    return tuple(each(list(cast("list[Any]", rows)), host))


def _host_match(setting: Setting, given: Given) -> str:
    text = to_text(setting, given).lower().rstrip(".")
    if not _HOST.fullmatch(text):
        raise Wrong(f"{shown(given.value)} is not a host; write llm.example.com, *.example.com or localhost:8000")
    return text


def _host_path(setting: Setting, given: Given) -> str:
    return "/" + to_text(setting, given).strip("/")


def _host_provider(setting: Setting, given: Given) -> str:
    text = to_text(setting, given)
    if not _PROVIDER.fullmatch(text):
        raise Wrong(f"{shown(text)} is not a provider's name; write it as openai, azure.ai.openai, my_vendor")
    return text


_HOST_KEYS: dict[str, Callable[[Setting, Given], Any]] = {
    "match": _host_match,
    "provider": _host_provider,
    "path": _host_path,
    "free": to_bool,
    "include_usage": to_bool,
}


def to_entries(_: Setting, given: Given) -> tuple[Entry, ...]:
    """The entries of a list, raw, each with its lines."""
    from_python = not given.entry.lines  # Python may give objects of ours too; a file gives mappings
    value: Any = given.value
    if not isinstance(value, (list, tuple)):
        raise Wrong("is not a list; begin each entry with '- '")
    items = list(cast("list[Any]", value))
    for index, item in enumerate(items):
        if not from_python and not isinstance(item, dict):
            raise Wrong(f"{shown(item)} is not a mapping of keys and values", at=(index,))
    entry = given.entry
    return tuple(Entry(item, entry.file, (*entry.path, index), entry.lines) for index, item in enumerate(items))


def to_entry(_: Setting, given: Given) -> Entry:
    """A mapping, raw, with its lines."""
    entry = given.entry
    return Entry(_mapping(given.value, "a mapping of keys and values"), entry.file, entry.path, entry.lines)
