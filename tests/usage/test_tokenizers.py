"""OpenAI's tokenizers: used when they are here, never fetched, never waited for."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken.load
import tiktoken_ext.openai_public as public

from otel_tokens.usage import tokenizers

MODEL, ENCODING = "gpt-4o-2024-11-20", "o200k_base"


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(tokenizers, "_counts", {})
    monkeypatch.setattr(tokenizers, "_begun", set())
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return


@pytest.fixture(autouse=True)
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What tiktoken would have fetched from the network."""
    asked: list[str] = []

    def fetch(address: str) -> bytes:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(tiktoken.load, "read_file", fetch)
    return asked


def vocabulary() -> bytes:
    """A vocabulary in tiktoken's own format: every byte, and one word."""
    words = [bytes([byte]) for byte in range(256)] + [b"ab", b"abab"]
    return b"".join(base64.b64encode(word) + b" %d\n" % rank for rank, word in enumerate(words))


def settled(found: Callable[[], Any]) -> Any:
    end = time.monotonic() + 20
    while found() is None and time.monotonic() < end:
        time.sleep(0.01)
    return found()


def test_the_first_look_does_not_wait_and_the_tokenizer_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str]
) -> None:
    data = vocabulary()
    (tmp_path / tokenizers.CACHED_AS[ENCODING]).write_bytes(data)
    # The real loader reads the file; only its checksum is that of our small vocabulary.
    load = tiktoken.load.load_tiktoken_bpe
    digest = hashlib.sha256(data).hexdigest()
    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda path, expected_hash=None: load(path, digest))
    assert tokenizers.counter(MODEL) is None
    count = settled(lambda: tokenizers.counter(MODEL))
    assert count("abab!") == 2
    assert fetched == []


def test_a_tokenizer_without_its_data_is_not_fetched(fetched: list[str]) -> None:
    for _ in range(3):
        assert tokenizers.counter(MODEL) is None
        time.sleep(0.1)
    assert fetched == []


def test_one_that_the_application_has_loaded_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    made = tiktoken.Encoding(ENCODING, pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, ENCODING, made)
    tokenizers.counter(MODEL)
    count = settled(lambda: tokenizers.counter(MODEL))
    assert count("é a") == 4
    assert count("<|endoftext|>") == len("<|endoftext|>")  # text, whatever it says


def test_a_model_it_does_not_know_has_none(fetched: list[str]) -> None:
    assert tokenizers.counter("claude-sonnet-4-6") is None
    time.sleep(0.1)
    assert tokenizers.counter("claude-sonnet-4-6") is None
    assert fetched == []


def test_the_names_of_cached_files_are_tiktokens_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(path: str, expected_hash: str | None = None) -> dict[bytes, int]:
        asked.append(path)
        return {}

    monkeypatch.setattr(public, "load_tiktoken_bpe", load)
    for name, file in tokenizers.CACHED_AS.items():
        public.ENCODING_CONSTRUCTORS[name]()
        assert hashlib.sha1(asked[-1].encode()).hexdigest() == file


def test_without_tiktoken_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "_installed", lambda: False)
    assert tokenizers.counter(MODEL) is None
    assert tokenizers._begun == set()
