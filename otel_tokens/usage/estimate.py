"""Tokens where there is no report, or not yet: from the bytes of texts, calibrated by earlier reports.

Every number made here is an estimate and is marked as one where it is used (`Usage.origin`).
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

from otel_tokens.usage.size import Size
from otel_tokens.usage.tokenizer import MAX_BYTES, Tokenizer

DEFAULT_BYTES_PER_TOKEN = 3.6
"""English prose is near 4.5 bytes a token, code and JSON near 3, most other scripts between 2.5 and 5."""

MIN_RATIO, MAX_RATIO = 0.5, 12.0
"""Bytes for each token. A report outside these bounds is about images or hidden prompts more than about text."""

WORDS = 0.5
"""Tokens per lower-case letter and space of a text, at most, before a report. Counted with o200k and cl100k: words of
any language have fewer, single letters between spaces exactly so many; only random letters have more (up to 0.65)."""
MARGIN = 1.25
"""The bound of the next text is this many times the most tokens seen."""
OVERHEAD = 64
"""Tokens that providers put around any request."""

MAX_MODELS = 2000
EAGER, SAMPLE = 4, 16
SMALL = 50
"""Reports with fewer tokens are not used: the fixed overhead of a message would change the ratio."""


@dataclass(slots=True, eq=False, repr=False)
class _Ratio:
    text_bytes: float = 0.0
    tokens: float = 0.0

    def learn(self, text_bytes: int, tokens: int) -> None:
        # Old observations fade: after some 50 calls the ratio follows a new tokenizer or another kind of text.
        self.text_bytes = self.text_bytes * 0.98 + text_bytes
        self.tokens = self.tokens * 0.98 + tokens


@dataclass(slots=True, eq=False, repr=False)
class _Most:
    """The most tokens that requests of a model had. `share`: tokens for each letter in words (None before a report).
    `hidden`: tokens beyond what the request shows, such as search results of the provider's tools."""

    share: float | None = None
    hidden: int = 0

    def bound(self, size: Size) -> int:
        """The most tokens that what the request shows can have."""
        dense, light = size.weigh()
        share = WORDS if self.share is None else self.share
        return dense + math.ceil(light * share) + size.structure + size.extra + OVERHEAD

    def learn(self, size: Size, tokens: int) -> None:
        # Fades like the ratio, but only downwards: a request with more tokens counts at once.
        text = sum(size.weigh())
        shown = text + size.structure + size.extra + OVERHEAD
        # A request with images says nothing about text. Nor does a report with more tokens than the request can have.
        if SMALL <= tokens <= shown and text > 0 and not size.extra:
            seen = min(1.0, MARGIN * tokens / text)
            self.share = seen if self.share is None else max(seen, self.share * 0.98)
        self.hidden = max(round(self.hidden * 0.98), tokens - self.bound(size), 0)


_NOTHING_SEEN = _Most()


class Estimator:
    """Bytes of text to tokens, per model and direction. Thread-safe; bounded."""

    def __init__(self) -> None:
        self._ratios: dict[tuple[str, str], _Ratio] = {}
        self._most: dict[tuple[str, bool], _Most] = {}
        self.tokenizer = Tokenizer()
        self._lock = threading.Lock()
        self._calls: dict[str, int] = {}

    def after_fork(self) -> None:
        """In a child process: make new locks. The thread that held one does not exist here."""
        self._lock = threading.Lock()
        self.tokenizer.after_fork()

    def wants(self, model: str) -> bool:
        """Whether to measure this call's texts: the first `EAGER` calls of a model, then one in `SAMPLE`."""
        # If two threads lose a count, nothing breaks.
        count = self._calls.get(model, 0)
        if count or len(self._calls) < MAX_MODELS:
            self._calls[model] = count + 1
        return count < EAGER or count % SAMPLE == 0

    def learn(self, model: str, direction: str, text_bytes: int, tokens: int) -> None:
        """Learn from a report of `tokens` for `text_bytes` bytes of text."""
        if tokens < SMALL or text_bytes <= 0 or not MIN_RATIO <= text_bytes / tokens <= MAX_RATIO:
            return
        with self._lock:
            ratio = self._ratios.get((model, direction))
            if ratio is None:
                if len(self._ratios) >= MAX_MODELS:
                    return
                ratio = self._ratios[model, direction] = _Ratio()
            ratio.learn(text_bytes, tokens)

    # ---- a request before it is sent --------------------------------------------------------------------------------
    def request(self, size: Size) -> tuple[int, int]:
        """(likely, most) input tokens of a request.

        The most is a token for each byte. Letters in words count by `WORDS`, and after the model's first report by what
        its calls had. Text is exact if tiktoken is installed and knows the model.
        """
        most = self._most.get((size.model, size.hosted), _NOTHING_SEEN)
        exact = self.tokenizer.count(size.model, size.texts, size.names) if size.text_bytes <= MAX_BYTES else None
        if exact is not None:
            around = size.structure + size.extra + most.hidden + OVERHEAD
            return exact + size.structure // 2, exact + around
        upper = most.bound(size) + most.hidden
        return min(self.tokens(size.model, "input", size.text_bytes), upper), upper

    def learn_request(self, size: Size, tokens: int) -> None:
        """Learn from a report of a request's input tokens."""
        key = (size.model, size.hosted)
        with self._lock:
            most = self._most.get(key)
            if most is None:
                if len(self._most) >= MAX_MODELS:
                    return
                most = self._most[key] = _Most()
            most.learn(size, tokens)

    # ---- texts ------------------------------------------------------------------------------------------------------
    def text_bytes(self, model: str, direction: str, tokens: int) -> int:
        """About how many bytes of text have `tokens` tokens."""
        ratio = self._ratios.get((model, direction))
        return round(tokens * (ratio.text_bytes / ratio.tokens if ratio else DEFAULT_BYTES_PER_TOKEN))

    def tokens(self, model: str, direction: str, text_bytes: int) -> int:
        """The estimated tokens of `text_bytes` bytes of text; at least 1 if there is any text."""
        if text_bytes <= 0:
            return 0
        ratio = self._ratios.get((model, direction))
        per_token = ratio.text_bytes / ratio.tokens if ratio else DEFAULT_BYTES_PER_TOKEN
        return max(1, round(text_bytes / per_token))
