"""tiktoken, when the application has it: exact tokens of texts for the models it knows.

Vocabularies come from the network, and this package opens no connection. So a vocabulary is used only if it is on this
machine already: loaded by the application, or in tiktoken's cache. It is loaded in the background: that takes a second.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from otel_tokens.safely import safely

CACHED_AS = {
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
    "o200k_harmony": "fb374d419588a4632f3f557e76b4b70aebbca790",
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
}
"""The file in tiktoken's cache that an encoding is read from: the SHA-1 of its address."""
MAX_BYTES = 32_000
"""Longer texts are estimated by their length: to count them would take milliseconds of the caller's time."""
MAX_MODELS = 2000
THREAD = "otel-tokens-tiktoken"


class Tokenizer:
    """Counts tokens by tiktoken; None if there is no vocabulary yet. Thread-safe."""

    def __init__(self) -> None:
        self._encodings: dict[str, Any] = {}
        self._installed: bool | None = None

    def count(self, model: str, *texts: Iterable[str]) -> int | None:
        """The tokens of all `texts`, or None without a vocabulary (yet)."""
        encoding = self._encodings.get(model, self)
        if encoding is self:
            encoding = None
            if len(self._encodings) < MAX_MODELS:
                self._encodings[model] = None
                self._want(model)
        if encoding is None:
            return None
        return safely("tiktoken", lambda: sum(len(encoding.encode_ordinary(text)) for text in chain(*texts)))

    def _want(self, model: str) -> None:
        if self._installed is None:
            import importlib.util  # and tempfile, below: slow to import, and for those who have tiktoken

            self._installed = importlib.util.find_spec("tiktoken") is not None
        if self._installed:
            thread = threading.Thread(target=safely, args=("tiktoken", self._load, model), name=THREAD, daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
                thread.start()

    def after_fork(self) -> None:
        """In a child process: forget what the parent's threads were loading, so that it is loaded again."""
        self._encodings = {model: encoding for model, encoding in self._encodings.items() if encoding is not None}

    def _load(self, model: str) -> None:
        # By name: it is an optional package of the application.
        tiktoken: Any = importlib.import_module("tiktoken")
        try:
            name: str = tiktoken.encoding_name_for_model(model)
        except KeyError:
            return
        if name in tiktoken.registry.ENCODINGS or _cached(name):
            self._encodings[model] = tiktoken.get_encoding(name)


def _cached(name: str) -> bool:
    """Whether tiktoken finds this vocabulary in its cache. It looks where tiktoken looks."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder is None:
        import tempfile

        folder = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    file = CACHED_AS.get(name)
    return bool(file) and folder != "" and (Path(folder) / file).is_file()
