"""Fixtures of the reports' tests: a ledger filled with believable calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_tokens.ledger.ledger import Ledger
from otel_tokens.values import Call, Cost, Record, Usage


def record(number: int, model: str = "gpt-4o", cost: str | None = "0.5", **changes: Any) -> Record:
    """A record; `changes` are fields of Call, Usage and Record, and `currency`."""
    amount = None if cost is None else Decimal(cost)
    status = "unpriced" if amount is None else "priced"
    priced = Cost(total=amount, output=amount, status=status, currency=changes.pop("currency", "USD"))
    call: dict[str, Any] = {
        "id": f"c{number}",
        "endpoint": "openai.chat",
        "operation": "chat",
        "model": model,
        "provider": "openai",
        "started": time.time(),
    }
    usage: dict[str, Any] = {"origin": "provider", "input": 100, "output": 10}
    rest: dict[str, Any] = {"outcome": "ok", "duration": 1.0}
    for name, value in changes.items():
        target = next(
            target for target, cls in ((call, Call), (usage, Usage), (rest, Record)) if name in cls.__dataclass_fields__
        )
        target[name] = value
    return Record(call=Call(**call), usage=Usage(**usage), cost=priced, **rest)


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """`make_record(number, model, cost, **changes)`."""
    return record


@pytest.fixture
def fill(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """`fill({...}, {...})` writes a record for each set of changes; gives the ledger's path."""
    ledger = Ledger(tmp_path / "ledger.db")
    written = 0

    def write(*rows: dict[str, Any]) -> str:
        nonlocal written
        for changes in rows:
            ledger.write(record(written, **changes))
            written += 1
        assert ledger.errors == 0
        return ledger.path

    yield write
    ledger.close()
