"""The entry point `otel_tokens` of `opentelemetry-instrument`. Apart, as its base class loads a lot."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # pyright: ignore[reportMissingTypeStubs]

from otel_tokens.cli.launch.child import join_run
from otel_tokens.errors import ConfigError
from otel_tokens.instrument import instrument, uninstrument
from otel_tokens.safely import logger


class OtelTokensInstrumentor(BaseInstrumentor):
    """The entry point `otel_tokens` of `opentelemetry-instrument`; keywords are those of `instrument()`."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Nothing: an SDK is patched when, and if, it is imported."""
        return ()

    def instrument(self, **kwargs: Any) -> None:
        """As `otel_tokens.instrument()`. Under the launcher, a wrong setting is one line and nothing is metered."""
        try:
            super().instrument(**kwargs)  # pyright: ignore[reportUnknownMemberType]
        except ConfigError as error:
            if not kwargs.get("skip_dep_check"):  # the launcher's mark
                raise
            # The launcher would print a traceback and give up on all further instrumentors.
            for problem in error.problems or (error,):
                logger.error("otel_tokens is off: %s", problem)

    def _instrument(self, **kwargs: Any) -> None:
        if not join_run(kwargs):
            instrument(**kwargs)

    def _uninstrument(self, **kwargs: Any) -> None:
        uninstrument()
