"""Tokens before, or without, a provider's report: from text lengths, calibrated by what providers reported.

Every number made here is an estimate and is marked as one where it is used (`Usage.origin`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

DEFAULT_CHARS_PER_TOKEN = 3.6
"""English prose is near 4 characters a token, code and JSON near 3."""

MIN_RATIO, MAX_RATIO = 0.5, 12.0
"""Outside these a report says more about images or hidden prompts than about text."""

MAX_MODELS = 2000
EAGER, SAMPLE = 4, 16
SMALL = 50
"""Below so many tokens the fixed overhead of a message drowns the ratio."""


@dataclass(slots=True)
class _Ratio:
    chars: float = 0.0
    tokens: float = 0.0

    def learn(self, chars: int, tokens: int) -> None:
        # Old observations fade, so that a changed tokenizer or kind of text is followed within some 50 calls.
        self.chars = self.chars * 0.98 + chars
        self.tokens = self.tokens * 0.98 + tokens


class Estimator:
    """Characters to tokens, per model and direction. Thread-safe; bounded."""

    def __init__(self) -> None:
        self._ratios: dict[tuple[str, str], _Ratio] = {}
        self._lock = threading.Lock()
        self._calls: dict[str, int] = {}

    def calibrated(self, model: str, direction: str = "input") -> bool:
        """Whether a provider has reported on this model ("input" or "output")."""
        return (model, direction) in self._ratios

    def wants(self, model: str) -> bool:
        """Whether to measure this call's texts: the first `EAGER` calls of a model, then one in `SAMPLE`."""
        # A count lost between threads does no harm.
        count = self._calls.get(model, 0)
        if count or len(self._calls) < MAX_MODELS:
            self._calls[model] = count + 1
        return count < EAGER or count % SAMPLE == 0

    def learn(self, model: str, direction: str, chars: int, tokens: int) -> None:
        """Take a provider's report of `tokens` for `chars` characters of text."""
        if tokens < SMALL or chars <= 0 or not MIN_RATIO <= chars / tokens <= MAX_RATIO:
            return
        with self._lock:
            ratio = self._ratios.get((model, direction))
            if ratio is None:
                if len(self._ratios) >= MAX_MODELS:
                    return
                ratio = self._ratios[model, direction] = _Ratio()
            ratio.learn(chars, tokens)

    def chars(self, model: str, direction: str, tokens: int) -> int:
        """About how many characters make so many tokens."""
        ratio = self._ratios.get((model, direction))
        return round(tokens * (ratio.chars / ratio.tokens if ratio else DEFAULT_CHARS_PER_TOKEN))

    def tokens(self, model: str, direction: str, chars: int) -> int:
        """The estimated tokens of `chars` characters; at least 1 when there is any text."""
        if chars <= 0:
            return 0
        ratio = self._ratios.get((model, direction))
        per_token = ratio.chars / ratio.tokens if ratio else DEFAULT_CHARS_PER_TOKEN
        return max(1, round(chars / per_token))
