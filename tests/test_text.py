"""Text from outside cannot steer a terminal, forge a line or give a secret away."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_tokens.text import printable, shown_url


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("gpt-5.4", "gpt-5.4"),
        ("", ""),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("bell\x07", r"bell\x07"),
        ("a\x9b31m", r"a\x9b31m"),
        ("one\ntwo\r\nthree", r"one\ntwo\r\nthree"),
        ("a\tb\x0b\x0c\x85", r"a\tb\x0b\x0c\x85"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("abc\u202egnp", r"abc\u202egnp"),
        ("\u2066x\u2069\u200e\u200f", r"\u2066x\u2069\u200e\u200f"),
        ("a\u200bb\u00adc\ufeff", r"a\u200bb\xadc\ufeff"),
        ("\u3164\u115f\U000e0101", r"\u3164\u115f\U000e0101"),
        ("\ud800", r"\ud800"),
        ("Zoë 東京　😀 ✔️ a\u00a0b", "Zoë 東京　😀 ✔️ a\u00a0b"),
        ("\N{ARABIC LETTER ALEF}\N{HEBREW LETTER ALEF}", "\N{ARABIC LETTER ALEF}\N{HEBREW LETTER ALEF}"),
    ],
)
def test_what_steers_a_terminal_is_an_escape(text: str, shown: str):
    assert printable(text) == shown


def test_no_control_or_format_character_of_unicode_passes():
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    hostile = [char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) in kinds]
    assert len(hostile) > 2000
    assert [char for char in hostile if char in printable(char)] == []


@given(st.text())
def test_the_result_is_one_line_and_stays_as_it_is(text: str):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://user:s3cret@localhost:6379/0", "redis://***@localhost:6379/0"),
        ("redis://:s3cret@localhost", "redis://***@localhost"),
        ("redis://localhost/0?password=s3cret&db=1", "redis://localhost/0?password=***&db=***"),
        ("redis+sentinel://h1:26379,h2/name/0?sentinel_password=s3cret", None),
        ("rediss://[::1]:6379/0", "rediss://[::1]:6379/0"),
        ("unix:///run/redis.sock?password=s3cret", "unix:///run/redis.sock?password=***"),
        ("https://host:4318/v1/traces#s3cret", "https://host:4318/v1/traces"),
        ("https://host?s3cret", "https://host?***"),
        ("sqlite:////home/a@b/x.db", "sqlite:////home/a@b/x.db"),
        ("memory", "memory"),
        ("localhost:4318", "localhost:4318"),
        # Mistyped: nobody can say where the password ends.
        ("redis://:s3/cret@host", "redis://***"),
        ("redis://:s3?cret@host", "redis://***"),
        ("redis://:s3#cret@host", "redis://***"),
        ("redis://:s3@c/ret@host", "redis://***"),
        ("redis://user:s3cret", "redis://***"),
        ("redis:/user:s3cret@host", "***"),
        ("redis//:s3cret@host", "***"),
        ("user:s3cret@host:6379", "***@host:6379"),
        ("re dis://x", "***"),
        ("redis://ho\x1bst", r"redis://ho\x1bst"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str | None):
    assert shown_url(url) == (shown or "redis+sentinel://h1:26379,h2/name/0?sentinel_password=***")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.slack.com/services/T0/B0/s3cret", "https://hooks.slack.com/***"),
        ("https://user:s3cret@host/s3cret?key=s3cret", "https://***@host/***?key=***"),
        ("https://host/", "https://host/"),
        ("https://host", "https://host"),
        ("https://host/s3cret@team", "https://***"),
    ],
)
def test_the_path_of_a_webhook_is_a_secret(url: str, shown: str):
    assert shown_url(url, path=False) == shown


@given(st.text(min_size=1), st.sampled_from(["redis://{}@host", "redis://:{}@host:1/2?db=3", "https://u:{}@h/x?k=v"]))
def test_no_password_shows_however_it_is_written(password: str, form: str):
    marked = f"{password}s3cret{password}"
    assert "s3cret" not in shown_url(form.format(marked))
