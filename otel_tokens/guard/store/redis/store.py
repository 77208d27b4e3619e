"""The Redis store: one Lua script, so one round trip, for each operation."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from otel_tokens.forks import at_fork
from otel_tokens.guard.store.base import (
    LIMIT_CHANGES,
    Admission,
    Balance,
    Booking,
    Change,
    Row,
    Slot,
    Store,
    StoreError,
)
from otel_tokens.guard.store.redis.address import Address
from otel_tokens.guard.store.redis.connections import ThreadConnections
from otel_tokens.guard.store.redis.event_loop import LoopConnection
from otel_tokens.guard.store.redis.protocol import (
    PAGE,
    Request,
    Requests,
    admission_of,
    balances_of,
    bookings_of,
    numbers_of,
    row_of,
)

T = TypeVar("T")
Steps = Generator[Request, Any, T]
"""An operation of several requests, written once: it yields requests and is sent their answers."""


# Connections of loops, in a forked child. Collected there, they would tell the selector, which parent and child
# share, not to watch them any more: the parent would never hear an answer again.
_of_the_parent: list[object] = []


class RedisStore(Store):
    """Budgets at a Redis URL; `timeout` (seconds) bounds every request, connecting included.

    All keys begin with "{prefix}", one hash tag, since one admission is atomic over any budgets: on a cluster all
    budgets of a prefix live on one node. Stores with different prefixes know nothing of each other. The clock is
    the server's. Amounts above 2^53 are compared with a relative error of 1e-16. The server must not evict keys
    (maxmemory-policy noeviction), and what it loses in a crash the budgets have lost.
    """

    direct = False
    poll_seconds = 0.25

    def __init__(self, url: str, *, timeout: float = 0.5, prefix: str = "otel-tokens") -> None:
        self._timeout = timeout
        self._address = Address(url, timeout)
        self._requests = Requests(prefix)
        self._connections = ThreadConnections(self._address, timeout)
        self._no_loops()
        self._clock_offset_ms: float | None = None
        at_fork(self)

    def now(self) -> int:
        """Unix milliseconds by the server's clock as last heard; by this host's before the first answer."""
        ahead = self._clock_offset_ms
        return int(time.time() * 1000 if ahead is None else time.monotonic() * 1000 + ahead)

    def admit(
        self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int, critical: str = ""
    ) -> Admission:
        """Reserve on all `slots` or none."""
        return self._admission(self._connections.ask(self._requests.admit(key, slots, amounts, ttl_ms, critical)))

    async def aadmit(
        self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int, critical: str = ""
    ) -> Admission:
        """`admit` for event loops."""
        return self._admission(
            await self._of_this_loop().ask(self._requests.admit(key, slots, amounts, ttl_ms, critical))
        )

    def settle(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking]:
        """Give back the reservation, book the actual amounts."""
        return self._bookings(self._connections.ask(self._requests.settle(key, slots, amounts)))

    async def asettle(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking]:
        """`settle` for event loops."""
        return self._bookings(await self._of_this_loop().ask(self._requests.settle(key, slots, amounts)))

    def renew(self, keys: Sequence[str], ttl_ms: int) -> None:
        """Extend living reservations, revive expired ones."""
        for first in range(0, len(keys), PAGE):
            self._numbers(self._connections.ask(self._requests.renew(keys[first : first + PAGE], ttl_ms)))

    def read(self, slots: Sequence[Slot]) -> Sequence[Balance]:
        """The balances of `slots` now."""
        return balances_of(self._numbers(self._connections.ask(self._requests.read(slots))))

    async def aread(self, slots: Sequence[Slot]) -> Sequence[Balance]:
        """`read` for event loops."""
        return balances_of(self._numbers(await self._of_this_loop().ask(self._requests.read(slots))))

    def rows(self, budget: str | None = None, scope: str | None = None, limit: int = 1000) -> list[Row]:
        """Living accounts, sorted by budget, scope and unit; one request per page of accounts."""
        return self._run(self._rows(budget, scope, limit))

    async def arows(self, budget: str | None = None, scope: str | None = None, limit: int = 1000) -> list[Row]:
        """`rows` for event loops."""
        return await self._arun(self._rows(budget, scope, limit))

    def change(
        self, budget: str, op: Change, *, unit: str | None = None, scope: str | None = None, amount: int = 0
    ) -> int:
        """Change running accounts; one request per page of them, each atomic."""
        return self._run(self._change(budget, op, unit, scope, amount))

    async def achange(
        self, budget: str, op: Change, *, unit: str | None = None, scope: str | None = None, amount: int = 0
    ) -> int:
        """`change` for event loops."""
        return await self._arun(self._change(budget, op, unit, scope, amount))

    def close(self) -> None:
        """Close the connections of threads. Those of event loops close with `aclose` or with their loop."""
        self._connections.close()

    async def aclose(self) -> None:
        """Close the connections of threads and of the running loop."""
        self.close()
        with self._loops_lock:
            connections = self._loops.pop(asyncio.get_running_loop(), None)
        if connections is not None:
            await connections.close()

    def before_fork(self) -> None:
        """Nothing to bring to rest."""

    def after_fork(self, *, child: bool) -> None:
        """In the child: connections are made anew."""
        if child:
            self._connections.forked()
            _of_the_parent.append(self._loops)
            self._no_loops()

    def _no_loops(self) -> None:
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopConnection] = WeakKeyDictionary()
        self._loops_lock = threading.Lock()

    def _of_this_loop(self) -> LoopConnection:
        """The connections of the running loop."""
        loop = asyncio.get_running_loop()
        connections = self._loops.get(loop)
        if connections is None:
            with self._loops_lock:
                for closed in [other for other in self._loops if other.is_closed()]:
                    self._loops.pop(closed, None)
                forget = partial(self._loops.pop, loop, None)
                connections = self._loops[loop] = LoopConnection(self._address, self._timeout, forget)
        return connections

    def _set_clock(self, now: int) -> None:
        self._clock_offset_ms = now - time.monotonic() * 1000

    def _numbers(self, answer: Any) -> list[int]:
        numbers = numbers_of(answer)
        self._set_clock(numbers[0])
        return numbers

    def _admission(self, answer: Any) -> Admission:
        admission = admission_of(numbers_of(answer))
        self._set_clock(admission.now)
        return admission

    def _bookings(self, answer: Any) -> Sequence[Booking]:
        return () if answer is None else bookings_of(self._numbers(answer))

    def _rows(self, budget: str | None, scope: str | None, limit: int) -> Steps[list[Row]]:
        rows: list[Row] = []
        after = ""
        while len(rows) < limit:
            _, following, *texts = yield self._requests.rows(budget, scope, after)
            rows.extend(row_of(text) for text in texts)
            after = following.decode("utf-8", "surrogatepass")
            if not after:
                break
        return rows[:limit]

    def _change(self, budget: str, op: Change, unit: str | None, scope: str | None, amount: int) -> Steps[int]:
        if unit is None and op in LIMIT_CHANGES:
            raise ValueError(f"{op} needs a unit")
        count = 0
        after = ""
        while True:
            try:
                _, following, changed = yield self._requests.change(budget, op, unit, amount, scope, after)
            except StoreError as error:
                if count:
                    raise StoreError(f"{error} ({op} of {budget} was done on {count} accounts before)") from error
                raise
            count += int(changed)
            after = following.decode("utf-8", "surrogatepass")
            if not after:
                return count

    def _run(self, steps: Steps[T]) -> T:
        try:
            request = next(steps)
            while True:
                try:
                    answer = self._connections.ask(request)
                except StoreError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(answer)
        except StopIteration as end:
            return end.value

    async def _arun(self, steps: Steps[T]) -> T:
        connections = self._of_this_loop()
        try:
            request = next(steps)
            while True:
                try:
                    answer = await connections.ask(request)
                except StoreError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(answer)
        except StopIteration as end:
            return end.value
