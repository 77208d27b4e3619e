"""A call that waits for budget: for a rate limit to free some, or paused until a person decides. Always bounded."""

from __future__ import annotations

import contextlib
import time

from otel_tokens.guard.drive import SLEEP, Story
from otel_tokens.guard.line import Line
from otel_tokens.guard.refusal import Spot
from otel_tokens.guard.room import Room
from otel_tokens.guard.steering import Steering
from otel_tokens.guard.store.base import Balance, Slot, StoreError
from otel_tokens.values import Call

_SHORTEST = 0.001
_LONGEST = 0.5


class Waiting:
    """The waits of one call; they share one deadline, set when the first begins."""

    def __init__(self, room: Room, call: Call, steering: Steering) -> None:
        self._room = room
        self._call = call
        self._steering = steering
        self._deadline: float | None = None
        self._started = 0.0
        self._paused: tuple[Line, Slot, Balance] | None = None
        self.why = ""

    @property
    def began(self) -> bool:
        """Whether the call has waited at all."""
        return self._deadline is not None

    def before(self, cause: tuple[Line, Slot, Balance] | None) -> Story[bool]:
        """Pause at a threshold below 100 %. True when the call may go on; raises when the pause ran out."""
        if cause is None:
            return True
        line, slot, balance = cause
        now = self._room.store.now()
        if (yield from self.more(line, slot, balance, 0, now)):
            return False
        if not line.hard:
            self._steering.give_up_pausing()
            return True
        raise self._room.refuse(Spot(line, slot, balance), 0, call=self._call, now=now, why=self.why)

    def more(self, line: Line, slot: Slot, balance: Balance, retry_at: int, now: int) -> Story[bool]:
        """Wait a little for `line`; False if it does not wait, or has waited long enough."""
        pauses = line.pause_at <= 1000
        seconds = line.pause_seconds if pauses else line.wait_seconds
        if seconds <= 0:
            return False
        clock = time.monotonic()
        if self._deadline is None:
            self._started, self._deadline = clock, clock + seconds
            if pauses:
                yield from self._pause(line, slot, balance, now, seconds)
        if clock >= self._deadline:
            review = yield from self._review_until(slot)
            if review <= now:
                self.why = f"waited {clock - self._started:.0f} s in vain: "
                return False
            self._deadline = clock + (review - now) / 1000
        nap = min(self._room.store.poll_seconds, self._deadline - clock)
        if retry_at > now and not pauses:
            # Others may give back before the window does, so not the whole way in one go.
            nap = min(max(nap, min((retry_at - now) / 1000, _LONGEST)), self._deadline - clock)
        yield (SLEEP, max(_SHORTEST, nap))
        return True

    def _pause(self, line: Line, slot: Slot, balance: Balance, now: int, seconds: float) -> Story[None]:
        """Tell that the call waits for a person: in the store, to telemetry, to the application."""
        room = self._room
        self._paused = (line, slot, balance)
        event = room.tell(
            "pause", line, slot, balance, call=self._call, now=now, detail=f"waiting up to {seconds:g} s for budget"
        )
        if room.options.on_pause is not None:
            room.actions.call(room.options.on_pause, event)
        with contextlib.suppress(StoreError):  # nobody elsewhere sees the pause, that is all
            yield ("mark_paused", slot, now + int(seconds * 1000))

    def _review_until(self, slot: Slot) -> Story[int]:
        try:
            rows = yield ("rows", slot.budget, slot.scope)
        except StoreError:
            return 0
        return max((row.review_until for row in rows), default=0)

    def over(self, now: int) -> None:
        """Say that a paused call goes on."""
        if self._paused is not None:
            line, slot, balance = self._paused
            waited = f"after {time.monotonic() - self._started:.1f} s"
            self._room.tell("resume", line, slot, balance, call=self._call, now=now, detail=waited)
