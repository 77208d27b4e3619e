"""`otel_tokens.price`, as a user calls it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

import otel_tokens
from otel_tokens import ConfigError, Usage

SPRING = datetime(2025, 4, 1, tzinfo=UTC)  # before o3 became cheaper


@pytest.mark.parametrize("at", [SPRING, SPRING.timestamp(), int(SPRING.timestamp()), "2025-04-01", date(2025, 4, 1)])
def test_the_price_of_a_moment_however_it_is_written(at: object) -> None:
    usage = Usage(input=1000, output=1000)
    assert otel_tokens.price("o3", usage, at=at).total == Decimal("0.05")
    assert otel_tokens.price("o3", usage).total == Decimal("0.01")


def test_what_is_no_moment() -> None:
    with pytest.raises(ConfigError, match="at: 'then' is not a time"):
        otel_tokens.price("o3", Usage(input=1), at="then")
