"""From a call to the amounts its budgets are asked for, and from its record to what they are charged."""

from __future__ import annotations

from dataclasses import replace

from otel_tokens.guard.learned import Learned
from otel_tokens.guard.lease import ActiveLease
from otel_tokens.guard.options import Estimate, GuardOptions, Price
from otel_tokens.guard.plan import Plan
from otel_tokens.guard.sized import sized
from otel_tokens.guard.units import nano
from otel_tokens.values import Call, CallSizes, Record, Usage

FALLBACK_OUTPUT = 8192
"""Output tokens reserved for an unbounded call of a model of which nothing is known."""
_FALLBACK_LIKELY = 1024
_FALLBACK_SECONDS = 1.0


class UnpricedError(Exception):
    """A model without a price under a money budget, and the setting is to refuse it."""


class Meter:
    """Amounts by measure: "usd" in nano-USD, "tokens" …, "calls", "seconds" in ms; "~" marks expected ones."""

    def __init__(self, price: Price, estimate: Estimate | None, options: GuardOptions, learned: Learned) -> None:
        self.price = price
        self._estimate = estimate
        self._options = options
        self._learned = learned

    # ---- before -----------------------------------------------------------------------------------------------
    def output_upper(self, call: Call, model: str, sizes: CallSizes, bound: int | None) -> int:
        """The most output tokens of all choices: `bound` per choice, else the model's maximum, else learned."""
        if call.operation == "embeddings":
            return 0
        per_choice = bound if bound is not None else sizes.output_bound
        if per_choice is None:
            find = self._options.max_output
            per_choice = find(call.provider, model) if find is not None else None
        if per_choice is None:
            per_choice = self._learned.of(call.provider, model).high_output or FALLBACK_OUTPUT
        return max(per_choice, sizes.thinking) * max(1, sizes.choices)

    def expected(self, call: Call, model: str, sizes: CallSizes, output: int) -> Usage:
        """The likely usage, never above the upper one."""
        if self._estimate is not None:
            usage = self._estimate(call, sizes)
            return replace(usage, output=min(usage.output, output))
        likely = self._learned.of(call.provider, model).likely_output or _FALLBACK_LIKELY
        return sized(sizes.input_tokens_estimate, min(output, likely * max(1, sizes.choices)))

    def amounts(self, plan: Plan, call: Call, model: str, sizes: CallSizes, *, bound: int | None) -> dict[str, int]:
        """What to reserve, by measure. Raises `UnpricedError`."""
        given, output = sizes.input_upper, self.output_upper(call, model, sizes, bound)
        values = {
            "calls": 1,
            "wall": 0,
            "tokens": given + output,
            "input_tokens": given,
            "output_tokens": output,
        }
        if plan.priced:
            values["usd"] = self.money(plan, call, model, sized(given, output), sizes.cache_write)
        if plan.expected:
            usage = self.expected(call, model, sizes, output)
            values["~tokens"] = usage.input + usage.output
            values["~input_tokens"] = usage.input
            values["~output_tokens"] = usage.output
            if "~usd" in plan.needed:
                values["~usd"] = self.money(plan, call, model, usage, None)
        if "seconds" in plan.needed:
            seconds = self._learned.of(call.provider, model).likely_seconds or _FALLBACK_SECONDS
            values["seconds"] = int(seconds * 1000)
        return values

    def grown(self, plan: Plan, lease: ActiveLease, output: int) -> dict[str, int]:
        """The amounts of a call in flight once its output reaches `output` tokens in all."""
        call, sizes, model = lease.call, lease.sizes, lease.sent_model
        values = dict(lease.values)
        for mark, given in (("", sizes.input_upper), ("~", sizes.input_tokens_estimate)):
            if f"{mark}tokens" in values:
                values[f"{mark}tokens"] = max(values[f"{mark}tokens"], given + output)
                values[f"{mark}output_tokens"] = max(values[f"{mark}output_tokens"], output)
            if f"{mark}usd" in values:
                money = self.money(plan, call, model, sized(given, output), None if mark else sizes.cache_write)
                values[f"{mark}usd"] = max(values[f"{mark}usd"], money)
        return values

    def money(self, plan: Plan, call: Call, model: str, usage: Usage, cache_write: str | None) -> int:
        """Nano-USD of `usage`; the dearer of plain and cache-writing input if the request asks for caching."""
        if call.free:
            return 0
        total = self.price(call.provider, model, usage, at=call.started, tier=call.service_tier).total
        if total is None:
            return self._unpriced(plan, call, usage)
        cost = nano(total)
        if cache_write is not None:
            written = replace(usage, cache_write=usage.input, **{cache_write: usage.input})
            other = self._cost(call, model, written)
            cost = max(cost, other or 0)
        return cost

    def _cost(self, call: Call, model: str, usage: Usage) -> int | None:
        if call.free:
            return 0
        total = self.price(call.provider, model, usage, at=call.started, tier=call.service_tier).total
        return None if total is None else nano(total)

    def _unpriced(self, plan: Plan, call: Call, usage: Usage) -> int:
        cost = self._sibling(call, usage)
        if cost is not None:
            return cost
        if self._options.unpriced != "tokens" and plan.hard_money:
            raise UnpricedError
        return 0

    def _sibling(self, call: Call, usage: Usage) -> int | None:
        dearest = self._options.dearest
        if self._options.unpriced != "sibling" or dearest is None:
            return None
        total = dearest(call.provider, usage, call.started).total
        return None if total is None else nano(total)

    def known(self, call: Call, model: str) -> bool:
        """Whether `model` has a price with the call's provider."""
        return self.price(call.provider, model, sized(1, 1), at=call.started, tier=None).total is not None

    # ---- after ------------------------------------------------------------------------------------------------
    def actual(self, plan: Plan, model: str, record: Record, reserved: dict[str, int]) -> dict[str, int]:
        """What to charge, by unit. What nobody reported is charged as it was reserved, never as nothing."""
        usage = record.usage
        given, output = usage.input, usage.output
        if usage.origin == "missing":
            given, output = reserved["input_tokens"], reserved["output_tokens"]
        for part in usage.components:
            given += part.usage.input
            output += part.usage.output
        return {
            "calls": 1,
            "wall": 0,
            "tokens": given + output,
            "input_tokens": given,
            "output_tokens": output,
            "usd": self._charge(model, record, reserved) if plan.money else 0,
            "seconds": int(record.duration * 1000),
        }

    def _charge(self, model: str, record: Record, reserved: dict[str, int]) -> int:
        total = record.cost.total
        if record.usage.origin != "missing":
            if total is not None:
                return nano(total)
            for found in (self._cost(record.call, model, record.usage), self._sibling(record.call, record.usage)):
                if found is not None:
                    return found
        return reserved.get("usd", reserved.get("~usd", 0))
