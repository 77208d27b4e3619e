"""The state of budgets as gauge points: limit, used, and the used share, under labels from the allow-list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from opentelemetry.metrics import Observation

from otel_tokens import conventions as names

_UNITS = {
    "USD": (names.BUDGET_COST_LIMIT.name, names.BUDGET_COST_USED.name),
    "token": (names.BUDGET_TOKEN_LIMIT.name, names.BUDGET_TOKEN_USED.name),
}
_SCOPES = {"provider": names.PROVIDER, "model": names.REQUEST_MODEL}
"""Scopes whose values are few by nature; any other scope is a tag and must be allowed."""


class BudgetRow(NamedTuple):
    """One budget in one scope. `scope` maps tag names (or "provider", "model") to values; `unit` is "USD", "token"
    or another one; `limit` and `used` are in that unit."""

    name: str
    scope: Mapping[str, str]
    unit: str
    limit: Any
    used: Any


def budget_points(rows: Iterable[BudgetRow], allowed: tuple[str, ...], limit: int) -> dict[str, list[Observation]]:
    """Points by gauge name. Each label but the budget's name has at most `limit` values: those of the fullest scopes.

    Only allowed tags are labels. Of scopes with the same labels the fullest is shown. What is over the limit is left
    out, as shares of different scopes cannot be added up.
    """
    fullest: dict[tuple[tuple[str, str], ...], tuple[float, BudgetRow]] = {}
    for row in rows:
        labels = [(names.BUDGET_NAME, row.name)]
        for key, value in row.scope.items():
            if key in _SCOPES:
                labels.append((_SCOPES[key], value))
            elif key in allowed:
                labels.append((names.tag_attribute(key), value))
        ratio = float(row.used) / float(row.limit) if row.limit > 0 else 1.0
        found = tuple(sorted(labels))
        if found not in fullest or ratio > fullest[found][0]:
            fullest[found] = (ratio, row)
    points: dict[str, list[Observation]] = {}
    values: dict[str, set[str]] = {}
    for labels_found, (ratio, row) in sorted(fullest.items(), key=lambda item: -item[1][0]):
        if not _has_room(labels_found, values, limit):
            continue
        attributes = dict(labels_found)
        points.setdefault(names.BUDGET_USAGE_RATIO.name, []).append(Observation(ratio, attributes))
        if row.unit in _UNITS:
            limit_name, used_name = _UNITS[row.unit]
            points.setdefault(limit_name, []).append(Observation(float(row.limit), attributes))
            points.setdefault(used_name, []).append(Observation(float(row.used), attributes))
    return points


def _has_room(labels: Iterable[tuple[str, str]], values: dict[str, set[str]], limit: int) -> bool:
    """Whether every label may have its value; if so, the values are added to `values`."""
    open_labels = [(values.setdefault(name, set()), value) for name, value in labels if name != names.BUDGET_NAME]
    if any(value not in seen and len(seen) >= limit for seen, value in open_labels):
        return False
    for seen, value in open_labels:
        seen.add(value)
    return True
