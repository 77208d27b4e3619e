"""Makes records; run as a script, a process that writes them: `child.py MODE PATH NAME COUNT`."""

from __future__ import annotations

import os
import sys
import time
from decimal import Decimal
from typing import Any

from otel_tokens.ledger.ledger import Ledger
from otel_tokens.values import Call, Cost, Record, Usage


def record(call_id: str = "c1", **changes: Any) -> Record:
    """A believable record; `changes` are fields of Call, Usage and Record; `cost` a Cost, an amount, None: unpriced."""
    call: dict[str, Any] = {
        "id": call_id,
        "provider": "openai",
        "endpoint": "openai.chat",
        "operation": "chat",
        "model": "gpt-4o-mini",
        "started": time.time(),
        "sdk": "openai 3.54.0",
        "server_address": "api.openai.com",
        "server_port": 443,
    }
    usage: dict[str, Any] = {
        "input": 1000,
        "output": 50,
        "cache_read": 800,
        "reasoning": 20,
        "origin": "provider",
        "reported": frozenset({"input", "output", "cache_read", "reasoning"}),
    }
    rest: dict[str, Any] = {"outcome": "ok", "duration": 1.25, "finish_reasons": ("stop",)}
    total = changes.pop("cost", "0.000123")
    for name, value in changes.items():
        for target, cls in ((call, Call), (usage, Usage), (rest, Record)):
            if name in cls.__dataclass_fields__:
                target[name] = value
                break
        else:
            raise TypeError(name)
    return Record(call=Call(**call), usage=Usage(**usage), cost=_cost(total), **rest)


def _cost(total: str | Cost | None) -> Cost:
    if total is None or isinstance(total, Cost):
        return total or Cost()
    amount = Decimal(total)
    return Cost(
        total=amount,
        output=amount,
        status="priced",
        version="2026-11-01",
        rule="gpt-4o-mini",
        local_total=amount,
    )


def main(mode: str, path: str, name: str, count: str) -> None:
    if mode == "open":
        sys.stdin.readline()  # all start at once
        ledger = Ledger(path)
        assert ledger.disabled is None, ledger.disabled
        ledger.close()
    if mode == "write":
        ledger = Ledger(path)
        sys.stdin.readline()
        for number in range(int(count)):
            one = record(f"{name}-{number}", cost="0.0000001")
            ledger.write(one)
            ledger.write(one)
        ledger.close()
        print(ledger.errors, ledger.pending, ledger.disabled)
    if mode == "endless":
        ledger = Ledger(path)
        number = 0
        while True:
            ledger.write(record(f"{name}-{number}"))
            os.write(1, f"{name}-{number}\n".encode())
            number += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
