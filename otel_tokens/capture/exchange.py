"""One call's request as it goes out and its result as it comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from typing import Any

from otel_tokens.capture.failure import answer_in, may_be_billed, was_sent
from otel_tokens.capture.foreign import foreign_span
from otel_tokens.capture.request import (
    Options,
    Refusal,
    ask_for_usage,
    refusal_of_option,
    unask,
    usage_option,
    with_ours,
)
from otel_tokens.capture.stream import attach, read_held
from otel_tokens.lifecycle.active import ActiveCall
from otel_tokens.safely import interruption, report_fault, safely
from otel_tokens.usage.read import get
from otel_tokens.values import Reservation

Arguments = tuple[Any, ...]
Keywords = Mapping[str, Any]


class Exchange:
    """One call's request as it goes out and its result as it comes back."""

    __slots__ = ("active", "args", "client", "keywords", "native", "refusal", "result", "sending")
    options_at = 1
    """Where the options stand among the positional arguments."""

    def __init__(self, active: ActiveCall, client: Any, args: Arguments, keywords: Keywords) -> None:
        self.active = active
        self.client = client
        self.args = args
        self.keywords = keywords
        self.native = False
        self.sending = False
        self.refusal: Refusal | None = None
        self.result: Any = None

    def _own_options(self) -> Options:
        """The options to change: copies, as the caller may send what they gave once more."""
        made = copy(options_of(self.args, self.keywords, self.options_at))
        if "options" in self.keywords:
            self.keywords = {**self.keywords, "options": made}
        else:
            at = self.options_at
            self.args = (*self.args[:at], made, *self.args[at + 1 :])
        return made

    def ask_for_usage(self, body: Mapping[str, Any]) -> None:
        """Ask for usage on a stream, unless this host is known to refuse the option."""
        active = self.active
        call = active.call
        wanted = usage_option(body)
        if wanted is not None and (call.server_address, call.server_port) not in active.engine.no_usage_option:
            ask_for_usage(self._own_options(), wanted)
            active.asked = active.hide_usage = True

    def begin(self) -> None:
        """Change the request as the guard decided, make the call current, with the span it will have."""
        self.apply()
        self.active.enter(safely("foreign span", self.foreign_span), native=self.native)
        self.sending = True

    def foreign_span(self) -> Any:
        """The span that another instrumentation has started for this call, or None."""
        return foreign_span(self.active.engine.foreign == "own")

    def apply(self) -> None:
        """Put what the guard decided (another model, a smaller bound, a time cap) into the request."""
        reservation = self.active.reservation
        if reservation is not None and (reservation.model or reservation.max_output or reservation.timeout):
            safely("apply reservation", self._apply, reservation)

    def _apply(self, reservation: Reservation) -> None:
        active, options = self.active, self._own_options()
        changed: dict[str, Any] = {}
        if reservation.model:
            changed["model"] = reservation.model
        if reservation.max_output:
            names = active.endpoint.max_output
            body = active.body or {}
            changed[next((name for name in names if name in body), names[0])] = reservation.max_output
        if changed:
            place = "extra_json" if options.extra_json and set(changed) & set(options.extra_json) else "json_data"
            setattr(options, place, {**getattr(options, place), **changed})
        if reservation.timeout is not None:
            given = _seconds(getattr(options, "timeout", None))
            if given is None:
                given = _seconds(getattr(self.client, "timeout", None))
            if given is None or given > reservation.timeout:
                options.timeout = reservation.timeout

    def again(self, error: Exception) -> bool:
        """Whether to send once more because the host may have refused the option that we added.

        A host whose answer does not name the option is asked again only while it has never sent usage on request.
        """
        active, call = self.active, self.active.call
        refusal = safely("refusal", refusal_of_option, error) if active.hide_usage else None
        if refusal is None or (
            refusal == "perhaps" and (call.server_address, call.server_port) in active.engine.usage_option
        ):
            return False
        unask(options_of(self.args, self.keywords, self.options_at))
        active.asked = active.hide_usage = False
        active.attempts += 1
        self.refusal = refusal
        if refusal == "named":
            self._remember_refusal()
        return True

    def _remember_refusal(self) -> None:
        call = self.active.call
        self.active.engine.no_usage_option.add((call.server_address, call.server_port))

    def failed(self, error: BaseException) -> None:
        """End the call after an exception: of the SDK, or of a signal handler of the program anywhere in between."""
        active = self.active
        active.leave()
        if active.ended:
            return
        active.sent = self.sending and safely("sent", self._was_sent, error) is not False
        if active.sent:
            active.unbilled = not self.answered() and safely("billed", self._may_be_billed, error) is False
            safely("answer of a failed call", self._read_answer, error)
        active.fail(error)

    def _was_sent(self, error: BaseException) -> bool:
        if isinstance(error, Exception) and interruption(error) is None:
            return True  # every error of the SDK is recorded
        if isinstance(error, GeneratorExit):
            return True  # a closed coroutine: its traceback does not reach into the HTTP client
        return self.answered() or self.active.attempts > 1 or was_sent(error)

    def _may_be_billed(self, error: BaseException) -> bool:
        return self.active.risky or may_be_billed(error)

    def _read_answer(self, error: BaseException) -> None:
        """Read the usage of an answer that came, though the SDK or the program could not use it."""
        if self.active.facts.complete:
            return
        result = self.answer() if self.answered() else answer_in(error)
        response = response_of(result)
        if response is not None:
            result = json_of(response) if response.is_closed else None
        if result is not None:
            self.active.see(result)

    def returned(self) -> None:
        """The SDK has answered: read a whole response now, or follow the body until it ends."""
        active = self.active
        active.leave()
        active.sent = True
        if self.refusal is not None:
            self._remember_refusal()
        try:
            self._returned(self.answer())
        except Exception as error:
            if interruption(error) is None:
                active.end("ok")  # a strange result ends the call all the same
            report_fault("returned", error)

    def answer(self) -> Any:
        """What the SDK has answered with."""
        return self.result

    def answered(self) -> bool:
        """Whether it has, with success."""
        return self.result is not None

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


def options_of(args: Arguments, keywords: Keywords, at: int = 1) -> Options:
    """The options among the arguments of an SDK's request function: `at` is their position."""
    return keywords["options"] if "options" in keywords else args[at]


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
    """The JSON in a response's body; None if it is none, is nested too deeply, or has not been read."""
    try:
        return json.loads(response.content)
    except (ValueError, RuntimeError):
        return None
