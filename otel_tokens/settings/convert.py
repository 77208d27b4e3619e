"""Which converter reads which kind of setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from otel_tokens.settings import scalars, sections
from otel_tokens.settings.given import Given
from otel_tokens.settings.schema import Kind, Setting

_CONVERTERS: dict[Kind, Callable[[Setting, Given], Any]] = {
    "bool": scalars.to_bool,
    "int": scalars.to_int,
    "float": scalars.to_float,
    "bytes": scalars.to_bytes,
    "text": scalars.to_text,
    "choice": scalars.to_choice,
    "names": scalars.to_names,
    "aliases": scalars.to_aliases,
    "percents": scalars.to_percents,
    "path": scalars.to_path,
    "ledger": scalars.to_ledger,
    "store": scalars.to_store,
    "endpoint": scalars.to_endpoint,
    "hosts": sections.to_hosts,
    "entries": sections.to_entries,
    "entry": sections.to_entry,
}


def convert(setting: Setting, given: Given) -> Any:
    """The value of `setting`. Raises `Wrong`."""
    return _CONVERTERS[setting.kind](setting, given)
