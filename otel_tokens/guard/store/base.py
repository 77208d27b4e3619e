"""What a budget store must do: the one contract of memory, SQLite and Redis, and the values it speaks in.

Amounts are integers in the smallest unit of their kind: nano-USD, tokens, calls, milliseconds, operations.
Times are integers: unix milliseconds *by the store's own clock*, which is the only clock windows obey.

An **account** is what the store keeps for one (budget, unit, scope); `Slot.key` names it. It holds one window at
a time: `start`, `used`, `reserved`, what was changed by hand, and the overdraft. A **slot** is an account seen in
one window by one declaration. A **reservation** is a reservation on several accounts under one key, with an expiry.

Rules, the same for every store (tests/guard/test_store_suite.py holds them):

1.  *Limit in force*: the account's own `set` limit, else the budget-wide `set` limit, else `slot.limit`; plus
    `extra` (what was added in this window).
2.  *Window*: an account whose `start` is older than the slot's, or whose `end` has passed, **rolls** to the slot's
    window: `used` = carried debt (rule 7), `reserved` = 0, `extra` = 0, finished, pause and review marks cleared.
    An account in a *later* window that is still running stays as it is (two processes with different
    declarations must not fight). If the store's now is outside [start, end) of any slot, nothing happens and the
    admission's reason is "moved": the caller asks again with slots for `Admission.now`.
3.  *Rolling* (`slice_ms` > 0; start = end = 0): `used` is the sum of the slices i with i >= now // slice_ms -
    slices, so up to one slice more than the window, never less. Spending is booked in the slice of the moment of
    booking.
4.  *Wall clock* (`wall`): `used` is now - `born` (the first admission of the account in its window, or its last
    reset); nothing is reserved, amounts are ignored; refused when used >= limit. Its booking is (now - born at
    the settlement before this one, 0 if none; now - born; 0; limit), so that one settlement crosses a threshold.
5.  *Admit* is atomic over all slots: all are reserved or none. A hard slot refuses when `finished`, or when
    amount > limit - used - reserved (no grace). Soft slots (hard = False) never refuse; they reserve all the
    same. Admitting under a key that already has a reservation adds to that reservation (a stream that asks for more);
    under one that was settled or released it raises (the release of a cancelled call overtook its admission).
    With `ttl_ms` = 0 the amounts are spent at once: booked as used, no reservation.
6.  *Settle* is idempotent: it gives back what the reservation still reserves and books the actual amounts; the key is
    then remembered (Redis, SQLite: >= REMEMBER_MS; memory: the last 1,024 keys) and settled or released again
    it does nothing. A key the store does not know (it lost its data, or could not be reached at admission) has
    its actual amounts booked in full. An *expired* reservation is remembered as such: its reservation was given back
    at expiry, its settlement still books. Booking goes to the slot's own window: if the account has rolled on
    since, nothing is booked, except that a difference between reserved and actual corrects what was carried
    (rule 7).
7.  *Overdraft*: with `critical` set, a hard slot with `grace` > 0 may go up to limit + grace, if `grace_by` is
    empty and used <= limit (used once per window, never while an earlier one is unpaid), or `grace_by` is this
    `critical` key; the account then remembers it in `grace_by`. When a window with `grace_by` rolls, carried =
    max(0, used + reserved - limit in force) becomes the new window's `used`, `grace_by` is cleared, and the
    account remembers `carried` and `carried_from` (that window's start). A reservation of window `carried_from` that
    settles later for less (or more) than it reserved lowers `used` and `carried` by min(carried, reserved -
    actual) (raises both by actual - reserved), in one step; a reservation that expires there counts as settled for 0,
    and if it is settled after all, as reserved 0. A rolling account forgets `grace_by` once a whole window has
    passed since and used <= limit; a window-less one only by `reset`.
8.  *Expiry*: each admission (and `rows`, `renew`) first gives back the reservations of reservations whose expiry has
    passed. `renew` extends living reservations; one that had expired is revived with its reservation, even beyond the
    limit (its call still runs: a stopped process woke up). Unknown and settled keys are ignored.
9.  *Forgetting*: an account without reservation may be dropped once its window ended two windows ago, or, without
    a window, `keep_ms` after its last use (0 = never).
10. Everything that goes wrong with the store itself is raised as `StoreError`, within the store's timeout.

Classes: `memory.MemoryStore()`, `sqlite.SqliteStore(path, *, timeout=…)`, `redis.RedisStore(url, *, timeout=…,
prefix="otel-tokens")`; timeouts in seconds. Third-party and heavy imports happen inside methods.

Fork: a store object must work in a forked child. Connections and locks are made anew there, and reservations of the
parent are neither renewed nor given back by the child (memory: the child's copy forgets them).
Concurrency: sync methods from many threads, async ones from many tasks and loops, on one object, at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from otel_tokens.errors import OtelTokensError

NEVER = 1 << 62
"""Later than any moment in unix milliseconds."""

REMEMBER_MS = 3_600_000
"""How long a shared store remembers settled and expired reservation keys, in milliseconds."""

Balance = tuple[int, int, int]
"""(used, reserved, limit in force) of an account. A plain tuple: five of them are made per call."""

Booking = tuple[int, int, int, int]
"""(used before, used after, reserved after, limit in force) of an account that a settlement booked on."""

Change = Literal["add", "set", "unset", "reset", "finish", "pause", "review"]
"""`add` raises (amount may be negative) the limit of the current window, for good where there is no window, and
revives a finished account. `set` replaces the limit until `unset`; without a scope for the whole budget, also for
scopes not seen yet. `reset` starts over: used, extra, slices, grace, carried, finished = nothing, born = now;
reservations stay. `finish` refuses everything in this window until `reset` or `add`.
`pause` notes that a call waits here until `amount` (unix ms; the later of old and new is kept): seconds ahead, renewed
by each call that goes on waiting.
`review` notes that a person looks at it until `amount`."""

LIMIT_CHANGES = frozenset({"add", "set", "unset"})
"""The changes that speak of an amount and so need a unit (else ValueError)."""

Refusal = Literal["", "limit", "finished", "moved"]


class StoreError(OtelTokensError):
    """The store could not be reached, did not answer in time, or is damaged. Whether it acted is unknown."""


class EndedError(StoreError):
    """An admission under a key that was settled or released before. The store itself is well."""


@dataclass(frozen=True, slots=True)
class Slot:
    """An account in a window, as one budget declares it. Made once per scope and window, reused by every call.

    `key` is unique per (budget, unit, scope, window) and free of the characters NUL and newline. `unit` is "usd",
    "tokens", "input_tokens", "output_tokens", "calls", "seconds", "operations" or "operations:NAME". `scope` is
    "" (everything) or "tenant=acme,user=bob" (values percent-encoded). `limit` and `grace` are in smallest
    units, `start` and `end` unix ms (0 and 0: no calendar window), `slice_ms` x `slices` is a rolling window.
    `window` is what was declared, "1 day Europe/Berlin" or so: two declarations of one budget have two accounts.
    """

    key: str
    budget: str
    unit: str
    scope: str
    limit: int
    start: int = 0
    end: int = 0
    slice_ms: int = 0
    slices: int = 0
    hard: bool = True
    wall: bool = False
    grace: int = 0
    keep_ms: int = 0
    window: str = ""

    @property
    def old_key(self) -> str:
        """The key that earlier versions gave to the account, whatever its window."""
        return f"{self.budget}|{self.unit}|{self.scope}"


def window_of(key: str, budget: str, unit: str, scope: str) -> str:
    """The window that a key was made with; "" for none."""
    prefix = f"{budget}|{unit}|{scope}|"
    return key[len(prefix) :] if key.startswith(prefix) else ""


def continues(old: Slot, new: Slot) -> bool:
    """Whether an account of an earlier version was kept under the same declaration, as far as it shows.

    The window is the same, or the one before.
    """
    if (old.wall, old.slice_ms, old.slices) != (new.wall, new.slice_ms, new.slices):
        return False
    return (old.start, old.end) == (new.start, new.end) or 0 < old.end == new.start


class AdmitRequest(NamedTuple):
    """The arguments of one `Store.admit`."""

    key: str
    slots: Sequence[Slot]
    amounts: Sequence[int]
    ttl_ms: int
    critical: str


@dataclass(slots=True)
class Admission:
    """The store's answer. `balances` (one per slot, in order) include the reservation if it was granted.

    `refused` is the index of the first slot that refused (finished ones first), -1 if none. `retry_at` (unix
    ms, 0 = unknown) is when that slot frees budget by itself: its window's end, or for a rolling one the moment
    its oldest slice leaves. `lost` says why the store had no part in it, "" where it had (`store.local`).
    """

    granted: bool
    now: int
    balances: Sequence[Balance]
    refused: int = -1
    reason: Refusal = ""
    retry_at: int = 0
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """The state of one account, as `otel-tokens budget list` shows it. Smallest units; times in unix ms.

    `limit` is the limit in force, `declared` what the last call declared, `overdraft` what is used beyond the
    limit under grace and not yet repaid. `paused_until` and `review_until` are 0 when nothing waits. `lost`: the
    store does not answer, and the row is what this process last knew, with what it let through since.
    """

    budget: str
    unit: str
    scope: str
    used: int
    reserved: int
    limit: int
    declared: int
    extra: int = 0
    start: int = 0
    end: int = 0
    rolling_ms: int = 0
    overdraft: int = 0
    finished: bool = False
    paused_until: int = 0
    review_until: int = 0
    updated: int = 0
    window: str = ""
    lost: bool = False


class Store(ABC):
    """A place where budgets are kept. See the module's text for the rules every method follows."""

    direct: bool = True
    """Whether an operation takes microseconds and never the network: the guard then settles without a queue."""

    poll_seconds: float = 0.05
    """How often a waiting (paused) call may ask again."""

    @abstractmethod
    def admit(
        self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int, critical: str = ""
    ) -> Admission:
        """Reserve `amounts` on `slots` under reservation `key` for `ttl_ms`, all or nothing. One round trip."""

    @abstractmethod
    def settle(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking]:
        """Give back the reservation and book the actual `amounts`. Returns () when the key was settled before.

        `slots` are those of the admission. Exactly one caller sees `used` cross a given value: thresholds are
        found from before and after.
        """

    def settle_at_once(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking]:
        """`settle` for a caller who must not wait, an event loop perhaps: StoreError if others are at it."""
        return self.settle(key, slots, amounts)

    def release(self, key: str) -> None:
        """Give back the reservation and book nothing; later settlements of the key do nothing."""
        self.settle(key, (), ())

    @abstractmethod
    def renew(self, keys: Sequence[str], ttl_ms: int) -> None:
        """Let the reservations live `ttl_ms` from now."""

    @abstractmethod
    def read(self, slots: Sequence[Slot]) -> Sequence[Balance]:
        """The balances of `slots` now; an account not there yet, or of an older window, reads as (0, 0, limit)."""

    @abstractmethod
    def rows(self, budget: str | None = None, scope: str | None = None, limit: int = 1000) -> list[Row]:
        """Living accounts, at most `limit`, sorted by (budget, scope, unit); past windows are left out."""

    @abstractmethod
    def change(
        self, budget: str, op: Change, *, unit: str | None = None, scope: str | None = None, amount: int = 0
    ) -> int:
        """Change running accounts (None = every unit, every scope). Returns how many accounts were changed.

        A budget-wide `set` counts itself as one more, so it is never 0.
        """

    @abstractmethod
    def now(self) -> int:
        """Unix milliseconds by the store's clock; must be cheap (a shared store keeps the offset it last saw)."""

    def close(self) -> None:
        """Let go of connections and files. A closed store may be used again: it then reconnects."""
        return

    async def aadmit(
        self, key: str, slots: Sequence[Slot], amounts: Sequence[int], ttl_ms: int, critical: str = ""
    ) -> Admission:
        """`admit` without blocking the event loop; a store that may wait overrides it."""
        return self.admit(key, slots, amounts, ttl_ms, critical)

    async def asettle(self, key: str, slots: Sequence[Slot], amounts: Sequence[int]) -> Sequence[Booking]:
        """`settle` without blocking the event loop."""
        return self.settle(key, slots, amounts)

    async def arelease(self, key: str) -> None:
        """`release` without blocking the event loop."""
        await self.asettle(key, (), ())

    async def aread(self, slots: Sequence[Slot]) -> Sequence[Balance]:
        """`read` without blocking the event loop."""
        return self.read(slots)

    async def arows(self, budget: str | None = None, scope: str | None = None, limit: int = 1000) -> list[Row]:
        """`rows` without blocking the event loop."""
        return self.rows(budget, scope, limit)

    async def achange(
        self, budget: str, op: Change, *, unit: str | None = None, scope: str | None = None, amount: int = 0
    ) -> int:
        """`change` without blocking the event loop."""
        return self.change(budget, op, unit=unit, scope=scope, amount=amount)

    def mark_paused(self, slot: Slot, until: int) -> None:
        """Note that a call waits at `slot` until `until` (unix ms), or until it says so again."""
        self.change(slot.budget, "pause", unit=slot.unit, scope=slot.scope, amount=until)

    async def amark_paused(self, slot: Slot, until: int) -> None:
        """`mark_paused` without blocking the event loop."""
        await self.achange(slot.budget, "pause", unit=slot.unit, scope=slot.scope, amount=until)

    async def aclose(self) -> None:
        """`close` without blocking the event loop."""
        self.close()
