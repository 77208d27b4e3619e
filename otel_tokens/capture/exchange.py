"""One call's request as it goes out and its result as it comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from typing import Any

from otel_tokens.capture.foreign import foreign_span
from otel_tokens.capture.request import Options, ask_for_usage, rejects_usage_option, unask, usage_option, with_ours
from otel_tokens.capture.stream import attach, read_held
from otel_tokens.lifecycle import ActiveCall
from otel_tokens.safely import report_fault, safely
from otel_tokens.usage.read import get
from otel_tokens.values import Reservation

Arguments = tuple[Any, ...]
Keywords = Mapping[str, Any]


class Exchange:
    """One call's request as it goes out and its result as it comes back."""

    __slots__ = ("active", "args", "client", "keywords", "native")

    def __init__(self, active: ActiveCall, client: Any, args: Arguments, keywords: Keywords) -> None:
        self.active = active
        self.client = client
        self.args = args
        self.keywords = keywords
        self.native = False

    def _own_options(self) -> Options:
        """The options to change: copies, as the caller may send what they gave once more."""
        made = copy(options_of(self.args, self.keywords))
        if "options" in self.keywords:
            self.keywords = {**self.keywords, "options": made}
        else:
            self.args = (self.args[0], made, *self.args[2:])
        return made

    def ask_for_usage(self, body: Mapping[str, Any]) -> None:
        """Ask for usage on a stream, unless this host is known to refuse the option."""
        active = self.active
        call = active.call
        wanted = usage_option(body)
        if wanted is not None and (call.server_address, call.server_port) not in active.engine.no_usage_option:
            ask_for_usage(self._own_options(), wanted)
            active.hide_usage = True

    def enter(self) -> None:
        """Make the call current, with the span it will have."""
        found = safely("foreign span", foreign_span, self.active.engine.foreign == "own")
        self.active.enter(found, native=self.native)

    def apply(self) -> None:
        """Put what the guard decided (another model, a smaller bound, a time cap) into the request."""
        lease = self.active.lease
        if lease is not None and (lease.model or lease.max_output or lease.timeout):
            safely("apply lease", self._apply, lease)

    def _apply(self, lease: Reservation) -> None:
        active, options = self.active, self._own_options()
        changed: dict[str, Any] = {}
        if lease.model:
            changed["model"] = lease.model
        if lease.max_output:
            names = active.endpoint.max_output
            body = active.body or {}
            changed[next((name for name in names if name in body), names[0])] = lease.max_output
        if changed:
            place = "extra_json" if options.extra_json and set(changed) & set(options.extra_json) else "json_data"
            setattr(options, place, {**getattr(options, place), **changed})
        if lease.timeout is not None:
            given = _seconds(getattr(options, "timeout", None))
            if given is None:
                given = _seconds(getattr(self.client, "timeout", None))
            if given is None or given > lease.timeout:
                options.timeout = lease.timeout

    def again(self, error: BaseException) -> bool:
        """Whether to send once more because the host refused the option we had added; remembers the host."""
        if not self.active.hide_usage or not safely("rejection", rejects_usage_option, error):
            return False
        active, call = self.active, self.active.call
        unask(options_of(self.args, self.keywords))
        active.hide_usage = False
        active.attempts += 1
        active.engine.no_usage_option.add((call.server_address, call.server_port))
        return True

    def returned(self, result: Any) -> None:
        """The SDK has answered: take a whole response now, or follow the body until it ends."""
        try:
            self._returned(result)
        except Exception as error:  # the wall: a strange result still ends the call
            self.active.end("ok")
            report_fault("returned", error)

    def _returned(self, result: Any) -> None:
        active = self.active
        if active.ended:
            return
        response = response_of(result)
        if response is None:
            self._whole(result)
        elif not response.is_closed or self.keywords.get("stream"):
            sent = get(result, "_options")
            if active.hide_usage and sent is not None and not with_ours(sent):
                active.hide_usage = False  # a client's own hook has asked, after us
            if response.is_closed and get(result, "response") is None:
                read_held(response, active)
            else:  # a stream's closed response holds its events in memory: they are still to be parsed
                active.engine.worker.ensure()
                attach(response, active)
        else:
            self._whole(json_of(response))

    def _whole(self, payload: Any) -> None:
        active = self.active
        active.see(payload)
        background = active.endpoint.background
        if background is None or not (active.body or {}).get(background) or not active.park():
            active.end("ok")


def options_of(args: Arguments, keywords: Keywords) -> Options:
    """What an SDK's request function was told to send."""
    return keywords["options"] if "options" in keywords else args[1]


def _seconds(timeout: Any) -> float | None:
    """A timeout in seconds: a number, or an HTTP client's Timeout, whose read timeout counts; None if it is neither."""
    if isinstance(timeout, (int, float)):
        return float(timeout)
    read = getattr(timeout, "read", None)
    return float(read) if isinstance(read, (int, float)) else None


def response_of(result: Any) -> Any:
    """The HTTP response behind a raw response, a stream or a binary result; None for a parsed model.

    Read from the objects' own dicts: asking a pydantic model for what it lacks takes microseconds.
    """
    if get(result, "extensions") is not None and get(result, "_request") is not None:
        return result
    found = get(result, "http_response")
    if found is None:
        found = get(result, "response")
    return found if get(found, "extensions") is not None and hasattr(found, "is_closed") else None


def json_of(response: Any) -> Any:
    """The JSON in a response's body, which has been read; None if it is none."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None
