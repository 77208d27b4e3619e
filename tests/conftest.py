"""Fixtures for all tests: the loopback model server, and the real SDKs that talk to it, sync and async alike."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Literal

import pytest

from otel_tokens.demo.server import ModelServer, Reply, Respond

MakeServer = Callable[..., ModelServer]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs `async def` tests, each in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command sets up logging for its process; run inside a test's, it must not silence the next test."""
    logger = logging.getLogger("otel_tokens")
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


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


class Sdk:
    """The SDKs of one kind, driven by the same test whether they are synchronous or not."""

    def __init__(self, kind: Literal["sync", "async"]) -> None:
        self.kind = kind

    def client(self, cls: str, **options: Any) -> contextlib.AbstractAsyncContextManager[Any]:
        """A client, closed at the end: `sdk.client("openai.AzureOpenAI", …)`; no retries unless asked for."""
        package, _, name = cls.partition(".")
        module = importlib.import_module(package)
        make = getattr(module, name if self.kind == "sync" else f"Async{name}")
        return self.opened(make(**{"max_retries": 0, "timeout": 10, **options}))

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    """In CI a skipped test is a failure: what a test needs is installed there (`.ci/run`)."""
    from os import environ

    report = yield
    if report.skipped and environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
