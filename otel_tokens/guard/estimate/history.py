"""Statistics of calls that have ended: output sizes, durations, price terms, and the accuracy of estimates."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

from otel_tokens.values import Record

logger = logging.getLogger("otel_tokens")

SAMPLES = 256
_ENOUGH = 20
_REFRESH = 64
"""Samples after which all of them are evaluated again, which takes 25 us."""
Terms = tuple[str | None, str | None, str | None]
"""(service tier, speed, region) by which a call is priced."""
MAX_TERMS = 8
_USUAL = frozenset({None, "default", "standard", "auto", "not_available", "global"})
OFF = 0.10
"""An estimate that is further off than this is reported, once per model."""
MAX_MODELS = 1000


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How well the tokens of a model's calls were estimated.

    `error` is the mean of |expected - actual| / actual, `bias` the mean with its sign, `off` counts calls above 10 %.
    """

    provider: str
    model: str
    calls: int
    error: float
    bias: float
    off: int


class ModelStats:
    """The recent calls of one model. Updated without a lock: a lost sample does no harm.

    Nine of ten calls have an output of at most `likely_output` tokens, and take at most `likely_seconds`; None before
    the first call. Hardly any call has more output than `high_output`, half as much again as the longest one; None
    before 20 calls. `terms` are those that calls were charged by without asking for them.
    """

    __slots__ = (
        "_outputs",
        "_refresh_at",
        "_samples",
        "_seconds",
        "bias",
        "calls",
        "error",
        "high_output",
        "likely_output",
        "likely_seconds",
        "off",
        "reported",
        "seen_terms",
        "terms",
    )

    def __init__(self) -> None:
        self.high_output: int | None = None
        self.likely_output: int | None = None
        self.likely_seconds: float | None = None
        self.terms: frozenset[Terms] = frozenset()
        self.seen_terms: set[tuple[str | None, ...]] = set()
        self.calls = 0
        self.error = 0.0
        self.bias = 0.0
        self.off = 0
        self.reported = False
        self._outputs: deque[int] = deque(maxlen=SAMPLES)
        self._seconds: deque[float] = deque(maxlen=SAMPLES)
        self._samples = 0
        self._refresh_at = 1

    def add(self, output: int, seconds: float) -> None:
        """Add the output and the duration of one more call."""
        self._outputs.append(output)
        self._seconds.append(seconds)
        self._samples += 1
        if self._samples >= self._refresh_at:
            self._refresh()

    def add_terms(self, terms: tuple[str | None, ...]) -> None:
        """Add terms: three that a call asked for and three that it got. The next call may get them, too."""
        if len(self.seen_terms) < 8 * MAX_TERMS:
            self.seen_terms.add(terms)
        asked, got = (tuple(None if term in _USUAL else term for term in half) for half in (terms[:3], terms[3:]))
        if got != asked and got not in self.terms and len(self.terms) < MAX_TERMS:
            tier, speed, geo = got
            self.terms = self.terms | {(tier, speed, geo)}

    def _refresh(self) -> None:
        outputs, seconds = sorted(self._outputs), sorted(self._seconds)
        self.likely_output = outputs[len(outputs) * 9 // 10]
        self.likely_seconds = seconds[len(seconds) * 9 // 10]
        if len(outputs) >= _ENOUGH:
            self.high_output = outputs[-1] * 3 // 2
        self._refresh_at = _ENOUGH if self._samples < _ENOUGH else self._samples + _REFRESH


class History:
    """Statistics per (provider, model), for at most 1,000 models."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], ModelStats] = {}

    def of(self, provider: str, model: str) -> ModelStats:
        """The statistics of a model; empty ones for a model without calls so far."""
        stats = self._models.get((provider, model))
        if stats is None:
            if len(self._models) >= MAX_MODELS:
                self._models.clear()
            stats = self._models[provider, model] = ModelStats()
        return stats

    def learn(self, record: Record, model: str, expected_input: int) -> float | None:
        """Add a call whose usage the provider reported. Returns the error of its estimate the first time it is > 10 %.

        Expected was: the input by its length, the output by that of the model's calls before.
        """
        call, usage = record.call, record.usage
        stats = self.of(call.provider, model)
        terms = (call.service_tier, call.speed, call.geo, record.service_tier, record.speed, record.geo)
        if terms not in stats.seen_terms:
            stats.add_terms(terms)
        likely = stats.likely_output
        stats.add(usage.output, record.duration)
        actual = usage.input + usage.output
        if likely is None or actual <= 0:
            return None
        expected = expected_input + likely
        error = (expected - actual) / actual
        stats.calls += 1
        stats.bias += error
        stats.error += abs(error)
        if -OFF <= error <= OFF:
            return None
        stats.off += 1
        if stats.reported:
            return None
        stats.reported = True
        logger.info(
            "%s used %d tokens where %d were expected (%+.0f %%); further calls of it are estimated from what it used",
            model,
            actual,
            expected,
            error * 100,
        )
        return error

    def accuracy(self) -> list[Accuracy]:
        """How well the calls of each model were estimated, in the order of their first calls."""
        return [
            Accuracy(provider, model, s.calls, s.error / s.calls, s.bias / s.calls, s.off)
            for (provider, model), s in list(self._models.items())
            if s.calls
        ]
