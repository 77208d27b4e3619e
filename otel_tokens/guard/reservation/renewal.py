"""The background thread of the guard: renews reservations of running calls, and settles on remote stores."""

from __future__ import annotations

import logging
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from otel_tokens.guard.reservation.reservation import ActiveReservation
from otel_tokens.guard.store.base import Booking, Slot, Store, StoreError
from otel_tokens.guard.store.local.store import LocalStore
from otel_tokens.safely import report_fault, safely

logger = logging.getLogger("otel_tokens")

Booked = Callable[[Sequence[Booking]], object]
Job = tuple[str, Sequence[Slot], Sequence[int], Booked | None]
_RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)


class Renewer:
    """Renews reservations, and settles what could not be settled at once. One daemon thread, started when needed."""

    def __init__(self, store: Store, lease_seconds: float, capacity: int) -> None:
        self._store = store
        self._local = store if isinstance(store, LocalStore) else None
        self._ttl_ms = int(lease_seconds * 1000)
        self._period = lease_seconds / 3
        self._capacity = capacity
        self.merged = 0
        self.after_fork()

    def after_fork(self) -> None:
        """A child has no thread yet, and the jobs and reservations it inherited are its parent's."""
        self._new_condition()
        self._jobs: deque[Job] = deque()
        self._excess: dict[str, tuple[Slot, int]] = {}
        self._excess_key = ""
        self._reservations: dict[str, weakref.ref[ActiveReservation]] = {}
        self._thread: threading.Thread | None = None
        self._busy = False
        self._stopped = False
        self._renew_at = 0.0

    def _new_condition(self) -> None:
        self._condition, self._kind = threading.Condition(), threading.RLock

    # ---- reservations --------------------------------------------------------------------------------------------
    def hold(self, reservation: ActiveReservation) -> None:
        """Renew `reservation` for as long as somebody holds the object."""
        self._reservations[reservation.key] = weakref.ref(reservation)
        if self._thread is None:
            self._start()

    def drop(self, key: str) -> None:
        """Renew it no longer."""
        self._reservations.pop(key, None)

    @property
    def in_flight(self) -> int:
        """How many reservations are being renewed."""
        return len(self._reservations)

    # ---- settlements --------------------------------------------------------------------------------------------
    def settle(self, key: str, slots: Sequence[Slot], amounts: Sequence[int], booked: Booked | None = None) -> None:
        """Settle soon. When the queue is full, amounts are added up: they are charged, and the reservation expires."""
        with self._condition:
            if len(self._jobs) >= self._capacity:
                self.merged += 1
                self._excess_key = self._excess_key or f"merged-{uuid.uuid4().hex}"
                if self._local is not None:
                    self._local.merge(key, self._excess_key)
                for slot, amount in zip(slots, amounts, strict=True):
                    old = self._excess.get(slot.key, (slot, 0))[1]
                    self._excess[slot.key] = (slot, old + amount)
            else:
                self._jobs.append((key, slots, amounts, booked))
            self._condition.notify_all()
        if self._thread is None:
            self._start()

    def flush(self, timeout: float) -> bool:
        """Wait until everything is settled, at most `timeout` seconds; says whether it is."""
        end = time.monotonic() + timeout
        with self._condition:
            while self._jobs or self._excess or self._busy:
                left = end - time.monotonic()
                if left <= 0 or self._thread is None or not self._thread.is_alive():
                    return False
                self._condition.wait(left)
        return True

    def close(self, timeout: float = 2.0) -> None:
        """Settle what can be settled in time, and end the thread. A later call starts it again."""
        self.flush(timeout)
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def retry(self) -> None:
        """The store answers again: settle now what waits."""
        with self._condition:
            self._condition.notify_all()

    # ---- the thread ---------------------------------------------------------------------------------------------
    def _start(self) -> None:
        if self._kind is not threading.RLock:
            self._new_condition()  # gevent has turned threads into greenlets since, which need locks of their own
        with self._condition:
            if self._thread is not None:
                return
            self._stopped = False
            self._renew_at = time.monotonic() + self._period
            self._thread = threading.Thread(target=self._run, name="otel-tokens-guard", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                self._thread = None  # the interpreter is shutting down; reservations run out by themselves

    def _run(self) -> None:
        condition = self._condition
        tries = 0
        while True:
            with condition:
                while not self._stopped and not self._jobs and not self._excess:
                    left = self._renew_at - time.monotonic()
                    if left <= 0:
                        break
                    condition.wait(left)
                if self._stopped:
                    return
                job = self._next()
                self._busy = job is not None
            if time.monotonic() >= self._renew_at:
                safely("guard.renew", self._renew)
            if job is not None:
                tries = 0 if self._settle(job) else min(tries + 1, len(_RETRY_SECONDS))
            with condition:
                self._busy = False
                condition.notify_all()
                if tries and not self._stopped:
                    condition.wait(_RETRY_SECONDS[tries - 1])

    def _next(self) -> Job | None:
        if self._jobs:
            return self._jobs.popleft()
        if self._excess:
            rows, key = list(self._excess.values()), self._excess_key
            self._excess, self._excess_key = {}, ""
            return key, [slot for slot, _ in rows], [amount for _, amount in rows], None
        return None

    def _settle(self, job: Job) -> bool:
        """Settle, or queue the job again, behind those that may fare better; settling twice does no harm."""
        key, slots, amounts, booked = job
        try:
            bookings = self._store.settle(key, slots, amounts)
        except StoreError as error:
            logger.debug("settlement postponed: %s", error)
            with self._condition:
                self._jobs.append(job)
            return False
        except Exception as error:
            with self._condition:
                self._jobs.append(job)
            report_fault("guard.settle", error)
            return False
        if booked is not None:
            safely("guard.booked", booked, bookings)
        return True

    def _renew(self) -> None:
        self._renew_at = time.monotonic() + self._period
        for key, held in list(self._reservations.items()):
            if held() is None:
                self._reservations.pop(key, None)  # lost without an end: it expires
        keys = list(self._reservations)
        try:
            for start in range(0, len(keys), 500):
                self._store.renew(keys[start : start + 500], self._ttl_ms)
        except StoreError as error:
            logger.debug("renewal postponed: %s", error)
            self._renew_at = time.monotonic() + min(1.0, self._period)
