"""The calls of `otel-tokens demo`: the real OpenAI and Anthropic SDKs against the loopback model server.

A team of agents plans a trip. They make every kind of call that is easy to miscount.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from otel_tokens.context import tags
from otel_tokens.demo import openai_wire
from otel_tokens.demo.model import Model
from otel_tokens.demo.wire import Reply, Request
from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets.budget import Budget
from otel_tokens.settings import HostRow

SESSION = "demo"
FAIL = "x-demo-fail"
"""Header of a request that must fail: the loopback server answers 429."""

_CHUNKS_READ = 8  # of a stream that is then abandoned
_QUESTION = "Plan three days in Lisbon for two people who like ceramics, grilled fish and slow trains."
# Prompts of 1,024 tokens and more are cached.
_HANDBOOK = "House rules. " + " ".join(
    f"Rule {number}: name prices in euros, prefer trains to taxis, and say so when you are not sure."
    for number in range(1, 61)
)
PATHS = {"openai": "/openai/v1", "anthropic": "/anthropic", "moonshot_ai": "/moonshot/v1"}
"""Provider → its path on the loopback server. The host table does not know them; `hosts:` rows name them."""


@dataclass(frozen=True, slots=True)
class Clients:
    """The clients of the SDKs. `moonshot` is OpenAI's SDK with the address of another provider."""

    openai: Any
    async_openai: Any
    anthropic: Any
    async_anthropic: Any
    moonshot: Any


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an agent: `words` describe it, `run` makes the calls. `run` may be a coroutine function."""

    words: str
    agent: str
    task: str
    run: Callable[[Clients], Awaitable[object] | object]


BUDGET_TASK = "souvenirs"
BUDGET_USD = "0.0085"
_MOST_CALLS = 40  # in case the guard does not stop the loop


class MissingSdkError(Exception):
    """The demo's SDKs are not installed."""


def respond(model: Model) -> Callable[[Request], Reply]:
    """The model. Requests with the header `FAIL` get 429, like from a provider under load."""

    def answer(request: Request) -> Reply:
        if FAIL in request.headers:
            return openai_wire.error(429, "Rate limit reached", "rate_limit_error")
        return model.respond(request)

    return answer


def hosts(port: int) -> tuple[HostRow, ...]:
    """The `hosts:` rows that name the providers at the loopback server."""
    return tuple(HostRow(f"127.0.0.1:{port}", provider, path) for provider, path in PATHS.items())


def make_clients(url: str) -> Clients:
    """Clients of the loopback server at `url`. Raises MissingSdkError."""
    try:
        import anthropic  # optional extras, only the demo needs them
        import openai
    except ImportError as error:
        raise MissingSdkError(str(error)) from None
    plain: dict[str, Any] = {"api_key": "demo", "max_retries": 0, "timeout": 20}
    at: dict[str, dict[str, Any]] = {name: {**plain, "base_url": url + path} for name, path in PATHS.items()}
    return Clients(
        openai=openai.OpenAI(**at["openai"]),
        async_openai=openai.AsyncOpenAI(**at["openai"]),
        anthropic=anthropic.Anthropic(**at["anthropic"]),
        async_anthropic=anthropic.AsyncAnthropic(**at["anthropic"]),
        moonshot=openai.AsyncOpenAI(**at["moonshot_ai"]),
    )


def run(clients: Clients, before: Callable[[Step], object], steps: tuple[Step, ...] | None = None) -> None:
    """Run the steps in order, each with the tags of its agent. `before` is called with each step."""
    with asyncio.Runner() as runner:
        for step in STEPS if steps is None else steps:
            before(step)
            with tags(session=SESSION, task=step.task, agent=step.agent):
                result = step.run(clients)
                if inspect.iscoroutine(result):
                    # Run in a copy of this context, which has the tags.
                    runner.run(result, context=contextvars.copy_context())
        if steps is None:  # connections of async clients belong to this loop
            runner.run(_close(clients))


async def _close(clients: Clients) -> None:
    for client in (clients.async_openai, clients.async_anthropic, clients.moonshot):
        await client.close()


def _user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def _plan(clients: Clients) -> None:
    clients.openai.chat.completions.create(model="gpt-5.4", messages=_user(_QUESTION))


def _reason(clients: Clients) -> None:
    clients.openai.responses.create(model="gpt-5.4", input=_QUESTION, reasoning={"effort": "high"})


def _embed(clients: Clients) -> None:
    places = ["Museu do Azulejo", "Mercado da Ribeira", "Linha de Cascais"]
    clients.openai.embeddings.create(model="text-embedding-3-small", input=places)


def _with_handbook(clients: Clients) -> None:
    handbook = [{"type": "text", "text": _HANDBOOK, "cache_control": {"type": "ephemeral"}}]
    clients.anthropic.messages.create(
        model="claude-sonnet-4-6", max_tokens=300, system=handbook, messages=_user(_QUESTION)
    )


async def _search(clients: Clients) -> None:
    async def one(day: int) -> None:
        question = _user(f"Day {day}: what is open, and where is lunch?")
        await clients.moonshot.chat.completions.create(model="kimi-k2.6", messages=question)

    await asyncio.gather(*(one(day) for day in (1, 2, 3)))


def _write(clients: Clients) -> None:
    stream = clients.openai.chat.completions.create(model="gpt-5.4-mini", messages=_user(_QUESTION), stream=True)
    for _ in stream:
        pass


async def _polish(clients: Clients) -> None:
    question = _user("Say it again, warmer.")
    async with clients.async_anthropic.messages.stream(
        model="claude-haiku-4-5", max_tokens=300, messages=question
    ) as stream:
        async for _ in stream.text_stream:
            pass


def _abandon(clients: Clients) -> None:
    stream = clients.anthropic.messages.create(
        model="claude-haiku-4-5", max_tokens=300, messages=_user("Check every sentence."), stream=True
    )
    for number, _ in enumerate(stream):
        if number == _CHUNKS_READ:
            break
    stream.close()


async def _unknown(clients: Clients) -> None:
    await clients.async_openai.chat.completions.create(model="acme-travel-1", messages=_user("Any strikes next week?"))


def _fail(clients: Clients) -> None:
    import openai  # late: optional

    with contextlib.suppress(openai.RateLimitError):
        clients.openai.chat.completions.create(model="gpt-5.4", messages=_user(_QUESTION), extra_headers={FAIL: "429"})


STEPS: tuple[Step, ...] = (
    Step("OpenAI chat", "planner", "plan", _plan),
    Step("OpenAI Responses, with reasoning", "planner", "plan", _reason),
    Step("OpenAI embeddings", "researcher", "search", _embed),
    Step("Anthropic, a long prompt written to the cache", "researcher", "search", _with_handbook),
    Step("Anthropic, the same prompt read from the cache", "researcher", "search", _with_handbook),
    Step("Moonshot through the OpenAI SDK, three calls at once", "researcher", "search", _search),
    Step("OpenAI stream that did not ask for usage", "writer", "write", _write),
    Step("Anthropic stream helper, async", "writer", "write", _polish),
    Step("Anthropic stream, abandoned half-way", "reviewer", "review", _abandon),
    Step("a model nobody has a price for", "reviewer", "review", _unknown),
    Step("a call that fails", "reviewer", "review", _fail),
)


def budget(notify: Callable[[Any], object]) -> Budget:
    """A small budget for one task, with actions at 70, 90 and 100 %. `notify` gets the events of the guard."""
    return Budget(
        "trip",
        usd=BUDGET_USD,
        match={"task": BUDGET_TASK},
        ladder=["claude-opus-4-8", "claude-haiku-4-5"],
        thresholds={70: notify, 90: [notify, "downgrade"], 100: notify},
    )


def _loop(clients: Clients) -> None:
    """An agent in a loop: it repeats a call until the guard refuses it."""
    for _ in range(_MOST_CALLS):
        clients.anthropic.messages.create(
            model="claude-opus-4-8", max_tokens=60, messages=_user("One more souvenir, please.")
        )


BUDGET_STEPS: tuple[Step, ...] = (
    Step(f"an agent in a loop, with {BUDGET_USD} USD to spend", "shopper", BUDGET_TASK, _loop),
)


def run_budget(clients: Clients, before: Callable[[Step], object]) -> BudgetExceededError | None:
    """Runs the loop with its budget. Returns the refusal that ended it."""
    try:
        run(clients, before, BUDGET_STEPS)
    except BudgetExceededError as error:
        return error
    return None
