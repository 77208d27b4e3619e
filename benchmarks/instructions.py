"""`make bench`: instructions of a call and of a chunk of a stream, where valgrind is installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import callgrind
from otel_tokens import Budget

SDKS = ("openai", "anthropic")


def calls() -> dict[str, callgrind.Case]:
    """Cases of which a step is a call: "openai metered"."""
    from benchmarks.__main__ import bare, floor, metered, work

    variants: dict[str, Any] = {
        "bare": lambda _: bare(),
        "floor": floor,
        "metered": lambda _: metered(),
        "guarded": lambda _: metered(store="memory", budgets=[Budget("bench", usd="1000000")]),
    }

    def case(sdk: str, variant: Any, steps: int) -> None:
        run = work(sdk, stream=False, asynchronous=False)
        with variant(sdk):
            run(steps)

    return {f"{sdk} {name}": partial(case, sdk, variant) for sdk in SDKS for name, variant in variants.items()}


def chunks() -> dict[str, callgrind.Case]:
    """Cases of which a step is ten chunks of text of one stream: "openai metered"."""
    from benchmarks.__main__ import bare, metered, parsed, replayed, work

    variants: dict[str, Callable[[], Any]] = {
        "bare": bare,
        "metered": metered,
        "guarded": lambda: metered(store="memory", budgets=[Budget("bench", usd="1000000")]),
    }

    def case(sdk: str, variant: Callable[[], Any], steps: int) -> None:
        seen = parsed(sdk)
        run = work(sdk, stream=True, asynchronous=False)
        chunks = [*seen[:3], *[seen[len(seen) // 2]] * (10 * steps), *seen[-3:]]
        with replayed(sdk, chunks, asynchronous=False), variant():
            run(1)

    return {f"{sdk} {name}": partial(case, sdk, variant) for sdk in SDKS for name, variant in variants.items()}


def main() -> None:
    """Print both, if they can be counted."""
    if not callgrind.available():
        print("instructions are not counted: valgrind is not installed")
        return
    took = callgrind.instructions("benchmarks.instructions:calls")
    for sdk in SDKS:
        base = took[f"{sdk} bare"]
        floor, ours, guarded = (took[f"{sdk} {name}"] - base for name in ("floor", "metered", "guarded"))
        print(
            f"{sdk}: a call adds {ours / 1000:.0f}k instructions ({ours / floor:.2f} x floor), with a budget "
            f"{guarded / 1000:.0f}k ({guarded / floor:.2f} x)"
        )
    took = callgrind.instructions("benchmarks.instructions:chunks")
    for sdk in SDKS:
        base = took[f"{sdk} bare"]
        ours, guarded = ((took[f"{sdk} {name}"] - base) / 10 for name in ("metered", "guarded"))
        print(f"{sdk}: a chunk of text adds {ours:.0f} instructions, with a budget {guarded:.0f}")
