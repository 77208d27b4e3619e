"""Meter every LLM call of an application: exact tokens and money as spans, metrics and a ledger, and a guard.

The names below are the whole public face; each works without the others.
"""

from __future__ import annotations

from otel_tokens.context import tags
from otel_tokens.errors import BudgetExceededError, ConfigError, OtelTokensError
from otel_tokens.guard.budget import Budget
from otel_tokens.guard.guard import Guard
from otel_tokens.instrument import (
    OtelTokensInstrumentor,
    guard,
    instrument,
    normalise,
    price,
    report,
    uninstrument,
)
from otel_tokens.pricing.processor import PricingProcessor
from otel_tokens.reports.report import Report
from otel_tokens.values import Cost, Record, Usage

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
