"""The state of budgets as gauge points: limit, used, and the used share, under labels from the allow-list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from opentelemetry.metrics import Observation

from otel_tokens import conventions as names

MAX_POINTS = 1900
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


def budget_points(rows: Iterable[BudgetRow], allowed: tuple[str, ...]) -> dict[str, list[Observation]]:
    """Points per gauge name. Scopes that fall together under the allowed labels show the fullest one.

    A budget per session would be a series per session: without the label, the one nearest to its limit matters.
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
    worst_first = sorted(fullest.items(), key=lambda item: -item[1][0])[:MAX_POINTS]
    for labels_found, (ratio, row) in worst_first:
        attributes = dict(labels_found)
        points.setdefault(names.BUDGET_USAGE_RATIO.name, []).append(Observation(ratio, attributes))
        if row.unit in _UNITS:
            limit_name, used_name = _UNITS[row.unit]
            points.setdefault(limit_name, []).append(Observation(float(row.limit), attributes))
            points.setdefault(used_name, []).append(Observation(float(row.used), attributes))
    return points
