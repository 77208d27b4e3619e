"""A bound on labels: per label a number of values, per metric a number of label sets; the rest is `__other__`.

A counter must never forget a series (it would restart from 0), so nothing is evicted: what comes too late is
added to one common series instead, and the sums stay right.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from otel_tokens import conventions as names

Labels = tuple[tuple[str, Any], ...]
"""The attributes of a series as pairs, without those that have no value."""

KEPT = frozenset(
    {
        names.OPERATION,
        names.OUTCOME,
        names.COST_SOURCE,
        names.PRICING_STATUS,
        names.REASON,
        names.TOKEN_TYPE,
        names.BUDGET_DECISION,
    }
)
"""Labels with a closed list of values: never folded."""


class Cap:
    """Folds label values beyond `limit` per label."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._values: dict[str, set[Any]] = {}

    def labels(self, pairs: Iterable[tuple[str, Any]]) -> Labels:
        """`pairs` without the empty ones, each value counted against its label's limit."""
        return tuple((name, self._value(name, value)) for name, value in pairs if value is not None and value != "")

    def _value(self, name: str, value: Any) -> Any:
        if name in KEPT:
            return value
        seen = self._values.setdefault(name, set())
        if value not in seen:
            if len(seen) >= self.limit:
                return names.OTHER_LABEL
            seen.add(value)
        return value


def folded(labels: Labels) -> Labels:
    """The common series of a metric that has too many: every open label becomes `__other__`."""
    return tuple((name, value if name in KEPT else names.OTHER_LABEL) for name, value in labels)
