"""YAML with line numbers: every value keeps the line it stands on, numbers keep their digits, and all mistakes
of a file are found at once.

Scalars are read by YAML 1.2's core schema, because 1.1 turns `12:30` into 750 and `no` into false. Dates stay
text.
"""

from __future__ import annotations

import re
from decimal import Decimal
from importlib import import_module
from pathlib import Path as FilePath
from typing import Any

from otel_tokens.errors import ConfigError
from otel_tokens.settings.entry import Entry, Path

MAX_BYTES = 8_000_000
MAX_NODES = 500_000  # aliases can make a small file build a huge value
MAX_COLUMNS, MAX_BRACKETS = 1_000, 1_000  # above these nesting could overflow the C parser's stack

_TAG = "tag:yaml.org,2002:"
_MERGE = "<<"
_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_LINE_END = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")


def read_yaml(path: str | FilePath, *, shown: str | None = None) -> Entry:
    """The content of a YAML (or JSON) file; an empty file gives None as its value.

    `shown` is the file's name in messages. Raises one `ConfigError` that reports every problem of the file.
    """
    entry, problems = parse_file(path, shown=shown)
    if problems:
        raise ConfigError.combined(problems)
    return entry


def parse_file(path: str | FilePath, *, shown: str | None = None) -> tuple[Entry, list[ConfigError]]:
    """As `read_yaml`, but duplicate keys and the like come back as a list; an unreadable file still raises."""
    name = str(path) if shown is None else shown
    return parse_text(_read(FilePath(path), name), name)


def parse_text(text: str, name: str) -> tuple[Entry, list[ConfigError]]:
    """The value of a YAML text, and its problems. Raises `ConfigError` when the text is not YAML at all."""
    builder = _Builder(name)
    root = _compose(text, name)
    try:
        value = None if root is None else builder.build(root, ())
    except RecursionError:
        raise ConfigError("is nested too deeply", where=name) from None
    return Entry(value, name, (), builder.lines), builder.problems


def _read(path: FilePath, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError("there is no such file", where=name) from None
    except IsADirectoryError:
        raise ConfigError("is a directory; give the path of a YAML file", where=name) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot be read: {reason}", where=name) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"is larger than {MAX_BYTES // 1_000_000} MB; that is no configuration file", where=name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"is not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8", where=f"{name}:{line}"
        ) from None


def _compose(text: str, name: str) -> Any:
    # Imported here, because most processes have no configuration file and it takes tens of milliseconds.
    yaml: Any = import_module("yaml")
    loader: Any = getattr(yaml, "CBaseLoader", None)
    if loader is not None and _flat(text):
        try:
            return yaml.compose(text, Loader=loader)
        except yaml.YAMLError:
            pass  # the Python parser says it better
    try:
        return yaml.compose(text, Loader=yaml.BaseLoader)
    except RecursionError:
        raise ConfigError("is nested too deeply", where=name) from None
    except yaml.reader.ReaderError as error:
        line = len(_LINE_END.findall(text[: error.position])) + 1
        raise ConfigError(
            f"has a control character (0x{ord(text[error.position]):02x})", where=f"{name}:{line}"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = name if mark is None else f"{name}:{mark.line + 1}"
        raise ConfigError(_explained(error.problem or error.context or "is not YAML"), where=where) from None


def _flat(text: str) -> bool:
    """Whether the C parser, which has no limit of depth, can be trusted with `text`."""
    brackets = text.count("[") + text.count("{")
    return brackets <= MAX_BRACKETS and all(len(line) <= MAX_COLUMNS for line in text.splitlines())


def _explained(problem: str) -> str:
    if r"'\t'" in problem or "tab" in problem:
        return "a tab cannot indent; use spaces"
    if "but found another document" in problem:
        return "a second document begins here; only one is allowed"
    return f"is not valid YAML: {problem}"


class _Builder:
    """Turns YAML nodes into plain values, noting lines and problems."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Path, int] = {}
        self.problems: list[ConfigError] = []
        self._built = 0
        self._open: set[int] = set()  # nodes we are inside of: an alias to one of them has no end

    def build(self, node: Any, path: Path) -> Any:
        """The plain value of `node`, which stands at `path`."""
        self._built += 1
        if self._built > MAX_NODES:
            raise ConfigError("its aliases unfold to too many values", where=self.name)
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node.id == "scalar":
            return self._scalar(node, path)
        if id(node) in self._open:
            self._wrong(node, path, "an alias must not contain itself")
            return None
        self._check_tag(node, path, "map" if node.id == "mapping" else "seq")
        self._open.add(id(node))
        try:
            if node.id == "mapping":
                return self._mapping(node, path)
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: Any, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[Any] = []
        for key_node, value_node in node.value:
            if key_node.id != "scalar":
                self._wrong(key_node, path, "a key must be plain text")
            elif key_node.value == _MERGE and not key_node.style:
                merged.append(value_node)
            elif key_node.value in result:
                first = self.lines[(*path, key_node.value)]
                self._wrong(key_node, (*path, key_node.value), f"is given twice (first on line {first})")
            else:
                below = (*path, key_node.value)
                self.lines.setdefault(below, key_node.start_mark.line + 1)
                result[key_node.value] = self.build(value_node, below)
        for value_node in merged:
            self._merge(value_node, path, result)
        return result

    def _merge(self, node: Any, path: Path, into: dict[str, Any]) -> None:
        for part in node.value if node.id == "sequence" else [node]:
            if part.id != "mapping":
                self._wrong(part, path, "`<<` takes a mapping, or a list of them")
                continue
            values: dict[str, Any] = self.build(part, path) or {}
            for key, value in values.items():
                into.setdefault(key, value)

    def _scalar(self, node: Any, path: Path) -> Any:
        text: str = node.value
        known = self._check_tag(node, path, "str", "int", "float", "bool", "null")
        if node.style and known in (None, "str"):
            return text
        return plain(text)

    def _check_tag(self, node: Any, path: Path, *allowed: str) -> str | None:
        tag: str = node.tag
        short = tag.removeprefix(_TAG)
        if short in allowed and tag != short:
            return short
        if tag != "!":
            self._wrong(node, path, f"the tag {tag} is not supported")
        return None

    def _wrong(self, node: Any, path: Path, message: str) -> None:
        at = Entry(None, f"{self.name}:{node.start_mark.line + 1}", path)
        self.problems.append(at.error(message))


def plain(text: str) -> Any:
    """The value of an unquoted scalar: None, bool, int, Decimal (all digits kept) or the text itself."""
    word = text.lower() if text in (text.lower(), text.upper(), text.capitalize()) else text
    if word in _WORDS:
        return _WORDS[word]
    if len(text) <= 100:  # a number that long is none, and reading it takes quadratic time
        if _INT.fullmatch(text):
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        if _FLOAT.fullmatch(text):
            return Decimal(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
