"""The documentation, read: its pages, their blocks of code, the commands and links that they show."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"^```(?P<words>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code; `words` are those after the language, `output` the block of that kind which follows it."""

    page: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str
    output: str | None = None

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Page:
    """One page of the documentation."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def text(self) -> str:
        return self.path.read_text("utf-8")

    def blocks(self) -> Iterator[Block]:
        found = list(_FENCE.finditer(self.text))
        for at, match in enumerate(found):
            language, *words = match["words"].split() or [""]
            following = found[at + 1] if at + 1 < len(found) else None
            shown = following is not None and following["words"].split() == ["text", "output"]
            yield Block(
                self.name,
                self.text.count("\n", 0, match.start()) + 1,
                language,
                tuple(words),
                match["text"],
                following["text"] if shown and following is not None else None,
            )

    def prose(self) -> str:
        """The page without its blocks of code."""
        return _FENCE.sub("", self.text)

    def anchors(self) -> set[str]:
        """What `#…` may name, by GitHub's rules."""
        plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in _HEADING.findall(self.prose()))
        return {title.strip().replace(" ", "-") for title in plain}

    def links(self) -> list[str]:
        return _LINK.findall(self.prose())

    def commands(self) -> Iterator[str]:
        """Every `otel-tokens …` that the page shows, in blocks and within sentences."""
        for block in self.blocks():
            if block.language == "sh":
                yield from (line for line in block.text.splitlines() if "otel-tokens" in line)
        yield from (text for text in _INLINE.findall(self.prose()) if text.startswith("otel-tokens "))


def _words(line: str) -> Iterator[list[str]]:
    """The arguments of each `otel-tokens` in a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    part: list[str] = []
    for word in [*lexer, "|"]:
        if word[0] in "|&;<>":
            while part and "=" in part[0]:  # variables before the command
                part.pop(0)
            if part and part[0] == "otel-tokens":
                yield part[1:]
            part = []
        else:
            part.append(word)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises by what the pages hold."""
    pages = [Page(path) for path in PAGES]
    blocks = [block for page in pages for block in page.blocks()]
    given: dict[str, list[tuple[str, Any]]] = {
        "page": [(page.name, page) for page in pages],
        "python_block": [(b.id, b) for b in blocks if b.language == "python"],
        "yaml_block": [(b.id, b) for b in blocks if b.language == "yaml" and not b.words],
        "command": [
            (" ".join(words), words)
            for line in dict.fromkeys(line for page in pages for line in page.commands())
            for words in _words(line)
        ],
    }
    for name, values in given.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, [value for _, value in values], ids=[title for title, _ in values])


@pytest.fixture(scope="session")
def pages() -> dict[str, Page]:
    """All pages by name."""
    return {page.name: page for page in map(Page, PAGES)}


@pytest.fixture(scope="session")
def generator() -> ModuleType:
    """docs/generate.py."""
    folder = str(ROOT / "docs")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("docs_generate", f"{folder}/generate.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module
