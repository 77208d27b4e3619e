"""Money in words: readable, and exact where it is data."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_tokens.reports.text import plain, price


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        ("0", "$0.00"),
        ("12.345", "$12.34"),
        ("1234567.891", "$1,234,567.89"),
        ("1", "$1.00"),
        ("0.99999", "$1.0000"),
        ("0.5", "$0.5000"),
        ("0.0123456", "$0.0123"),
        ("0.00123456", "$0.00123"),
        ("0.000123", "$0.000123"),
        ("0.00012", "$0.00012"),
        ("2E-8", "$0.00000002"),
    ],
)
def test_prices_are_readable(amount: str, shown: str) -> None:
    assert price(Decimal(amount), "USD") == shown


def test_currencies() -> None:
    assert price(Decimal(3), "EUR") == "€3.00"
    assert price(Decimal(3), "CHF") == "CHF 3.00"
    assert price(Decimal(3), None) == "$3.00"


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20))
def test_plain_is_exact(amount: Decimal) -> None:
    text = plain(amount)
    assert Decimal(text) == amount
    assert "E" not in text
