"""Clients with middleware: each HTTP exchange is a call, as middleware may send twice, or answer from a cache."""

from __future__ import annotations

from typing import Any

from otel_tokens.capture.exchange import Exchange
from otel_tokens.capture.foreign import SDK_SCOPE, foreign_span
from otel_tokens.safely import interruption


def has_middleware(client: Any) -> bool:
    """Whether a client's requests go through middleware, in an SDK whose single attempts are patched."""
    return bool(getattr(client, "middleware", None)) and hasattr(client, "_attempt_request")


class Attempt(Exchange):
    """One attempt of a client with middleware: `_attempt_request(options, …)` returns (response, options)."""

    __slots__ = ()
    options_at = 0

    def foreign_span(self) -> Any:
        """The SDK's span of the whole request for its first attempt; further attempts have spans of their own."""
        return foreign_span(self.active.engine.foreign == "own", also=SDK_SCOPE)

    def answer(self) -> Any:
        """The response."""
        return self.result[0]

    def answered(self) -> bool:
        """Whether it is there, and is no error."""
        return self.result is not None and self.answer().is_success

    def returned(self) -> None:
        """Read the response. One that reports an error is returned as well: the SDK raises it later."""
        try:
            self.answer().raise_for_status()
        except Exception as error:
            if interruption(error) is not None:
                raise
            self.failed(error)
        else:
            super().returned()
