"""Find a model in one price list of genai-prices by its own rules of matching, without its siblings.

genai-prices says which names are a model's by clauses: equals, starts with, contains … An open-ended clause also
takes the names of siblings (`gemini-1.5-flash-8b` starts with `gemini-1.5-flash`, at twice its price), so what is
left of the name beside the clause must be address, date or version (`names.is_same_model`).
"""

from __future__ import annotations

import re
from typing import Any

from otel_tokens.pricing.names import is_same_model


class PriceList:
    """The models of one price list, indexed by their names. `source` is genai-prices' Provider."""

    def __init__(self, source: Any) -> None:
        self.id: str = source.id
        self.urls: tuple[str, ...] = tuple(source.pricing_urls or ())
        self.fallbacks: tuple[str, ...] = tuple(source.fallback_model_providers or ())
        self.exact: dict[str, Any] = {}
        self._open: list[tuple[Any, Any, Any]] = []  # clause, the whole it must hold with, model
        for model in source.models:
            self._index(model.match, None, model)

    def _index(self, clause: Any, whole: Any, model: Any) -> None:
        kind = type(clause).__name__
        if kind == "ClauseOr":
            for part in clause.or_:
                self._index(part, whole, model)
        elif kind == "ClauseAnd":
            for part in clause.and_:
                self._index(part, whole or clause, model)
        elif kind == "ClauseEquals" and whole is None:
            self.exact.setdefault(clause.equals.lower(), model)
        else:
            self._open.append((clause, whole, model))

    def find(self, name: str) -> Any | None:
        """The model (a genai-prices ModelInfo) of this lower-case name, or None."""
        found = self.exact.get(name)
        if found is not None:
            return found
        longest = 0
        for clause, whole, model in self._open:
            start, end = _span(clause, name)
            if end - start > longest and is_same_model(name, start, end) and (whole is None or whole.is_match(name)):
                longest, found = end - start, model
        return found

    def known_names(self) -> list[str]:
        """Names that this list knows, for suggestions."""
        return [*self.exact, *(text for clause, _, _ in self._open if (text := _literal(clause)))]


def _literal(clause: Any) -> str:
    for name in ("equals", "starts_with", "contains", "ends_with"):
        text = getattr(clause, name, None)
        if isinstance(text, str):
            return text.lower()
    return ""


def _span(clause: Any, name: str) -> tuple[int, int]:
    """The part of `name` that the clause matches; (0, 0) if it does not match."""
    kind = type(clause).__name__
    if kind == "ClauseRegex":
        match = re.search(clause.regex, name)
        return match.span() if match else (0, 0)
    text = _literal(clause)
    if kind == "ClauseEquals":
        start = 0 if name == text else -1
    elif kind == "ClauseStartsWith":
        start = 0 if name.startswith(text) else -1
    elif kind == "ClauseEndsWith":
        start = len(name) - len(text) if name.endswith(text) else -1
    else:
        start = name.find(text)
    return (start, start + len(text)) if start >= 0 and text else (0, 0)
