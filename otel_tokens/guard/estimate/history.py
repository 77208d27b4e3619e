"""Learns from calls that ended: output sizes, durations, price terms, and the accuracy of estimates."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

from otel_tokens.values import Record

logger = logging.getLogger("otel_tokens")

SAMPLES = 256
_ENOUGH = 20
_REFRESH = 64
"""Samples between two looks at all of them, which take 25 us."""
Terms = tuple[str | None, str | None, str | None]
"""(service tier, speed, region) by which a call is priced."""
MAX_TERMS = 8
_USUAL = frozenset({None, "default", "standard", "auto", "not_available", "global"})
OFF = 0.10
"""An estimate that is further off than this is reported, once per model."""
MAX_MODELS = 1000


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How well the tokens of a model's calls were expected. `error` is the mean of |expected - actual| / actual."""

    provider: str
    model: str
    calls: int
    error: float
    bias: float
    off: int


class ModelStats:
    """The recent calls of one model. Updated without a lock: a lost sample does no harm."""

    __slots__ = (
        "_fresh",
        "_high",
        "_likely",
        "_seconds",
        "_seen_terms",
        "bias",
        "calls",
        "durations",
        "error",
        "off",
        "outputs",
        "terms",
        "told",
    )

    def __init__(self) -> None:
        self.outputs: deque[int] = deque(maxlen=SAMPLES)
        self.durations: deque[float] = deque(maxlen=SAMPLES)
        self.terms: frozenset[Terms] = frozenset()
        self._seen_terms: set[tuple[str | None, ...]] = set()
        self.calls = 0
        self.error = 0.0
        self.bias = 0.0
        self.off = 0
        self.told = False
        self._fresh = 0
        self._high: int | None = None
        self._likely: int | None = None
        self._seconds: float | None = None

    def add(self, output: int, seconds: float) -> None:
        """One more call."""
        self.outputs.append(output)
        self.durations.append(seconds)
        self._fresh += 1
        if self._fresh >= _REFRESH or len(self.outputs) in {1, _ENOUGH}:
            self._refresh()

    def add_terms(self, record: Record) -> None:
        """Remember terms that the call did not ask for: the next one may get them, too."""
        call = record.call
        terms = (call.service_tier, call.speed, call.geo, record.service_tier, record.speed, record.geo)
        if terms in self._seen_terms:  # as those of nearly all calls: 1 us saved
            return
        if len(self._seen_terms) < 8 * MAX_TERMS:
            self._seen_terms.add(terms)
        asked, got = (tuple(None if term in _USUAL else term for term in half) for half in (terms[:3], terms[3:]))
        if got != asked and got not in self.terms and len(self.terms) < MAX_TERMS:
            tier, speed, geo = got
            self.terms = self.terms | {(tier, speed, geo)}

    def _refresh(self) -> None:
        self._fresh = 0
        outputs, seconds = sorted(self.outputs), sorted(self.durations)
        self._likely = outputs[len(outputs) * 9 // 10]
        self._seconds = seconds[len(seconds) * 9 // 10]
        if len(outputs) >= _ENOUGH:
            self._high = outputs[-1] * 3 // 2

    @property
    def high_output(self) -> int | None:
        """An output the model's calls hardly pass: half as much again as the longest; None before 20 calls."""
        return self._high

    @property
    def likely_output(self) -> int | None:
        """The output nine of ten calls stay below; None before the first."""
        return self._likely

    @property
    def likely_seconds(self) -> float | None:
        """The duration nine of ten calls stay below; None before the first."""
        return self._seconds


class History:
    """Statistics per (provider, model), for at most 1,000 models."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], ModelStats] = {}

    def of(self, provider: str, model: str) -> ModelStats:
        """The statistics of a model; empty ones for a model not seen yet."""
        stats = self._models.get((provider, model))
        if stats is None:
            if len(self._models) >= MAX_MODELS:
                self._models.clear()
            stats = self._models[provider, model] = ModelStats()
        return stats

    def learn(self, record: Record, model: str, expected_input: int) -> float | None:
        """Take a call, whose usage the provider reported; returns the error the first time it is over 10 %.

        What was expected: the input by its length, the output by what the model's calls were like before.
        """
        usage = record.usage
        stats = self.of(record.call.provider, model)
        stats.add_terms(record)
        likely = stats.likely_output
        stats.add(usage.output, record.duration)
        actual = usage.input + usage.output
        if actual <= 0 or likely is None:
            return None
        expected = expected_input + likely
        wrong = (expected - actual) / actual
        stats.calls += 1
        stats.error += abs(wrong)
        stats.bias += wrong
        if abs(wrong) <= OFF:
            return None
        stats.off += 1
        if stats.told:
            return None
        stats.told = True
        logger.info(
            "%s used %d tokens where %d were expected (%+.0f %%); further calls of it are estimated from what it used",
            model,
            actual,
            expected,
            wrong * 100,
        )
        return wrong

    def accuracy(self) -> list[Accuracy]:
        """How well each model's calls were expected, in the order they were first seen."""
        return [
            Accuracy(provider, model, s.calls, s.error / s.calls, s.bias / s.calls, s.off)
            for (provider, model), s in list(self._models.items())
            if s.calls
        ]
