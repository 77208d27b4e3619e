"""`make bench`: what metering costs per call and per chunk, against the floor, in one run.

Machines are noisy, so variants take turns in short rounds, CPU time is counted instead of wall time, and medians of
differences are printed as ratios. Absolute times are for orientation only.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import wrapt
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

import otel_tokens
from benchmarks import guard, instructions
from benchmarks.floor import Floor, Model, Watch
from benchmarks.transport import client

ROUNDS = 20
CALLS = 60
MESSAGES: Any = [{"role": "user", "content": "Tell me about the sea. " * 20}]


class Discard(SpanProcessor):
    """Takes spans and does nothing: exporting is not what is measured."""


def providers() -> tuple[TracerProvider, MeterProvider]:
    """Real SDK providers without export."""
    tracers = TracerProvider()
    tracers.add_span_processor(Discard())
    return tracers, MeterProvider([InMemoryMetricReader()])


@contextmanager
def bare() -> Any:
    """No instrumentation."""
    yield


@cache
def model_of(sdk: str) -> Model:
    """A span of this library's, of one plain call."""
    tracers, meters = providers()
    tracers.add_span_processor(watch := Watch())
    otel_tokens.instrument(tracers, meters, config=False)
    request(sdk, client(sdk, stream=False, asynchronous=False), stream=False)
    otel_tokens.uninstrument()
    return watch.seen


@contextmanager
def floor(sdk: str) -> Any:
    """The hand-written floor."""
    module = importlib.import_module(f"{sdk}._base_client")
    tracers, meters = providers()
    made = Floor(tracers.get_tracer("floor"), meters.get_meter("floor"), model_of(sdk))
    held = [(kind, vars(kind)["request"]) for kind in (module.SyncAPIClient, module.AsyncAPIClient)]
    for kind, original in held:
        wrapper = made.aaround if kind.__name__.startswith("Async") else made.around
        kind.request = wrapt.FunctionWrapper(original, wrapper)
    try:
        yield
    finally:
        for kind, original in held:
            kind.request = original
        meters.shutdown()


@contextmanager
def metered(**settings: Any) -> Any:
    """This library."""
    tracers, meters = providers()
    otel_tokens.instrument(tracers, meters, config=False, **settings)
    try:
        yield
    finally:
        otel_tokens.uninstrument()
        meters.shutdown()


def work(sdk: str, *, stream: bool, asynchronous: bool) -> Callable[[int], None]:
    """A function that makes so many calls."""
    made = client(sdk, stream=stream, asynchronous=asynchronous)

    def ask() -> Any:
        return request(sdk, made, stream=stream)

    if not asynchronous:

        def run(calls: int) -> None:
            for _ in range(calls):
                result = ask()
                if stream:
                    for _chunk in result:
                        pass

        return run

    loop = asyncio.new_event_loop()

    async def many(calls: int) -> None:
        for _ in range(calls):
            result = await ask()
            if stream:
                async for _chunk in result:
                    pass

    async def left() -> None:
        """openai leaves its inner generator to the loop, which closes it in a task of its own: a turn later."""
        await asyncio.sleep(0)
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    def arun(calls: int) -> None:
        loop.run_until_complete(many(calls))
        loop.run_until_complete(left())

    return arun


@contextmanager
def replayed(sdk: str, chunks: list[Any], *, asynchronous: bool) -> Any:
    """Streams yield these parsed chunks, so that the SDK's parsing (100 times our part) does not drown ours."""
    module = importlib.import_module(f"{sdk}._streaming")
    kind = module.AsyncStream if asynchronous else module.Stream
    original = vars(kind)["__stream__"]

    def replay(_: Any) -> Any:
        yield from chunks

    async def areplay(_: Any) -> Any:
        for chunk in chunks:
            yield chunk

    kind.__stream__ = areplay if asynchronous else replay
    try:
        yield
    finally:
        kind.__stream__ = original


def chunk(sdk: str, *, asynchronous: bool) -> float:
    """CPU microseconds that metering adds to a chunk without usage: between short and long streams, to bare."""
    seen = parsed(sdk)
    words = seen[len(seen) // 2]
    run = work(sdk, stream=True, asynchronous=asynchronous)
    took: dict[tuple[str, int], float] = {}
    for length in (200, 2200):
        chunks = [*seen[:3], *[words] * (length - 6), *seen[-3:]]
        with replayed(sdk, chunks, asynchronous=asynchronous):
            for name, value in absolute(run, {"bare": bare, "metered": metered}, 5).items():
                took[name, length] = value
    return sum(sign * (took[name, 2200] - took[name, 200]) / 2000 for name, sign in (("metered", 1), ("bare", -1)))


def parsed(sdk: str) -> list[Any]:
    """The chunks of one stream, parsed by the SDK."""
    made = client(sdk, stream=True, asynchronous=False)
    return list(request(sdk, made, stream=True))


def peers(sdk: str) -> dict[str, Any]:
    """Other instrumentations of the SDK that are installed, by distribution; they get the same providers."""
    found: dict[str, Any] = {}
    for entry in entry_points(group="opentelemetry_instrumentor", name=sdk):

        @contextmanager
        def peer(entry: EntryPoint = entry) -> Any:
            tracers, meters = providers()
            instrumentor = entry.load()()
            instrumentor.instrument(tracer_provider=tracers, meter_provider=meters, skip_dep_check=True)
            try:
                yield
            finally:
                instrumentor.uninstrument()
                meters.shutdown()

        found[entry.dist.name if entry.dist is not None else entry.value] = peer
    return found


def against_peers(sdk: str, *, asynchronous: bool) -> None:
    """Print what the installed peers cost beside us, in one run of their own."""
    found = peers(sdk)
    if not found:
        return
    took = measure(
        work(sdk, stream=False, asynchronous=asynchronous),
        {"bare": bare, "floor": partial(floor, sdk), "metered": metered, **found},
        CALLS,
    )
    for name in ("metered", *found):
        print(f"{'':<26}{name:<44}{took[name]:>9.1f} ({took[name] / took['floor']:>4.2f} x)", flush=True)


def request(sdk: str, made: Any, *, stream: bool) -> Any:
    """One call of a client."""
    if sdk == "openai":
        more: Any = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        return made.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_tokens=500, **more)
    return made.messages.create(model="claude-opus-4-1", messages=MESSAGES, max_tokens=500, stream=stream)


def rounds(run: Callable[[int], None], variants: dict[str, Any], calls: int) -> Iterator[dict[str, float]]:
    """CPU microseconds per call of every variant, round by round: the variants take turns."""
    for variant in variants.values():
        with variant():
            run(10)
    for _ in range(ROUNDS):
        took: dict[str, float] = {}
        for name, variant in variants.items():
            with variant():
                run(3)
                gc.collect()
                gc.disable()
                started = time.process_time_ns()
                run(calls)
                took[name] = (time.process_time_ns() - started) / calls / 1000
                gc.enable()
        yield took


def measure(run: Callable[[int], None], variants: dict[str, Any], calls: int) -> dict[str, float]:
    """CPU microseconds per call, per variant: medians over the rounds of the difference to `bare`."""
    taken = list(rounds(run, variants, calls))
    return {
        name: statistics.median(took[name] - (took["bare"] if name != "bare" else 0) for took in taken)
        for name in variants
    }


def absolute(run: Callable[[int], None], variants: dict[str, Any], calls: int) -> dict[str, float]:
    """CPU microseconds per call, per variant: medians over the rounds."""
    taken = list(rounds(run, variants, calls))
    return {name: statistics.median(took[name] for took in taken) for name in variants}


def table(sdk: str, folder: Path) -> dict[str, Any]:
    """The variants that take turns."""
    ledger = folder / "ledger.db"
    return {
        "bare": bare,
        "floor": partial(floor, sdk),
        "metered": metered,
        "with ledger": lambda: metered(ledger=ledger),
        "guard+ledger": lambda: metered(
            ledger=ledger, store="memory", budgets=[otel_tokens.Budget("bench", usd="1000000")]
        ),
    }


def memory(calls: int = 6000) -> float:
    """Bytes that stay per call, over many."""
    run = work("openai", stream=False, asynchronous=False)
    with metered():
        run(500)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        run(calls)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    return (after - before) / calls


STARTS = {
    "the SDK's traces and metrics": "import opentelemetry.sdk.metrics, opentelemetry.sdk.trace",
    "otel_tokens and instrument()": "import otel_tokens; otel_tokens.instrument(config=False, ledger=False)",
}


def start() -> dict[str, float]:
    """CPU milliseconds that each of `STARTS` takes after the one before, with compiled modules; the best of many."""
    best = dict.fromkeys(STARTS, float("inf"))
    code = "from time import process_time as now"
    for name, step in STARTS.items():
        code += f"\nbegan = now(); {step}; print({name!r}, (now() - began) * 1000, sep='=')"
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(ROUNDS):
            done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
            for line in done.stdout.splitlines():
                name, _, took = line.partition("=")
                best[name] = min(best[name], float(took))
    return best


def main() -> int:
    """Print the table."""
    quick = "--quick" in sys.argv
    global ROUNDS
    if quick:
        ROUNDS = 6
    with tempfile.TemporaryDirectory() as name:
        print("CPU per call beyond the bare SDK; ratio to the floor (targets: metered <= 0.8, guard+ledger <= 1.3)")
        print(
            f"{'case':<26}{'bare us':>9}{'floor us':>10}",
            *(f"{v:>22}" for v in list(table("openai", Path(name)))[2:]),
            sep="",
        )
        for sdk in ("openai", "anthropic"):
            variants = table(sdk, Path(name))
            for asynchronous in (False, True):
                for stream in (False, True):
                    run = work(sdk, stream=stream, asynchronous=asynchronous)
                    took = measure(run, variants, CALLS if not stream else max(CALLS // 10, 3))
                    label = f"{sdk} {'async' if asynchronous else 'sync'}{' stream' if stream else ''}"
                    cells = "".join(f"{took[v]:>12.1f} ({took[v] / took['floor']:>4.2f} x)" for v in list(variants)[2:])
                    print(f"{label:<26}{took['bare']:>9.0f}{took['floor']:>10.1f}{cells}", flush=True)
                added = chunk(sdk, asynchronous=asynchronous)
                print(f"{'':<26}a chunk without usage adds {added:.2f} us (target 0.3)", flush=True)
                against_peers(sdk, asynchronous=asynchronous)
        base, ours = start().values()
        print(f"import and instrument() {ours:.0f} ms, {ours / base:.2f} x OpenTelemetry's SDK ({base:.0f} ms)")
        print(f"memory kept per call: {memory(2000 if quick else 6000):.1f} bytes (target 0)")
    guard.main()
    instructions.main()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
