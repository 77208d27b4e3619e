"""The story of one call, written once for sync and async: the only room that knows the order of the others.

open → (guard.admit) → the SDK runs → see each response or chunk → end: normalise, price, record, sinks, settle.
The capture room drives it; everything with state is injected by the composition root.
"""

from __future__ import annotations

from otel_tokens.lifecycle.active import ActiveCall, current
from otel_tokens.lifecycle.engine import Engine, Sink

__all__ = ["ActiveCall", "Engine", "Sink", "current"]
