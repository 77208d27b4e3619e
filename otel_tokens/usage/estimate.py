"""Tokens before, or without, a provider's report: from the bytes of texts, calibrated by what providers reported.

Every number made here is an estimate and is marked as one where it is used (`Usage.origin`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from otel_tokens.usage.weight import Weight

DEFAULT_BYTES_PER_TOKEN = 3.6
"""English prose is near 4.5 bytes a token, code and JSON near 3, most other scripts between 2.5 and 5."""

MIN_RATIO, MAX_RATIO = 0.5, 12.0
"""Outside these a report says more about images or hidden prompts than about text."""

MAX_MODELS = 2000
EAGER, SAMPLE = 4, 16
SMALL = 50
"""Below so many tokens the fixed overhead of a message drowns the ratio."""

MARGIN = 1.5
"""How far above the worst of the reports so far a bound stays."""
FADE = 0.99
"""By which each report lets those before it fade: after 70 calls half of a worst case is forgotten."""


@dataclass(slots=True)
class _Ratio:
    size: float = 0.0
    tokens: float = 0.0

    def learn(self, size: int, tokens: int) -> None:
        # Old observations fade, so that a changed tokenizer or kind of text is followed within some 50 calls.
        self.size = self.size * 0.98 + size
        self.tokens = self.tokens * 0.98 + tokens


@dataclass(slots=True)
class _Worst:
    """The largest share of its weight that a model's input came to, and the most that it went beyond it."""

    share: float = 0.0
    beyond: float = 0.0


class Estimator:
    """Bytes of text to tokens, per model and direction ("input", "output"). Thread-safe; bounded."""

    def __init__(self) -> None:
        self._ratios: dict[tuple[str, str], _Ratio] = {}
        self._worst: dict[tuple[str, bool], _Worst] = {}
        self._lock = threading.Lock()
        self._calls: dict[str, int] = {}

    def wants(self, model: str) -> bool:
        """Whether to measure this call's texts: the first `EAGER` calls of a model, then one in `SAMPLE`."""
        # A count lost between threads does no harm.
        count = self._calls.get(model, 0)
        if count or len(self._calls) < MAX_MODELS:
            self._calls[model] = count + 1
        return count < EAGER or count % SAMPLE == 0

    def learn(self, model: str, direction: str, size: int, tokens: int) -> None:
        """Take a provider's report of `tokens` for `size` bytes of text."""
        if tokens < SMALL or size <= 0 or not MIN_RATIO <= size / tokens <= MAX_RATIO:
            return
        with self._lock:
            ratio = self._ratios.get((model, direction))
            if ratio is None:
                if len(self._ratios) >= MAX_MODELS:
                    return
                ratio = self._ratios[model, direction] = _Ratio()
            ratio.learn(size, tokens)

    def size(self, model: str, direction: str, tokens: int) -> int:
        """About how many bytes make so many tokens."""
        ratio = self._ratios.get((model, direction))
        return round(tokens * (ratio.size / ratio.tokens if ratio else DEFAULT_BYTES_PER_TOKEN))

    def tokens(self, model: str, direction: str, size: int) -> int:
        """The estimated tokens of `size` bytes of text; at least 1 when there is any text."""
        if size <= 0:
            return 0
        ratio = self._ratios.get((model, direction))
        per_token = ratio.size / ratio.tokens if ratio else DEFAULT_BYTES_PER_TOKEN
        return max(1, round(size / per_token))

    # ---- bounds, for reservations -----------------------------------------------------------------------------
    def upper(self, model: str, weight: Weight) -> int:
        """Input tokens that a request of this weight should not pass.

        Its weight; less once reports have shown what share of it the model's inputs come to; more once they have
        shown that something which is not in the request is billed too (a stored conversation, the provider's own
        prompt, images dearer than reckoned).
        """
        worst = self._worst.get((model, weight.counted))
        if worst is None:
            return weight.tokens
        share = min(1.0, worst.share * MARGIN) if worst.share else 1.0
        return round(weight.tokens * share + worst.beyond * MARGIN)

    def learn_upper(self, model: str, weight: Weight, tokens: int) -> None:
        """Take a provider's report of `tokens` of input for a request of this weight."""
        if tokens <= 0:
            return
        with self._lock:
            worst = self._worst.get((model, weight.counted))
            if worst is None:
                if len(self._worst) >= MAX_MODELS:
                    return
                worst = self._worst[model, weight.counted] = _Worst()
            worst.share = max(worst.share * FADE, min(1.0, tokens / weight.tokens))
            worst.beyond = max(worst.beyond * FADE, tokens - weight.tokens)
