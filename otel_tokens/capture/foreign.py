"""Spans of other instrumentations: found, adopted, and never doubled.

`coexist`: their span stays and gets our attributes. An SDK's own span ends before our call does, so it is handed
out inside `AdoptedSpan`, which ends it when both have finished.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from opentelemetry import trace
from opentelemetry.trace import Span, SpanContext, Status, StatusCode
from opentelemetry.util.types import Attributes, AttributeValue

from otel_tokens.capture.takeoff import take_off
from otel_tokens.conventions import OPERATION
from otel_tokens.shapes import is_mapping

logger = logging.getLogger("otel_tokens")

OF_SDKS = re.compile(
    r"((opentelemetry\.instrumentation\.(genai\.)?|openinference\.instrumentation\.|logfire\.)"
    r"(openai|anthropic)(_v\d+)?|opentelemetry\.util\.genai|openlit)(\.|$)"
)
"""Scope names of others that instrument our SDKs: the span that is current in a call is the call's."""
SDK_SCOPE = "com.anthropic.sdk.python"
"""Scope name of the spans that an SDK makes itself; a platform's name may follow it."""
RELATED = ("opentelemetry.instrumentation.", "openinference.instrumentation.", "logfire.")
"""Prefixes of scope names of frameworks: their span belongs to a call only if its attributes name a call."""
CALLS = frozenset({"chat", "text_completion", "embeddings", "generate_content", "completion", "LLM", "EMBEDDING"})
KINDS = (OPERATION, "openinference.span.kind")
"""The attributes that name the kind of a span."""


_taken: WeakSet[Any] = WeakSet()
_stays: set[str] = set()


def foreign_span(own: bool = False, also: str | None = None) -> Span | None:
    """The current span, if another LLM instrumentation has just opened it for this call. Given out once.

    `own`: its instrumentor was switched on after us; it is taken off, and this is its last call. `also`: the beginning
    of a scope name whose spans count as well.
    """
    span: Any = trace.get_current_span()
    name = getattr(getattr(span, "instrumentation_scope", None), "name", None)
    if not isinstance(name, str) or not span.is_recording() or span in _taken:
        return None
    if not _is_calls(name, span) and not (also is not None and name.startswith(also)):
        return None
    _taken.add(span)
    if own and name not in _stays and OF_SDKS.match(name):
        _take_off(name)
    return span


def _take_off(scope: str) -> None:
    taken = take_off()
    if taken:
        logger.info("took %s off: spans are ours to make (foreign: own)", ", ".join(taken))
    else:
        _stays.add(scope)
        logger.warning("%s could not be taken off: its spans stay, with ours on them (foreign: own)", scope)


def _is_calls(scope: str, span: Any) -> bool:
    """Whether a span of this scope is that of an LLM call, not that of an agent, a chain or the application."""
    of_sdk = OF_SDKS.match(scope) is not None
    if not of_sdk and not scope.startswith(RELATED):
        return False
    attributes: Any = getattr(span, "attributes", None)
    kinds = [attributes[name] for name in KINDS if name in attributes] if is_mapping(attributes) else []
    return any(kind in CALLS for kind in kinds) if kinds else of_sdk


class AdoptedSpan(Span):
    """An SDK's own span, on which the SDK and this library both write. Ends when both have ended.

    `end` is the SDK's end, `release` ours; whichever is last ends the real span, at the SDK's time.
    """

    def __init__(self, inner: Span) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._writers = {"sdk", "ours"}
        self._end_time: int | None = None

    def _done(self, writer: str) -> None:
        with self._lock:
            self._writers.discard(writer)
            last = not self._writers and self._inner.is_recording()
        if last:
            self._inner.end(self._end_time)

    def end(self, end_time: int | None = None) -> None:
        """The SDK is done with the span."""
        if self._end_time is None:
            self._end_time = end_time or time.time_ns()
        self._done("sdk")

    def release(self) -> None:
        """We are done with the span. A second time it does nothing."""
        self._done("ours")

    def get_span_context(self) -> SpanContext:
        """The real span's context."""
        return self._inner.get_span_context()

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set on the real span."""
        self._inner.set_attributes(attributes)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set on the real span."""
        self._inner.set_attribute(key, value)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Add to the real span."""
        self._inner.add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Add to the real span."""
        self._inner.add_link(context, attributes)

    def update_name(self, name: str) -> None:
        """Rename the real span."""
        self._inner.update_name(name)

    def is_recording(self) -> bool:
        """Whether the real span records."""
        return self._inner.is_recording()

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set on the real span."""
        self._inner.set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Record on the real span."""
        self._inner.record_exception(exception, attributes, timestamp, escaped)

    def __getattr__(self, name: str) -> Any:
        """What only the real span has: name, attributes, instrumentation_scope …"""
        return getattr(self._inner, name)
