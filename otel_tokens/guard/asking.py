"""How a call is admitted.

The usual call is one question to the store. What takes longer (a ladder, a clamp, a wait, an allowance of gas, a
window that just ended) is told step by step in `Asking`, as a generator that both drivers run.
"""

from __future__ import annotations

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard import units
from otel_tokens.guard.drive import Story, arun, run
from otel_tokens.guard.gas import current_critical, current_gas
from otel_tokens.guard.index import Plan
from otel_tokens.guard.lease import ActiveLease
from otel_tokens.guard.leasing import SHORTENED, granted, tell_clamp, unpriced, without_store
from otel_tokens.guard.line import Line
from otel_tokens.guard.meter import UnpricedError
from otel_tokens.guard.refusal import AccountState
from otel_tokens.guard.state import GuardState
from otel_tokens.guard.steering import Steering, Waiting
from otel_tokens.guard.store.base import Admission, StoreError
from otel_tokens.values import Call, CallSizes

_ROUNDS = 16


def admit(state: GuardState, call: Call, sizes: CallSizes) -> ActiveLease | None:
    """The lease of a call; None when no budget concerns it. Raises BudgetExceededError.

    The usual call is told here and not as a story, which would take 2 us more.
    """
    lease = _usual(state, call, sizes)
    if lease is None:
        return None
    if isinstance(lease, Asking):
        return run(lease.run(), state.store)
    try:
        answer = state.store.admit(call.id, lease.plan.slots, lease.amounts, state.ttl_ms, current_critical())
    except StoreError as error:
        return without_store(state, lease, error)
    except BaseException:
        state.give_back(call.id)  # interrupted while asking: it may have been granted
        raise
    if answer.granted:
        return granted(state, lease, answer)
    return run(_refused(state, lease, answer), state.store)


async def aadmit(state: GuardState, call: Call, sizes: CallSizes) -> ActiveLease | None:
    """`admit` that never blocks the event loop."""
    lease = _usual(state, call, sizes)
    if lease is None:
        return None
    if isinstance(lease, Asking):
        return await arun(lease.run(), state.store)
    try:
        answer = await state.store.aadmit(call.id, lease.plan.slots, lease.amounts, state.ttl_ms, current_critical())
    except StoreError as error:
        return without_store(state, lease, error)
    except BaseException:
        state.give_back(call.id)  # cancelled while asking: it may have been granted
        raise
    if answer.granted:
        return granted(state, lease, answer)
    return await arun(_refused(state, lease, answer), state.store)


def _usual(state: GuardState, call: Call, sizes: CallSizes) -> ActiveLease | Asking | None:
    """What to ask the store for, or the story of a call that needs more than one question; None without budgets."""
    plan = state.index.plan(call, call.model, state.store.now())
    if plan.steered or plan.caps or current_gas() is not None:
        return Asking(state, call, sizes)
    if not plan.lines:
        return None
    try:
        values = state.meter.amounts(plan, call, call.model, sizes, bound=None)
    except UnpricedError:
        raise unpriced(state, plan, call) from None
    return ActiveLease(call.id, call, sizes, plan, values, amounts=plan.take(values))


def _refused(state: GuardState, lease: ActiveLease, answer: Admission) -> Story[ActiveLease]:
    """What becomes of a call whose first question was not granted."""
    asking = Asking(state, lease.call, lease.sizes)
    asking.plan, asking.values = lease.plan, lease.values
    return asking.run(lease, answer)


class Asking:
    """A call on its way to being admitted, when one question is not enough."""

    def __init__(self, state: GuardState, call: Call, sizes: CallSizes) -> None:
        self.state = state
        self.call = call
        self.sizes = self.asked_sizes = sizes
        self.model = call.model
        self.bound: int | None = None
        self.gas = current_gas()
        self.critical = current_critical()
        self.steering = Steering(state, call)
        self.waiting = Waiting(state, call, self.steering)
        self.asked = 0
        self.values: dict[str, int] = {}
        self.plan: Plan

    def run(self, lease: ActiveLease | None = None, answer: Admission | None = None) -> Story[ActiveLease]:
        """Ask until there is a lease or a refusal. `answer` is what a first question came to."""
        rounds = 0
        while True:
            if lease is None or answer is None:
                yield from self.prepare()
                lease = self.draft()
                try:
                    answer = yield from self.ask(lease)
                except StoreError as error:
                    return without_store(self.state, lease, error)
            if (yield from self.settled(answer)):
                return self.accept(lease, answer)
            if answer.granted:
                self.put_back(lease)
            rounds += not self.waiting.began
            if rounds > _ROUNDS:
                return without_store(self.state, lease, StoreError("the store and its windows do not come to terms"))
            answer = None

    def prepare(self) -> Story[None]:
        """Choose the model, wait where a threshold says so, and work out what to reserve."""
        state, steering = self.state, self.steering
        while True:
            now = state.store.now()
            home = state.index.plan(self.call, self.call.model, now)
            self.model = yield from steering.model(home, now)
            self.sizes = self.asked_sizes if self.model == self.call.model else self.asked_sizes.for_model(self.model)
            if (yield from self.waiting.before(steering.pausing())):
                break
        yield from steering.slow_down()
        self.plan = home if self.model == self.call.model else state.index.plan(self.call, self.model, now)
        try:
            self.values = state.meter.amounts(self.plan, self.call, self.model, self.sizes, bound=self.bound)
        except UnpricedError:
            raise unpriced(state, self.plan, self.call) from None
        self.fit_caps(now)

    def fit_caps(self, now: int) -> None:
        """Hold the limits of single calls: shorten the call or refuse it. Time is given to the SDK instead."""
        caps = [(line, line.now(now)[2]) for line in self.plan.caps if line.hard]
        timed = units.SECONDS
        over = [(line, most) for line, most in caps if (self.values[line.measure] if line.unit != timed else 1) > most]
        if over and not self.shorten(over, may=all(line.clamp_at <= 1000 for line, _ in over)):
            line, limit = over[0]
            slot = line.slot("", "", now)
            asked = self.values[line.measure]
            raise self.state.refuse(AccountState(line, slot, (0, 0, limit)), asked, call=self.call, now=now)

    def draft(self) -> ActiveLease:
        """A lease for what is about to be asked. A key is never used twice: stores remember released ones."""
        key = self.call.id if not self.asked else f"{self.call.id}.{self.asked}"
        self.asked += 1
        return ActiveLease(key, self.call, self.sizes, self.plan, self.values, amounts=self.plan.take(self.values))

    def ask(self, lease: ActiveLease) -> Story[Admission]:
        """Reserve gas, then ask the store; on anything but a grant the gas is put back."""
        state, plan = self.state, self.plan
        self.fill_up(lease)
        if not plan.slots:
            return Admission(True, state.store.now(), ())
        try:
            answer: Admission = yield ("admit", lease.key, plan.slots, lease.amounts, state.ttl_ms, self.critical)
        except StoreError:
            raise
        except BaseException:
            self.put_back(lease)
            raise
        if not answer.granted:
            self.drain(lease)
        return answer

    def fill_up(self, lease: ActiveLease) -> None:
        """Take the call's tokens out of the allowance around it, a shorter answer's if the whole does not fit."""
        gas = self.gas
        if gas is None:
            return
        try:
            gas.reserve(self.values["tokens"])
        except BudgetExceededError:
            bound = (gas.remaining - self.sizes.input_upper) // max(1, self.sizes.choices)
            if not self.may_shorten(may=False) or bound < self.least():
                raise
            self.bound = bound
            self.values = self.state.meter.amounts(self.plan, self.call, self.model, self.sizes, bound=bound)
            gas.reserve(self.values["tokens"])
            lease.values, lease.amounts = self.values, self.plan.take(self.values)
        lease.gas, lease.gas_tokens = gas, self.values["tokens"]

    def drain(self, lease: ActiveLease) -> None:
        """Put the gas back."""
        if lease.gas is not None:
            lease.gas.settle(lease.gas_tokens, 0)
            lease.gas = None

    def put_back(self, lease: ActiveLease) -> None:
        """Give a lease back that is not wanted, or may or may not be there."""
        self.drain(lease)
        if lease.plan.slots:
            self.state.give_back(lease.key)

    def settled(self, answer: Admission) -> Story[bool]:
        """Whether the answer stands; if not, ask again (with another model or bound, or later). Or refuse."""
        if answer.reason == "moved":
            return False
        state = self.state
        state.note(self.plan.slots, self.plan.lines, answer.balances, answer.now)
        if self.steering.off_course():
            return False
        if answer.granted:
            return True
        line, slot = self.plan.lines[answer.refused], self.plan.slots[answer.refused]
        account = AccountState(line, slot, answer.balances[answer.refused])
        finished = answer.reason == "finished"
        if not finished and (self.steering.further(line, self.model) or self.shorter(answer)):
            return False
        asked = self.values[line.measure]
        waits = not finished and not self.hopeless(line, account.balance[2])
        if waits and (yield from self.waiting.more(account, answer.retry_at, answer.now)):
            self.bound = None  # there may be more room now than when the answer was shortened
            return False
        why = "finished by hand: " if finished else self.waiting.why
        raise state.refuse(account, asked, call=self.call, now=answer.now, retry_at=answer.retry_at, why=why)

    def shorter(self, answer: Admission) -> bool:
        """Bound the answer so that the call fits what is left, if that may be done and helps.

        Budgets that no shorter answer helps are left out: asked again, the store names one of them.
        """
        free: list[tuple[Line, int]] = []
        may = True
        for line, measure, (used, reserved, limit) in zip(
            self.plan.lines, self.plan.measures, answer.balances, strict=True
        ):
            left = limit - used - reserved
            if line.hard and not line.wall and self.values[measure] > left and self.helped(line, left):
                free.append((line, left))
                may = may and line.clamp_at * limit <= used * 1000
        return bool(free) and self.shorten(free, may=may)

    def hopeless(self, line: Line, limit: int) -> bool:
        """Whether the call would not even fit an unused budget, so that only a person could make room for it."""
        if line.pause_at <= 1000 or self.values[line.measure] <= limit:
            return False
        return not (self.may_shorten(may=line.clamp_at <= 1000) and self.helped(line, limit))

    def helped(self, line: Line, left: int) -> bool:
        """Whether a shorter answer makes the call fit what is left of one budget."""
        if line.unit not in SHORTENED:
            return False
        bound = self.state.meter.longest(self.plan, self.call, self.model, self.sizes, [(line, left)])
        return bound is not None and bound >= self.least()

    def may_shorten(self, *, may: bool) -> bool:
        """Whether this call may be clamped: a threshold says so, or it came without a bound of its own."""
        return may or (self.sizes.output_bound is None and self.state.options.clamp_unbounded)

    def least(self) -> int:
        """The shortest answer worth asking for."""
        return max(self.state.options.min_output, self.sizes.thinking + 1)

    def shorten(self, free: list[tuple[Line, int]], *, may: bool) -> bool:
        """Choose the bound that fits `free`; False if none does, or it was tried before."""
        if not self.may_shorten(may=may):
            return False
        state = self.state
        bound = state.meter.longest(self.plan, self.call, self.model, self.sizes, free)
        if bound is None or bound < self.least() or (self.bound is not None and bound >= self.bound):
            return False
        self.bound = bound
        self.values = state.meter.amounts(self.plan, self.call, self.model, self.sizes, bound=bound)
        return True

    def accept(self, lease: ActiveLease, answer: Admission) -> ActiveLease:
        """Finish the lease: what the request has to be changed to, and who is told."""
        state = self.state
        if self.model != self.call.model:
            lease.model = self.model
            self.steering.tell_downgrade(self.model, answer.now)
        if self.bound is not None:
            lease.max_output = self.bound
            tell_clamp(state, lease, answer)
        self.waiting.over(answer.now)
        return granted(state, lease, answer)
