"""The entry point `otel_tokens` of `opentelemetry-instrument`. Apart, as its base class loads a lot."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # pyright: ignore[reportMissingTypeStubs]

from otel_tokens.instrument import instrument, uninstrument


class OtelTokensInstrumentor(BaseInstrumentor):
    """The entry point `otel_tokens` of `opentelemetry-instrument`; keywords are those of `instrument()`."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Nothing: an SDK is patched when, and if, it is imported."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        kwargs.pop("skip_dep_check", None)
        instrument(**kwargs)

    def _uninstrument(self, **kwargs: Any) -> None:
        uninstrument()
