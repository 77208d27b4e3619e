"""Finds out from the exception of a failed request whether it was sent, answered, and possibly billed."""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType
from typing import Any

from otel_tokens.safely import causes

HTTP_CLIENTS = ("httpx", "httpx2")
TRANSPORT = ("handle_request", "handle_async_request")
"""The methods by which HTTP clients hand a request to the network."""
GATEWAY_TIMEOUTS = frozenset({408, 504, 524})
"""A gateway stopped waiting: the provider may go on working, and bill."""
NOT_SENT = frozenset(
    {
        "ConnectError",
        "ConnectTimeout",
        "InvalidURL",
        "LocalProtocolError",
        "PoolTimeout",
        "ProxyError",
        "UnsupportedProtocol",
        "WriteError",
        "WriteTimeout",
    }
)
"""Exceptions of HTTP clients after which the server has not received the whole request."""


def was_sent(error: BaseException) -> bool:
    """Whether the HTTP client had begun to send the request, when `error` was raised."""
    return (
        any(frame.f_code.co_name in TRANSPORT for frame in _frames(error))
        or any(_status(cause) is not None for cause in causes(error))
        or answer_in(error) is not None
    )


def may_be_billed(error: BaseException) -> bool:
    """Whether the provider may bill a request that failed with `error`."""
    for cause in causes(error):
        status = _status(cause)
        if status is not None:
            return 200 <= status < 300 or status in GATEWAY_TIMEOUTS
        if any(kind.__name__ in NOT_SENT for kind in type(cause).__mro__):
            return False
    return was_sent(error)


def _status(error: BaseException) -> int | None:
    """The HTTP status of the answer that an SDK's or an HTTP client's exception reports, or None."""
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def answer_in(error: BaseException) -> Any:
    """The HTTP response of a request that was answered with success and failed afterwards, or None.

    Found among the local variables of the functions that the exception passed through: the exceptions of a parser, of a
    validator or of the program's own hook do not carry it.
    """
    for frame in _frames(error):
        for value in frame.f_locals.values():
            if _is_response(value) and value.is_success:
                return value
    return None


def _is_response(value: Any) -> bool:
    kinds = type(value).__mro__
    return any(kind.__name__ == "Response" and kind.__module__.partition(".")[0] in HTTP_CLIENTS for kind in kinds)


def _frames(error: BaseException) -> Iterator[FrameType]:
    for cause in causes(error):
        trace = cause.__traceback__
        while trace is not None:
            yield trace.tb_frame
            trace = trace.tb_next
