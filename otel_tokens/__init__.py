"""Meter every LLM call of an application: exact tokens and money as spans, metrics and a ledger, and a guard.

The names below are the whole public face; each works without the others. Those with a room of their own behind
them are loaded when first used, so that `import otel_tokens` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Two functions bear the names of a room and a module: those are imported first, so that the functions stay.
import otel_tokens.guard  # pyright: ignore[reportUnusedImport]
import otel_tokens.instrument  # noqa: F401  # pyright: ignore[reportUnusedImport]
from otel_tokens.context import tags
from otel_tokens.errors import BudgetExceededError, ConfigError, OtelTokensError
from otel_tokens.instrument import (
    guard,
    instrument,
    normalise,
    price,
    report,
    uninstrument,
)
from otel_tokens.values import Cost, Record, Usage

if TYPE_CHECKING:
    from otel_tokens.guard.budgets.budget import Budget
    from otel_tokens.guard.guard import Guard
    from otel_tokens.instrumentor import OtelTokensInstrumentor
    from otel_tokens.pricing.processor import PricingProcessor
    from otel_tokens.reports.report import Report

__all__ = [
    "Budget",
    "BudgetExceededError",
    "ConfigError",
    "Cost",
    "Guard",
    "OtelTokensError",
    "OtelTokensInstrumentor",
    "PricingProcessor",
    "Record",
    "Report",
    "Usage",
    "guard",
    "instrument",
    "normalise",
    "price",
    "report",
    "tags",
    "uninstrument",
]

_LATE = {
    "Budget": "guard.budgets.budget",
    "Guard": "guard.guard",
    "OtelTokensInstrumentor": "instrumentor",
    "PricingProcessor": "pricing.processor",
    "Report": "reports.report",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
