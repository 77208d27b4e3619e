"""Fixtures for all tests: the loopback model server, and the real SDKs that talk to it, sync and async alike."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import inspect
import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import hypothesis
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_tokens
from otel_tokens.demo.server import ModelServer, Reply, Respond
from otel_tokens.instrument import flush
from otel_tokens.ledger.query import rows
from otel_tokens.values import Record

MakeServer = Callable[..., ModelServer]

# How long an example takes says something about the machine, not about what is tested.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("unhurried")

# The tests start hundreds of processes. Without files of bytecode each would compile the SDKs anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A client of an SDK reads all certificates of the machine when it is made: 20 ms of CPU. Nothing here leaves the
# machine, so this process and its children look for certificates in a folder that has none.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)


def use_memory_for_files(place: str = "/dev/shm", wanted: int = 2 << 30) -> None:
    """Put temporary files into memory where there is room: most tests make a SQLite file and would wait for a disk."""
    with contextlib.suppress(OSError):
        if "TMPDIR" not in os.environ and shutil.disk_usage(place).free >= wanted and os.access(place, os.W_OK):
            os.environ["TMPDIR"] = tempfile.tempdir = place


def ignore_no_signal() -> None:
    """Give children the usual signals, also when the run was started with some ignored or blocked (`nohup`, CI).

    A child inherits an ignored signal and a blocked one, but not a handler. So what this process ignores it goes on
    ignoring, by a handler that does nothing.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # these two Python itself ignores
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


use_memory_for_files()
ignore_no_signal()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs `async def` tests, each in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


_modules_seen = 0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What imports have made stays: the garbage collector, which many tests run, need not look at it each time.

    The SDKs import most of themselves late, so this is done again when many modules have come.
    """
    global _modules_seen
    if len(sys.modules) > _modules_seen + 100:
        _modules_seen = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_sessionfinish() -> None:
    """What became garbage while frozen is collected now: at the interpreter's end it would go in no order."""
    gc.unfreeze()
    gc.collect()


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command sets up logging for its process; run inside a test's, it must not silence the next test."""
    logger = logging.getLogger("otel_tokens")
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def no_child_stays() -> Iterator[None]:
    """End the children of `multiprocessing` that a failed test left: the interpreter would wait for them."""
    yield
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


@pytest.fixture(scope="session")
def new_port() -> Callable[[], int]:
    """Finds a port for a server that is to be told one, or that is to stay silent.

    Outside of the range the kernel gives away by itself: from there the next server or connection of another test may
    be given the same before it is taken.
    """
    chance = random.SystemRandom()

    def find() -> int:
        while True:
            port = chance.randrange(12_000, 22_000)
            # The bus of a Redis cluster is 10,000 above.
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                for number in (port, port + 10_000):
                    stack.enter_context(socket.create_server(("127.0.0.1", number)))
                return port

    return find


@pytest.fixture
def free_port(new_port: Callable[[], int]) -> int:
    """A port that nobody listens on."""
    return new_port()


@pytest.fixture
def make_server() -> Iterator[Callable[[Respond | Reply | Sequence[Reply] | None], ModelServer]]:
    """A factory of running servers: `make_server(respond)`, closed at the end of the test.

    A fault of `respond` itself fails the test: otherwise it would only show as a 500 that the SDK retries.
    """
    with contextlib.ExitStack() as stack:
        servers: list[ModelServer] = []

        def make(respond: Respond | Reply | Sequence[Reply] | None = None) -> ModelServer:
            servers.append(stack.enter_context(ModelServer(respond)))
            return servers[-1]

        yield make
    for server in servers:
        assert server.errors == []


@pytest.fixture
def model_server(make_server: MakeServer) -> ModelServer:
    """A running server with the default, believable model."""
    return make_server()


HOSTS = (
    {"match": "127.0.0.1", "path": "/v1", "provider": "openai"},
    {"match": "127.0.0.1", "provider": "anthropic"},
)
"""The loopback server bills as OpenAI (below /v1) and Anthropic."""


@dataclass
class Meter:
    """What the calls of one test came to, by every way out."""

    ledger_path: Path
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)
    tracers: TracerProvider = field(default_factory=TracerProvider)
    seen: list[Record] = field(default_factory=list)
    meters: MeterProvider = field(init=False)

    def __post_init__(self) -> None:
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    def records(self, *, collect: bool = False) -> list[Record]:
        """All records so far, after everything queued is done (and garbage is collected, if asked)."""
        if collect:
            gc.collect()
        flush()
        return list(self.seen)

    def one(self, *, collect: bool = False) -> Record:
        """The only record."""
        found = self.records(collect=collect)
        assert len(found) == 1, [(r.call.model, r.outcome, r.usage) for r in found]
        return found[0]

    def spans(self) -> list[ReadableSpan]:
        """All finished spans."""
        return list(self.exporter.get_finished_spans())

    def ledger(self) -> list[Record]:
        """The ledger's rows as records."""
        flush()
        return list(rows(str(self.ledger_path)))

    def points(self, name: str) -> list[Any]:
        """The data points of a metric."""
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def total(self, name: str) -> float:
        """The sum of a counter over all its attributes."""
        return sum(point.value for point in self.points(name))

    def instrument(self, **settings: Any) -> None:
        """Meter this process, with every way out; other settings by name."""
        given: dict[str, Any] = {
            "tracer_provider": self.tracers,
            "meter_provider": self.meters,
            "hosts": HOSTS,
            "ledger": self.ledger_path,
            "on_record": self.seen.append,
        }
        otel_tokens.instrument(config=False, **{**given, **settings})


@pytest.fixture
def idle_meter(tmp_path: Path) -> Iterator[Meter]:
    """A meter that the test instruments itself, as it likes; taken off again afterwards."""
    held = Meter(tmp_path / "ledger.db")
    held.tracers.add_span_processor(SimpleSpanProcessor(held.exporter))
    try:
        yield held
    finally:
        otel_tokens.uninstrument()
        held.meters.shutdown()
        held.tracers.shutdown()


class Sdk:
    """The SDKs of one kind, driven by the same test whether they are synchronous or not."""

    def __init__(self, kind: Literal["sync", "async"]) -> None:
        self.kind = kind

    def client(self, cls: str, **options: Any) -> contextlib.AbstractAsyncContextManager[Any]:
        """A client, closed at the end: `sdk.client("openai.AzureOpenAI", …)`; no retries unless asked for."""
        package, _, name = cls.partition(".")
        module = importlib.import_module(package)
        make = getattr(module, name if self.kind == "sync" else f"Async{name}")
        return self.opened(make(**{"max_retries": 0, "timeout": 300, **options}))

    def openai(self, url: str, **options: Any) -> contextlib.AbstractAsyncContextManager[Any]:
        """`openai.OpenAI` at a server's url, under /v1."""
        return self.client("openai.OpenAI", **{"base_url": f"{url}/v1", "api_key": "test", **options})

    def anthropic(self, url: str, **options: Any) -> contextlib.AbstractAsyncContextManager[Any]:
        """`anthropic.Anthropic` at a server's url."""
        return self.client("anthropic.Anthropic", **{"base_url": url, "api_key": "test", **options})

    async def done(self, value: Any) -> Any:
        """The result of a call."""
        return await value if inspect.isawaitable(value) else value

    async def every(self, stream: Any) -> list[Any]:
        """All items of a stream, or of the stream that a call results in."""
        stream = await self.done(stream)
        return [item async for item in stream] if hasattr(stream, "__aiter__") else list(stream)

    async def next(self, stream: Any) -> Any:
        """The next item of a stream."""
        return await stream.__anext__() if self.kind == "async" else next(stream)

    @contextlib.asynccontextmanager
    async def opened(self, manager: Any) -> AsyncIterator[Any]:
        """Inside a context manager of either kind."""
        if hasattr(manager, "__aenter__"):
            async with manager as inner:
                yield inner
        else:
            with manager as inner:
                yield inner


@pytest.fixture(params=["sync", "async"])
def sdk(request: pytest.FixtureRequest) -> Sdk:
    """The SDKs, once synchronous and once asynchronous."""
    return Sdk(request.param)


def no_skip_in_ci(report: Any) -> Any:
    """In CI a skipped test, or module, is a failure: what a test needs is installed there (`.ci/run`)."""
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    """See `no_skip_in_ci`."""
    return no_skip_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Any:
    """See `no_skip_in_ci`."""
    return no_skip_in_ci((yield))
