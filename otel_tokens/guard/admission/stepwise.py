"""Admits a call that needs more than one request to the store: a ladder, a clamp, a wait, gas, a window that ended."""

from __future__ import annotations

from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.admission.steering import Steering, Waiting
from otel_tokens.guard.budgets import units
from otel_tokens.guard.budgets.limit import Limit
from otel_tokens.guard.estimate.estimator import UnpricedError
from otel_tokens.guard.estimate.matching import Plan
from otel_tokens.guard.reporting.refusal import AccountState
from otel_tokens.guard.reservation.gas import current_critical, current_gas
from otel_tokens.guard.reservation.reservation import ActiveReservation
from otel_tokens.guard.reservation.settle import SHORTENED, granted, report_clamp, unpriced
from otel_tokens.guard.reservation.state import GuardState
from otel_tokens.guard.store.base import Admission, StoreError
from otel_tokens.guard.store.drivers import Steps
from otel_tokens.values import Call, CallSizes

_ROUNDS = 16


class StepwiseAdmission:
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
        self.draft: ActiveReservation | None = None
        """What was asked for last, as long as the store may have reserved it."""
        self.answer: Admission | None = None
        self.values: dict[str, int] = {}
        self.plan: Plan

    @classmethod
    def after(cls, state: GuardState, reservation: ActiveReservation, answer: Admission) -> StepwiseAdmission:
        """The rest of an admission whose first request was not granted."""
        admission = cls(state, reservation.call, reservation.sizes)
        admission.plan, admission.values = reservation.plan, reservation.values
        admission.draft, admission.answer, admission.asked = reservation, answer, 1
        return admission

    def run(self) -> Steps[ActiveReservation]:
        """Ask until there is a reservation or a refusal."""
        rounds = 0
        while True:
            if self.draft is None or self.answer is None:
                yield from self.prepare()
                self.draft = self.new_draft()
                self.answer = yield from self.ask(self.draft)
            answer, reservation = self.answer, self.draft
            if not answer.granted:
                self.draft = None
            if (yield from self.settled(answer)):
                return self.accept(reservation, answer)
            if answer.granted:
                self.put_back(reservation)
                self.draft = None
            rounds += not self.waiting.began
            if rounds > _ROUNDS:
                raise StoreError("the store and its windows do not come to terms")

    def prepare(self) -> Steps[None]:
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
            self.values = state.estimator.amounts(self.plan, self.call, self.model, self.sizes, bound=self.bound)
        except UnpricedError:
            raise unpriced(state, self.plan, self.call) from None
        self.fit_caps(now)

    def fit_caps(self, now: int) -> None:
        """Hold the limits of single calls: shorten the call or refuse it. Time is given to the SDK instead."""
        caps = [(limit, limit.now(now)[2]) for limit in self.plan.caps if limit.hard]
        timed = units.SECONDS
        over = [
            (limit, most) for limit, most in caps if (self.values[limit.measure] if limit.unit != timed else 1) > most
        ]
        if over and not self.shorten(over, may=all(limit.clamp_at <= 1000 for limit, _ in over)):
            limit, most = over[0]
            slot = limit.slot("", "", now)
            asked = self.values[limit.measure]
            raise self.state.refuse(AccountState(limit, slot, (0, 0, most)), asked, call=self.call, now=now)

    def new_draft(self) -> ActiveReservation:
        """A reservation for what is about to be asked. A key is never used twice: stores remember released ones."""
        key = self.call.id if not self.asked else f"{self.call.id}.{self.asked}"
        self.asked += 1
        return ActiveReservation(key, self.call, self.sizes, self.plan, self.values)

    def ask(self, reservation: ActiveReservation) -> Steps[Admission]:
        """Reserve gas, then ask the store; on anything but a grant the gas is put back."""
        state, plan = self.state, self.plan
        self.fill_up(reservation)
        if not plan.slots:
            return Admission(True, state.store.now(), ())
        answer: Admission = yield (
            "admit",
            reservation.key,
            plan.slots,
            reservation.amounts,
            state.ttl_ms,
            self.critical,
        )
        if not answer.granted:
            reservation.end_gas(0)
        return answer

    def fill_up(self, reservation: ActiveReservation) -> None:
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
            self.values = self.state.estimator.amounts(self.plan, self.call, self.model, self.sizes, bound=bound)
            gas.reserve(self.values["tokens"])
            reservation.values, reservation.amounts = self.values, self.plan.take(self.values)
        reservation.gas, reservation.gas_tokens = gas, self.values["tokens"]

    def put_back(self, reservation: ActiveReservation) -> None:
        """Give a reservation back that was granted and is not wanted."""
        reservation.end_gas(0)
        if reservation.plan.slots:
            self.state.release_key(reservation.key)

    def settled(self, answer: Admission) -> Steps[bool]:
        """Whether the answer stands; if not, ask again (with another model or bound, or later). Or refuse."""
        if answer.reason == "moved":
            return False
        state = self.state
        state.note(self.plan.slots, self.plan.limits, answer.balances, answer.now)
        if self.steering.off_course():
            return False
        if answer.granted:
            return True
        limit, slot = self.plan.limits[answer.refused], self.plan.slots[answer.refused]
        account = AccountState(limit, slot, answer.balances[answer.refused])
        finished = answer.reason == "finished"
        if not finished and (self.steering.further(limit, self.model) or self.shorter(answer)):
            return False
        asked = self.values[limit.measure]
        waits = not finished and not self.hopeless(limit, account.balance[2])
        if waits and (yield from self.waiting.more(account, answer.retry_at, answer.now)):
            self.bound = None  # there may be more room now than when the answer was shortened
            return False
        if answer.lost:
            raise state.refuse_locally(account, asked, call=self.call, answer=answer)
        why = "finished by hand: " if finished else self.waiting.why
        raise state.refuse(account, asked, call=self.call, now=answer.now, retry_at=answer.retry_at, why=why)

    def shorter(self, answer: Admission) -> bool:
        """Bound the answer so that the call fits what is left, if that may be done and helps.

        Budgets that no shorter answer helps are left out: asked again, the store names one of them.
        """
        free: list[tuple[Limit, int]] = []
        may = True
        for limit, measure, (used, reserved, most) in zip(
            self.plan.limits, self.plan.measures, answer.balances, strict=True
        ):
            left = most - used - reserved
            if limit.hard and not limit.wall and self.values[measure] > left and self.helped(limit, left):
                free.append((limit, left))
                may = may and limit.clamp_at * most <= used * 1000
        return bool(free) and self.shorten(free, may=may)

    def hopeless(self, limit: Limit, most: int) -> bool:
        """Whether the call would not even fit an unused budget, so that only a person could make room for it."""
        if limit.pause_at <= 1000 or self.values[limit.measure] <= most:
            return False
        return not (self.may_shorten(may=limit.clamp_at <= 1000) and self.helped(limit, most))

    def helped(self, limit: Limit, left: int) -> bool:
        """Whether a shorter answer makes the call fit what is left of one budget."""
        if limit.unit not in SHORTENED:
            return False
        bound = self.state.estimator.longest(self.plan, self.call, self.model, self.sizes, [(limit, left)])
        return bound is not None and bound >= self.least()

    def may_shorten(self, *, may: bool) -> bool:
        """Whether this call may be clamped: a threshold says so, or it came without a bound of its own."""
        return may or (self.sizes.output_bound is None and self.state.options.clamp_unbounded)

    def least(self) -> int:
        """The shortest answer worth asking for."""
        return max(self.state.options.min_output, self.sizes.thinking + 1)

    def shorten(self, free: list[tuple[Limit, int]], *, may: bool) -> bool:
        """Choose the bound that fits `free`; False if none does, or it was tried before."""
        if not self.may_shorten(may=may):
            return False
        state = self.state
        bound = state.estimator.longest(self.plan, self.call, self.model, self.sizes, free)
        if bound is None or bound < self.least() or (self.bound is not None and bound >= self.bound):
            return False
        self.bound = bound
        self.values = state.estimator.amounts(self.plan, self.call, self.model, self.sizes, bound=bound)
        return True

    def accept(self, reservation: ActiveReservation, answer: Admission) -> ActiveReservation:
        """Finish the reservation: what the request has to be changed to, and who is told."""
        state = self.state
        if self.model != self.call.model:
            reservation.model = self.model
            self.steering.report_downgrade(self.model, answer.now)
        if self.bound is not None:
            reservation.max_output = self.bound
            report_clamp(state, reservation, answer)
        self.waiting.over(answer.now)
        return granted(state, reservation, answer)
