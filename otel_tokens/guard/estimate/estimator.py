"""Computes what a call may use at most before it is sent, and what to charge when it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from otel_tokens.guard.budgets import units
from otel_tokens.guard.budgets.limit import Limit
from otel_tokens.guard.budgets.units import nano
from otel_tokens.guard.estimate.bounds import CostBound, estimated, possible_terms, possible_usages
from otel_tokens.guard.estimate.history import History, Terms
from otel_tokens.guard.estimate.matching import Plan
from otel_tokens.guard.options import Estimate, GuardOptions, Price
from otel_tokens.values import FREE, Call, CallSizes, Cost, Record, Usage

FALLBACK_OUTPUT = 8192
"""Output tokens reserved for an unbounded call of a model of which nothing is known."""
_FALLBACK_LIKELY = 1024
_FALLBACK_SECONDS = 1.0
_ATTEMPTS = 6


class UnpricedError(Exception):
    """A model without a price under a money budget, and the setting is to refuse it."""


class Estimator:
    """Computes amounts by measure: "usd" in nano-USD, "tokens" …, "calls", "seconds" in ms.

    A measure with "~" in front is the expected amount, one without is the highest possible.
    """

    def __init__(self, price: Price, estimate: Estimate | None, options: GuardOptions, history: History) -> None:
        self.price = price
        self._estimate = estimate
        self._options = options
        self._history = history
        self._cost_bound = CostBound(options.straight)

    # ---- before -----------------------------------------------------------------------------------------------
    def output_upper(self, call: Call, model: str, sizes: CallSizes, bound: int | None) -> int:
        """The most output tokens of all choices: `bound` per choice, else the model's maximum, else what was seen."""
        if call.operation == "embeddings":
            return 0
        tokens = bound if bound is not None else sizes.output_bound
        if tokens is None:
            find = self._options.max_output
            tokens = find(call.provider, model) if find is not None else None
        if tokens is None:
            tokens = self._history.of(call.provider, model).high_output or FALLBACK_OUTPUT
        tokens = max(tokens, sizes.thinking)
        return tokens * sizes.choices if sizes.choices > 1 else tokens

    def expected(self, call: Call, model: str, sizes: CallSizes, output: int) -> Usage:
        """The likely usage, with at most `output` tokens of output."""
        if self._estimate is not None:
            usage = self._estimate(call, sizes)
            return replace(usage, output=min(usage.output, output))
        likely = self._history.of(call.provider, model).likely_output or _FALLBACK_LIKELY
        return estimated(sizes.input_tokens_estimate, min(output, likely * max(1, sizes.choices)))

    def amounts(self, plan: Plan, call: Call, model: str, sizes: CallSizes, *, bound: int | None) -> dict[str, int]:
        """What to reserve, by measure. Raises `UnpricedError`."""
        input_tokens, output = sizes.input_upper, self.output_upper(call, model, sizes, bound)
        values = {
            "calls": 1,
            "wall": 0,
            "tokens": input_tokens + output,
            "input_tokens": input_tokens,
            "output_tokens": output,
        }
        if plan.priced:
            values["usd"] = self.upper_money(plan, call, model, sizes, output)
        if plan.expected:
            usage = self.expected(call, model, sizes, output)
            values["~tokens"] = usage.input + usage.output
            values["~input_tokens"] = usage.input
            values["~output_tokens"] = usage.output
            if "~usd" in plan.needed:
                values["~usd"] = self.money(plan, call, model, usage)
        if units.SECONDS in plan.needed:
            seconds = self._history.of(call.provider, model).likely_seconds or _FALLBACK_SECONDS
            values["seconds"] = int(seconds * 1000)
        return values

    def grown(
        self, plan: Plan, call: Call, sizes: CallSizes, reserved: dict[str, int], *, output: int
    ) -> dict[str, int]:
        """The amounts of a running call, now `reserved`, once it has `output` tokens of output in all."""
        model, values = plan.model, dict(reserved)
        for expected, input_tokens in (("", sizes.input_upper), ("~", sizes.input_tokens_estimate)):
            tokens, output_tokens, usd = f"{expected}tokens", f"{expected}output_tokens", f"{expected}usd"
            if tokens in values:
                values[tokens] = max(values[tokens], input_tokens + output)
                values[output_tokens] = max(values[output_tokens], output)
            if usd in values:
                if expected:
                    money = self.money(plan, call, model, estimated(input_tokens, output))
                else:
                    money = self.upper_money(plan, call, model, sizes, output)
                values[usd] = max(values[usd], money)
        return values

    def money(self, plan: Plan, call: Call, model: str, usage: Usage) -> int:
        """Nano-USD of `usage` on the terms asked for. Raises `UnpricedError`."""
        total = self.cost(call, model, usage).total
        return self._unpriced(plan, call, usage) if total is None else nano(total)

    def upper_money(self, plan: Plan, call: Call, model: str, sizes: CallSizes, output: int) -> int:
        """The highest cost of the call in nano-USD: with caching, audio, web searches and the dearest terms seen.

        Raises `UnpricedError`.
        """
        if call.free:
            return 0
        seen = self._history.of(call.provider, model).terms
        upper = self._cost_bound.upper(plan, call, model, sizes, output, seen=seen)
        if upper is not None:
            return upper
        usages = possible_usages(sizes.input_upper, output, sizes.web_searches, sizes)
        totals = [
            self.cost(call, model, usage, terms).total for usage in usages for terms in possible_terms(call, seen)
        ]
        known = [total for total in totals if total is not None]
        return nano(max(known)) if known else self._unpriced(plan, call, usages[0])

    def cost(self, call: Call, model: str, usage: Usage, terms: Terms | None = None) -> Cost:
        """The cost of `usage` on these terms, by default those the call asks for."""
        if call.free:
            return FREE
        tier, speed, geo = terms or (call.service_tier, call.speed, call.geo)
        return self.price(
            *(call.provider, model, usage),
            at=call.started, tier=tier, speed=speed, geo=geo, address=call.server_address,
        )  # fmt: skip

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
        return self.price(call.provider, model, estimated(1, 1), at=call.started, tier=None).total is not None

    # ---- a shorter answer -------------------------------------------------------------------------------------
    def longest(
        self, plan: Plan, call: Call, model: str, sizes: CallSizes, free: Sequence[tuple[Limit, int]]
    ) -> int | None:
        """The largest bound on output tokens per choice with which the call fits `free`.

        `free` has limits and what is left of each in smallest units. None if no bound makes it fit: the input alone
        takes more, or the limit counts neither tokens nor money.
        """
        output = self.output_upper(call, model, sizes, None)

        def room(limit: Limit, left: int) -> int | None:
            """The output tokens that `left` pays for; None if no shorter answer helps."""
            if limit.unit == units.OUTPUT_TOKENS:
                return left
            if limit.unit == units.TOKENS:
                return left - sizes.input_upper
            if limit.unit != units.USD:
                return None
            empty, full = (self.upper_money(plan, call, model, sizes, size) for size in (0, output))
            if empty > left:
                return None
            return output if full <= empty else (left - empty) * output // (full - empty)

        rooms = [room(limit, left) for limit, left in free]
        known = [tokens for tokens in rooms if tokens is not None]
        if output <= 0 or not known or len(known) < len(rooms):
            return None
        bound = min(*known, output) // max(1, sizes.choices)
        for _ in range(_ATTEMPTS):
            # A price need not be linear (it may rise above some size): try, and reduce the bound until the call fits.
            if bound <= sizes.thinking:
                return None
            values = self.amounts(plan, call, model, sizes, bound=bound)
            if all(values[limit.measure] <= left for limit, left in free):
                return bound
            bound = bound * 49 // 50
        return None

    # ---- after ------------------------------------------------------------------------------------------------
    def actual(self, plan: Plan, model: str, record: Record, reserved: dict[str, int]) -> dict[str, int]:
        """What to charge, by unit. What nobody reported is charged as it was reserved, never as nothing."""
        usage = record.usage
        input_tokens, output = usage.input, usage.output
        if usage.origin == "missing":
            input_tokens, output = reserved["input_tokens"], reserved["output_tokens"]
        for part in usage.components:
            input_tokens += part.usage.input
            output += part.usage.output
        return {
            "calls": 1,
            "wall": 0,
            "tokens": input_tokens + output,
            "input_tokens": input_tokens,
            "output_tokens": output,
            "usd": self._charge(model, record, reserved) if plan.money else 0,
            "seconds": int(record.duration * 1000),
        }

    def _charge(self, model: str, record: Record, reserved: dict[str, int]) -> int:
        total = record.cost.total
        if record.usage.origin != "missing":
            if total is not None:
                return nano(total)
            total = self.cost(record.call, model, record.usage).total
            found = self._sibling(record.call, record.usage) if total is None else nano(total)
            if found is not None:
                return found
        return reserved.get("usd", reserved.get("~usd", 0))
