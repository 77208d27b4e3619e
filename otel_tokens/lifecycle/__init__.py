"""The lifecycle of one call, for sync and async callers.

open → (guard.admit) → the SDK sends → read each response or chunk → end: normalise, price, record, sinks, settle.
The capture package calls it. Prices, spans, sinks and the guard are passed in by the composition root.
"""

from __future__ import annotations

from otel_tokens.lifecycle.active import ActiveCall, current
from otel_tokens.lifecycle.engine import Engine, Sink

__all__ = ["ActiveCall", "Engine", "Sink", "current"]
