"""OpenAI's tokenizers, where the package tiktoken is installed and has their data on this machine.

Loading one takes half a second, so it is done beside the calls; until then, and for all other models, texts are
measured by their bytes. tiktoken fetches data that it lacks: such a tokenizer is left alone, as this library opens no
connection of its own.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

logger = logging.getLogger("otel_tokens")

Count = Callable[[str], int]

CACHED_AS = {
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
    "o200k_harmony": "fb374d419588a4632f3f557e76b4b70aebbca790",
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
}
"""The file in tiktoken's cache that an encoding is read from (the SHA-1 of its address)."""

_counts: dict[str, Count | None] = {}
_begun: set[str] = set()


def counter(model: str) -> Count | None:
    """What counts the tokens of a text for `model`; None when there is none, or none yet. Never waits."""
    if not _installed():
        return None
    if model not in _begun:
        if len(_begun) > 1000:
            return None
        _begun.add(model)
        thread = threading.Thread(target=_load, args=(model,), name="otel-tokens-tokenizer", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down
            return None
    return _counts.get(model)


@lru_cache(maxsize=1)
def _installed() -> bool:
    from importlib.util import find_spec  # loads a lot, and only a guard asks

    return "tiktoken" in sys.modules or find_spec("tiktoken") is not None


def _load(model: str) -> None:
    try:
        import tiktoken  # pyright: ignore[reportMissingImports]

        library: Any = tiktoken
        name = library.encoding_name_for_model(model)
        if name not in library.registry.ENCODINGS and not _cached(name):
            return
        encoding = library.get_encoding(name)
    except KeyError:
        return  # a model it does not know
    except Exception as error:  # another version, broken data: the bytes serve
        logger.debug("tiktoken is not used for %s: %s", model, error)
        return

    def count(text: str) -> int:
        return len(encoding.encode_ordinary(text))

    _counts[model] = count


def _cached(encoding: str) -> bool:
    """Whether tiktoken has the data of this encoding on disk, and so need not fetch it."""
    name = CACHED_AS.get(encoding)
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    place = Path(tempfile.gettempdir(), "data-gym-cache") if folder is None else Path(folder)
    return bool(name) and folder != "" and (place / name).is_file()


def _forked() -> None:
    _begun.intersection_update(_counts)  # a thread that was loading is the parent's


os.register_at_fork(after_in_child=_forked)
