"""A value out of a configuration file that still knows where it stands, so that later errors can say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias, cast

from otel_tokens.errors import ConfigError

Path: TypeAlias = tuple[str | int, ...]
"""Mapping keys and list positions, from the top of the file (or of an entry) down to a value."""

NO_LINES: Mapping[Path, int] = MappingProxyType({})


def dotted(path: Path) -> str:
    """`("hosts", 0, "match")` as people write it: `hosts[0].match`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


@dataclass(frozen=True, slots=True)
class Entry:
    """A raw configuration value: plain dict, list, str, int, Decimal, bool or None, as YAML 1.2 reads it.

    `file` is the file's name as the user gave it, or "keyword" for values given in Python; `path` is where in
    the file the value stands; `lines` has the 1-based line of every path of the file.
    """

    value: Any
    file: str
    path: Path = ()
    lines: Mapping[Path, int] = field(default_factory=lambda: NO_LINES, repr=False, compare=False)

    def where(self, *steps: str | int) -> str:
        """Place of the value `steps` below this one, or of its nearest parent: "otel-tokens.yaml:12"."""
        path = self.path + steps
        while path and path not in self.lines:
            path = path[:-1]
        line = self.lines.get(path)
        return self.file if line is None else f"{self.file}:{line}"

    def error(self, message: str, *steps: str | int) -> ConfigError:
        """A `ConfigError` about the value `steps` below this one, with file, line and key."""
        return ConfigError(message, where=self.where(*steps), key=dotted(self.path + steps) or None)

    def child(self, step: str | int) -> Entry:
        """The entry one step below. Raises KeyError or IndexError when there is none."""
        return Entry(self.value[step], self.file, (*self.path, step), self.lines)

    def children(self) -> Iterator[Entry]:
        """The entries one step below: a list's items or a mapping's values; none for a plain value."""
        value: object = self.value
        steps: list[Any] = []
        if isinstance(value, dict):
            steps = list(cast("dict[str, Any]", value))
        elif isinstance(value, list):
            steps = list(range(len(cast("list[Any]", value))))
        return (self.child(step) for step in steps)
